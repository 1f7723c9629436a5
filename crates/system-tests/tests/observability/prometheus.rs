//! A Prometheus that scrapes the real services answers every query. `deploy/check dashboards` builds one and runs this.

use std::collections::{BTreeMap, BTreeSet};
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

use super::{alerts, array, dashboards, root, variables, without_bounds, word, yaml};

/// Queries that have an answer only during a fault, each with the reason.
const ONLY_IN_A_FAULT: [(&str, &str); 0] = [];

/// A query of a dashboard or an alert.
struct Query {
    /// The dashboard's panel or the alert.
    of: String,
    expression: String,
}

fn queries() -> Vec<Query> {
    let mut queries = vec![];
    for (file, dashboard) in dashboards() {
        for panel in array(&dashboard["panels"]) {
            for target in array(&panel["targets"]) {
                let of = format!("{file}, {:?} {}", word(panel, "title"), word(target, "refId"));
                // A long interval, because a graph's last step may contain no sample.
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

/// Replaces a variable as Grafana does for "All".
fn all_of(expression: String, variable: &String) -> String {
    expression.replace(&format!("${variable}"), ".*")
}

/// A Prometheus with the committed configuration, except for the services' addresses. Dropping it kills it.
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
        // Prometheus finds new targets only every few seconds.
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

    /// Tells whether the query has a number as its answer.
    async fn answers(&self, expression: &str) -> Result<bool, String> {
        let data = self.get("query", &[("query", expression)]).await?;
        let number = |series: &Value| series["value"][1].as_str().is_some_and(|value| value != "NaN");
        Ok(array(&data["result"]).iter().any(number))
    }

    /// Returns the labels of a metric; none if there is no such metric.
    async fn labels(&self, metric: &str) -> BTreeSet<String> {
        let series = self.get("series", &[("match[]", metric)]).await.unwrap();
        array(&series).iter().flat_map(|series| series.as_object().unwrap().keys().cloned()).collect()
    }

    /// Returns the metrics and labels of a query that do not exist.
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

/// Collects the metrics of a parsed query, each with its labels.
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

/// Starts the four services on the test servers, with the default topics.
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

/// Simulates a day in the shop.
async fn live(running: &[Service], database: &Database, kafka: &str) {
    let url = |kind| running.iter().find(|service| service.kind() == kind).unwrap().url();
    let addresses = Addresses {
        commands: url(COMMANDS),
        projections: url(PROJECTIONS),
        internal: url(PROJECTIONS),
        database: database.url_as("postgres"),
        kafka: kafka.to_owned(),
    };
    let plan = Plan { shoppers: 60, over: Duration::ZERO, patience: Duration::from_secs(5), outages: false };
    demo::run_at(&addresses, plan, &Report::terminal()).await.unwrap();
}

/// Adds what a day may lack: an unreadable message, queries that wait, and a change over HTTP.
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
async fn queries_of_dashboards_and_alerts_have_an_answer() {
    let program = PathBuf::from(std::env::var_os("PROMETHEUS").expect("PROMETHEUS is the path of a Prometheus; deploy/check sets it"));
    let directory = Layout::discover().unwrap().scratch(&format!("prometheus-{}", Uuid::now_v7().simple())).unwrap();
    let (database, kafka) = (Database::create().await, kafka_bootstrap_servers());
    let mut running = start_services(&database, &kafka, &directory).await;
    let prometheus = Prometheus::start(&program, &directory, &running).await;
    live(&running, &database, &kafka).await;
    stir(&running, &kafka).await;
    // A rebuild that waits for `switch`.
    let pool = event_store::Pool::open(database.options(), &event_store::StoreSettings::default());
    rebuild_named(&pool, "cart_items", Switch::WhenAsked).await.unwrap();

    let faults: BTreeMap<&str, &str> = ONLY_IN_A_FAULT.into();
    let mut asked = queries();
    let all = asked.len();
    let started = std::time::Instant::now();
    // One answer suffices, because some events are short.
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

    // The rules run, and the alerts with a cause fire.
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
