//! Giving states the events that were found for them.

use uuid::Uuid;

use crate::{
    decide::stages::AnyPart,
    error::StoreError,
    event::{LogEvent, decode, ids_of},
    position::Position,
    read::answer::{Answer, Found},
};

/// Gives each part what was found for its items. `first` is the answer's index of the parts' first item. Returns whether every
/// part is complete up to the answer's head.
pub(crate) fn fold<E: LogEvent>(parts: &mut [&mut dyn AnyPart<E>], first: usize, answer: &Answer) -> Result<bool, StoreError> {
    let mut complete = true;
    let mut next = first;
    for part in parts {
        let items = next..next + part.query().items.len();
        next = items.end;
        let mut found: Vec<&Found> = answer.found.iter().filter(|f| items.contains(&f.item)).collect();
        // A cut answer is complete only up to where it was cut; what other items found beyond that is not taken yet.
        let cut = found.iter().filter(|f| f.more).map(|f| f.position).min();
        let complete_to = cut.unwrap_or(answer.head);
        found.retain(|f| f.position <= complete_to);
        found.sort_by_key(|f| f.position);
        let events =
            found.iter().map(|f| Ok((Position(f.position), decode(f.position, &f.payload)?))).collect::<Result<_, StoreError>>()?;
        part.fold(events, Position(complete_to.max(part.position().0)));
        complete &= cut.is_none();
    }
    Ok(complete)
}

/// Gives each part those of a decision's own events, written up to `last` without a gap, that it folds. What else was written with them
/// in the same call is nothing that it folds, so it is complete up to there.
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
