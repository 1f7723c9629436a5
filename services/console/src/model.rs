//! The event model, and how often each of its elements happened.

use std::sync::LazyLock;

use event_model::{Context, Direction, Element, EventModel, Kind, Slice};
use service::Fault;

use crate::watched::Counts;

static MODEL: LazyLock<Result<EventModel, serde_json::Error>> =
    LazyLock::new(|| EventModel::parse(include_str!("../../../event-model.json")));

/// The model, which is built into the binary.
///
/// # Errors
/// It cannot be read; a test reads it.
pub(crate) fn model() -> Result<&'static EventModel, Fault> {
    MODEL.as_ref().map_err(|error| Fault::msg(error.to_string()))
}

/// The name of a slice in a path.
pub(crate) fn path_of(slice: &Slice) -> &str {
    slice.id.trim_start_matches("slice-")
}

/// The type of an event of the log, as the log has it.
pub(crate) fn event_type(event: &Element) -> String {
    event.title.split(' ').collect()
}

/// The elements at the other ends of arrows.
fn linked<'a>(model: &'a EventModel, of: &'a Element, direction: Direction) -> impl Iterator<Item = &'a Element> {
    let arrows = of.dependencies.iter().filter(move |arrow| arrow.direction == direction);
    arrows.filter_map(|arrow| model.elements().find(|element| element.id == arrow.id))
}

/// The commands of an automation.
fn commands<'a>(model: &'a EventModel, of: &'a Element) -> impl Iterator<Item = &'a Element> {
    linked(model, of, Direction::Outbound).filter(|element| element.kind == Kind::Command)
}

/// How often something happened, in all and a second lately.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Often {
    pub(crate) all: i64,
    pub(crate) rate: f64,
}

impl Often {
    fn sum(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::default(), |sum, one| Self { all: sum.all + one.all, rate: sum.rate + one.rate })
    }

    /// The events of a command are appended together, so the one that comes most often counts the commands.
    fn most(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::default(), |most, one| if one.all > most.all { one } else { most })
    }
}

/// How often an event was appended, a command was decided, a message was translated or sent, or a read model got an event. A screen is `None`.
pub(crate) fn often(model: &EventModel, element: &Element, counts: &Counts) -> Option<Often> {
    let of = |element: &Element| often(model, element, counts).unwrap_or_default();
    let inbound = || linked(model, element, Direction::Inbound);
    let outbound = || linked(model, element, Direction::Outbound);
    Some(match (element.kind, element.context) {
        (Kind::Event, Context::Internal) => {
            let event_type = event_type(element);
            Often { all: counts.of(&event_type), rate: counts.rate(&event_type) }
        }
        (Kind::Command, _) => Often::most(outbound().map(of)),
        (Kind::Automation, _) => Often::sum(commands(model, element).map(of)),
        // The first command of an automation that sends a message is the one that follows its acknowledgement.
        (Kind::Event, Context::External) => {
            let automations = inbound().chain(outbound()).filter(|element| element.kind == Kind::Automation);
            Often::most(automations.filter_map(|automation| commands(model, automation).next().map(of)))
        }
        (Kind::Readmodel, _) => Often::sum(inbound().filter(|element| element.kind == Kind::Event).map(of)),
        (Kind::Screen, _) => return None,
    })
}

/// Formats a number with thin spaces between thousands.
pub(crate) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = if number < 0 { "-".to_owned() } else { String::new() };
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use cart_events::DomainEvent;
    use disintegrate::Event as _;

    use super::*;

    #[test]
    fn every_event_of_the_log_is_on_the_board() {
        let model = model().unwrap();
        let of_log = model.elements().filter(|element| element.kind == Kind::Event && element.context == Context::Internal);
        let mut drawn: Vec<_> = of_log.map(event_type).collect();
        let mut known: Vec<_> = DomainEvent::SCHEMA.events.iter().map(ToString::to_string).collect();
        drawn.sort();
        known.sort();
        assert_eq!(drawn, known);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
    }
}
