//! Add Item over HTTP, to one and to two processes of cart-commands, built for release.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use shop::services::{COMMANDS, Service};

use crate::{
    add_item::AddItem,
    bench::{Bench, kill},
    client::Clients,
    database::Products,
    measure::{Load, Until, measure},
    place::{Place, rotated, warmed_up},
    report::{Contender, Key, Report},
    scenarios::{COMMANDS_IDLE, HTTP, commands_after, thousands},
    work::Work,
};

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
                let (clients, work) = (Clients::connect(&urls(&services), connections).await?, Arc::new(work));
                let sample = warmed_up(Load::Tasks(connections), bench.sizes.length, move |task| {
                    let (clients, command) = (clients.clone(), work.next(task));
                    async move { add_item(&clients, task, &command?).await }
                })
                .await;
                kill(services).await?;
                sample
            };
            report.add(Key::new("http", HTTP, connections, *contender), sample);
        }
    }
    memory(bench, &place, report).await
}

/// Measures a process's memory after its start, and after very many carts.
async fn memory(bench: &Bench, place: &Place, report: &mut Report) -> Result<()> {
    let (carts, connections) = (bench.sizes.carts, bench.sizes.loud());
    bench.say(format!("http: {} carts, for the memory of cart-commands", thousands(carts)));
    place.again(Contender::Cartlog).await?;
    let mut service = start(bench, place, "memory").await?;
    report.value(COMMANDS_IDLE, resident(&mut service)?, "MB");
    let clients = Clients::connect(&[service.url()], connections).await?;
    let work = Arc::new(Work::one_item_each(Products::Many(1_000), connections));
    let sample = measure(connections, Until::Done(carts), move |task| {
        let (clients, command) = (clients.clone(), work.next(task));
        async move { add_item(&clients, task, &command?).await }
    })
    .await;
    ensure!(sample.first_failure.is_none(), "Add Item over HTTP failed: {:?}", sample.first_failure);
    report.value(commands_after(carts), resident(&mut service)?, "MB");
    kill(vec![service]).await
}

async fn start(bench: &Bench, place: &Place, name: &str) -> Result<Service> {
    bench.start(COMMANDS, name, &place.ours, vec![]).await
}

/// Returns the resident memory of a service's process, in MB.
fn resident(service: &mut Service) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.process().identity().pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc names no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1_024.0)
}

/// Adds an item over a task's connection.
async fn add_item(clients: &Clients, task: usize, command: &AddItem) -> Result<(), String> {
    clients.of(task).await.post(&format!("/additem/{}", command.cart_id), &command.json()).await.map(drop)
}

fn urls(services: &[Service]) -> Vec<String> {
    services.iter().map(Service::url).collect()
}
