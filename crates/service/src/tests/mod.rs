//! The server as clients see it, over TCP.

mod lifecycle;
mod limits;
mod live;
mod properties;
mod refusals;

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use actix_web::App;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use utoipa_actix_web::AppExt;

use crate::{
    CancellationToken, Fault, Routes, Service,
    http::common,
    settings::{Common, Layers},
    telemetry::Metrics,
};

const DEFAULTS: &str = r#"
    port = 1
    database_url = "postgres://somebody@127.0.0.1:5432/somewhere"
    command_timeout_milliseconds = 10000
"#;

/// A server under test.
struct Running {
    address: SocketAddr,
    stopping: CancellationToken,
    outcome: JoinHandle<Result<(), Fault>>,
}

fn settings(environment: &[(&str, &str)]) -> Common {
    let environment = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
    Layers::load(&[DEFAULTS], None, environment).unwrap().read().unwrap()
}

fn service(settings: Common) -> Service {
    Service::new("test", settings, Metrics::detached(), CancellationToken::new())
}

/// Serves `routes` on a port of its own.
fn serve(service: Service, routes: impl Fn(&mut Routes<'_>) + Clone + Send + 'static) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stopping = service.stopping().clone();
    let app = App::new().into_utoipa_app().configure(common::routes).configure(routes.clone());
    let document = app.split_for_parts().1;
    let outcome = tokio::spawn(service.serve_on(listener, document, routes));
    Running { address, stopping, outcome }
}

/// An answer in its parts.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// Answers status, code and message. Panics if the body is no error body.
    fn error(&self) -> (u16, String, String) {
        let json = self.json();
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        assert_eq!(json.as_object().map(|object| object.len()), Some(2), "{self:?}");
        let word = |key: &str| json[key].as_str().unwrap_or_else(|| panic!("no {key}: {self:?}")).to_owned();
        (self.status, word("code"), word("message"))
    }
}

/// Reads one answer. Fails if the connection is reset before the answer is complete.
async fn read_answer(stream: &mut TcpStream) -> Answer {
    let reading = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = stream.read_u8().await;
            head.push(byte.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&head))));
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: String::new() };
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        answer.body = String::from_utf8(body).unwrap();
        answer
    };
    timeout(Duration::from_secs(20), reading).await.expect("an answer in time")
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes on a new connection and reads the answer.
    async fn exchange(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        read_answer(&mut stream).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.exchange(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    async fn post(&self, path: &str, content_type: &str, body: impl AsRef<[u8]>) -> Answer {
        let body = body.as_ref();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n", body.len());
        self.exchange([head.as_bytes(), body].concat()).await
    }

    /// Stops the server and waits for its end.
    async fn stop(self) -> Result<(), Fault> {
        self.stopping.cancel();
        timeout(Duration::from_secs(30), self.outcome).await.expect("it stops in time").unwrap()
    }
}
