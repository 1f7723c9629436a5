//! `cartctl projections diff`.

use std::time::Duration;

use cart_events::DomainEvent;
use event_store::EventStore;
use operations::{Build, CompareError, Difference, Switch};
use serde_json::json;

use crate::{
    error::Error,
    follow::{Until, follow},
    output::{Output, table},
};

/// The longest time to hold both builds until their segments are at one position.
const PATIENCE: Duration = Duration::from_secs(30);

/// Compares the serving build with the other one.
pub(crate) async fn diff(
    log: &EventStore<DomainEvent>,
    builds: &[Build],
    serving: &Build,
    samples: i64,
    output: &Output,
) -> Result<(), Error> {
    let name = serving.name.as_str();
    if serving.is_automation() {
        return Err(Error::Refused(format!("{name} is an automation. It has only one build, so there is nothing to compare")));
    }
    let Some(other) = builds.iter().find(|build| build.name == name && build.status != "serving") else {
        return Err(Error::Nothing(format!(
            "{name} has only one build. `cartctl projections rebuild {name} --hold` creates one that you can compare before it serves"
        )));
    };
    if serving.paused {
        return Err(Error::Refused(format!(
            "{name} is paused, so its builds cannot reach one position. First run `cartctl projections resume {name}`"
        )));
    }
    let alive = operations::replicas(log.pool()).await?;
    for build in [serving, other] {
        if !alive.iter().any(|replica| replica.name == name && replica.version == build.version) {
            return Err(Error::Refused(format!(
                "No running process has version {} of {name}, so its {} build cannot catch up. Start one",
                build.version, build.status
            )));
        }
    }
    // A retired build has to catch up first. It is retired again afterwards.
    let revived = other.status == "retired" && operations::revive(log.pool(), name, Switch::WhenAsked).await?;
    let compared = tokio::select! {
        // Ctrl-C first: following the build would report it differently.
        biased;
        _ = tokio::signal::ctrl_c() => {
            operations::release_hold(log.pool(), name).await?;
            Err(Error::Interrupted("Nothing was compared. The builds continue".to_owned()))
        }
        compared = compare(log, name, &other.build, samples, output) => compared,
    };
    if revived {
        operations::retire(log.pool(), name, &other.build).await?;
    }
    show(&compared?, output)
}

async fn compare(log: &EventStore<DomainEvent>, name: &str, other: &str, samples: i64, output: &Output) -> Result<Difference, Error> {
    if follow(log, name, other, Until::CaughtUp, output).await?.status == "serving" {
        return Err(Error::Refused(format!(
            "The new build of {name} started to serve meanwhile. Run the command again to compare it with the old one"
        )));
    }
    operations::compare(log.pool(), name, samples, PATIENCE).await.map_err(|error| match error {
        CompareError::Store(error) => error.into(),
        CompareError::Apart(_) => {
            Error::Refused(format!("Cannot compare {name}: {error}. See `cartctl status` and the logs of the service"))
        }
        CompareError::Running(_) => Error::Refused(format!("Cannot compare {name}: {error}. Try again then")),
        CompareError::NoOther => Error::Refused(format!("Cannot compare {name}: {error}. See `cartctl projections list`")),
        CompareError::Columns(_) => {
            Error::Refused(format!("Cannot compare {name}: {error}. A migration changed one of them; rebuild the read model"))
        }
    })
}

fn show(difference: &Difference, output: &Output) -> Result<(), Error> {
    let Difference { name, position, serving, other, tables } = difference;
    if output.json {
        let mut document = serde_json::to_value(difference).map_err(std::io::Error::other)?;
        if let Some(fields) = document.as_object_mut() {
            fields.insert("same".to_owned(), json!(difference.is_none()));
        }
        output.document(&document)?;
    } else {
        let rows = tables.iter().map(|table| {
            let numbers = [table.rows_serving, table.rows_other, table.only_serving, table.only_other];
            [table.table.clone()].into_iter().chain(numbers.map(|number| number.to_string())).collect()
        });
        let heads = ["table", "rows serving", "rows other", "only serving", "only other"];
        output.line(&format!("{name} at position {position}: {serving}, serving (-), and {other} (+)"))?;
        output.line("")?;
        output.lines(table(&heads, rows))?;
        for table in tables.iter().filter(|table| !table.samples.is_empty()) {
            output.line("")?;
            output.line(&format!("{}:", table.table))?;
            output.lines(table.samples.iter().map(|sample| {
                let times = if sample.times == 1 { String::new() } else { format!(" ({} times)", sample.times) };
                format!("{} {}{times}", if sample.serving { '-' } else { '+' }, sample.row.get())
            }))?;
        }
    }
    if difference.is_none() {
        return Ok(());
    }
    let differ: Vec<_> =
        tables.iter().filter(|table| table.only_serving + table.only_other > 0).map(|table| table.table.as_str()).collect();
    Err(Error::Differs(format!("The builds of {name} differ in {}", differ.join(", "))))
}
