//! Readiness, background tasks and stopping.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix_web::{Responder, get, web};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};

use utoipa::openapi::OpenApi;

use super::{read_answer, serve, service, settings};

/// Lets a test hold a request in its handler.
#[derive(Default)]
struct Gate {
    entered: Notify,
    open: Notify,
}

impl Gate {
    async fn entered(&self) {
        timeout(Duration::from_secs(20), self.entered.notified()).await.expect("a request in its handler");
    }
}

#[utoipa::path(get, path = "/slow")]
#[get("/slow")]
async fn slow(gate: web::Data<Gate>) -> impl Responder {
    gate.entered.notify_one();
    gate.open.notified().await;
    "done"
}

/// Waits until a condition holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn service_is_ready_when_every_check_passes() {
    let connected = Arc::new(AtomicBool::new(false));
    let log = connected.clone();
    let service = service(settings(&[])).ready_when("broker", || async { Ok(()) }).ready_when("log", move || {
        let connected = log.load(Ordering::SeqCst);
        async move { if connected { Ok(()) } else { Err("the database is away".to_owned()) } }
    });
    let running = serve(service, |_| {});
    assert_eq!(running.get("/healthcheck").await.body, "Ok");
    let answer = running.get("/ready").await;
    let message = "waiting for: log: the database is away";
    assert_eq!(answer.error(), (503, "not_ready".to_owned(), message.to_owned()));
    connected.store(true, Ordering::SeqCst);
    assert_eq!(running.get("/ready").await.json(), serde_json::json!({ "ready": true }));
    assert_eq!(running.get("/metrics").await.status, 200);
    let document = running.get("/openapi.json").await.json();
    for path in ["/healthcheck", "/ready", "/metrics", "/openapi.json"] {
        assert!(document["paths"][path]["get"].is_object(), "{path}");
    }
    running.stop().await.unwrap();
}

#[tokio::test]
async fn warning_leaves_the_service_ready() {
    let away = Arc::new(AtomicBool::new(false));
    let log = away.clone();
    let service = service(settings(&[]))
        .warn_when("prices", || async { Err("partition 3 is blocked".to_owned()) })
        .warn_when("carts", || async { Ok(()) })
        .ready_when("log", move || {
            let away = log.load(Ordering::SeqCst);
            async move { if away { Err("the database is away".to_owned()) } else { Ok(()) } }
        });
    let running = serve(service, |_| {});
    let expected = serde_json::json!({ "ready": true, "warnings": { "prices": "partition 3 is blocked" } });
    assert_eq!(running.get("/ready").await.json(), expected);
    away.store(true, Ordering::SeqCst);
    let message = "waiting for: log: the database is away. Warnings: prices: partition 3 is blocked";
    assert_eq!(running.get("/ready").await.error(), (503, "not_ready".to_owned(), message.to_owned()));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn check_that_hangs_is_not_ready() {
    let running = serve(service(settings(&[])).ready_when("log", std::future::pending), |_| {});
    assert_eq!(running.get("/ready").await.error().2, "waiting for: log: no answer within 3 seconds");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn stop_answers_requests_then_ends_tasks() {
    let gate = web::Data::new(Gate::default());
    let stopped = Arc::new(AtomicBool::new(false));
    let finished = Arc::new(AtomicBool::new(false));
    let service = service(settings(&[])).background("worker", {
        let (stopped, finished) = (stopped.clone(), finished.clone());
        move |shutdown| async move {
            shutdown.cancelled().await;
            stopped.store(true, Ordering::SeqCst);
            tokio::task::yield_now().await;
            finished.store(true, Ordering::SeqCst);
            Ok(())
        }
    });
    let data = gate.clone();
    let running = serve(service, move |app| {
        app.app_data(data.clone());
        app.service(slow);
    });

    // One connection is idle, the other has a running request.
    let mut idle = running.connect().await;
    idle.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    read_answer(&mut idle).await;
    let mut busy = running.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    gate.entered().await;

    running.stopping.cancel();
    assert_eq!(timeout(Duration::from_secs(10), idle.read(&mut [0])).await.unwrap().unwrap(), 0, "idle ones are closed");
    eventually("new connections are refused", async || TcpStream::connect(running.address).await.is_err()).await;
    assert!(!stopped.load(Ordering::SeqCst), "tasks run while requests may need them");

    gate.open.notify_one();
    assert_eq!(read_answer(&mut busy).await.body, "done");
    running.stop().await.unwrap();
    assert!(finished.load(Ordering::SeqCst), "the service waits for tasks");
}

#[tokio::test]
async fn stop_accepts_requests_during_the_delay() {
    let running = serve(service(settings(&[("CARTLOG_SHUTDOWN_DELAY_SECONDS", "60")])), |_| {});
    running.stopping.cancel();
    assert_eq!(running.get("/ready").await.error(), (503, "not_ready".to_owned(), "shutting down".to_owned()));
    assert_eq!(running.get("/healthcheck").await.body, "Ok", "on a connection that came after the signal");

    let brief = serve(service(settings(&[("CARTLOG_SHUTDOWN_DELAY_SECONDS", "1")])), |_| {});
    brief.stop().await.unwrap();
}

#[tokio::test]
async fn stop_cuts_off_at_the_deadline() {
    let gate = web::Data::new(Gate::default());
    let service = service(settings(&[("CARTLOG_SHUTDOWN_DEADLINE_SECONDS", "1")])).background("stubborn", |_| std::future::pending());
    let data = gate.clone();
    let running = serve(service, move |app| {
        app.app_data(data.clone());
        app.service(slow);
    });
    let mut busy = running.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    gate.entered().await;
    let start = std::time::Instant::now();
    running.stop().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn failed_task_stops_the_service() {
    let failing = service(settings(&[])).background("announcer", |_| async { Err(anyhow::anyhow!("disk on fire")) });
    let fault = serve(failing, |_| {}).outcome.await.unwrap().unwrap_err();
    assert_eq!(format!("{fault:#}"), "the background task announcer failed: disk on fire");

    let ending = service(settings(&[])).background("announcer", |_| async { Ok(()) });
    let fault = serve(ending, |_| {}).outcome.await.unwrap().unwrap_err();
    assert_eq!(format!("{fault:#}"), "the background task announcer ended by itself");

    let panicking = service(settings(&[])).background("announcer", |_| async { panic!("out of cheese") });
    let fault = serve(panicking, |_| {}).outcome.await.unwrap().unwrap_err();
    assert!(format!("{fault:#}").contains("out of cheese"), "{fault:#}");
}

#[tokio::test]
async fn port_in_use_names_the_settings() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let service = service(settings(&[("CARTLOG_PORT", port.as_str())]));
    let fault = service.serve(OpenApi::default(), |_| {}).await.unwrap_err().to_string();
    assert!(fault.contains(&format!("127.0.0.1:{port}")) && fault.contains("CARTLOG_PORT"), "{fault}");
}
