//! Metrics: from the names, units and descriptions that the code gives its instruments.

use std::fmt::Write as _;
use std::path::Path;

use embedded::error::Error;

use super::sources::{cell, literal, rust_files, sentence, text};

/// The crates with instruments, from the log outwards.
const CRATES: [&str; 4] = ["event-store", "projections", "kafka", "service"];

pub(super) fn table(checkout: &Path) -> Result<String, Error> {
    let mut table = String::from("| metric | kind | what it measures |\n| --- | --- | --- |\n");
    for name in CRATES {
        for path in rust_files(&checkout.join("crates").join(name).join("src"))? {
            for Instrument { name, kind, description } in instruments(&text(&path)?) {
                let _ = writeln!(table, "| `{name}` | {kind} | {} |", cell(&sentence(&description)));
            }
        }
    }
    Ok(table)
}

struct Instrument {
    /// As Prometheus has it.
    name: String,
    kind: &'static str,
    description: String,
}

/// `.u64_counter("log.appends").with_unit("s").with_description("…").build()`
fn instruments(source: &str) -> Vec<Instrument> {
    let mut found = vec![];
    for (builder, kind) in [("counter(", "counter"), ("histogram(", "histogram"), ("gauge(", "gauge")] {
        for (at, _) in source.match_indices(builder) {
            // `u64_observable_gauge` and the like; a `up_down_counter` goes up and down as a gauge does.
            let before: String = source[..at].chars().rev().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let rest = &source[at + builder.len()..];
            if before.is_empty() || !rest.trim_start().starts_with('"') {
                continue;
            }
            let (Some(name), Some(end)) = (literal(rest), rest.find(".build()")) else { continue };
            let of = |method: &str| rest[..end].split(method).nth(1).and_then(literal).unwrap_or_default();
            let kind = if before.contains(&"up_down_".chars().rev().collect::<String>()) { "gauge" } else { kind };
            found.push((at, Instrument { name: prometheus(&name, &of(".with_unit("), kind), kind, description: of(".with_description(") }));
        }
    }
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, instrument)| instrument).collect()
}

/// The name that Prometheus sees: with underscores, the unit and what tells a counter.
fn prometheus(name: &str, unit: &str, kind: &str) -> String {
    let unit = match unit {
        "s" => "_seconds",
        "By" => "_bytes",
        "1" if kind == "gauge" => "_ratio",
        _ => "",
    };
    format!("{}{unit}{}", name.replace('.', "_"), if kind == "counter" { "_total" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruments_have_the_names_that_prometheus_sees() {
        let source = "
            appends: meter.u64_counter(\"log.appends\").with_description(\"Appends written.\").build(),
            wait: meter
                .f64_histogram(\"log.wait\")
                .with_unit(\"s\")
                .with_description(\"How long.\")
                .build(),
            meter.i64_observable_up_down_counter(\"client.count\").with_callback(move |observer| ()).build();
            fn counter(name: &str) {}
        ";
        let found: Vec<_> = instruments(source).into_iter().map(|one| (one.name, one.kind, one.description)).collect();
        let expected = [
            ("log_appends_total", "counter", "Appends written."),
            ("log_wait_seconds", "histogram", "How long."),
            ("client_count", "gauge", ""),
        ];
        assert_eq!(found, expected.map(|(name, kind, description)| (name.to_owned(), kind, description.to_owned())));
    }
}
