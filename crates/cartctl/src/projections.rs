//! `cartctl projections`.

use cart_events::DomainEvent;
use clap::Subcommand;
use event_store::{
    EventStore,
    operate::{self, Build},
    projection::{self, Switch},
};
use serde_json::json;

use crate::{
    Common,
    error::Error,
    output::{Output, span},
};

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Every build of every projection, the retired ones too
    List,
    /// Make a read model anew beside the one in service, which answers until the new one has come as far
    Rebuild {
        /// The projection, as `list` names it
        name: String,
        /// Do not put the new one into service by itself, but with `switch`
        #[arg(long)]
        hold: bool,
    },
    /// Let the new build go into service, as soon as it has come as far as the one that is
    Switch {
        /// The projection
        name: String,
        /// Also with keys parked that the one in service has not
        #[arg(long)]
        force: bool,
    },
}

pub(crate) async fn run(task: Task, common: &Common, output: &Output) -> Result<(), Error> {
    let log = common.log().await?;
    let (_, builds) = operate::builds(log.pool()).await?;
    match task {
        Task::List => output.list(&builds, "there are no projections yet: they come with the first start of the services", &HEADS, row),
        Task::Rebuild { name, hold } => rebuild(&log, &builds, &name, hold, output).await,
        Task::Switch { name, force } => {
            known(&builds, &name)?;
            let switching = if force {
                projection::switch_with_parked(log.pool(), &name).await?
            } else {
                projection::switch_when_ready(log.pool(), &name).await?
            };
            if !switching {
                return Err(Error::Nothing(format!("nothing of {name} is being made; `cartctl projections rebuild {name}` begins it")));
            }
            say_if_nobody_works(&log, &name, output).await?;
            if !force && builds.iter().any(|build| build.name == name && build.status == "building" && build.parked > 0) {
                output.note("keys are parked in the new build: it does not go into service with any that the one in service has not, unless --force says so");
            }
            if output.json {
                return output.document(&json!({ "name": name, "switch_when_ready": true }));
            }
            output.text(&format!(
                "the new build of {name} goes into service as soon as it has come as far; `cartctl status --watch` shows it"
            ))
        }
    }
}

async fn rebuild(log: &EventStore<DomainEvent>, builds: &[Build], name: &str, hold: bool, output: &Output) -> Result<(), Error> {
    let serving = known(builds, name)?;
    if serving.is_automation() {
        return Err(Error::Refused(format!("{name} is an automation: made anew, it would do again what it did")));
    }
    let under_way = builds.iter().any(|build| build.name == name && build.status == "building" && build.version == serving.version);
    if !under_way {
        projection::rebuild_named(log.pool(), name, if hold { Switch::WhenAsked } else { Switch::WhenReady }).await?;
    }
    say_if_nobody_works(log, name, output).await?;
    if output.json {
        return output.document(&json!({ "name": name, "started": !under_way }));
    }
    output.text(&match (under_way, hold) {
        (true, _) => format!("{name} is being made anew already; `cartctl status --watch` shows how far it is"),
        (false, false) => format!("{name} is made anew, and goes into service by itself; `cartctl status --watch` shows how far it is"),
        (false, true) => format!("{name} is made anew; `cartctl projections switch {name}` lets it go into service"),
    })
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
    if !operate::replicas(log.pool()).await?.iter().any(|replica| replica.name == name) {
        output.note(&format!("no process runs {name} at this moment, so nothing is done until one does: start the service"));
    }
    Ok(())
}

pub(crate) const HEADS: [&str; 9] = ["projection", "version", "build", "status", "position", "lag", "behind", "parked", "segments held"];

pub(crate) fn row(build: &Build) -> Vec<String> {
    let status = match build.status.as_str() {
        "building" if !build.switch_when_ready => "building, held".to_owned(),
        status => status.to_owned(),
    };
    vec![
        build.name.clone(),
        build.version.to_string(),
        build.build.clone(),
        status,
        build.position.to_string(),
        build.lag_events.to_string(),
        span(build.lag_seconds),
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
