//! `cartctl projections`.

use std::time::Instant;

use cart_events::DomainEvent;
use clap::Subcommand;
use event_store::{EventStore, Position};
use operations::{Build, Switch};
use serde_json::json;

use crate::{
    arguments::{Common, Confirmed},
    diff::diff,
    error::Error,
    follow::{Until, follow},
    output::{Output, span},
};

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Every build of every projection, the retired ones too
    List,
    /// Let a projection rest: nothing is applied, and an automation does nothing, until `resume`, also after a restart
    Pause {
        /// The projection, as `list` names it
        name: String,
    },
    /// Let it go on where it was
    Resume {
        /// The projection
        name: String,
    },
    /// Make a read model anew beside the one in service, which answers until the new one has come as far; shows how far it is until then.
    /// Where a retired build is kept, it takes its place
    Rebuild {
        /// The projection
        name: String,
        /// Do not put the new one into service by itself, but with `switch`; done when it has come as far
        #[arg(long)]
        hold: bool,
        /// Only begin it
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        confirmed: Confirmed,
    },
    /// Compare the build in service with the other one, row by row, at one position of the log; exit code 5 where they differ
    Diff {
        /// The projection
        name: String,
        /// So many rows that differ are shown of each table
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(i64).range(0..=10_000))]
        samples: i64,
    },
    /// Let the new build go into service, as soon as it has come as far as the one that is
    Switch {
        /// The projection
        name: String,
        /// The retired one instead, brought up to date first
        #[arg(long)]
        back: bool,
        /// Also with keys parked that the one in service has not
        #[arg(long)]
        force: bool,
    },
    /// Give up the build that is not in service, retired or unfinished: its rows are gone
    Drop {
        /// The projection
        name: String,
        #[command(flatten)]
        confirmed: Confirmed,
    },
}

pub(crate) async fn run(task: Task, common: &Common, output: &Output) -> Result<(), Error> {
    let log = common.log().await?;
    let (_, builds) = operations::builds(log.pool()).await?;
    match task {
        Task::List => output.list(&builds, "there are no projections yet: they come with the first start of the services", &HEADS, row),
        Task::Pause { name } => pause(&log, known(&builds, &name)?, true, output).await,
        Task::Resume { name } => pause(&log, known(&builds, &name)?, false, output).await,
        Task::Rebuild { name, hold, detach, confirmed } => {
            rebuild(&log, &builds, known(&builds, &name)?, hold, detach, &confirmed, output).await
        }
        Task::Diff { name, samples } => diff(&log, &builds, known(&builds, &name)?, samples, output).await,
        Task::Switch { name, back, force } => switch(&log, &builds, known(&builds, &name)?, back, force, output).await,
        Task::Drop { name, confirmed } => drop_build(&log, &builds, known(&builds, &name)?, &confirmed, output).await,
    }
}

async fn pause(log: &EventStore<DomainEvent>, serving: &Build, paused: bool, output: &Output) -> Result<(), Error> {
    let name = serving.name.as_str();
    let changed = operations::pause(log.pool(), name, paused).await?;
    if output.json {
        return output.document(&json!({ "name": name, "paused": paused, "changed": changed }));
    }
    output.text(&match (paused, changed) {
        (true, true) => format!("{name} rests as soon as its replicas have seen it, within a second or so; what is in hand is finished"),
        (true, false) => format!("{name} is paused already; `cartctl projections resume {name}` lets it go on"),
        (false, true) => format!("{name} goes on; `cartctl status --watch` shows how far it is"),
        (false, false) => format!("{name} was not paused"),
    })
}

async fn rebuild(
    log: &EventStore<DomainEvent>,
    builds: &[Build],
    serving: &Build,
    hold: bool,
    detach: bool,
    confirmed: &Confirmed,
    output: &Output,
) -> Result<(), Error> {
    let name = serving.name.as_str();
    if serving.is_automation() {
        return Err(Error::Refused(format!("{name} is an automation: made anew, it would do again what it did")));
    }
    if serving.paused {
        return Err(Error::Refused(format!(
            "{name} is paused, and what is made anew would be too: `cartctl projections resume {name}` first"
        )));
    }
    let alive = operations::replicas(log.pool()).await?;
    let other = builds.iter().find(|build| build.name == name && build.status != "serving");
    let under_way = other.filter(|other| {
        let newer = other.version > serving.version && alive.iter().any(|one| one.name == name && one.version == other.version);
        other.status == "building" && (other.version == serving.version || newer)
    });
    if under_way.is_none() {
        if let Some(other) = other {
            confirmed.ask(output, &format!("The {} is emptied for the new one: there is no way back to it.", described(other)))?;
        }
        operations::rebuild_named(log.pool(), name, if hold { Switch::WhenAsked } else { Switch::WhenReady }).await?;
    }
    // What is under way goes into service as it was begun.
    let held = under_way.map_or(hold, |build| !build.switch_when_ready);
    let then = if held {
        format!("`cartctl projections switch {name}` lets it go into service")
    } else {
        "it goes into service by itself".to_owned()
    };
    if under_way.is_some() {
        output.note(&format!("{name} is being made anew already; {then}"));
    }
    let started = under_way.is_none();
    if detach {
        say_if_nobody_works(log, name, output).await?;
        if output.json {
            return output.document(&json!({ "name": name, "started": started }));
        }
        return output.text(&format!("{name} is made anew; {then}; `cartctl status --watch` shows how far it is"));
    }
    let began = Instant::now();
    let other = if serving.build == "projection_a" { "projection_b" } else { "projection_a" };
    let made = follow(log, name, other, if held { Until::CaughtUp } else { Until::Serving }, output).await?;
    let in_service = made.status == "serving";
    let seconds = began.elapsed().as_secs_f64();
    if output.json {
        return output.document(
            &json!({ "name": name, "started": started, "build": made.build, "in_service": in_service, "position": made.position, "seconds": seconds }),
        );
    }
    let took = span(seconds);
    output.text(&if in_service {
        format!("{name} was made anew in {took}, and is in service; `cartctl projections drop {name}` gives up the old one, which is kept")
    } else {
        format!(
            "{name} was made anew in {took}, and has come as far as the one in service; `cartctl projections diff {name}` compares them, and {then}"
        )
    })
}

async fn switch(
    log: &EventStore<DomainEvent>,
    builds: &[Build],
    serving: &Build,
    back: bool,
    force: bool,
    output: &Output,
) -> Result<(), Error> {
    let name = serving.name.as_str();
    if back {
        revive(log, builds, name).await?;
    }
    let made = if force {
        operations::switch_with_parked(log.pool(), name).await?
    } else {
        operations::switch_when_ready(log.pool(), name).await?
    };
    if !made {
        return Err(Error::Nothing(format!("nothing of {name} is being made; `cartctl projections rebuild {name}` begins it")));
    }
    if serving.paused {
        output.note(&format!("{name} is paused, and so is the switch: `cartctl projections resume {name}` lets it go on"));
    }
    if !force && builds.iter().any(|build| build.name == name && build.status != "serving" && build.parked > 0) {
        output.note(
            "keys are parked in that build: it does not go into service with any that the one in service has not, unless --force says so",
        );
    }
    say_if_nobody_works(log, name, output).await?;
    if output.json {
        return output.document(&json!({ "name": name, "switch_when_ready": true }));
    }
    let which = if back { "retired" } else { "new" };
    output.text(&format!("the {which} build of {name} goes into service as soon as it has come as far; `cartctl status --watch` shows it"))
}

/// Takes the retired build into hand again, where there are processes that can bring it up to date.
async fn revive(log: &EventStore<DomainEvent>, builds: &[Build], name: &str) -> Result<(), Error> {
    let none = || Error::Nothing(format!("{name} has no retired build to go back to; `cartctl projections list` shows what there is"));
    let other = builds.iter().find(|build| build.name == name && build.status != "serving").ok_or_else(none)?;
    if other.status != "retired" {
        return Err(Error::Refused(format!(
            "a new build of {name} is being made where the retired one was; `cartctl projections switch {name}` puts that into service"
        )));
    }
    if !operations::replicas(log.pool()).await?.iter().any(|replica| replica.name == name && replica.version == other.version) {
        return Err(Error::Refused(format!(
            "the retired build of {name} is of version {}, which no process that is alive runs: start the release that does, to go back to it",
            other.version
        )));
    }
    if operations::revive(log.pool(), name, Switch::WhenReady).await? { Ok(()) } else { Err(none()) }
}

/// A build that is not in service.
fn described(Build { name, build, version, status, .. }: &Build) -> String {
    if status == "retired" {
        format!("retired build of {name} ({build}, version {version})")
    } else {
        format!("build of {name} that is being made ({build}, version {version})")
    }
}

async fn drop_build(
    log: &EventStore<DomainEvent>,
    builds: &[Build],
    serving: &Build,
    confirmed: &Confirmed,
    output: &Output,
) -> Result<(), Error> {
    let name = serving.name.as_str();
    let Some(other) = builds.iter().find(|build| build.name == name && build.status != "serving") else {
        return Err(Error::Nothing(format!("{name} has one build only, which is in service and stays")));
    };
    let Build { build, version, status, .. } = other;
    let what = if status == "retired" {
        format!("the {} is emptied: there is no way back to it.", described(other))
    } else {
        format!("the {} is given up, with what is done of it.", described(other))
    };
    confirmed.ask(output, &what)?;
    if !operations::drop_build(log.pool(), name, build).await? {
        return Err(Error::Refused(format!("{build} of {name} is no longer what it was; `cartctl projections list` shows what there is")));
    }
    if *version > serving.version {
        output.note(&format!("a process of version {version} makes {name} anew when one is next started"));
    }
    if output.json {
        return output.document(&json!({ "name": name, "dropped": build, "version": version, "status": status }));
    }
    output.text(&format!("{build} of {name} is dropped; {} is in service as before", serving.build))
}

/// The build in service.
fn known<'a>(builds: &'a [Build], name: &str) -> Result<&'a Build, Error> {
    builds.iter().find(|build| build.name == name && build.status == "serving").ok_or_else(|| {
        let names: Vec<_> = builds.iter().filter(|build| build.status == "serving").map(|build| build.name.as_str()).collect();
        let there = if names.is_empty() {
            "there are none yet: they come with the first start of the services".to_owned()
        } else {
            format!("there are {}", names.join(", "))
        };
        Error::Nothing(format!("there is no projection {name}; {there}"))
    })
}

pub(crate) async fn say_if_nobody_works(log: &EventStore<DomainEvent>, name: &str, output: &Output) -> Result<(), Error> {
    if !operations::replicas(log.pool()).await?.iter().any(|replica| replica.name == name) {
        output.note(&format!("no process runs {name} at this moment, so nothing is done until one does: start the service"));
    }
    Ok(())
}

pub(crate) const HEADS: [&str; 11] =
    ["projection", "version", "build", "status", "position", "lag", "behind", "events/s", "batch", "parked", "segments held"];

pub(crate) fn row(build: &Build) -> Vec<String> {
    let mut status = build.status.clone();
    if status == "building" {
        // The segment furthest behind has all that lag before it, up to the head.
        let head = Position(build.position.0 + build.lag_events);
        status = format!("building, {:.0} %", (build.progress(head) * 100.0).floor());
        if !build.switch_when_ready {
            status += ", held";
        }
    }
    if build.paused {
        status += ", paused";
    }
    vec![
        build.name.clone(),
        build.version.to_string(),
        build.build.clone(),
        status,
        build.position.to_string(),
        build.lag_events.to_string(),
        span(build.lag_seconds),
        format!("{:.0}", build.events_per_second),
        format!("{:.0}", build.batch),
        parked(build),
        holders(build),
    ]
}

/// How many keys are parked, and how many segments stand.
fn parked(build: &Build) -> String {
    match build.segments.iter().filter(|segment| segment.stopped).count() {
        0 => build.parked.to_string(),
        standing => format!("{}, {standing} of {} segments stand", build.parked, build.segments.len()),
    }
}

/// Who holds how many, by the end of the replica's id, which differs most: `8 of 8: 5 by …3f2a, 3 by …77b1`.
fn holders(build: &Build) -> String {
    let mut holders: Vec<(String, usize)> = vec![];
    for replica in build.segments.iter().filter_map(|segment| segment.replica) {
        let id = replica.simple().to_string();
        let short = id.get(id.len() - 6..).unwrap_or_default().to_owned();
        match holders.iter_mut().find(|(known, _)| *known == short) {
            Some((_, count)) => *count += 1,
            None => holders.push((short, 1)),
        }
    }
    let held: usize = holders.iter().map(|(_, count)| count).sum();
    let by: Vec<_> = holders.iter().map(|(id, count)| format!("{count} by …{id}")).collect();
    let all = format!("{held} of {}", build.segments.len());
    if by.is_empty() { all } else { format!("{all}: {}", by.join(", ")) }
}
