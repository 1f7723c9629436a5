//! Places each element and arrow of the board. Units are those of the SVG's `viewBox`.

use std::collections::BTreeMap;

use crate::{Context, Direction, Element, EventModel, Kind, Slice};

pub(crate) const BOX: (i32, i32) = (122, 82);
/// From one place of a lane to the next.
const PITCH: i32 = 138;
/// The width of the lanes' names.
const LEFT: i32 = 118;
/// The distance between two buses: lines from events to what reads them.
const BUS: i32 = 13;
const TOP: i32 = 58;
const GAP: i32 = 46;
/// How far from the edge of its slice an arrow passes the elements.
const GUTTER: i32 = 4;

/// The lanes, from the top: screens and automations, commands and read models, events, messages.
pub(crate) struct Layout<'a> {
    pub(crate) slices: Vec<(&'a Slice, i32, i32)>,
    pub(crate) boxes: Vec<(&'a Element, i32, i32)>,
    pub(crate) arrows: Vec<Arrow>,
    /// The top of each lane.
    pub(crate) lanes: [i32; 4],
    pub(crate) size: (i32, i32),
}

pub(crate) struct Arrow {
    /// The kind of the element that the arrow points at.
    pub(crate) to: Kind,
    /// From a corner to the next.
    pub(crate) corners: Vec<(i32, i32)>,
}

fn lane(element: &Element) -> usize {
    match (element.kind, element.context) {
        (Kind::Screen | Kind::Automation, _) => 0,
        (Kind::Command | Kind::Readmodel, _) => 1,
        (Kind::Event, Context::Internal) => 2,
        (Kind::Event, Context::External) => 3,
    }
}

/// A line from events to the elements of one slice that read them all.
struct Bus<'a> {
    events: Vec<&'a Element>,
    readers: Vec<&'a Element>,
    row: i32,
}

impl<'a> Layout<'a> {
    pub(crate) fn of(model: &'a EventModel) -> Self {
        let mut slices = vec![];
        let mut centres = BTreeMap::new();
        let mut x = LEFT;
        for slice in &model.slices {
            let in_lane = |wanted: usize| slice.elements().filter(move |element| lane(element) == wanted).collect::<Vec<_>>();
            let places = (0..4).map(|lane| in_lane(lane).len()).max().unwrap_or(0).max(1) as i32;
            for lane in 0..4 {
                let elements = in_lane(lane);
                let start = x + (places - elements.len() as i32) * PITCH / 2 + PITCH / 2;
                for (place, element) in (0..).zip(elements) {
                    centres.insert(element.id.as_str(), (start + place * PITCH, x, x + places * PITCH));
                }
            }
            slices.push((slice, x, places * PITCH));
            x += places * PITCH;
        }
        let buses = buses(model, &centres);
        let rows = buses.iter().map(|bus| bus.row + 1).max().unwrap_or(0);
        let middle = TOP + BOX.1 + GAP;
        let events = middle + BOX.1 + rows * BUS + GAP;
        let lanes = [TOP, middle, events, events + BOX.1 + GAP];
        let boxes =
            model.elements().filter_map(|element| Some((element, centres.get(element.id.as_str())?.0, lanes[lane(element)]))).collect();
        let mut layout = Self { slices, boxes, arrows: vec![], lanes, size: (x, lanes[3] + BOX.1 + 14) };
        layout.draw_buses(&buses, &centres);
        layout.draw_inside(model, &centres);
        layout
    }

    fn draw_buses(&mut self, buses: &[Bus<'_>], centres: &Centres<'_>) {
        // Several lines that leave an event at its top lie side by side.
        let mut used: BTreeMap<(&str, bool), i32> = BTreeMap::new();
        for bus in buses {
            let y = self.lanes[1] + BOX.1 + GAP / 2 + bus.row * BUS;
            for reader in &bus.readers {
                let (centre, _, right) = centres[reader.id.as_str()];
                for event in &bus.events {
                    let from = centres[event.id.as_str()].0;
                    let to_the_right = from < centre;
                    let place = used.entry((&event.id, to_the_right)).or_insert(0);
                    let from = if to_the_right { from + 16 + *place * 12 } else { from - 16 - *place * 12 };
                    let mut corners = vec![(from, self.lanes[2]), (from, y)];
                    if reader.kind == Kind::Automation {
                        let gutter = right - GUTTER;
                        let beside = self.lanes[0] + BOX.1 / 2;
                        corners.extend([(gutter, y), (gutter, beside), (centre + BOX.0 / 2, beside)]);
                    } else {
                        corners.extend([(centre, y), (centre, self.lanes[1] + BOX.1)]);
                    }
                    self.arrows.push(Arrow { to: reader.kind, corners });
                }
            }
            for event in &bus.events {
                let reader = centres[bus.readers[0].id.as_str()].0;
                *used.entry((&event.id, centres[event.id.as_str()].0 < reader)).or_insert(0) += 1;
            }
        }
    }

    /// The arrows inside a slice.
    fn draw_inside(&mut self, model: &EventModel, centres: &Centres<'_>) {
        for (from, to) in arrows(model) {
            let (lane_from, lane_to) = (lane(from), lane(to));
            let ((x_from, left, _), (x_to, ..)) = (centres[from.id.as_str()], centres[to.id.as_str()]);
            let (y_from, y_to) = (self.lanes[lane_from], self.lanes[lane_to]);
            let corners = if lane_from.abs_diff(lane_to) == 3 {
                // Between an automation and a message, past what lies between.
                let gutter = left + GUTTER;
                let beside = |x: i32, y: i32| (x - BOX.0 / 2, y + BOX.1 / 2);
                let (start, end) = (beside(x_from, y_from), beside(x_to, y_to));
                vec![start, (gutter, start.1), (gutter, end.1), end]
            } else if lane_from < lane_to {
                let (start, end) = (y_from + BOX.1, y_to);
                let turn = if lane_to == 2 { end - GAP / 2 + 8 } else { start + GAP / 2 };
                vec![(x_from, start), (x_from, turn), (x_to, turn), (x_to, end)]
            } else if lane_from > lane_to && lane_from < 2 {
                let (start, end) = (y_from, y_to + BOX.1);
                let turn = start - GAP / 2;
                vec![(x_from, start), (x_from, turn), (x_to, turn), (x_to, end)]
            } else {
                continue;
            };
            self.arrows.push(Arrow { to: to.kind, corners });
        }
    }
}

/// The centre of each element, and the edges of its slice.
type Centres<'a> = BTreeMap<&'a str, (i32, i32, i32)>;

/// Both ends of every arrow.
fn arrows(model: &EventModel) -> impl Iterator<Item = (&Element, &Element)> {
    let by_id: BTreeMap<_, _> = model.elements().map(|element| (element.id.as_str(), element)).collect();
    model.elements().flat_map(move |from| {
        let to = from.dependencies.iter().filter(|arrow| arrow.direction == Direction::Outbound);
        to.filter_map(|arrow| by_id.get(arrow.id.as_str()).copied()).map(|to| (from, to)).collect::<Vec<_>>()
    })
}

fn buses<'a>(model: &'a EventModel, centres: &Centres<'_>) -> Vec<Bus<'a>> {
    let mut buses: Vec<Bus<'a>> = vec![];
    for slice in &model.slices {
        for reader in slice.readmodels.iter().chain(&slice.processors) {
            let events: Vec<_> = arrows(model).filter(|(from, to)| to.id == reader.id && lane(from) == 2).map(|(from, _)| from).collect();
            if events.is_empty() {
                continue;
            }
            let ids = |events: &[&Element]| events.iter().map(|event| event.id.clone()).collect::<Vec<_>>();
            match buses.iter_mut().find(|bus| bus.readers[0].slice == slice.title && ids(&bus.events) == ids(&events)) {
                Some(bus) => bus.readers.push(reader),
                None => buses.push(Bus { events, readers: vec![reader], row: 0 }),
            }
        }
    }
    // Lines that do not meet share a row. Short ones lie next to the events.
    let span = |bus: &Bus<'_>| {
        let all = bus.events.iter().chain(&bus.readers).map(|element| centres[element.id.as_str()]);
        let (from, to) = all.fold((i32::MAX, i32::MIN), |(from, to), (centre, _, right)| {
            (from.min(centre), to.max(centre).max(if centre > to { right } else { to }))
        });
        (from, to)
    };
    buses.sort_by_key(|bus| {
        let (from, to) = span(bus);
        -(to - from)
    });
    let mut rows: Vec<Vec<(i32, i32)>> = vec![];
    for bus in &mut buses {
        let (from, to) = span(bus);
        let free = rows.iter().position(|row| row.iter().all(|(other_from, other_to)| to < *other_from || *other_to < from));
        let row = free.unwrap_or(rows.len());
        if row == rows.len() {
            rows.push(vec![]);
        }
        rows[row].push((from, to));
        bus.row = row as i32;
    }
    buses
}
