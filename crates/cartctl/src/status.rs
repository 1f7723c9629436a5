//! `cartctl status`.

use std::{io::IsTerminal as _, time::Duration};

use clap::Args;
use operations::{Attention, Overview};

use crate::{
    arguments::Common,
    error::Error,
    output::{Output, span, table},
    parked, projections, translations,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Show the status every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

pub(crate) async fn run(arguments: Arguments, common: &Common, output: &Output) -> Result<(), Error> {
    let (log, kafka, mut counted) = (common.log().await?, common.kafka()?, operations::Counted::new());
    let Some(seconds) = arguments.watch else {
        return print(&operations::overview(&log, &kafka, &mut counted).await?, output, false);
    };
    let clear = std::io::stdout().is_terminal() && !output.json;
    let watching = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(seconds));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match operations::overview(&log, &kafka, &mut counted).await {
                Ok(status) => print(&status, output, clear)?,
                // The database may be back at the next interval.
                Err(error) if error.is_unavailable() => output.complain(&Error::Store(error).in_one_line()),
                Err(error) => return Err(error.into()),
            }
        }
    };
    tokio::select! {
        ended = watching => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Says in a line whether all is well, and then what is not.
fn verdict(attention: &[Attention]) -> Vec<String> {
    let first = match attention.len() {
        0 => "All is well".to_owned(),
        1 => "1 thing needs attention:".to_owned(),
        many => format!("{many} things need attention:"),
    };
    let line = |Attention { what, command }: &Attention| match command {
        Some(command) => format!("- {what}; run `{command}`"),
        None => format!("- {what}"),
    };
    [first].into_iter().chain(attention.iter().map(line)).collect()
}

fn print(status: &Overview, output: &Output, clear: bool) -> Result<(), Error> {
    if output.json {
        return output.document(status);
    }
    let mut parts = vec![verdict(&status.attention), vec![format!("The head of the log is {}", status.head)]];
    if status.projections.is_empty() {
        parts.push(vec!["No projections yet. The services register them at their first start".to_owned()]);
    } else {
        parts.push(table(&projections::HEADS, status.projections.iter().map(projections::row)));
    }
    if !status.parked.is_empty() {
        parts.push(table(&parked::HEADS, status.parked.iter().map(parked::row)));
    }
    let age = |seconds: Option<f64>| seconds.map_or(String::new(), span);
    if !status.todos.is_empty() {
        let rows = status.todos.iter().map(|todos| {
            let (open, failed) = (todos.open.to_string(), todos.failed.to_string());
            vec![todos.automation.clone(), open, age(todos.oldest_open_seconds), failed, age(todos.oldest_failed_seconds)]
        });
        parts.push(table(&["to-dos of", "open", "oldest", "failed", "oldest"], rows));
    }
    if !status.translations.is_empty() {
        parts.push(table(&translations::HEADS, status.translations.iter().map(translations::row)));
    }
    if let Some(topics) = &status.dead_letters {
        let rows = topics.iter().map(|topic| vec![topic.topic.clone(), topic.waiting.to_string(), topic.unread.to_string()]);
        parts.push(table(&["dead letters in", "waiting", "older messages, not counted"], rows));
    }
    if clear {
        output.raw(b"\x1b[H\x1b[2J")?;
    }
    output.lines(parts.join(&String::new()))
}

#[cfg(test)]
mod tests {
    use event_store::Position;
    use operations::WaitingLetters;

    use super::*;

    #[test]
    fn all_is_well_if_nothing_needs_attention() {
        let mut status = Overview {
            attention: vec![],
            head: Position(7),
            projections: vec![],
            replicas: vec![],
            parked: vec![],
            todos: vec![],
            translations: vec![],
            findings: vec![],
            dead_letters: Some(vec![WaitingLetters { topic: "stock.dead-letters".into(), waiting: 0, unread: 0 }]),
            broker_error: None,
        };
        assert_eq!(verdict(&operations::attention(&status)), ["All is well"]);
        status.dead_letters = Some(vec![WaitingLetters { topic: "stock.dead-letters".into(), waiting: 3, unread: 0 }]);
        let expected = [
            "1 thing needs attention:",
            "- dead letters that wait in stock.dead-letters: 3; run `cartctl dead-letters list --topic stock.dead-letters`",
        ];
        assert_eq!(verdict(&operations::attention(&status)), expected);
    }
}
