//! What README.md says of commands, settings and files is so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The settings that a heading of the README describes, and the file that defaults come from.
const SETTINGS: [(&str, &str); 6] = [
    ("### Every service", "crates/service/src/settings.toml"),
    ("### inventory-translator and publisher", "crates/service/src/kafka.toml"),
    ("### cart-commands", "services/cart-commands/src/settings.toml"),
    ("### inventory-translator", "services/inventory-translator/src/settings.toml"),
    ("### cart-projections", "services/cart-projections/src/settings.toml"),
    ("### publisher", "services/publisher/src/settings.toml"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What `cargo dev` says with these arguments.
fn help(arguments: &[&str]) -> String {
    let dev = embedded::layout::Layout::discover().unwrap().target().join("debug/dev");
    let output = Command::new(dev).args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "cargo dev {arguments:?} --help");
    String::from_utf8(output.stdout).unwrap()
}

/// The words after each `cargo dev`, up to what ends a command in text.
fn commands(text: &str) -> BTreeSet<Vec<&str>> {
    text.split("cargo dev ")
        .skip(1)
        .filter_map(|rest| rest.split(['`', '\n', '#', ',', ')', ';']).next())
        .map(|command| command.split_whitespace().collect())
        .collect()
}

#[test]
fn every_command_and_flag_that_is_named_exists_and_every_command_is_named() {
    let general = help(&[]);
    let known: BTreeSet<&str> = general
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    let readme = text("README.md");
    let mut named = BTreeSet::new();
    for document in [
        &readme,
        &text("ARCHITECTURE.md"),
        &text("migrations/README.md"),
        &text("docs/operations/compose.md"),
        &text("docs/operations/observability.md"),
        &text("docs/new-projection.md"),
        &text("justfile"),
    ] {
        for command in commands(document) {
            let [subcommand, arguments @ ..] = command.as_slice() else { continue };
            assert!(known.contains(subcommand), "`cargo dev {subcommand}` is named, and there is none");
            // What follows `test` is for cargo.
            for flag in arguments.iter().filter(|word| word.starts_with("--") && *subcommand != "test") {
                assert!(help(&[subcommand]).contains(flag), "`cargo dev {subcommand} {flag}` is named, and there is none");
            }
            named.insert((*subcommand).to_owned());
        }
    }
    let in_table: BTreeSet<&str> =
        rows(&readme).filter_map(|row| Some(row.first()?.strip_prefix("`cargo dev ")?.trim_end_matches('`'))).collect();
    assert_eq!(in_table, known, "the README's table of commands");
    // Flags that are named beside their command and not behind it.
    for flag in ["--detach", "--release"] {
        assert!(help(&["up"]).contains(flag), "{flag}");
    }
}

#[test]
fn the_guide_to_a_new_projection_shows_what_is_there() {
    let guide = text("docs/new-projection.md");
    let mut blocks = guide.split("```").skip(1).step_by(2).peekable();
    assert!(blocks.peek().is_some());
    for block in blocks {
        let (language, code) = block.split_once('\n').unwrap();
        let file = match language {
            "sql" => "migrations/0003_projections.sql",
            "rust" => "services/cart-projections/src/inventories.rs",
            "rust,main" => "services/cart-projections/src/main.rs",
            other => panic!("what is {other}?"),
        };
        let source = text(file);
        let there: BTreeSet<&str> = source.lines().map(str::trim).collect();
        for line in code.lines().map(str::trim) {
            assert!(there.contains(line), "{file} has no line {line:?}");
        }
    }
}

/// The cells of every table row.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|')).map(|row| row.split(" | ").map(str::trim).collect())
}

/// A setting of a TOML file: its default as it is written, and the comment above it.
struct Setting {
    default: String,
    comment: String,
}

fn settings(toml: &str) -> BTreeMap<String, Setting> {
    let mut settings = BTreeMap::new();
    let mut comment = String::new();
    for line in toml.lines() {
        if let Some(words) = line.strip_prefix('#') {
            comment += words;
        } else if let Some((key, default)) = line.split_once(" = ") {
            settings.insert(key.to_owned(), Setting { default: default.to_owned(), comment: std::mem::take(&mut comment) });
        } else {
            comment.clear();
        }
    }
    settings
}

fn section<'a>(readme: &'a str, heading: &str) -> &'a str {
    let start = readme.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("the README has no heading {heading:?}"));
    let body = &readme[start + heading.len() + 2..];
    &body[..body.find("\n#").unwrap_or(body.len())]
}

/// The whole numbers of a text.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|other: char| !other.is_ascii_digit()).filter(|number| !number.is_empty())
}

#[test]
fn every_setting_is_described_with_its_default_its_range_and_its_variable() {
    let readme = text("README.md");
    for (heading, path) in SETTINGS {
        let toml = text(path);
        let built_in = settings(&toml);
        let mut described = BTreeSet::new();
        for row in rows(section(&readme, heading)) {
            let [key, default, allowed, variable, _] = row.as_slice() else { panic!("{heading}: {row:?}") };
            let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`')) else { continue };
            let setting = built_in.get(key).unwrap_or_else(|| panic!("{heading} describes {key}, which is not in {path}"));
            assert_eq!(default.trim_matches('`'), setting.default, "{heading}: the default of {key}");
            let stated: Vec<_> = numbers(&setting.comment).collect();
            for number in numbers(allowed) {
                assert!(stated.contains(&number), "{heading}: {key} allows {allowed:?}, and {path} says {:?}", setting.comment);
            }
            assert_eq!(variable.trim_matches('`'), environment_variable(key), "{heading}: the variable of {key}");
            described.insert(key);
        }
        let known: BTreeSet<&str> = built_in.keys().map(String::as_str).collect();
        assert_eq!(described, known, "{heading}, against {path}");
    }
}

/// As in crates/service/src/settings/mod.rs, whose tests hold it.
fn environment_variable(key: &str) -> String {
    match key {
        "database_url" | "kafka_bootstrap_servers" | "otel_exporter_otlp_endpoint" => key.to_uppercase(),
        _ => format!("CARTLOG_{}", key.to_uppercase()),
    }
}

#[test]
fn every_port_variable_of_the_stack_is_named() {
    let readme = text("README.md");
    for service in shop::services::ALL {
        assert!(readme.contains(&format!("`{}`", service.port_setting)), "{}", service.port_setting);
        assert!(readme.contains(&format!("{} :{}", service.name, service.default_port)), "{} in the picture", service.name);
    }
}

#[test]
fn every_route_is_in_the_table_and_every_route_in_the_table_is_served() {
    let readme = text("README.md");
    let routes = section(&readme, "## Routes");
    let described: BTreeSet<String> = rows(routes)
        .flatten()
        .filter_map(|cell| cell.strip_prefix('`')?.strip_suffix('`'))
        .filter(|cell| cell.starts_with("GET /") || cell.starts_with("POST /"))
        .map(str::to_owned)
        .collect();
    let mut served = BTreeSet::new();
    for service in shop::services::ALL {
        let document: serde_json::Value = serde_json::from_str(&text(&format!("services/{}/openapi.json", service.name))).unwrap();
        for (path, methods) in document["paths"].as_object().unwrap() {
            served.extend(methods.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())));
        }
    }
    assert_eq!(described, served);
}

#[test]
fn every_link_leads_somewhere() {
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "migrations/README.md",
        "docs/operations/README.md",
        "docs/operations/compose.md",
        "docs/operations/kubernetes.md",
        "docs/operations/observability.md",
        "docs/operations/runbook.md",
        "docs/operations/scaling.md",
        "docs/operations/security.md",
        "docs/operations/upgrades.md",
        "deploy/observability/README.md",
        "deploy/stand-ins/README.md",
    ] {
        let content = text(document);
        let directory = root().join(document).parent().unwrap().to_owned();
        for target in content.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { root().join(document) } else { directory.join(path) };
            assert!(file.exists(), "{document} links to {target}");
            if !anchor.is_empty() {
                let headings: BTreeSet<String> = std::fs::read_to_string(&file).unwrap().lines().filter_map(anchor_of).collect();
                assert!(headings.contains(anchor), "{document} links to {target}");
            }
        }
    }
}

/// A heading's anchor, as GitHub makes it.
fn anchor_of(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

/// A bar of the benchmarks' report, as a row of the README's table.
fn row(bar: &serde_json::Value) -> Option<String> {
    let measured = bar["measured"].as_object()?;
    let number = |name: &str| measured[name].as_f64().unwrap();
    let (unit, median) = (bar["unit"].as_str().unwrap(), number("median"));
    let digits = if median >= 20.0 { 0 } else { 2 };
    let times = |value: f64| format!("{value:.digits$}");
    let (figure, unit) = match unit {
        "times" => (format!("{} ({} to {})", times(median), times(number("min")), times(number("max"))), ""),
        "MB" => (format!("{median:.0} MB"), " MB"),
        "ms" => (format!("{median:.1} ms"), " ms"),
        _ => (format!("{median:.1} {unit}"), ""),
    };
    let bound = if bar["at_most"] == true { "at most" } else { "at least" };
    let verdict = match (bar["reached"] == true, bar["reached_beyond"] == true) {
        (_, true) => "beyond",
        (true, false) => "reached",
        (false, false) => "**not reached**",
    };
    Some(format!("| {} | {figure} | {bound} {}{unit} | {verdict} |", bar["what"].as_str().unwrap(), bar["bar"].as_f64().unwrap()))
}

#[test]
fn the_figures_are_those_of_the_committed_report() {
    let report: serde_json::Value = serde_json::from_str(&text("docs/bench/report.json")).unwrap();
    let whole = text("README.md");
    let readme = whole.split("\n## ").find(|section| section.starts_with("How fast it is\n")).unwrap();
    let rows: Vec<_> = report["bars"].as_array().unwrap().iter().filter_map(row).collect();
    assert!(rows.len() > 20, "the committed report is a whole one");
    let missing: Vec<_> = rows.iter().filter(|row| !readme.lines().any(|line| line == **row)).collect();
    assert!(missing.is_empty(), "README.md has no such row:\n{missing:#?}");
    let shown =
        readme.lines().filter(|line| line.starts_with('|') && (line.contains("| at least ") || line.contains("| at most "))).count();
    assert_eq!(shown, rows.len(), "README.md shows rows that the report has not");
    let commit = report["machine"]["commit"].as_str().unwrap();
    assert!(readme.contains(&format!("commit {commit}")), "README.md names another commit than {commit}");
}
