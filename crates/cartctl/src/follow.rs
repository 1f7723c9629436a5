//! Shows the progress of a rebuild: a bar on a terminal, otherwise a line now and then.

use std::time::{Duration, Instant};

use cart_events::DomainEvent;
use event_store::{EventStore, Position};
use indicatif::{ProgressBar, ProgressStyle};
use operations::Build;

use crate::{
    error::Error,
    output::{Output, span},
};

/// The pause between two polls.
const POLL: Duration = Duration::from_millis(250);
/// The pause between two lines if there is no terminal.
const REPORT: Duration = Duration::from_secs(5);
/// A build without progress for this long gets a warning.
const STUCK: Duration = Duration::from_secs(10);

/// When following ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// The build serves.
    Serving,
    /// The build has caught up with the serving one.
    CaughtUp,
    /// The build has reached the head that the log had at the previous poll.
    AtHead,
}

/// Follows a build. Ctrl-C ends the following; the rebuild continues.
pub(crate) async fn follow(log: &EventStore<DomainEvent>, name: &str, build: &str, until: Until, output: &Output) -> Result<Build, Error> {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{prefix} {bar:40} {percent} %  {msg}").map_err(std::io::Error::other)?;
    bar.set_style(style);
    bar.set_prefix(name.to_owned());
    let followed = tokio::select! {
        followed = poll(log, name, build, until, &bar, output) => followed,
        _ = tokio::signal::ctrl_c() => {
            let watch = format!("{name} continues without this command. Watch it with `cartctl status --watch`");
            // An automation has no build beside the serving one.
            let or = if until == Until::AtHead { String::new() } else { format!(", or drop the new build with `cartctl projections drop {name}`") };
            Err(Error::Interrupted(watch + &or))
        }
    };
    bar.finish_and_clear();
    followed
}

async fn poll(
    log: &EventStore<DomainEvent>,
    name: &str,
    build: &str,
    until: Until,
    bar: &ProgressBar,
    output: &Output,
) -> Result<Build, Error> {
    let mut estimator = Estimator::default();
    let (mut reported, mut moved, mut furthest): (Option<Instant>, _, _) = (None, Instant::now(), f64::MIN);
    let mut warned = Warned::default();
    let mut goal: Option<Position> = None;
    loop {
        match operations::builds(log.pool()).await {
            Ok((head, builds)) => {
                let of = |wanted: &dyn Fn(&Build) -> bool| builds.iter().find(|one| one.name == name && wanted(one));
                let Some(followed) = of(&|one| one.build == build) else {
                    return Err(Error::Refused(format!(
                        "The build of {name} was dropped meanwhile. Start again with `cartctl projections rebuild {name}`"
                    )));
                };
                if until != Until::AtHead && followed.status == "serving" {
                    return Ok(followed.clone());
                }
                // Both builds and the log keep moving, so compare with where the other was at the previous poll.
                if until != Until::Serving && goal.is_some_and(|at| followed.position >= at) {
                    return Ok(followed.clone());
                }
                goal = match until {
                    Until::AtHead => Some(head),
                    _ => of(&|one| one.status == "serving").map(|serving| serving.position),
                };

                let progress = followed.progress(head);
                let estimate = estimator.estimate(progress, head);
                bar.set_length(head.0.unsigned_abs());
                bar.set_position(applied(progress, head));
                bar.set_message(estimate.clone());
                if bar.is_hidden() && reported.is_none_or(|at| at.elapsed() >= REPORT) {
                    reported = Some(Instant::now());
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
                    warned.once(bar, output, &format!("{name} is paused. Resume it with `cartctl projections resume {name}`"));
                } else if first || moved.elapsed() >= STUCK {
                    if nobody().await? {
                        let text = format!("No running process has version {version} of {name}. Start the service to continue the rebuild");
                        warned.once(bar, output, &text);
                    } else if moved.elapsed() >= STUCK && progress < 1.0 {
                        let text = format!(
                            "{name} has made no progress for {}. See the logs of the service that runs it",
                            span(moved.elapsed().as_secs_f64())
                        );
                        warned.once(bar, output, &text);
                    }
                }
            }
            // The database may be back at the next poll.
            Err(error) if error.is_unavailable() => warned.once(bar, output, &Error::Store(error).in_one_line()),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The warnings that were printed.
#[derive(Default)]
struct Warned(Vec<String>);

impl Warned {
    fn once(&mut self, bar: &ProgressBar, output: &Output, text: &str) {
        // The same warning with another duration is not new.
        let words = text.split(" for ").next().unwrap_or(text);
        if !self.0.iter().any(|said| said == words) {
            self.0.push(words.to_owned());
            bar.suspend(|| output.note(text));
        }
    }
}

/// Estimates the remaining time from the speed since the first poll.
#[derive(Default)]
struct Estimator {
    first: Option<(Instant, u64)>,
}

impl Estimator {
    fn estimate(&mut self, progress: f64, head: Position) -> String {
        let applied = applied(progress, head);
        let (since, from) = *self.first.get_or_insert((Instant::now(), applied));
        estimate(applied, head, applied.saturating_sub(from), since.elapsed())
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of the log, shown")]
fn applied(progress: f64, head: Position) -> u64 {
    (progress * head.0 as f64) as u64
}

/// Formats progress, speed and remaining time.
fn estimate(applied: u64, head: Position, since: u64, elapsed: Duration) -> String {
    let far = format!("{applied} of {head} events");
    let seconds = elapsed.as_secs_f64();
    if since == 0 || seconds < 0.1 {
        return far;
    }
    let rate = since as f64 / seconds;
    let left = head.0.unsigned_abs().saturating_sub(applied) as f64 / rate;
    format!("{far}, {rate:.0} events/s, about {} left", span(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimate_divides_the_rest_by_the_speed() {
        let of = |applied, since, seconds| estimate(applied, Position(1_000_000), since, Duration::from_secs(seconds));
        assert_eq!(of(0, 0, 0), "0 of 1000000 events");
        assert_eq!(of(400_000, 0, 5), "400000 of 1000000 events");
        assert_eq!(of(400_000, 100_000, 2), "400000 of 1000000 events, 50000 events/s, about 12 s left");
    }
}
