//! `cartctl projections diff`.

use std::time::Duration;

use cart_events::DomainEvent;
use event_store::EventStore;
use operations::{Build, CompareError, Difference, Switch};
use serde_json::json;

use crate::{
    error::Error,
    follow::{Until, follow},
    output::{Output, clean, table},
};

/// For how long both builds may be held still, while the segments of both come to one position.
const PATIENCE: Duration = Duration::from_secs(30);

/// Compares the build in service with the other one.
pub(crate) async fn diff(
    log: &EventStore<DomainEvent>,
    builds: &[Build],
    serving: &Build,
    samples: i64,
    output: &Output,
) -> Result<(), Error> {
    let name = serving.name.as_str();
    if serving.is_automation() {
        return Err(Error::Refused(format!("{name} is an automation, which has one build only: there is nothing to compare it with")));
    }
    let Some(other) = builds.iter().find(|build| build.name == name && build.status != "serving") else {
        return Err(Error::Nothing(format!(
            "{name} has one build only; `cartctl projections rebuild {name} --hold` makes another, to be compared before it goes into service"
        )));
    };
    if serving.paused {
        return Err(Error::Refused(format!(
            "{name} is paused, so its builds do not come to one position: `cartctl projections resume {name}` first"
        )));
    }
    let alive = operations::replicas(log.pool()).await?;
    for build in [serving, other] {
        if !alive.iter().any(|replica| replica.name == name && replica.version == build.version) {
            return Err(Error::Refused(format!(
                "no process that is alive runs version {} of {name}, so its {} build stays where it is and cannot be compared: start one",
                build.version, build.status
            )));
        }
    }
    // The retired one stands where it was left: it is brought up to date for this, and let go of after it.
    let revived = other.status == "retired" && operations::revive(log.pool(), name, Switch::WhenAsked).await?;
    let compared = tokio::select! {
        // First, for who follows the build within it would say something else.
        biased;
        _ = tokio::signal::ctrl_c() => {
            operations::go_on(log.pool(), name).await?;
            Err(Error::Interrupted("nothing was compared, and whatever stood still goes on".to_owned()))
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
            "the new build of {name} went into service meanwhile; ask again, and it is compared with the one that was"
        )));
    }
    operations::compare(log.pool(), name, samples, PATIENCE).await.map_err(|error| match error {
        CompareError::Store(error) => error.into(),
        CompareError::Apart(_) => Error::Refused(format!(
            "{error}: `cartctl status` shows which are behind, and whether a process holds them; the logs of the service say why"
        )),
        CompareError::Going(_) => Error::Refused(format!("{error}; try again then")),
        CompareError::NoOther => Error::Refused(format!("{error} any more: `cartctl projections list` shows what there is")),
        CompareError::Columns(_) => Error::Refused(format!("{error}: a migration made it so, and rows of both cannot be compared")),
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
        let heads = ["table", "rows in service", "rows in the other", "only in service", "only in the other"];
        let mut text =
            format!("{name} at position {position}: {serving}, which is in service (-), and {other} (+)\n\n{}", self::table(&heads, rows));
        for table in tables.iter().filter(|table| !table.samples.is_empty()) {
            text = format!("{text}\n\n{}:", table.table);
            for sample in &table.samples {
                let times = if sample.times == 1 { String::new() } else { format!(" ({} times)", sample.times) };
                text = format!("{text}\n{} {}{times}", if sample.serving { '-' } else { '+' }, clean(sample.row.get()));
            }
        }
        output.text(&text)?;
    }
    if difference.is_none() {
        return Ok(());
    }
    let differ: Vec<_> =
        tables.iter().filter(|table| table.only_serving + table.only_other > 0).map(|table| table.table.as_str()).collect();
    Err(Error::Differs(format!("the builds of {name} differ in {}", differ.join(", "))))
}
