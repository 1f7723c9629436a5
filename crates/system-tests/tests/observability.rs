//! Alerts, dashboards and the runbook: that they fit each other, and that a Prometheus which scrapes the real services answers every query.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dev::demo::{self, Addresses, Plan};
use embedded::layout::Layout;
use embedded::ports;
use embedded::report::{Report, answer};
use projections::{Switch, rebuild_named};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use serde_json::{Value, json};
use shop::services::{self, COMMANDS, PROJECTIONS, PUBLISHER, Service, Settings, TRANSLATOR};
use shop::topics;
use test_support::{Database, eventually, kafka_bootstrap_servers};
use tokio::process::{Child, Command};
use uuid::Uuid;

/// The entries of the runbook have these parts.
const PARTS: [&str; 4] = ["**What it means.**", "**What users see.**", "**What to look at.**", "**What to do.**"];

/// Queries that can have an answer only where something is broken, each with the reason.
const ONLY_IN_A_FAULT: [(&str, &str); 0] = [];

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

/// A query of a dashboard or an alert.
struct Query {
    /// Whose it is.
    of: String,
    expression: String,
}

fn queries() -> Vec<Query> {
    let mut queries = vec![];
    for (file, dashboard) in dashboards() {
        for panel in array(&dashboard["panels"]) {
            for target in array(&panel["targets"]) {
                let of = format!("{file}, {:?} {}", word(panel, "title"), word(target, "refId"));
                // Everything that was since the beginning: a graph's last step may see nothing of it.
                let expression = word(target, "expr").replace("$__rate_interval", "5m");
                queries.push(Query { of, expression: variables(&expression).iter().fold(expression.clone(), all_of) });
            }
        }
        for variable in array(&dashboard["templating"]["list"]).iter().filter(|variable| variable["type"] == "query") {
            let values = word(&variable["query"], "query").strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
            let (metric, label) = values.split_once(", ").unwrap();
            let of = format!("{file}, variable {}", word(variable, "name"));
            queries.push(Query { of, expression: format!("count by ({label}) ({metric})") });
        }
    }
    for (name, alert) in alerts() {
        queries.push(Query { of: format!("alert {name}"), expression: without_bounds(word(&alert, "expr")) });
    }
    queries
}

/// As Grafana does where all values are chosen.
fn all_of(expression: String, variable: &String) -> String {
    expression.replace(&format!("${variable}"), ".*")
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
fn every_alert_has_its_entry_in_the_runbook_and_every_entry_its_alert() {
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
fn every_alert_says_how_urgent_it_is_and_what_is_wrong() {
    for (name, alert) in alerts() {
        assert!(name.starts_with("Cartlog"), "{name}");
        assert!(["critical", "warning"].contains(&word(&alert["labels"], "severity")), "{name}");
        for annotation in ["summary", "description"] {
            assert!(!word(&alert["annotations"], annotation).is_empty(), "{name}: {annotation}");
        }
        assert_ne!(without_bounds(word(&alert, "expr")).trim(), word(&alert, "expr").trim(), "{name}: its bound ends no line");
    }
}

#[test]
fn every_alert_is_tested_to_fire_and_to_be_silent() {
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
fn every_service_is_scraped_by_its_name_where_it_listens() {
    let configuration = yaml("deploy/observability/prometheus.yml");
    for service in services::ALL {
        let jobs = array(&configuration["scrape_configs"]);
        let job = jobs.iter().find(|job| job["job_name"] == service.name).unwrap_or_else(|| panic!("no job {}", service.name));
        let [found] = array(&job["dns_sd_configs"]) else { panic!("{job}") };
        assert_eq!((&found["names"], &found["port"]), (&json!([service.name]), &json!(service.default_port)));
    }
}

#[test]
fn compose_mounts_files_that_there_are_and_only_in_its_profile() {
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
fn the_dashboards_are_whole() {
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
fn the_bound_of_an_alert_is_at_the_end_of_a_line() {
    assert_eq!(without_bounds("sum(a > 0) > 0.5"), "sum(a > 0)\n");
    assert_eq!(without_bounds("a{b=\"c\"} == 0\nor absent(a)\n  > 1"), "a{b=\"c\"}\nor absent(a)\n \n");
}

/// A Prometheus that scrapes the services, with the committed configuration but for where they are. Dropping it kills it.
struct Prometheus {
    url: String,
    http: reqwest::Client,
    _process: Child,
}

impl Prometheus {
    async fn start(program: &Path, directory: &Path, running: &[Service]) -> Self {
        let mut configuration = yaml("deploy/observability/prometheus.yml");
        configuration["global"] = json!({"scrape_interval": "1s", "evaluation_interval": "1s"});
        configuration["rule_files"] = json!([root().join("deploy/observability/alerts.yaml")]);
        let mut jobs = vec![];
        for service in running {
            let all = array(&configuration["scrape_configs"]);
            let mut job = all.iter().find(|job| job["job_name"] == service.kind().name).unwrap().clone();
            job.as_object_mut().unwrap().remove("dns_sd_configs");
            job["static_configs"] = json!([{"targets": [service.url().trim_start_matches("http://")]}]);
            jobs.push(job);
        }
        configuration["scrape_configs"] = jobs.into();
        // JSON is YAML.
        let file = directory.join("prometheus.yml");
        std::fs::write(&file, configuration.to_string()).unwrap();
        let [port] = ports::free([None]).unwrap();
        let log = std::fs::File::create(directory.join("prometheus.log")).unwrap();
        let process = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("prometheus").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let prometheus = Self { url: format!("http://127.0.0.1:{port}"), http: reqwest::Client::new(), _process: process };
        eventually("Prometheus is ready", || async {
            let answer = prometheus.http.get(format!("{}/-/ready", prometheus.url)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        let all = running.len().to_string();
        // It looks for what to scrape only every few seconds.
        eventually("Prometheus scrapes every service", || async {
            let up = prometheus.get("query", &[("query", "count(up == 1)")]).await.unwrap();
            (up["result"][0]["value"][1].as_str() == Some(all.as_str())).then_some(())
        })
        .await;
        prometheus
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, String> {
        let answer = self.http.get(format!("{}/api/v1/{path}", self.url)).query(query).send().await.unwrap();
        let mut body: Value = answer.json().await.unwrap();
        if body["status"] == "success" { Ok(body["data"].take()) } else { Err(body["error"].to_string()) }
    }

    /// Whether the query has a number for an answer.
    async fn answers(&self, expression: &str) -> Result<bool, String> {
        let data = self.get("query", &[("query", expression)]).await?;
        let number = |series: &Value| series["value"][1].as_str().is_some_and(|value| value != "NaN");
        Ok(array(&data["result"]).iter().any(number))
    }

    /// The labels of a metric; none where it is not there.
    async fn labels(&self, metric: &str) -> BTreeSet<String> {
        let series = self.get("series", &[("match[]", metric)]).await.unwrap();
        array(&series).iter().flat_map(|series| series.as_object().unwrap().keys().cloned()).collect()
    }

    /// What is not there of the metrics and labels that a query names.
    async fn unknown_names(&self, expression: &str) -> BTreeSet<String> {
        let mut named = vec![];
        selectors(&self.get("parse_query", &[("query", expression)]).await.unwrap(), &mut named);
        let mut unknown = BTreeSet::new();
        for (metric, labels) in named {
            let there = self.labels(&metric).await;
            if there.is_empty() {
                unknown.insert(metric);
            } else {
                unknown.extend(labels.into_iter().filter(|label| !there.contains(label)).map(|label| format!("{label} of {metric}")));
            }
        }
        unknown
    }
}

/// The metrics of a parsed query, each with the labels by which it is chosen.
fn selectors(node: &Value, found: &mut Vec<(String, Vec<String>)>) {
    match node {
        Value::Object(fields) => {
            if node["type"] == "vectorSelector" || node["type"] == "matrixSelector" {
                let matchers = array(&node["matchers"]).iter().map(|matcher| word(matcher, "name").to_owned());
                found.push((word(node, "name").to_owned(), matchers.filter(|label| label != "__name__").collect()));
            }
            fields.values().for_each(|field| selectors(field, found));
        }
        Value::Array(nodes) => nodes.iter().for_each(|node| selectors(node, found)),
        _ => {}
    }
}

/// The four services on the test servers, under the topics' own names.
async fn start_services(database: &Database, kafka: &str, logs: &Path) -> Vec<Service> {
    topics::create(kafka).await.unwrap();
    let programs = PathBuf::from(std::env::var_os("CARTLOG_TEST_BIN_DIR").expect("run `cargo dev test`, which builds the services"));
    let mut running = vec![];
    for kind in services::ALL {
        let [port] = ports::free([None]).unwrap();
        let mut settings = Settings::new(kind, &programs, logs, port);
        settings.database_url = database.url_as(kind.role);
        settings.kafka_bootstrap_servers = kafka.to_owned();
        running.push(Service::start(kind, settings).unwrap());
    }
    for service in &mut running {
        service.until_ready(Duration::from_secs(60)).await.unwrap();
    }
    running
}

/// A day in the shop.
async fn live(running: &[Service], database: &Database, kafka: &str) {
    let url = |kind| running.iter().find(|service| service.kind() == kind).unwrap().url();
    let addresses = Addresses {
        commands: url(COMMANDS),
        projections: url(PROJECTIONS),
        database: database.url_as("postgres"),
        kafka: kafka.to_owned(),
    };
    let plan = Plan { shoppers: 60, over: Duration::ZERO, patience: Duration::from_secs(5), outages: false };
    demo::run_at(&addresses, plan, &Report::terminal()).await.unwrap();
}

/// What the day may lack, and queries ask for: a message that cannot be read, queries that wait, in vain and not, a change over HTTP.
async fn stir(running: &[Service], kafka: &str) {
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", kafka).create().unwrap();
    for topic in [topics::INVENTORIES, topics::PRICE_CHANGES] {
        producer.send(FutureRecord::to(topic).key("nobody").payload("no JSON"), Timeout::Never).await.unwrap();
    }
    let url = |kind| running.iter().find(|service| service.kind() == kind).unwrap().url();
    let product = Uuid::now_v7();
    let change = reqwest::Client::new().post(format!("{}/changeinventory/{product}", url(TRANSLATOR)));
    let change = change.json(&json!({"product_id": product, "inventory": 7})).send().await.unwrap();
    let (_, position): (Uuid, i64) = change.json().await.unwrap();
    let query = format!("{}/inventories/{product}", url(PROJECTIONS));
    for (position, timeout, status) in [(position, 10, 200), (1_000_000_000, 0, 503)] {
        let answer = reqwest::get(format!("{query}?min_position={position}&timeout={timeout}")).await.unwrap();
        assert_eq!(answer.status(), status);
    }
}

#[tokio::test]
#[ignore = "needs a Prometheus: deploy/check dashboards builds one"]
async fn every_query_has_an_answer() {
    let program = PathBuf::from(std::env::var_os("PROMETHEUS").expect("PROMETHEUS is the path of a Prometheus; deploy/check sets it"));
    let directory = Layout::discover().unwrap().scratch(&format!("prometheus-{}", Uuid::now_v7().simple())).unwrap();
    let (database, kafka) = (Database::create().await, kafka_bootstrap_servers());
    let mut running = start_services(&database, &kafka, &directory).await;
    let prometheus = Prometheus::start(&program, &directory, &running).await;
    live(&running, &database, &kafka).await;
    stir(&running, &kafka).await;
    // Held: it stays as far as it comes.
    rebuild_named(&database.pool().await, "cart_items", Switch::WhenAsked).await.unwrap();

    let faults: BTreeMap<&str, &str> = ONLY_IN_A_FAULT.into();
    let mut asked = queries();
    let all = asked.len();
    let started = std::time::Instant::now();
    // An answer once is enough: some of what happens is over soon.
    while !asked.is_empty() && started.elapsed() < Duration::from_secs(30) {
        stir(&running, &kafka).await;
        let mut unanswered = vec![];
        for query in asked {
            match prometheus.answers(&query.expression).await {
                Ok(true) => {}
                Ok(false) => unanswered.push(query),
                Err(error) => panic!("{}: {error}", query.of),
            }
        }
        asked = unanswered;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut wrong = vec![];
    for query in queries() {
        let unknown = prometheus.unknown_names(&query.expression).await;
        match faults.get(query.of.as_str()) {
            Some(reason) => answer(format!("{} may have no answer: {reason}", query.of)),
            None if !unknown.is_empty() => wrong.push(format!("{}: no service has {unknown:?}", query.of)),
            None if asked.iter().any(|asked| asked.of == query.of) => wrong.push(format!("{}: {}", query.of, query.expression)),
            None => {}
        }
    }
    answer(format!("\n{} of {all} queries have an answer", all - asked.len()));
    assert!(wrong.is_empty(), "without an answer: {wrong:#?}");

    // The rules run, and those fire whose cause is there.
    let rules = prometheus.get("rules", &[]).await.unwrap();
    let rules: Vec<_> = array(&rules["groups"]).iter().flat_map(|group| array(&group["rules"])).collect();
    assert_eq!(rules.len(), alerts().len());
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:#?}");
    for service in running.iter_mut().filter(|service| [PUBLISHER, TRANSLATOR].contains(&service.kind())) {
        service.stop(Duration::from_secs(30)).await.unwrap();
    }
    eventually("the alerts see it", || async {
        let alerts = prometheus.get("alerts", &[]).await.unwrap();
        let active: BTreeSet<_> =
            array(&alerts["alerts"]).iter().map(|alert| (word(&alert["labels"], "alertname"), word(alert, "state"))).collect();
        [("CartlogDeadLetters", "firing"), ("CartlogServiceDown", "pending")].iter().all(|alert| active.contains(alert)).then_some(())
    })
    .await;
}
