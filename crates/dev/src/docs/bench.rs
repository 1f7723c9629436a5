//! Bench results: from the committed report.

use std::fmt::Write as _;
use std::path::Path;

use embedded::error::Error;
use serde_json::Value;

use super::sources::{cell, text, unreadable};

const REPORT: &str = "docs/bench/report.json";

pub(super) fn table(checkout: &Path) -> Result<String, Error> {
    let path = checkout.join(REPORT);
    let report: Value = serde_json::from_str(&text(&path)?).map_err(|error| unreadable(&path, error.to_string()))?;
    let bars = report["bars"].as_array().ok_or_else(|| unreadable(&path, "it has no bars"))?;
    let machine = |name: &str| report["machine"][name].as_str().unwrap_or_default();
    let mut table = String::from("| what | measured | bar | |\n| --- | --- | --- | --- |\n");
    table.extend(bars.iter().filter_map(row));
    let (date, commit) = (machine("date").split('T').next().unwrap_or_default(), machine("commit"));
    let (rounds, cores, cpu) = (&report["sizes"]["rounds"], &report["machine"]["cores"], machine("cpu"));
    let _ = writeln!(table, "\nMeasured on {date} at commit `{commit}`: {rounds} rounds, {cores} cores ({cpu}).");
    Ok(table)
}

/// A bar that the run measured.
fn row(bar: &Value) -> Option<String> {
    let measured = bar["measured"].as_object()?;
    let number = |name: &str| measured.get(name).and_then(Value::as_f64);
    let median = number("median")?;
    let digits = if median >= 20.0 { 0 } else { 2 };
    let times = |value: f64| format!("{value:.digits$}");
    let (figure, unit) = match bar["unit"].as_str()? {
        "times" => (format!("{} ({} to {})", times(median), times(number("min")?), times(number("max")?)), ""),
        "MB" => (format!("{median:.0} MB"), " MB"),
        "ms" => (format!("{median:.1} ms"), " ms"),
        unit => (format!("{median:.1} {unit}"), ""),
    };
    let bound = if bar["at_most"] == true { "at most" } else { "at least" };
    let verdict = match (bar["reached"] == true, bar["reached_beyond"] == true) {
        (_, true) => "beyond",
        (true, false) => "reached",
        (false, false) => "**not reached**",
    };
    Some(format!("| {} | {figure} | {bound} {}{unit} | {verdict} |\n", cell(bar["what"].as_str()?), bar["bar"].as_f64()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_show_the_median_and_the_verdict() {
        let spread = json!({"median": 0.5, "min": 0.41, "max": 0.6});
        let bar = json!({"what": "one task", "measured": spread, "bar": 0.5, "at_most": false, "unit": "times", "reached": true});
        assert_eq!(row(&bar).unwrap(), "| one task | 0.50 (0.41 to 0.60) | at least 0.5 | reached |\n");
        assert_eq!(row(&json!({"measured": null})), None);
    }
}
