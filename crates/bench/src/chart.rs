//! Draws the report: one panel of bars per scenario, each with its own scale.

use std::fmt::Write as _;

use crate::{
    report::{Contender, Figure, Report},
    scenarios::{CAUGHT_UP, HOT_CART, HTTP, KAFKA_IN, READ, SHOPPER, one_item, thousands},
};

const WIDTH: f64 = 860.0;
const PANEL: f64 = 250.0;
const PLOT: f64 = 150.0;
const MARGIN: f64 = 24.0;

/// A card with its own background can be read on any page. It is dark if the reader's system is.
const STYLE: &str =
    "text{font-family:system-ui,sans-serif;font-size:12px;fill:#24292f}.title{font-size:14px;font-weight:600}.value,.range{font-size:11px}
.card{fill:#fff;stroke:#d0d7de}.axis,.whisker{stroke:#57606a}.cartlog,.one_process,.live{fill:#0969da}.two_processes,.projected{fill:#54aeff}
.loading{fill:#8250df}.floor,.plain_sql{fill:#8c959f}.disintegrate{fill:#bc4c00}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.card{fill:#0d1117;stroke:#30363d}.axis,.whisker{stroke:#8b949e}
.cartlog,.one_process,.live{fill:#4493f8}.two_processes,.projected{fill:#a5d6ff}.loading{fill:#ab7df8}
.floor,.plain_sql{fill:#6e7681}.disintegrate{fill:#f0883e}}";

/// The scenarios that say the most. The JSON has all.
pub(crate) fn svg(report: &Report) -> String {
    let main = one_item(report.sizes.before.first().copied().unwrap_or_default());
    let mut scenarios = vec![SHOPPER, READ, main.as_str(), HOT_CART, HTTP, KAFKA_IN, CAUGHT_UP];
    scenarios.retain(|scenario| report.figures.iter().any(|figure| figure.key.scenario == *scenario));
    let height = scenarios.len() as f64 * PANEL + MARGIN;
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Cartlog and its rivals, a second">
<style>{STYLE}</style>
<rect class="card" x="0.5" y="0.5" width="{}" height="{}" rx="8"/>
"#,
        WIDTH - 1.0,
        height - 1.0
    );
    for (number, scenario) in scenarios.iter().enumerate() {
        panel(&mut svg, report, scenario, MARGIN + number as f64 * PANEL);
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, report: &Report, scenario: &str, top: f64) {
    let figures: Vec<&Figure> = report.figures.iter().filter(|figure| figure.key.scenario == scenario).collect();
    let most = figures.iter().filter_map(|figure| figure.per_second()).map(|rate| rate.max).fold(1.0, f64::max);
    let mut groups: Vec<usize> = figures.iter().map(|figure| figure.key.tasks).collect();
    groups.sort_unstable();
    groups.dedup();
    let mut contenders: Vec<Contender> = vec![];
    for figure in &figures {
        if !contenders.contains(&figure.key.contender) {
            contenders.push(figure.key.contender);
        }
    }

    let what = match scenario {
        SHOPPER => "three items, a look at the cart and its submission, a second",
        READ => "reads a second",
        HTTP => "commands a second",
        KAFKA_IN => "messages, or INSERTs, a second",
        CAUGHT_UP => "events a second",
        _ => "Add Items a second",
    };
    let _ = writeln!(svg, r#"<text class="title" x="{MARGIN}" y="{}">{scenario}: {what}</text>"#, top + 12.0);
    let mut x = MARGIN;
    for contender in &contenders {
        let name = contender.to_string();
        let _ = writeln!(svg, r#"<rect class="{}" x="{x}" y="{}" width="10" height="10"/>"#, class(*contender), top + 23.0);
        let _ = writeln!(svg, r#"<text x="{}" y="{}">{name}</text>"#, x + 15.0, top + 32.0);
        x += 40.0 + 7.0 * name.len() as f64;
    }

    let base = top + 60.0 + PLOT;
    let group_width = (WIDTH - 2.0 * MARGIN) / groups.len().max(1) as f64;
    let slot = (group_width / (contenders.len() as f64 + 0.5)).min(90.0);
    for (group, tasks) in groups.iter().enumerate() {
        let left = MARGIN + group as f64 * group_width;
        for (place, contender) in contenders.iter().enumerate() {
            let figure = figures.iter().find(|figure| figure.key.tasks == *tasks && figure.key.contender == *contender);
            let Some(rate) = figure.and_then(|figure| figure.per_second()) else { continue };
            let height = |rate: f64| PLOT * rate / most;
            let (bar, middle) = (left + place as f64 * slot, left + place as f64 * slot + (slot - 6.0) / 2.0);
            let _ = writeln!(
                svg,
                r#"<rect class="{}" x="{bar:.1}" y="{:.1}" width="{:.1}" height="{:.1}"/>
<line class="whisker" x1="{middle:.1}" x2="{middle:.1}" y1="{:.1}" y2="{:.1}"/>
<text class="value" x="{middle:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                class(*contender),
                base - height(rate.median),
                slot - 6.0,
                height(rate.median),
                base - height(rate.min),
                base - height(rate.max),
                base - height(rate.max) - 4.0,
                thousands(rate.median.round() as u64)
            );
        }
        let unit = match (scenario, tasks) {
            // One process handles all of it.
            (KAFKA_IN | CAUGHT_UP, _) => continue,
            (SHOPPER, 1) => "shopper",
            (SHOPPER, _) => "shoppers at once",
            (READ, 1) => "connection",
            (HTTP | READ, _) => "connections",
            (_, 1) => "task",
            _ => "tasks",
        };
        let _ = writeln!(svg, r#"<text x="{left:.1}" y="{:.1}">{tasks} {unit}</text>"#, base + 16.0);
    }
    let _ = writeln!(svg, r#"<line class="axis" x1="{MARGIN}" x2="{}" y1="{base}" y2="{base}"/>"#, WIDTH - MARGIN);
}

/// The contender's name in the JSON.
fn class(contender: Contender) -> &'static str {
    match contender {
        Contender::Cartlog => "cartlog",
        Contender::OneProcess => "one_process",
        Contender::TwoProcesses => "two_processes",
        Contender::Loading => "loading",
        Contender::Live => "live",
        Contender::Projected => "projected",
        Contender::Floor => "floor",
        Contender::PlainSql => "plain_sql",
        Contender::Disintegrate => "disintegrate",
    }
}
