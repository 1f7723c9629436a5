//! The comparison of the clients' commands with the log. Each event carries the trace of the request that caused it. So every event belongs
//! to one command, and each answer is compared with its command's events.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use shop::history::{Answer, Command, Unseen};
use shop::model::Event;
use uuid::Uuid;

/// The events that commands of clients write. Automations and translators write the others.
const OF_CLIENTS: [&str; 5] = ["CartCreated", "ItemAdded", "ItemRemoved", "CartCleared", "CartSubmitted"];

/// A restore: the log lost the positions after one of them, and gives them out again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    /// When the log served again.
    pub(super) at: Instant,
    /// The newest position that was not lost.
    pub(super) kept: i64,
}

/// Tells whether a command that was done at a position may be missing.
fn may_be_lost(losses: &[Loss], command: &Command, position: i64) -> bool {
    losses.iter().any(|loss| command.sent <= loss.at && position > loss.kept)
}

/// Counts the commands that were acknowledged and lost.
pub(super) fn lost(log: &[Event], commands: &[Command]) -> u64 {
    let traces: BTreeSet<&str> = log.iter().map(|event| event.trace.as_str()).collect();
    let lost = commands.iter().filter(|command| matches!(command.answer, Answer::Done(_)) && !traces.contains(command.trace.as_str()));
    u64::try_from(lost.count()).unwrap_or_default()
}

/// Lists the commands whose events are not what their answers say, and the events that nobody asked for.
pub(super) fn differences(log: &[Event], commands: &[Command], losses: &[Loss]) -> Vec<String> {
    let mut by_trace: HashMap<&str, Vec<&Event>> = HashMap::new();
    for event in log.iter().filter(|event| OF_CLIENTS.contains(&event.event_type.as_str())) {
        by_trace.entry(&event.trace).or_default().push(event);
    }
    let mut found = vec![];
    for command in commands {
        let events = by_trace.remove(command.trace.as_str()).unwrap_or_default();
        found.extend(difference(command, &events, losses).map(|text| {
            let Command { route, cart, trace, answer, .. } = command;
            format!("{route} of cart {cart} with trace {trace}, answered {answer:?}: {text}")
        }));
    }
    for event in by_trace.into_values().flatten() {
        found.push(format!("position {}: {} with trace {:?}, for which no client asked", event.position, event.event_type, event.trace));
    }
    found
}

fn difference(command: &Command, events: &[&Event], losses: &[Loss]) -> Option<String> {
    let positions: Vec<i64> = events.iter().map(|event| event.position).collect();
    let appends: BTreeSet<&str> = events.iter().map(|event| event.append_id.as_str()).collect();
    if appends.len() > 1 {
        return Some(format!("is there twice, at the positions {positions:?}"));
    }
    match &command.answer {
        Answer::Unknown => None,
        Answer::NotDone(_) if events.is_empty() => None,
        Answer::NotDone(_) => Some(format!("is there, at the positions {positions:?}")),
        Answer::Done(position) => match positions.last() {
            Some(last) if last == position => None,
            None if may_be_lost(losses, command, *position) => None,
            None => Some("is missing".to_owned()),
            // After a restore, a service can look an append up that it has repeated.
            Some(_) => Some(format!("is at the positions {positions:?}")),
        },
    }
}

/// Lists the queries that did not show an item which they had to show.
pub(super) fn unseen<'a>(log: &[Event], unseen: &'a [Unseen], left: &'a std::collections::HashSet<(Uuid, Uuid)>) -> Vec<String> {
    let texts = unseen.iter().filter(|unseen| !left.contains(&(unseen.cart, unseen.item)));
    // An acknowledged item that a restore lost is not shown either.
    let is_in_log = |item: Uuid| {
        let item = item.to_string();
        let added = log.iter().filter(|event| event.event_type == "ItemAdded");
        added.map(|event| String::from_utf8_lossy(&event.payload)).any(|payload| payload.contains(&item))
    };
    let texts = texts.filter(|unseen| is_in_log(unseen.item));
    texts.map(|unseen| format!("HTTP: item {} of cart {} was not shown: {}", unseen.item, unseen.cart, unseen.request)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn event(position: i64, event_type: &str, trace: &str, append_id: &str) -> Event {
        let payload = json!({ event_type: {} }).to_string().into_bytes();
        Event { position, event_type: event_type.to_owned(), payload, append_id: append_id.to_owned(), trace: trace.to_owned() }
    }

    fn log() -> Vec<Event> {
        vec![
            event(1, "CartCreated", "add", "a"),
            event(2, "ItemAdded", "add", "a"),
            event(3, "InventoryChanged", "message", "m"),
            event(4, "CartSubmitted", "submit", "s"),
            event(5, "CartPublished", "submit", "p"),
        ]
    }

    fn command(route: &str, trace: &str, answer: Answer) -> Command {
        Command { route: route.to_owned(), cart: Uuid::nil(), trace: trace.to_owned(), sent: Instant::now(), answer }
    }

    fn history() -> Vec<Command> {
        vec![
            command("additem", "add", Answer::Done(2)),
            command("submitcart", "submit", Answer::Done(4)),
            command("clearcart", "refused", Answer::NotDone("409 cart_submitted".into())),
            command("removeitem", "silence", Answer::Unknown),
        ]
    }

    /// Checks that a wrong history is found by exactly one difference.
    fn lie(what: &str, tell: impl FnOnce(&mut Vec<Event>, &mut Vec<Command>)) {
        let (mut log, mut history) = (log(), history());
        tell(&mut log, &mut history);
        let found = differences(&log, &history, &[]);
        assert!(matches!(found.as_slice(), [one] if one.contains(what)), "{what}: {found:#?}");
    }

    #[test]
    fn true_history_has_no_difference() {
        assert_eq!(differences(&log(), &history(), &[]), Vec::<String>::new());
        assert_eq!(lost(&log(), &history()), 0);
    }

    #[test]
    fn acknowledged_command_must_be_there_at_its_position() {
        lie("is missing", |log, _| drop(log.remove(3)));
        lie("is missing", |_, history| history.push(command("clearcart", "never", Answer::Done(7))));
        lie("is at the positions [4]", |_, history| history[1].answer = Answer::Done(5));
    }

    #[test]
    fn refused_command_must_not_be_there() {
        lie("is there, at the positions [6]", |log, _| log.push(event(6, "CartCleared", "refused", "r")));
        lie("is there, at the positions [4]", |_, history| history[1].answer = Answer::NotDone("503 busy".into()));
    }

    #[test]
    fn command_may_be_there_once_if_its_answer_is_unknown() {
        let mut log = log();
        log.push(event(6, "ItemRemoved", "silence", "x"));
        assert_eq!(differences(&log, &history(), &[]), Vec::<String>::new());
        lie("is there twice", |log, _| log.extend([event(6, "ItemRemoved", "silence", "x"), event(7, "ItemRemoved", "silence", "y")]));
    }

    #[test]
    fn event_that_nobody_asked_for_is_found() {
        lie("no client asked", |log, _| log.push(event(6, "CartCleared", "elsewhere", "e")));
        lie("no client asked", |log, _| log.push(event(6, "CartCleared", "", "e")));
        lie("no client asked", |_, history| drop(history.remove(1)));
    }

    #[test]
    fn restore_excuses_what_was_asked_before_it_and_lies_beyond_it() {
        let (mut log, history) = (log(), history());
        log.truncate(2);
        let after = Instant::now() + Duration::from_secs(1);
        assert_eq!(differences(&log, &history, &[Loss { at: after, kept: 3 }]), Vec::<String>::new());
        assert_eq!(lost(&log, &history), 1);
        let before = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        for loss in [Loss { at: after, kept: 4 }, Loss { at: before, kept: 3 }] {
            assert_eq!(differences(&log, &history, &[loss]).len(), 1, "{loss:?}");
        }
    }

    #[test]
    fn item_in_its_cart_must_be_shown() {
        let (cart, item) = (Uuid::now_v7(), Uuid::now_v7());
        let mut log = log();
        log[1].payload = json!({"ItemAdded": {"cart_id": cart, "item_id": item}}).to_string().into_bytes();
        let queries = [Unseen { cart, item, request: "GET".into() }];
        assert_eq!(unseen(&log, &queries, &[].into()).len(), 1);
        assert!(unseen(&log, &queries, &[(cart, item)].into()).is_empty(), "it left the cart");
        log.remove(1);
        assert!(unseen(&log, &queries, &[].into()).is_empty(), "a restore lost it");
    }
}
