//! The life of a process: its exit codes, its signals, its logs, traces and metrics. Runs the example `minimal`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// A running `minimal`. It is killed when it is dropped.
struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
}

fn minimal(environment: &[(&str, &str)]) -> Command {
    // Tests are in target/<profile>/deps, examples in target/<profile>/examples.
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples/minimal");
    let mut command = Command::new(path);
    command.env_clear().envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

impl Process {
    /// Starts it and waits until it listens.
    fn start(environment: &[(&str, &str)]) -> Self {
        let port = free_port();
        let environment = [environment, &[("CARTLOG_PORT", port.as_str())]].concat();
        Self::listening(minimal(&environment), &port)
    }

    fn listening(mut command: Command, port: &str) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut log = String::new();
        while !log.contains("\"listening\"") {
            assert!(stdout.read_line(&mut log).unwrap() > 0, "it ended: {log}");
        }
        Self { child, stdout, address: format!("127.0.0.1:{port}") }
    }

    /// Opens a connection and sends a request on it.
    fn connection(&self) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = vec![];
        while !answer.ends_with(b"\r\n\r\nOk") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("it is answered");
            answer.extend(byte);
        }
        stream
    }

    fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Sends a signal. Answers the exit code and the log since the process listens, one JSON object per line.
    fn end(mut self, signal: Signal) -> (Option<i32>, Vec<Value>) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, signal).unwrap();
        let mut log = String::new();
        self.stdout.read_to_string(&mut log).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")));
        (self.child.wait().unwrap().code(), lines.collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Most tests have ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = minimal(environment).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn signal_ends_with_exit_code_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (code, log) = Process::start(&[]).end(signal);
        assert_eq!(code, Some(0));
        let messages: Vec<_> = log.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["stopping", "stopped"]);
        assert_eq!(log[0]["signal"], signal.as_str());
    }
}

#[test]
fn wrong_settings_end_with_exit_code_2() {
    let (code, _, stderr) = run(&[("CARTLOG_FAILING", "maybe")]);
    assert_eq!(code, Some(2));
    let expected =
        "minimal: failing is \"maybe\" (environment variable CARTLOG_FAILING), but it must be one of `none`, `error`, `panic`, `unready`\n";
    assert_eq!(stderr, expected);
}

#[test]
fn fault_ends_with_exit_code_1() {
    let (code, stdout, stderr) = run(&[("CARTLOG_FAILING", "error"), ("CARTLOG_PORT", &free_port())]);
    assert_eq!(code, Some(1));
    assert_eq!(stderr, "minimal: the background task worker failed: out of paper\n");
    assert!(stdout.contains("the background task worker failed: out of paper"), "{stdout}");

    let (code, stdout, stderr) = run(&[("CARTLOG_FAILING", "panic"), ("CARTLOG_PORT", &free_port())]);
    assert_eq!(code, Some(1));
    assert!(stdout.contains("panicked") && stdout.contains("out of cheese") && stderr.contains("out of cheese"), "{stdout} {stderr}");
    assert!(stdout.lines().all(|line| line.starts_with('{')), "a panic is JSON too: {stdout}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, stderr) = run(&[("CARTLOG_PORT", port.as_str())]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains(&format!("cannot listen on 127.0.0.1:{port}")) && stderr.contains("CARTLOG_PORT"), "{stderr}");
}

#[test]
fn trace_continues_without_exporter_or_log() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let process = Process::start(&[("CARTLOG_LOG_FILTER", "off,service=debug")]);
    let parent = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n");
    let answer = process.get("/traceparent", &parent);
    assert!(answer.contains(&format!("\r\n\r\n00-{TRACE}-")) && !answer.contains("00f067aa0ba902b7"), "{answer}");
    let fresh = process.get("/traceparent", "");
    assert_eq!(fresh.rsplit("\r\n").next().unwrap().len(), 55, "a new trace: {fresh}");
    let broken = process.get("/traceparent", "traceparent: nonsense\r\n");
    assert_eq!(broken.rsplit("\r\n").next().unwrap().len(), 55, "a new trace: {broken}");

    let (_, log) = process.end(Signal::SIGTERM);
    let request = log.iter().find(|line| line["message"] == "request answered").unwrap();
    assert_eq!(request["status"], 200);
    assert_eq!(request["spans"][0]["trace_id"], TRACE, "{request}");
    assert_eq!(request["spans"][0]["http.route"], "/traceparent");
}

#[test]
fn metrics_count_requests_by_route() {
    let process = Process::start(&[]);
    process.get("/traceparent", "");
    process.get("/nothing/at/all", "");
    process.get("/ready", "");
    let metrics = process.get("/metrics", "");
    for line in [
        r#"http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="200",http_route="/traceparent"} 1"#,
        r#"http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="404",http_route="unknown"} 1"#,
        r#"service_name="minimal""#,
        &format!("service_version=\"{}\"", service::VERSION),
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let (_, log) = process.end(Signal::SIGTERM);
    assert_eq!(log.iter().filter(|line| line["message"] == "request answered").count(), 0);
}

/// Answers one export and hands it over.
fn collector() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let head = String::from_utf8(request).unwrap();
        let length = head.lines().filter_map(|line| line.split_once(": "));
        let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let mut body = vec![0; length.map(|(_, value)| value.parse::<usize>().unwrap()).next().unwrap()];
        stream.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        sender.send(head + &String::from_utf8_lossy(&body)).unwrap();
    });
    (address, receiver)
}

#[test]
fn traces_are_sent_before_the_end() {
    let (endpoint, exports) = collector();
    let process = Process::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())]);
    process.get("/traceparent", "");
    let (code, _) = process.end(Signal::SIGTERM);
    assert_eq!(code, Some(0));
    let export = exports.recv_timeout(Duration::from_secs(10)).expect("an export");
    assert!(export.starts_with("POST /v1/traces "), "{export}");
    assert!(export.contains("GET /traceparent") && export.contains("minimal"), "{export}");
}

#[test]
fn limit_of_open_files_is_raised() {
    let port = free_port();
    let mut few = Command::new("/bin/sh");
    few.args(["-c", "ulimit -S -n 64 && exec \"$0\""]).arg(minimal(&[]).get_program()).env_clear().env("CARTLOG_PORT", &port);
    few.stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = Process::listening(few, &port);
    let connections: Vec<_> = (0..100).map(|_| process.connection()).collect();
    assert_eq!(connections.len(), 100);
    drop(connections);
    process.end(Signal::SIGTERM);
}

#[test]
fn healthcheck_asks_for_readiness() {
    let process = Process::start(&[]);
    let port = process.address.rsplit(':').next().unwrap().to_owned();
    let ask = |bind: &str| {
        // The health check must not use the container's proxy.
        let environment = [("CARTLOG_PORT", port.as_str()), ("CARTLOG_BIND_ADDRESS", bind), ("http_proxy", "http://127.0.0.1:9")];
        minimal(&environment).arg("--healthcheck").output().unwrap()
    };
    for bind in ["127.0.0.1", "0.0.0.0"] {
        let asked = ask(bind);
        assert_eq!(asked.status.code(), Some(0), "{asked:?}");
        assert!(asked.stdout.is_empty() && asked.stderr.is_empty(), "{asked:?}");
    }
    process.end(Signal::SIGTERM);
    let asked = ask("127.0.0.1");
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(String::from_utf8_lossy(&asked.stderr).contains(&format!("127.0.0.1:{port}/ready")), "{asked:?}");

    let unready = Process::start(&[("CARTLOG_FAILING", "unready")]);
    let port = unready.address.rsplit(':').next().unwrap();
    let asked = minimal(&[("CARTLOG_PORT", port)]).arg("--healthcheck").output().unwrap();
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(String::from_utf8_lossy(&asked.stderr).contains("waiting for: paper: none is there"), "{asked:?}");
}

#[test]
fn password_from_a_file_is_never_shown() {
    let path = std::env::temp_dir().join(format!("cartlog-{}-password", std::process::id()));
    std::fs::write(&path, "open sesame\n").unwrap();
    let file = path.to_str().unwrap();
    let (code, stdout, stderr) =
        run(&[("CARTLOG_DATABASE_PASSWORD_FILE", file), ("CARTLOG_FAILING", "error"), ("CARTLOG_PORT", &free_port())]);
    assert_eq!(code, Some(1), "it started: {stderr}");
    assert!(stdout.contains(file) && !stdout.contains("sesame"), "{stdout}");
    std::fs::remove_file(&path).unwrap();
    let (code, _, stderr) = run(&[("CARTLOG_DATABASE_PASSWORD_FILE", file)]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains(&format!("database_password_file is \"{file}\"")) && stderr.contains("a file that this process can read"),
        "{stderr}"
    );
}

#[test]
fn unknown_argument_is_refused() {
    let ended = |argument: &str| minimal(&[]).arg(argument).output().unwrap();
    let help = ended("--help");
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("CARTLOG_SETTINGS_FILE"), "{help:?}");
    assert_eq!(ended("--version").status.code(), Some(0));
    assert_eq!(ended("--nonsense").status.code(), Some(2));
}
