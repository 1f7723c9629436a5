//! The board as an SVG that follows the reader's light or dark scheme.

use std::fmt::Write as _;

use crate::{
    Context, Element, EventModel, Kind,
    layout::{BOX, Layout},
};

/// The styles of the board.
pub const STYLE: &str = "
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2328; text-anchor: middle; }
.name { font-size: 19px; } .slice { font-size: 19px; font-weight: 600; } .lane { font-size: 17px; fill: #59636e; text-anchor: start; }
.paper { fill: #ffffff; } .odd { fill: #f6f8fa; } rect { rx: 5px; } .paper, .odd { rx: 0; }
.command rect { fill: #a8d1ff; stroke: #3f86d8; } .event rect { fill: #ffc48a; stroke: #d9822b; } .readmodel rect { fill: #b5e3ac; stroke: #4f9e44; }
.automation rect { fill: #dcd6f2; stroke: #7a68b8; } .screen rect { fill: #ffffff; stroke: #8b949e; } .message rect { fill: #fff2a8; stroke: #bfa52b; }
.bar { fill: #8b949e; } .gear { fill: none; stroke: #7a68b8; }
.arrow { fill: none; stroke: #6e7781; stroke-width: 2; stroke-linejoin: round; } .to-readmodel { stroke: #4f9e44; } .to-automation { stroke: #7a68b8; }
.head { fill: #6e7781; } .head-readmodel { fill: #4f9e44; } .head-automation { fill: #7a68b8; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; } .lane { fill: #9198a1; } .paper { fill: #0d1117; } .odd { fill: #151b23; }
.command rect { fill: #173f6b; stroke: #4d94e6; } .event rect { fill: #7a4310; stroke: #e39a4f; } .readmodel rect { fill: #1f5127; stroke: #63b457; }
.automation rect { fill: #3b3266; stroke: #9d8cdb; } .screen rect { fill: #212830; stroke: #8b949e; } .message rect { fill: #5c5010; stroke: #cdb53f; }
.gear { stroke: #9d8cdb; }
.arrow { stroke: #9198a1; } .to-readmodel { stroke: #63b457; } .to-automation { stroke: #9d8cdb; }
.head { fill: #9198a1; } .head-readmodel { fill: #63b457; } .head-automation { fill: #9d8cdb; }
}
";

const LANES: [&[&str]; 4] = [&["Screens,", "automations"], &["Commands,", "read models"], &["Events"], &["Messages"]];

/// What a page adds to the card of an element.
#[derive(Debug, Clone, Default)]
pub struct Card {
    /// Where a click leads.
    pub link: String,
    /// What is written in the card's corner.
    pub count: String,
    /// Changes whenever the card is to light up.
    pub pulse: String,
}

/// Draws the board: slices from left to right; screens and automations, commands and read models, events and messages from top to bottom.
#[must_use]
pub fn svg(model: &EventModel) -> String {
    let layout = Layout::of(model);
    let (width, height) = layout.size;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"title\">\n\
         <title id=\"title\">The event model: {}</title>\n<style>{STYLE}</style>\n",
        escaped(&model.context)
    );
    draw(&mut svg, &layout, &|_| None);
    svg + "</svg>\n"
}

/// Draws the board for a page that has [`STYLE`]: each card is a link.
#[must_use]
pub fn board(model: &EventModel, card: impl Fn(&Element) -> Card) -> String {
    let layout = Layout::of(model);
    let (width, height) = layout.size;
    let mut svg = format!("<svg class=\"board\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n");
    draw(&mut svg, &layout, &|element| Some(card(element)));
    svg + "</svg>\n"
}

fn draw(svg: &mut String, layout: &Layout<'_>, card: &dyn Fn(&Element) -> Option<Card>) {
    let (width, height) = layout.size;
    svg.push_str("<defs>\n");
    for kind in ["", "-readmodel", "-automation"] {
        let _ = writeln!(
            svg,
            "<marker id=\"head{kind}\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"11\" markerHeight=\"11\" \
             markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path class=\"head{kind}\" d=\"M0 0 10 5 0 10z\"/></marker>"
        );
    }
    let _ = writeln!(svg, "</defs>\n<rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>");
    for (number, (slice, x, width)) in layout.slices.iter().enumerate() {
        if number % 2 == 0 {
            let _ = writeln!(svg, "<rect class=\"odd\" x=\"{x}\" width=\"{width}\" height=\"{height}\"/>");
        }
        let lines = if *width > BOX.0 * 2 { vec![slice.title.clone()] } else { wrapped(&slice.title, 10) };
        text(svg, "slice", x + width / 2, 29, 21, &lines);
    }
    for (names, y) in LANES.iter().zip(layout.lanes) {
        let lines: Vec<_> = names.iter().map(ToString::to_string).collect();
        text(svg, "lane", 10, y + BOX.1 / 2, 20, &lines);
    }
    for arrow in &layout.arrows {
        let kind = match arrow.to {
            Kind::Readmodel => "-readmodel",
            Kind::Automation => "-automation",
            _ => "",
        };
        let _ = writeln!(svg, "<path class=\"arrow to{kind}\" marker-end=\"url(#head{kind})\" d=\"{}\"/>", rounded(&arrow.corners));
    }
    for (element, centre, y) in &layout.boxes {
        drawn(svg, element, *centre, *y, card(element));
    }
}

fn drawn(svg: &mut String, element: &Element, centre: i32, y: i32, card: Option<Card>) {
    let class = match (element.kind, element.context) {
        (Kind::Command, _) => "command",
        (Kind::Event, Context::Internal) => "event",
        (Kind::Event, Context::External) => "message",
        (Kind::Readmodel, _) => "readmodel",
        (Kind::Screen, _) => "screen",
        (Kind::Automation, _) => "automation",
    };
    let (width, height) = BOX;
    let x = centre - width / 2;
    let id = escaped(&element.id);
    let _ = match &card {
        None => writeln!(svg, "<g id=\"{id}\" class=\"{class}\">"),
        Some(Card { link, pulse, .. }) => {
            writeln!(svg, "<a id=\"{id}\" class=\"{class}\" href=\"{}\" data-pulse=\"{}\">", escaped(link), escaped(pulse))
        }
    };
    let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>");
    match element.kind {
        // A window with its bar, and a gear.
        Kind::Screen => {
            let _ = writeln!(svg, "<path class=\"bar\" d=\"M{x} {}h{width}v2h-{width}z\"/>", y + 14);
            for dot in 0..3 {
                let _ = writeln!(svg, "<circle class=\"bar\" cx=\"{}\" cy=\"{}\" r=\"2.5\"/>", x + 10 + dot * 9, y + 8);
            }
        }
        Kind::Automation => {
            let (x, y) = (x + 16, y + 16);
            let _ = writeln!(
                svg,
                "<circle class=\"gear\" cx=\"{x}\" cy=\"{y}\" r=\"5.5\" stroke-width=\"3\"/>\
                 <circle class=\"gear\" cx=\"{x}\" cy=\"{y}\" r=\"8.5\" stroke-width=\"3.4\" stroke-dasharray=\"3.34 3.34\"/>"
            );
        }
        _ => {}
    }
    text(
        svg,
        "name",
        centre,
        y + height / 2 + if matches!(element.kind, Kind::Screen | Kind::Automation) { 7 } else { 0 },
        22,
        &wrapped(&element.title, 10),
    );
    match card {
        None => svg.push_str("</g>\n"),
        Some(card) => {
            text(svg, "count", x + width - 5, y + height - 14, 14, &[card.count]);
            svg.push_str("</a>\n");
        }
    }
}

/// Lines of text around a height.
fn text(svg: &mut String, class: &str, x: i32, y: i32, line_height: i32, lines: &[String]) {
    let first = y - line_height * (lines.len() as i32 - 1) / 2 + 6;
    for (number, line) in (0..).zip(lines) {
        let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x}\" y=\"{}\">{}</text>", first + number * line_height, escaped(line));
    }
}

/// Breaks a title at its words.
fn wrapped(title: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for word in title.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => *line = format!("{line} {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A path through the corners, which are rounded.
fn rounded(corners: &[(i32, i32)]) -> String {
    let mut corners = corners.to_vec();
    corners.dedup();
    let mut path = format!("M{} {}", corners[0].0, corners[0].1);
    for window in corners.windows(3) {
        let [(x0, y0), (x, y), (x1, y1)] = [window[0], window[1], window[2]];
        let radius = [8, (x - x0).abs() + (y - y0).abs(), ((x1 - x).abs() + (y1 - y).abs()) / 2].into_iter().min().unwrap_or(0);
        let (before, after) = (
            (x - (x - x0).signum() * radius, y - (y - y0).signum() * radius),
            (x + (x1 - x).signum() * radius, y + (y1 - y).signum() * radius),
        );
        let _ = write!(path, "L{} {}Q{x} {y} {} {}", before.0, before.1, after.0, after.1);
    }
    if let Some((x, y)) = corners.last() {
        let _ = write!(path, "L{x} {y}");
    }
    path
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
