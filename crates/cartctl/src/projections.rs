//! `cartctl projections`.

use std::time::Instant;

use cart_events::DomainEvent;
use clap::Subcommand;
use event_store::{EventStore, Position};
use operations::{Build, NoWayBack, Switch};
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
    /// List every build of every projection, also retired ones
    List,
    /// Pause a projection until `resume`: it applies nothing, and an automation runs no command
    Pause {
        /// The projection, as `list` shows it
        name: String,
    },
    /// Resume a paused projection
    Resume {
        /// The projection
        name: String,
    },
    /// Rebuild a read model beside the serving build, or an automation in place, and show the progress
    ///
    /// The new build of a read model replaces a retired one. An automation is rebuilt if its state or its to-dos are wrong, for instance after
    /// a restore: its state is made again from the log, and its to-dos are enqueued and attempted again. What the log says was done is not
    /// done again. Failed to-dos stay failed.
    Rebuild {
        /// The projection
        name: String,
        /// Do not switch to the new build when it has caught up, but wait for `switch`
        #[arg(long)]
        hold: bool,
        /// Start the rebuild without waiting for it
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        confirmed: Confirmed,
    },
    /// Compare the serving build with the other one, row by row, at one position of the log. Exit code 5 if they differ
    Diff {
        /// The projection
        name: String,
        /// The number of differing rows to show per table
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(i64).range(0..=10_000))]
        samples: i64,
    },
    /// Switch to the new build as soon as it has caught up, and wait for that
    Switch {
        /// The projection
        name: String,
        /// Do not wait for the switch
        #[arg(long)]
        detach: bool,
        /// Switch back to the retired build
        #[arg(long)]
        back: bool,
        /// Switch even if the build has parked keys that the serving one does not have
        #[arg(long)]
        force: bool,
    },
    /// Drop the build that does not serve, with its rows
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
        Task::List => output.list(&builds, "There are no projections yet. The services register them at their first start", &HEADS, row),
        Task::Pause { name } => pause(&log, known(&builds, &name)?, true, output).await,
        Task::Resume { name } => pause(&log, known(&builds, &name)?, false, output).await,
        Task::Rebuild { name, hold, detach, confirmed } => {
            rebuild(&log, &builds, known(&builds, &name)?, hold, detach, &confirmed, output).await
        }
        Task::Diff { name, samples } => diff(&log, &builds, known(&builds, &name)?, samples, output).await,
        Task::Switch { name, detach, back, force } => switch(&log, &builds, known(&builds, &name)?, detach, back, force, output).await,
        Task::Drop { name, confirmed } => drop_build(&log, &builds, known(&builds, &name)?, &confirmed, output).await,
    }
}

async fn pause(log: &EventStore<DomainEvent>, serving: &Build, paused: bool, output: &Output) -> Result<(), Error> {
    let name = serving.name.as_str();
    let changed = operations::pause(log.pool(), name, paused).await?;
    if output.json {
        return output.document(&json!({ "name": name, "paused": paused, "changed": changed }));
    }
    output.line(&match (paused, changed) {
        (true, true) => format!("{name} is paused. Its replicas stop after the batch in progress, within about a second"),
        (true, false) => format!("{name} is already paused. Resume it with `cartctl projections resume {name}`"),
        (false, true) => format!("{name} is resumed. Watch it with `cartctl status --watch`"),
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
        return rebuild_automation(log, serving, hold, detach, confirmed, output).await;
    }
    if serving.paused {
        return Err(Error::Refused(format!(
            "{name} is paused, so the new build would be paused too. First run `cartctl projections resume {name}`"
        )));
    }
    let alive = operations::replicas(log.pool()).await?;
    let other = builds.iter().find(|build| build.name == name && build.status != "serving");
    let running = operations::running_rebuild(builds, serving, &alive);
    if running.is_none() {
        if let Some(other) = other {
            confirmed.ask(output, &format!("The rebuild empties the {}. You cannot switch back to it.", described(other)))?;
        }
        operations::rebuild_named(log.pool(), name, if hold { Switch::WhenAsked } else { Switch::WhenReady }).await?;
    }
    // A running rebuild keeps the option it was started with.
    let held = running.map_or(hold, |build| !build.switch_when_ready);
    let then =
        if held { format!("Switch to it with `cartctl projections switch {name}`") } else { "It serves when it has caught up".to_owned() };
    if running.is_some() {
        output.note(&format!("A rebuild of {name} runs already. {then}"));
    }
    let started = running.is_none();
    if detach {
        note_if_nobody_runs(log, name, output).await?;
        if output.json {
            return output.document(&json!({ "name": name, "started": started }));
        }
        return output.line(&format!("Started the rebuild of {name}. {then}. Watch it with `cartctl status --watch`"));
    }
    let began = Instant::now();
    let new = follow(log, name, other_build(serving), if held { Until::CaughtUp } else { Until::Serving }, output).await?;
    let in_service = new.status == "serving";
    let seconds = began.elapsed().as_secs_f64();
    if output.json {
        return output.document(
            &json!({ "name": name, "started": started, "build": new.build, "in_service": in_service, "position": new.position, "seconds": seconds }),
        );
    }
    let took = span(seconds);
    output.line(&if in_service {
        format!("Rebuilt {name} in {took}; the new build serves. Drop the old one with `cartctl projections drop {name}`")
    } else {
        format!("Rebuilt {name} in {took}; the new build has caught up. Compare it with `cartctl projections diff {name}`. {then}")
    })
}

async fn rebuild_automation(
    log: &EventStore<DomainEvent>,
    serving: &Build,
    hold: bool,
    detach: bool,
    confirmed: &Confirmed,
    output: &Output,
) -> Result<(), Error> {
    let name = serving.name.as_str();
    if hold {
        return Err(Error::Usage(format!(
            "{name} is an automation, which has one build. There is nothing to switch to, so --hold has no meaning"
        )));
    }
    confirmed.ask(output, &format!("The rebuild pauses {name}, and empties its state and its to-dos, except failed ones."))?;
    let interrupted = || Error::Interrupted(format!("{name} may be paused. Run the rebuild again, or `cartctl projections resume {name}`"));
    tokio::select! {
        rebuilt = operations::rebuild_automation(log.pool(), name) => rebuilt?,
        _ = tokio::signal::ctrl_c() => return Err(interrupted()),
    }
    if serving.paused {
        output.note(&format!("{name} is paused, so it does not begin yet. Resume it with `cartctl projections resume {name}`"));
    }
    let began = Instant::now();
    if detach || serving.paused {
        note_if_nobody_runs(log, name, output).await?;
        if output.json {
            return output.document(&json!({ "name": name, "started": true }));
        }
        return output.line(&format!("Started the rebuild of {name}. Watch it with `cartctl status --watch`"));
    }
    let rebuilt = follow(log, name, &serving.build, Until::AtHead, output).await?;
    let seconds = began.elapsed().as_secs_f64();
    if output.json {
        let Build { build, position, .. } = rebuilt;
        return output.document(&json!({ "name": name, "started": true, "build": build, "position": position, "seconds": seconds }));
    }
    output.line(&format!("Rebuilt {name} in {}. Its to-dos are attempted again; see them with `cartctl todos list`", span(seconds)))
}

async fn switch(
    log: &EventStore<DomainEvent>,
    builds: &[Build],
    serving: &Build,
    detach: bool,
    back: bool,
    force: bool,
    output: &Output,
) -> Result<(), Error> {
    let name = serving.name.as_str();
    if back {
        revive(log, builds, name).await?;
    }
    let is_building = if force {
        operations::switch_with_parked(log.pool(), name).await?
    } else {
        operations::switch_when_ready(log.pool(), name).await?
    };
    if !is_building {
        return Err(Error::Nothing(format!("{name} has no new build. Start one with `cartctl projections rebuild {name}`")));
    }
    if serving.paused {
        output.note(&format!("{name} is paused, so it does not switch yet. Resume it with `cartctl projections resume {name}`"));
    }
    let may_be_held_back = !force && builds.iter().any(|build| build.name == name && build.status != "serving" && build.parked > 0);
    if may_be_held_back {
        output.note("The build has parked keys. It does not switch if the serving build does not have them; --force accepts that");
    }
    let which = if back { "retired" } else { "new" };
    if detach || may_be_held_back {
        note_if_nobody_runs(log, name, output).await?;
        if output.json {
            return output.document(&json!({ "name": name, "in_service": false }));
        }
        return output
            .line(&format!("{name} switches to the {which} build as soon as that has caught up. Watch it with `cartctl status --watch`"));
    }
    let new = follow(log, name, other_build(serving), Until::Serving, output).await?;
    if output.json {
        return output.document(&json!({ "name": name, "in_service": true, "build": new.build, "position": new.position }));
    }
    output.line(&format!("{name} has switched to the {which} build. Drop the other one with `cartctl projections drop {name}`"))
}

/// Revives the retired build, if a running process has its version.
async fn revive(log: &EventStore<DomainEvent>, builds: &[Build], name: &str) -> Result<(), Error> {
    let refused = |reason: NoWayBack| match reason {
        NoWayBack::NoBuild(_) => Error::Nothing(format!("{reason}. See `cartctl projections list`")),
        NoWayBack::Replaced(_) => Error::Refused(format!("{reason}. Switch to the new one with `cartctl projections switch {name}`")),
        NoWayBack::NoReplica(..) => Error::Refused(format!("{reason}. Start the release that has it")),
        NoWayBack::Ahead(_) => Error::Refused(format!("{reason}. Start a new one with `cartctl projections rebuild {name}`")),
    };
    operations::way_back(builds, &operations::replicas(log.pool()).await?, name).map_err(refused)?;
    let is_revived = operations::revive(log.pool(), name, Switch::WhenReady).await?;
    if is_revived { Ok(()) } else { Err(refused(NoWayBack::NoBuild(name.to_owned()))) }
}

/// Returns the name of a read model's build beside the serving one.
fn other_build(serving: &Build) -> &'static str {
    if serving.build == "projection_a" { "projection_b" } else { "projection_a" }
}

/// Describes a build that does not serve.
fn described(Build { name, build, version, status, .. }: &Build) -> String {
    if status == "retired" {
        format!("retired build of {name} ({build}, version {version})")
    } else {
        format!("unfinished build of {name} ({build}, version {version})")
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
        return Err(Error::Nothing(format!("{name} has only one build, which serves and stays")));
    };
    let Build { build, version, status, .. } = other;
    let what = if status == "retired" {
        format!("This empties the {}. You cannot switch back to it.", described(other))
    } else {
        format!("This drops the {}.", described(other))
    };
    confirmed.ask(output, &what)?;
    if !operations::drop_build(log.pool(), name, build).await? {
        return Err(Error::Refused(format!("{build} of {name} has changed meanwhile. See `cartctl projections list`")));
    }
    if *version > serving.version {
        output.note(&format!("The next process that starts with version {version} rebuilds {name} again"));
    }
    if output.json {
        return output.document(&json!({ "name": name, "dropped": build, "version": version, "status": status }));
    }
    output.line(&format!("Dropped {build} of {name}. {} serves as before", serving.build))
}

/// Finds the serving build.
fn known<'a>(builds: &'a [Build], name: &str) -> Result<&'a Build, Error> {
    builds.iter().find(|build| build.name == name && build.status == "serving").ok_or_else(|| {
        let names: Vec<_> = builds.iter().filter(|build| build.status == "serving").map(|build| build.name.as_str()).collect();
        let there = if names.is_empty() {
            "There are none yet; the services register them at their first start".to_owned()
        } else {
            format!("There are {}", names.join(", "))
        };
        Error::Nothing(format!("There is no projection {name}. {there}"))
    })
}

/// Notes that no replica of a projection is alive, if so.
pub(crate) async fn note_if_nobody_runs(log: &EventStore<DomainEvent>, name: &str, output: &Output) -> Result<(), Error> {
    if !operations::replicas(log.pool()).await?.iter().any(|replica| replica.name == name) {
        output.note(&format!("No process runs {name} at the moment. Start the service"));
    }
    Ok(())
}

pub(crate) const HEADS: [&str; 11] =
    ["projection", "version", "build", "status", "position", "lag", "age", "events/s", "batch", "parked", "segments owned"];

pub(crate) fn row(build: &Build) -> Vec<String> {
    let mut status = build.status.clone();
    if status == "building" {
        // The head, by the segment furthest behind.
        let head = Position(build.position.0 + build.lag_events);
        status = format!("building, {:.0} %", (build.progress(head) * 100.0).floor());
        if !build.switch_when_ready {
            status += ", held";
        }
    }
    if build.paused {
        status += ", paused";
    }
    if build.ahead_of.is_some() {
        status += ", ahead of the log";
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
        owners(build),
    ]
}

/// Formats the numbers of parked keys and blocked segments.
fn parked(build: &Build) -> String {
    match build.segments.iter().filter(|segment| segment.blocked).count() {
        0 => build.parked.to_string(),
        blocked => format!("{}, {blocked} of {} segments blocked", build.parked, build.segments.len()),
    }
}

/// Formats the owners of segments, by the end of the replica's id: `16 of 16: 9 by …3f2a, 7 by …77b1`.
fn owners(build: &Build) -> String {
    let mut owners: Vec<(String, usize)> = vec![];
    for replica in build.segments.iter().filter_map(|segment| segment.replica) {
        let id = replica.simple().to_string();
        let short = id.get(id.len() - 6..).unwrap_or_default().to_owned();
        match owners.iter_mut().find(|(known, _)| *known == short) {
            Some((_, count)) => *count += 1,
            None => owners.push((short, 1)),
        }
    }
    let owned: usize = owners.iter().map(|(_, count)| count).sum();
    let by: Vec<_> = owners.iter().map(|(id, count)| format!("{count} by …{id}")).collect();
    let all = format!("{owned} of {}", build.segments.len());
    if by.is_empty() { all } else { format!("{all}: {}", by.join(", ")) }
}
