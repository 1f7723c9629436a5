//! Metrics, traces and logs of the four services.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue fails")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use prost::Message;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use shop::services::{COMMANDS, Kind, PROJECTIONS, PUBLISHER, TRANSLATOR};
use system_tests::{ALL, READY, Shop};
use test_support::eventually;
use uuid::Uuid;

/// A service's metrics in Prometheus's format.
struct Metrics(String);

impl Metrics {
    async fn of(shop: &Shop, kind: Kind) -> Self {
        Self(reqwest::get(format!("{}/metrics", shop.url(kind))).await.unwrap().text().await.unwrap())
    }

    /// Sums a metric's samples that have all these labels; none if there is no such sample.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut samples = self.0.lines().filter_map(|line| line.strip_prefix(name)).filter_map(|rest| {
            let (given, value) = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let all = labels.iter().all(|(label, value)| format!(",{given},").contains(&format!(",{label}=\"{value}\",")));
            all.then(|| value.parse::<f64>().unwrap())
        });
        let first = samples.next()?;
        Some(samples.fold(first, |sum, value| sum + value))
    }

    #[track_caller]
    fn holds(&self, name: &str, labels: &[(&str, &str)], expected: impl Fn(f64) -> bool) {
        let found = self.sum(name, labels);
        assert!(found.is_some_and(expected), "{name} {labels:?} is {found:?} in:\n{}", self.0);
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn metrics_cover_commands_pools_and_messages() {
    let mut shop = Shop::new("metrics").await;
    shop.start(&ALL).await;
    let (cart, product) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(shop.add(cart, product, "9.99").await.0, 200);
    assert_eq!(shop.submit(cart).await.0, 200);
    assert_eq!(shop.submit(cart).await.0, 409);
    assert_eq!(shop.submit(Uuid::now_v7()).await.0, 404);
    let body = json!({"product_id": product, "inventory": 1});
    assert_eq!(shop.post(TRANSLATOR, &format!("/changeinventory/{product}"), &body).await.0, 200);
    shop.until_count("CartPublished", 1).await;

    let commands = Metrics::of(&shop, COMMANDS).await;
    let (once, some) = (|n: f64| n == 1.0, |n: f64| n > 0.0);
    let counted = "command_duration_seconds_count";
    commands.holds(counted, &[("slice", "add_item"), ("outcome", "done")], once);
    commands.holds(counted, &[("slice", "submit_cart"), ("outcome", "done")], once);
    commands.holds(counted, &[("slice", "submit_cart"), ("outcome", "refused"), ("refusal", "cart_submitted")], once);
    commands.holds(counted, &[("slice", "submit_cart"), ("outcome", "refused"), ("refusal", "unknown_cart")], once);
    commands.holds("command_duration_seconds_sum", &[("slice", "add_item")], some);
    commands.holds("log_append_queue_duration_seconds_count", &[], |n| n == 2.0);
    commands.holds("log_append_duration_seconds_count", &[], some);
    commands.holds("log_append_batch_count", &[], some);
    let version = ("service_version", env!("CARGO_PKG_VERSION"));
    commands.holds("target_info", &[("service_name", "cart-commands"), version], once);
    for kind in ALL {
        let metrics = Metrics::of(&shop, kind).await;
        let pool = ("db_client_connection_pool_name", "log");
        let used = metrics.sum("db_client_connection_count", &[pool, ("db_client_connection_state", "used")]).unwrap();
        let idle = metrics.sum("db_client_connection_count", &[pool, ("db_client_connection_state", "idle")]).unwrap();
        assert!((1.0..=10.0).contains(&(used + idle)), "{} has {used} used and {idle} idle", kind.name);
        metrics.holds("db_client_connection_max", &[pool], |n| n == 10.0);
    }
    Metrics::of(&shop, TRANSLATOR).await.holds(counted, &[("slice", "change_inventory"), ("outcome", "done")], once);

    for (kind, client) in [(TRANSLATOR, "consumer"), (TRANSLATOR, "producer"), (PUBLISHER, "producer")] {
        eventually("the client is connected", || async {
            (Metrics::of(&shop, kind).await.sum("broker_connected", &[("client", client)]) == Some(1.0)).then_some(())
        })
        .await;
    }
    let publisher = Metrics::of(&shop, PUBLISHER).await;
    let topic = shop.topic("published-carts");
    let acknowledged = [("topic", topic.as_str()), ("outcome", "acknowledged")];
    publisher.holds("publication_duration_seconds_count", &acknowledged, once);
    publisher.holds("publication_duration_seconds_sum", &acknowledged, |seconds| seconds > 0.0 && seconds < 60.0);
    publisher.holds(counted, &[("slice", "publish_cart"), ("outcome", "done")], once);
    eventually("the projection has applied something", || async {
        let position = Metrics::of(&shop, PROJECTIONS).await.sum("projection_position", &[("projection", "cart_items")]);
        position.is_some_and(some).then_some(())
    })
    .await;
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn ready_warns_of_a_lost_grant_and_stays_200() {
    let mut shop = Shop::new("lost-grant").await;
    shop.start(&[COMMANDS]).await;
    let url = format!("{}/ready", shop.url(COMMANDS));
    let ready = async || -> (u16, Value) {
        let answer = reqwest::get(&url).await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    };
    assert_eq!(ready().await, (200, json!({ "ready": true })));
    sqlx::query("REVOKE SELECT ON parked_key FROM cartlog_operator").execute(&shop.pool).await.unwrap();
    let warning = eventually("a warning", async || {
        let (status, answer) = ready().await;
        assert_eq!(status, 200, "{answer}");
        answer["warnings"]["installation"].as_str().map(str::to_owned)
    })
    .await;
    assert!(warning.contains("cartlog_operator") && warning.contains("parked_key"), "{warning}");
    shop.stop().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn state_cache_metrics_count_hits_misses_and_evictions() {
    let mut shop = Shop::new("known").await;
    let mut settings = shop.settings(COMMANDS, "cart-commands.log");
    settings.environment.push(("CARTLOG_STATE_CACHE_MEGABYTES".into(), "1".into()));
    shop.launch(COMMANDS, settings);
    shop.service(COMMANDS).until_ready(READY).await.unwrap();
    let (hits, misses, evictions) = ("state_cache_hits_total", "state_cache_misses_total", "state_cache_evictions_total");
    // The size has no labels, because a process has one cache.
    let size = |metrics: &Metrics| metrics.sum("state_cache_size_bytes", &[]).unwrap();
    let metrics = Metrics::of(&shop, COMMANDS).await;
    for counter in [hits, evictions] {
        metrics.holds(counter, &[], |n| n == 0.0);
    }
    assert_eq!(size(&metrics), 0.0);

    // The command's states are the cart and the product.
    let (cart, product) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(shop.add(cart, product, "1.00").await.0, 200);
    let metrics = Metrics::of(&shop, COMMANDS).await;
    metrics.holds(misses, &[], |n| n == 2.0);
    metrics.holds(hits, &[], |n| n == 0.0);
    let of_one = size(&metrics);
    assert!(of_one > 0.0);
    assert_eq!(shop.add(cart, product, "1.00").await.0, 200);
    let metrics = Metrics::of(&shop, COMMANDS).await;
    metrics.holds(misses, &[], |n| n == 2.0);
    metrics.holds(hits, &[], |n| n == 2.0);
    // A newer state replaces the older one, which is no eviction.
    metrics.holds(evictions, &[], |n| n == 0.0);

    // Until the cache is full.
    for round in 1.. {
        let adding = (0..100).map(|_| shop.add(Uuid::now_v7(), Uuid::now_v7(), "1.00"));
        assert!(futures::future::join_all(adding).await.iter().all(|(status, _)| *status == 200));
        let metrics = Metrics::of(&shop, COMMANDS).await;
        assert!(size(&metrics) > of_one && size(&metrics) <= 1_000_000.0, "{} bytes", size(&metrics));
        if metrics.sum(evictions, &[]) > Some(0.0) {
            break;
        }
        assert!(round < 100, "{} bytes, and none was forgotten", size(&metrics));
    }
    shop.stop().await;
}

/// Receives traces by OTLP over HTTP.
struct Collector {
    endpoint: String,
    exported: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    server: actix_web::dev::ServerHandle,
}

impl Collector {
    fn start() -> Self {
        let exported: Arc<Mutex<Vec<_>>> = Arc::default();
        let taken = web::Data::new(exported.clone());
        let server = HttpServer::new(move || {
            App::new().app_data(taken.clone()).app_data(web::PayloadConfig::new(64 << 20)).route("/v1/traces", web::post().to(take))
        });
        let server = server.workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", server.addrs()[0]);
        let server = server.run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { endpoint, exported, server: handle }
    }

    /// Returns every exported span.
    async fn spans(self) -> Spans {
        self.server.stop(true).await;
        let exported = std::mem::take(&mut *self.exported.lock().unwrap());
        let resources = exported.into_iter().flat_map(|request| request.resource_spans);
        let spans = resources.flat_map(|resource| {
            let service = text(&resource.resource.unwrap().attributes, "service.name").unwrap();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.map(move |span| (service.clone(), span)).collect::<Vec<_>>()
        });
        Spans(spans.collect())
    }
}

async fn take(export: web::Bytes, exported: web::Data<Arc<Mutex<Vec<ExportTraceServiceRequest>>>>) -> HttpResponse {
    exported.lock().unwrap().push(ExportTraceServiceRequest::decode(export).unwrap());
    HttpResponse::Ok().finish()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?;
    match value.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Spans, each with its service.
struct Spans(Vec<(String, Span)>);

impl Spans {
    /// Finds the only span of a trace with this service, name and parent.
    #[track_caller]
    fn one(&self, trace: &str, service: &str, name: &str, parent: &str) -> &Span {
        let of_trace: Vec<_> = self.0.iter().filter(|(_, span)| hex(&span.trace_id) == trace).collect();
        let told = || {
            let told = of_trace
                .iter()
                .map(|(service, span)| format!("\n{service}: {} {} under {}", span.name, hex(&span.span_id), hex(&span.parent_span_id)));
            told.collect::<String>()
        };
        let mut found = of_trace.iter().filter(|(by, span)| by == service && span.name == name && hex(&span.parent_span_id) == parent);
        let Some((_, span)) = found.next() else { panic!("{service} made no {name} under {parent}:{}", told()) };
        assert!(found.next().is_none(), "{service} made more than one {name} under {parent}:{}", told());
        span
    }
}

/// A client's trace, and the client's span.
const SUBMITTED: (&str, &str) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
const SUPPLIED: (&str, &str) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
const UNREADABLE: (&str, &str) = ("80e1afed08e019fc1110464cfa66635c", "7a085853722dc6d2");

fn traceparent((trace, span): (&str, &str)) -> String {
    format!("00-{trace}-{span}-01")
}

/// Reads the lines of a service's log.
fn log_of(shop: &mut Shop, kind: Kind) -> Vec<Value> {
    let log = std::fs::read_to_string(shop.service(kind).process().log()).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL, Kafka and the four binaries: cargo dev test"]
async fn one_trace_leads_from_request_to_published_message() {
    let collector = Collector::start();
    let mut shop = Shop::new("trace").await;
    for kind in ALL {
        let mut settings = shop.settings(kind, &format!("{}.log", kind.name));
        settings.environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT".into(), collector.endpoint.clone()));
        settings.environment.push(("CARTLOG_LOG_FORMAT".into(), "json".into()));
        let filter = match kind {
            // The widest log level.
            PUBLISHER => "debug,hyper=warn",
            // One line for each answered request.
            COMMANDS => "info,service=debug",
            _ => "info",
        };
        settings.environment.push(("CARTLOG_LOG_FILTER".into(), filter.into()));
        shop.launch(kind, settings);
    }
    for kind in ALL {
        shop.service(kind).until_ready(READY).await.unwrap();
    }

    // From Kafka: a message with another system's trace, and an unreadable one.
    let (cart, product) = (Uuid::now_v7(), Uuid::now_v7());
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", &shop.kafka).create().unwrap();
    let key = product.to_string();
    for (value, trace) in [(json!({"product_uuid": product, "inventory": 3}), SUPPLIED), (json!("not an object"), UNREADABLE)] {
        let (value, traceparent) = (value.to_string(), traceparent(trace));
        let headers = OwnedHeaders::new().insert(Header { key: "traceparent", value: Some(&traceparent) });
        let topic = shop.topic("inventories");
        let record = FutureRecord::to(&topic).key(&key).payload(&value).headers(headers);
        producer.send(record, Duration::from_secs(10)).await.unwrap();
        // Alone in its batch, because a batch of several only links to their traces.
        eventually("the message is translated", || async {
            let offset: Option<i64> = sqlx::query_scalar("SELECT sum(next_offset)::bigint FROM source_offset WHERE topic = $1")
                .bind(&topic)
                .fetch_one(&shop.pool)
                .await
                .unwrap();
            (offset >= Some(if trace == SUPPLIED { 1 } else { 2 })).then_some(())
        })
        .await;
    }
    eventually("the inventory is shown", || async {
        (shop.get(&format!("/inventories/{product}")).await.1["inventory"] == 3).then_some(())
    })
    .await;

    // From the request to the message, again alone in its batch.
    let (status, added) = shop.add(cart, product, "9.99").await;
    assert_eq!(status, 200);
    eventually("the read models have caught up", || async {
        (shop.get(&format!("/cartswithproducts/{product}?min_position={}", added[1])).await.0 == 200).then_some(())
    })
    .await;
    let request = reqwest::Client::new().post(format!("{}/submitcart/{cart}", shop.url(COMMANDS)));
    let answer = request.header("traceparent", traceparent(SUBMITTED)).json(&json!({"cart_id": cart})).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let [message] = shop.published(1).await.try_into().unwrap();
    shop.until_count("CartPublished", 1).await;
    let position: i64 =
        sqlx::query_scalar("SELECT event_id FROM event WHERE event_type = 'CartSubmitted'").fetch_one(&shop.pool).await.unwrap();
    eventually("the read models have it", || async {
        (shop.get(&format!("/cartswithproducts/{product}?min_position={position}")).await.0 == 200).then_some(())
    })
    .await;

    // A process exports its last spans when it stops.
    for kind in ALL {
        assert!(shop.service(kind).stop(Duration::from_secs(30)).await.unwrap().success());
    }
    let spans = collector.spans().await;

    let (trace, client) = SUBMITTED;
    let server = spans.one(trace, "cart-commands", "POST /submitcart/{cart_id}", client);
    assert_eq!((server.kind(), text(&server.attributes, "http.route").as_deref()), (SpanKind::Server, Some("/submitcart/{cart_id}")));
    let server = hex(&server.span_id);
    let append = spans.one(trace, "cart-commands", "append", &server);
    assert_eq!((append.kind(), text(&append.attributes, "db.system.name").as_deref()), (SpanKind::Client, Some("postgresql")));
    // Through the log, in other processes: the request's span is the parent of what the event caused.
    spans.one(trace, "cart-projections", "project carts_with_products", &server);
    spans.one(trace, "publisher", "project publish_cart", &server);
    let todo = hex(&spans.one(trace, "publisher", "publish_cart", &server).span_id);
    let topic = shop.topic("published-carts");
    let send = spans.one(trace, "publisher", &format!("send {topic}"), &todo);
    assert_eq!((send.kind(), text(&send.attributes, "messaging.system").as_deref()), (SpanKind::Producer, Some("kafka")));
    assert_eq!(message.headers["traceparent"], traceparent((trace, &hex(&send.span_id))), "a consumer of the message continues this trace");
    spans.one(trace, "publisher", "append", &todo);

    let (trace, supplier) = SUPPLIED;
    let translated = spans.one(trace, "inventory-translator", &format!("translate {}", shop.topic("inventories")), supplier);
    assert_eq!(translated.kind(), SpanKind::Consumer);
    spans.one(trace, "cart-projections", "project inventories", supplier);

    // Log lines have the same ids.
    let answered = log_of(&mut shop, COMMANDS).into_iter().find(|line| line["trace_id"] == SUBMITTED.0).unwrap();
    assert_eq!((answered["message"].as_str(), answered["span_id"].as_str()), (Some("request answered"), Some(server.as_str())));
    let dead = log_of(&mut shop, TRANSLATOR).into_iter().find(|line| line["message"] == "dead letter").unwrap();
    assert_eq!(dead["trace_id"], UNREADABLE.0, "{dead}");
    let span = dead["span_id"].as_str().unwrap();
    assert!(spans.0.iter().any(|(_, found)| hex(&found.span_id) == span), "{dead}");
    // A line outside a request has no trace.
    for kind in ALL {
        assert!(log_of(&mut shop, kind).iter().filter(|line| line["message"] == "listening").all(|line| line["trace_id"].is_null()));
    }
}
