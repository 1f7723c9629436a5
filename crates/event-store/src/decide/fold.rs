//! Folding: gives each state the events that were found for it.

use uuid::Uuid;

use crate::{
    decide::stages::AnyPart,
    error::StoreError,
    event::{LogEvent, decode, ids_of},
    position::Position,
    read::answer::{Answer, Found},
};

/// Gives each part the events that its query items found. Returns whether every part is complete up to the answer's head.
pub(crate) fn fold<E: LogEvent>(parts: &mut [&mut dyn AnyPart<E>], answer: &Answer) -> Result<bool, StoreError> {
    let mut complete = true;
    let mut next = 0;
    for part in parts {
        let items = next..next + part.query().items.len();
        next = items.end;
        let mut found: Vec<&Found> = answer.found.iter().filter(|found| items.contains(&found.item)).collect();
        // A cut answer is complete only up to the cut. What other items found after it is folded later.
        let cut = found.iter().filter(|found| found.more).map(|found| found.position).min();
        let complete_to = cut.unwrap_or(answer.head);
        found.retain(|found| found.position <= complete_to);
        found.sort_by_key(|found| found.position);
        let events = found
            .iter()
            .map(|found| Ok((Position(found.position), decode(found.position, &found.payload)?)))
            .collect::<Result<_, StoreError>>()?;
        part.fold(events, Position(complete_to.max(part.position().0)));
        complete &= cut.is_none();
    }
    Ok(complete)
}

/// Gives each part those of the decision's own events that it folds. They were written without a gap, and the last one at `last`.
///
/// Each part is then complete up to `last`: no other append in the same call wrote an event that the condition forbids.
pub(crate) fn fold_written<E: LogEvent>(parts: &mut [&mut dyn AnyPart<E>], events: &[WithIds<E>], last: Position) {
    let first = last.0 - i64::try_from(events.len()).unwrap_or_default() + 1;
    for part in parts {
        let folds = |(event, ids): &WithIds<E>| part.query().matches(event.name(), ids);
        let own =
            (first..).map(Position).zip(events).filter(|(_, event)| folds(event)).map(|(at, (event, _))| (at, event.clone())).collect();
        part.fold(own, last);
    }
}

/// An event, and its ids in the schema's order.
pub(crate) type WithIds<E> = (E, Vec<Option<Uuid>>);

pub(crate) fn with_ids<E: LogEvent>(events: Vec<E>, order: &[&'static str]) -> Result<Vec<WithIds<E>>, StoreError> {
    events
        .into_iter()
        .map(|event| {
            let ids = ids_of(&event, order)?;
            Ok((event, ids))
        })
        .collect()
}
