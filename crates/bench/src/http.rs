//! Add Item over HTTP, to the release program of cart-commands: one process, and two.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use dev::services::{COMMANDS, Service};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
};

use crate::{
    Bench,
    add_item::AddItem,
    database::Products,
    log::{Place, Work, rotated, warmed_up},
    measure::{Load, Until, measure},
    report::{Contender, Key, Report, thousands},
};

/// What the bars speak of.
pub(crate) const SCENARIO: &str = "Add Item over HTTP";
pub(crate) const IDLE: &str = "cart-commands, idle";
pub(crate) fn after_carts(carts: u64) -> String {
    format!("cart-commands, after {} carts", thousands(carts))
}

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let connections = bench.sizes.loud();
    let place = Place::fill(bench, bench.sizes.before.first().copied().unwrap_or_default(), false).await?;
    for round in 0..bench.sizes.rounds {
        bench.say(format!("http: round {} of {}", round + 1, bench.sizes.rounds));
        for contender in rotated(&[Contender::OneProcess, Contender::TwoProcesses, Contender::Floor], round) {
            let work = Work::one_item_each(Products::Many(1_000), connections);
            let sample = if *contender == Contender::Floor {
                place.measure(*contender, work, connections, bench.sizes.length).await?
            } else {
                place.again(*contender).await?;
                let names = if *contender == Contender::OneProcess { &["one"][..] } else { &["one", "two"] };
                let mut services = vec![];
                for name in names {
                    services.push(start(bench, &place, name).await?);
                }
                let (clients, work) = (Clients::connect(&services, connections).await?, Arc::new(work));
                let sample = warmed_up(Load::Tasks(connections), bench.sizes.length, move |task| {
                    let (clients, command) = (clients.clone(), work.next(task));
                    async move { clients.add_item(task, &command?).await }
                })
                .await;
                kill(services).await?;
                sample
            };
            report.add(Key::new("http", SCENARIO, connections, *contender), sample);
        }
    }
    memory(bench, &place, report).await
}

/// What a process holds when it has just begun, and after very many carts.
async fn memory(bench: &Bench, place: &Place, report: &mut Report) -> Result<()> {
    let (carts, connections) = (bench.sizes.carts, bench.sizes.loud());
    bench.say(format!("http: {} carts, for the memory of cart-commands", thousands(carts)));
    place.again(Contender::Cartlog).await?;
    let mut service = start(bench, place, "memory").await?;
    report.value(IDLE, resident(&mut service)?, "MB");
    let clients = Clients::connect(std::slice::from_ref(&service), connections).await?;
    let work = Arc::new(Work::one_item_each(Products::Many(1_000), connections));
    let sample = measure(connections, Until::Done(carts), move |task| {
        let (clients, command) = (clients.clone(), work.next(task));
        async move { clients.add_item(task, &command?).await }
    })
    .await;
    ensure!(sample.first_failure.is_none(), "Add Item over HTTP failed: {:?}", sample.first_failure);
    report.value(after_carts(carts), resident(&mut service)?, "MB");
    kill(vec![service]).await
}

async fn start(bench: &Bench, place: &Place, name: &str) -> Result<Service> {
    bench.start(COMMANDS, name, &place.ours, vec![]).await
}

/// Their database is filled anew, so there is nothing to be finished.
pub(crate) async fn kill(services: Vec<Service>) -> Result<()> {
    for mut service in services {
        service.kill().await?;
    }
    Ok(())
}

/// The resident memory of a service's process, in MB.
fn resident(service: &mut Service) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.process().identity().pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc names no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1_024.0)
}

/// Keep-alive connections, spread evenly over some processes.
///
/// The client shares the cores with what it measures, so it does no more than it must: it writes the request, and reads the status and
/// as much as the answer says it has.
#[derive(Clone)]
struct Clients(Arc<Vec<Mutex<Client>>>);

pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Clients {
    async fn connect(services: &[Service], count: usize) -> Result<Self> {
        let mut made = vec![];
        for service in services.iter().cycle().take(count) {
            made.push(Mutex::new(Client::connect(&service.url()).await?));
        }
        Ok(Self(Arc::new(made)))
    }

    async fn add_item(&self, task: usize, command: &AddItem) -> Result<(), String> {
        let mut client = self.0[task % self.0.len()].lock().await;
        client.post(&format!("/additem/{}", command.cart_id), &command.json()).await.map(drop)
    }
}

impl Client {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let stream = TcpStream::connect(url.trim_start_matches("http://")).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: vec![] })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<&[u8], String> {
        self.exchange(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_bytes()).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &str) -> Result<&[u8], String> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.exchange(request.as_bytes()).await
    }

    /// Answers the body of an answer that is 200.
    async fn exchange(&mut self, request: &[u8]) -> Result<&[u8], String> {
        let failed = |error: std::io::Error| error.to_string();
        self.stream.write_all(request).await.map_err(failed)?;
        self.read.clear();
        loop {
            if self.stream.read_buf(&mut self.read).await.map_err(failed)? == 0 {
                return Err("the connection was closed".to_owned());
            }
            if let Some(body) = body(&self.read) {
                let body = self.read.len() - body.len();
                let good = self.read.starts_with(b"HTTP/1.1 200 ");
                return if good { Ok(&self.read[body..]) } else { Err(String::from_utf8_lossy(&self.read).into_owned()) };
            }
        }
    }
}

/// What stands behind the head, once there are as many bytes of it as the head says. Our services say it always.
fn body(answer: &[u8]) -> Option<&[u8]> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let body = &answer[end + 4..];
    (body.len() >= length.unwrap_or_default()).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nx: y\r\n\r\nabc";
        assert_eq!(body(answer), Some(&b"abc"[..]));
        for end in 0..answer.len() {
            assert_eq!(body(&answer[..end]), None, "{end}");
        }
    }
}
