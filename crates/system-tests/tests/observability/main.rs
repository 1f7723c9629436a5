//! Alerts, dashboards and the runbook fit each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot continue fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shop::services;

#[cfg(feature = "prometheus")]
mod prometheus;

/// The entries of the runbook have these parts.
const PARTS: [&str; 4] = ["**What it means.**", "**What users see.**", "**What to look at.**", "**What to do.**"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value}"))
}

/// Every alert, by its name.
fn alerts() -> BTreeMap<String, Value> {
    let rules = yaml("deploy/observability/alerts.yaml");
    let all: Vec<_> = array(&rules["groups"]).iter().flat_map(|group| array(&group["rules"])).collect();
    let alerts: BTreeMap<_, _> = all.iter().map(|rule| (word(rule, "alert").to_owned(), (*rule).clone())).collect();
    assert_eq!(alerts.len(), all.len(), "two alerts of one name");
    alerts
}

/// Every dashboard, by its file's name.
fn dashboards() -> BTreeMap<String, Value> {
    let directory = root().join("deploy/observability/grafana/dashboards");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (file_name(&path), serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap())).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The names behind a dollar.
fn variables(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    text.split('$').skip(1).map(|rest| name(rest.trim_start_matches('{'))).collect()
}

/// An alert's expression without the comparisons at the ends of its lines: what has a value on a good day too.
fn without_bounds(expression: &str) -> String {
    let bound = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [.., comparison, number] = words.as_slice() else { return false };
        matches!(*comparison, ">" | "<" | "==" | "<=") && number.parse::<f64>().is_ok()
    };
    let mut stripped = String::new();
    for line in expression.lines() {
        let kept = if bound(line) { line.trim_end().rsplitn(3, ' ').nth(2).unwrap_or_default() } else { line };
        writeln!(stripped, "{kept}").unwrap();
    }
    stripped
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

#[test]
fn runbook_has_an_entry_for_every_alert_and_no_other() {
    let runbook = text("docs/operations/runbook.md");
    let entries: BTreeMap<&str, &str> = runbook
        .split("\n## ")
        .skip(1)
        .map(|entry| entry.split_once('\n').unwrap())
        .filter(|(name, _)| name.starts_with("Cartlog"))
        .collect();
    let alerts = alerts();
    assert_eq!(
        entries.keys().copied().collect::<Vec<_>>(),
        alerts.keys().collect::<Vec<_>>(),
        "docs/operations/runbook.md and alerts.yaml"
    );
    for (name, alert) in &alerts {
        assert_eq!(word(&alert["annotations"], "runbook_url"), format!("docs/operations/runbook.md#{}", anchor(name)), "{name}");
        let entry = entries[name.as_str()];
        let places: Vec<_> = PARTS.iter().map(|part| entry.find(part).unwrap_or_else(|| panic!("{name} has no {part}"))).collect();
        assert!(places.is_sorted(), "{name}: the parts are in another order");
        assert!(entry.contains(word(&alert["labels"], "severity")), "{name}: its entry says how urgent it is");
    }
}

#[test]
fn alerts_have_severity_and_description() {
    for (name, alert) in alerts() {
        assert!(name.starts_with("Cartlog"), "{name}");
        assert!(["critical", "warning"].contains(&word(&alert["labels"], "severity")), "{name}");
        for annotation in ["summary", "description"] {
            assert!(!word(&alert["annotations"], annotation).is_empty(), "{name}: {annotation}");
        }
        assert_ne!(without_bounds(word(&alert, "expr")).trim(), word(&alert, "expr").trim(), "{name}: its bound ends no line");
    }
}

/// The prefixes of our own metrics' names.
const OURS: [&str; 9] = ["log_", "state_cache_", "projection_", "todo_", "translation_", "broker_", "publication_", "command_", "query_"];

#[test]
fn queries_use_metrics_that_the_code_has() {
    // `cargo dev docs --check` compares this page with the code.
    let page = text("docs/operations/observability.md");
    let known: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut queries: Vec<(String, String)> = alerts().iter().map(|(name, alert)| (name.clone(), word(alert, "expr").to_owned())).collect();
    for (file, dashboard) in dashboards() {
        let targets = array(&dashboard["panels"]).iter().flat_map(|panel| array(&panel["targets"]));
        queries.extend(targets.map(|target| (file.clone(), word(target, "expr").to_owned())));
        let variables = array(&dashboard["templating"]["list"]).iter().filter(|variable| variable["type"] == "query");
        queries.extend(variables.map(|variable| (file.clone(), word(&variable["query"], "query").to_owned())));
    }
    let mut unknown = BTreeSet::new();
    for (of, query) in &queries {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|name| OURS.iter().any(|prefix| name.starts_with(prefix))) {
            let series = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            if !known.contains(name) && !series.is_some_and(|metric| known.contains(metric)) {
                unknown.insert(format!("{of}: {name}"));
            }
        }
    }
    assert!(unknown.is_empty(), "no such metric: {unknown:#?}");
}

#[test]
fn alerts_are_tested_to_fire_and_to_be_silent() {
    let tests = yaml("deploy/observability/alerts.test.yaml");
    let (mut firing, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for check in array(&tests["tests"]).iter().flat_map(|test| array(&test["alert_rule_test"])) {
        let name = word(check, "alertname").to_owned();
        if array(&check["exp_alerts"]).is_empty() {
            silent.insert(name)
        } else {
            firing.insert(name)
        };
    }
    let all: BTreeSet<String> = alerts().into_keys().collect();
    assert_eq!((&firing, &silent), (&all, &all));
}

#[test]
fn kubernetes_has_the_same_alerts_and_dashboards() {
    let rules = yaml("deploy/observability/kubernetes/alerts.yaml");
    assert_eq!(rules["kind"], "PrometheusRule");
    let plain = yaml("deploy/observability/alerts.yaml");
    assert_eq!(rules["spec"]["groups"], plain["groups"], "run deploy/observability/kubernetes/make-alerts");
    let kustomization = yaml("deploy/observability/kustomization.yaml");
    let listed: BTreeSet<_> = array(&kustomization["configMapGenerator"])
        .iter()
        .flat_map(|generator| array(&generator["files"]))
        .map(|file| file.as_str().unwrap().to_owned())
        .collect();
    let there: BTreeSet<_> = dashboards().into_keys().map(|file| format!("grafana/dashboards/{file}")).collect();
    assert_eq!(listed, there);
}

#[test]
fn prometheus_scrapes_every_service_at_its_port() {
    let configuration = yaml("deploy/observability/prometheus.yml");
    for service in services::ALL {
        let jobs = array(&configuration["scrape_configs"]);
        let job = jobs.iter().find(|job| job["job_name"] == service.name).unwrap_or_else(|| panic!("no job {}", service.name));
        let [found] = array(&job["dns_sd_configs"]) else { panic!("{job}") };
        assert_eq!((&found["names"], &found["port"]), (&json!([service.name]), &json!(service.default_port)));
    }
}

#[test]
fn compose_mounts_existing_files_in_its_profile() {
    let compose = yaml("deploy/observability/compose.yml");
    for (name, service) in compose["services"].as_object().unwrap() {
        // Merge keys are for Compose to resolve.
        let of = |key: &str| service.get(key).unwrap_or(&compose["x-watcher"][key]);
        assert_eq!(of("profiles"), &json!(["observability"]), "{name}");
        for volume in array(of("volumes")) {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            match from.strip_prefix("./") {
                Some(file) => assert!(root().join(file).exists(), "{name} mounts {from}"),
                None => assert!(compose["volumes"].get(from).is_some(), "{name} mounts {from}"),
            }
        }
    }
}

#[test]
fn dashboards_are_complete() {
    let sources = yaml("deploy/observability/grafana/provisioning/datasources/datasources.yaml");
    assert!(array(&sources["datasources"]).iter().any(|source| source["type"] == "prometheus" && source["isDefault"] == true));
    let mut uids = BTreeSet::new();
    for (file, dashboard) in dashboards() {
        assert!(uids.insert(word(&dashboard, "uid").to_owned()), "{file}: its uid is another's too");
        assert!(!word(&dashboard, "title").is_empty() && dashboard["schemaVersion"].as_i64() >= Some(39), "{file}");
        let variables_of: BTreeSet<_> =
            array(&dashboard["templating"]["list"]).iter().map(|variable| word(variable, "name").to_owned()).collect();
        assert!(variables_of.contains("datasource"), "{file}");
        let mut taken: BTreeMap<(u64, u64), &str> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for panel in array(&dashboard["panels"]) {
            let title = word(panel, "title");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{file}, {title:?}: its id is another's too");
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
            assert!(w > 0 && h > 0 && x + w <= 24, "{file}, {title:?}: not within the 24 columns");
            for cell in (x..x + w).flat_map(|column| (y..y + h).map(move |row| (column, row))) {
                if let Some(other) = taken.insert(cell, title) {
                    panic!("{file}: {title:?} lies over {other:?}");
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            assert!(["timeseries", "stat"].contains(&word(panel, "type")), "{file}, {title:?}");
            assert!(!word(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{file}, {title:?}");
            let targets = array(&panel["targets"]);
            assert!(!targets.is_empty(), "{file}, {title:?}");
            let references: BTreeSet<_> = targets.iter().map(|target| word(target, "refId")).collect();
            assert_eq!(references.len(), targets.len(), "{file}, {title:?}: two queries of one name");
            for target in targets {
                assert_eq!(target["datasource"], json!({"type": "prometheus", "uid": "${datasource}"}), "{file}, {title:?}");
                for variable in variables(word(target, "expr")) {
                    assert!(variable == "__rate_interval" || variables_of.contains(&variable), "{file}, {title:?}: ${variable}");
                }
            }
        }
    }
    assert_eq!(uids.into_iter().collect::<Vec<_>>(), ["cartlog-kafka", "cartlog-log", "cartlog-projections", "cartlog-shop"]);
}

#[test]
fn without_bounds_removes_comparisons_at_line_ends() {
    assert_eq!(without_bounds("sum(a > 0) > 0.5"), "sum(a > 0)\n");
    assert_eq!(without_bounds("a{b=\"c\"} == 0\nor absent(a)\n  > 1"), "a{b=\"c\"}\nor absent(a)\n \n");
}
