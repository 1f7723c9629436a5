//! Following a build on its way to the head of the log, with a bar where there is a terminal, and a line now and then where there is none.

use std::time::{Duration, Instant};

use cart_events::DomainEvent;
use event_store::{EventStore, Position};
use indicatif::{ProgressBar, ProgressStyle};
use operations::Build;

use crate::{
    error::Error,
    output::{Output, span},
};

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(250);
/// How often that is said where there is no terminal.
const SAY: Duration = Duration::from_secs(5);
/// A build that has not come further for so long is in trouble.
const STUCK: Duration = Duration::from_secs(10);

/// Up to where a build is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// It is in service.
    InService,
    /// It has come as far as the one in service.
    AsFar,
}

/// Follows a build of a projection until it is there. Ctrl-C ends that, and nothing else.
pub(crate) async fn follow(log: &EventStore<DomainEvent>, name: &str, build: &str, until: Until, output: &Output) -> Result<Build, Error> {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{prefix} {bar:40} {percent} %  {msg}").map_err(std::io::Error::other)?;
    bar.set_style(style);
    bar.set_prefix(name.to_owned());
    let followed = tokio::select! {
        there = until_there(log, name, build, until, &bar, output) => there,
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted(format!(
            "the build of {name} goes on without this command; `cartctl status --watch` shows how far it is, \
             `cartctl projections drop {name}` gives it up"
        ))),
    };
    bar.finish_and_clear();
    followed
}

async fn until_there(
    log: &EventStore<DomainEvent>,
    name: &str,
    build: &str,
    until: Until,
    bar: &ProgressBar,
    output: &Output,
) -> Result<Build, Error> {
    let mut pace = Pace::default();
    let (mut said, mut moved, mut furthest): (Option<Instant>, _, _) = (None, Instant::now(), f64::MIN);
    let mut warned = Warned::default();
    let mut serving_at = None;
    loop {
        match operations::builds(log.pool()).await {
            Ok((head, builds)) => {
                let of = |wanted: &dyn Fn(&Build) -> bool| builds.iter().find(|one| one.name == name && wanted(one));
                let Some(followed) = of(&|one| one.build == build) else {
                    return Err(Error::Refused(format!(
                        "the build of {name} was dropped meanwhile; `cartctl projections rebuild {name}` begins it anew"
                    )));
                };
                if followed.status == "serving" {
                    return Ok(followed.clone());
                }
                // As far as the one in service was when it was last looked: both go on all the time.
                if until == Until::AsFar && serving_at.is_some_and(|at| followed.position >= at) {
                    return Ok(followed.clone());
                }
                serving_at = of(&|one| one.status == "serving").map(|serving| serving.position);

                let progress = followed.progress(head);
                let estimate = pace.at(progress, head);
                bar.set_length(head.0.unsigned_abs());
                bar.set_position(applied(progress, head));
                bar.set_message(estimate.clone());
                if bar.is_hidden() && said.is_none_or(|said| said.elapsed() >= SAY) {
                    said = Some(Instant::now());
                    output.note(&format!("{name}: {:.0} %, {estimate}", (progress * 100.0).floor()));
                }
                let first = furthest == f64::MIN;
                if progress > furthest {
                    (furthest, moved) = (progress, Instant::now());
                }
                let version = followed.version;
                let nobody = async || -> Result<bool, Error> {
                    let alive = operations::replicas(log.pool()).await?;
                    Ok(!alive.iter().any(|replica| replica.name == name && replica.version == version))
                };
                if followed.paused {
                    warned.once(bar, output, &format!("{name} is paused: `cartctl projections resume {name}` lets it go on"));
                } else if first || moved.elapsed() >= STUCK {
                    if nobody().await? {
                        let text = format!(
                            "no process that is alive runs version {version} of {name}, so nothing is done until one does: start the service"
                        );
                        warned.once(bar, output, &text);
                    } else if moved.elapsed() >= STUCK && progress < 1.0 {
                        let text = format!(
                            "{name} has not come further for {}: the logs of the service that runs it say why",
                            span(moved.elapsed().as_secs_f64())
                        );
                        warned.once(bar, output, &text);
                    }
                }
            }
            // It may be there again the next time.
            Err(error) if error.is_unavailable() => warned.once(bar, output, &Error::Store(error).in_one_line()),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What was said already.
#[derive(Default)]
struct Warned(Vec<String>);

impl Warned {
    fn once(&mut self, bar: &ProgressBar, output: &Output, text: &str) {
        // A span of time in it makes it no other.
        let words = text.split(" for ").next().unwrap_or(text);
        if !self.0.iter().any(|said| said == words) {
            self.0.push(words.to_owned());
            bar.suspend(|| output.note(text));
        }
    }
}

/// How fast it goes, since the first look.
#[derive(Default)]
struct Pace {
    first: Option<(Instant, u64)>,
}

impl Pace {
    fn at(&mut self, progress: f64, head: Position) -> String {
        let applied = applied(progress, head);
        let (since, from) = *self.first.get_or_insert((Instant::now(), applied));
        estimate(applied, head, applied.saturating_sub(from), since.elapsed())
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of the log, shown")]
fn applied(progress: f64, head: Position) -> u64 {
    (progress * head.0 as f64) as u64
}

/// How far, how fast, and how long it will take.
fn estimate(applied: u64, head: Position, since: u64, elapsed: Duration) -> String {
    let far = format!("{applied} of {head} events");
    let seconds = elapsed.as_secs_f64();
    if since == 0 || seconds < 0.1 {
        return far;
    }
    let rate = since as f64 / seconds;
    let left = head.0.unsigned_abs().saturating_sub(applied) as f64 / rate;
    format!("{far}, {rate:.0} a second, about {} left", span(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_what_is_left_at_the_pace_so_far() {
        let of = |applied, since, seconds| estimate(applied, Position(1_000_000), since, Duration::from_secs(seconds));
        assert_eq!(of(0, 0, 0), "0 of 1000000 events");
        assert_eq!(of(400_000, 0, 5), "400000 of 1000000 events");
        assert_eq!(of(400_000, 100_000, 2), "400000 of 1000000 events, 50000 a second, about 12 s left");
    }
}
