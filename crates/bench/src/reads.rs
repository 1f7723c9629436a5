//! Reads of carts over HTTP, and refusals, with the services built for release, beside a prepared SELECT of a cart's rows.

use anyhow::Result;
use cart_events::CartId;
use shop::services::{COMMANDS, PROJECTIONS};

use crate::{
    add_item::AddItem,
    bench::{Bench, kill},
    client::Clients,
    database::{LOG, Products, cart},
    measure::{Load, Sample},
    place::{rotated, warmed_up},
    plain::Plain,
    report::{Contender, Key, Report},
    scenarios::{LONG_READ, READ, REFUSAL, read_with, thousands},
    sizes::Sizes,
    system::System,
};

const SUBJECT: &str = "reads";
/// Carts that are read.
const CARTS: u64 = 500;
/// The changes of a usual cart, and of a long one. Both have three items.
const CHANGES: u8 = 4;
const LONG: u8 = 100;

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let sizes = &bench.sizes;
    let (first, last) = (sizes.before.first().copied().unwrap_or_default(), sizes.before.last().copied().unwrap_or_default());
    let system = filled(bench, "reads", first).await?;
    let large = if last > first { Some(filled(bench, "reads-large", last).await?) } else { None };
    for round in 0..sizes.rounds {
        for tasks in [1, sizes.loud()] {
            bench.say(format!("reads: round {} of {}, {tasks} at once", round + 1, sizes.rounds));
            for contender in rotated(&[Contender::Live, Contender::Projected, Contender::PlainSql], round) {
                let sample = match contender {
                    Contender::PlainSql => Plain::read(CARTS).measure(&system.database, tasks, sizes).await?,
                    Contender::Projected => read(&system, "cartitemsfromdb", 0, tasks, sizes).await?,
                    _ => read(&system, "cartitems", 0, tasks, sizes).await?,
                };
                report.add(Key::new(SUBJECT, READ, tasks, *contender), sample);
            }
        }
        let tasks = sizes.loud();
        let mut others = vec![Other::Long, Other::Refusal];
        if large.is_some() {
            others.push(Other::Large);
        }
        for other in rotated(&others, round) {
            let (scenario, contender, sample) = match (other, &large) {
                (Other::Large, Some(large)) => (read_with(last), Contender::Live, read(large, "cartitems", 0, tasks, sizes).await?),
                (Other::Refusal, _) => (REFUSAL.to_owned(), Contender::Cartlog, refusals(&system, tasks, sizes).await?),
                _ => (LONG_READ.to_owned(), Contender::Live, read(&system, "cartitems", CARTS, tasks, sizes).await?),
            };
            report.add(Key::new(SUBJECT, scenario, tasks, contender), sample);
        }
    }
    for system in [Some(system), large].into_iter().flatten() {
        kill(system.services).await?;
    }
    Ok(())
}

enum Other {
    Long,
    Refusal,
    Large,
}

/// Starts the services on a log with this many events before the carts that are read, and waits until the read models have applied it.
async fn filled(bench: &Bench, name: &str, before: u64) -> Result<System> {
    bench.say(format!("reads: filling a log with {} events", thousands(before)));
    let database = bench.server.log().await?;
    LOG.add_carts(&database.pool, before / 2, Products::Many(1_000)).await?;
    LOG.add_numbered_carts(&database.pool, CARTS, 0, CHANGES).await?;
    LOG.add_numbered_carts(&database.pool, CARTS, CARTS, LONG).await?;
    let system = System::start_on(bench, name, database).await?;
    system.until_settled().await?;
    system.database.checkpoint().await?;
    Ok(system)
}

/// Measures a query about one of the carts that begin with this number.
async fn read(system: &System, form: &'static str, first: u64, tasks: usize, sizes: &Sizes) -> Result<Sample> {
    let clients = Clients::connect(&[system.url(PROJECTIONS)?], tasks).await?;
    Ok(warmed_up(Load::Tasks(tasks), sizes.length, move |task| {
        let clients = clients.clone();
        async move {
            let path = format!("/{}/{form}", cart(first + rand::random_range(0..CARTS)));
            clients.of(task).await.get(&path).await.map(drop)
        }
    })
    .await)
}

/// Measures Add Item to carts that are full.
async fn refusals(system: &System, tasks: usize, sizes: &Sizes) -> Result<Sample> {
    let clients = Clients::connect(&[system.url(COMMANDS)?], tasks).await?;
    Ok(warmed_up(Load::Tasks(tasks), sizes.length, move |task| {
        let clients = clients.clone();
        async move {
            let cart: CartId = cart(rand::random_range(0..CARTS)).parse().map_err(|error| format!("{error}"))?;
            let command = AddItem::new(cart, Products::Many(1_000).any(), false).map_err(|error| error.to_string())?;
            clients.of(task).await.post_expecting(409, &format!("/additem/{cart}"), &command.json()).await.map(drop)
        }
    })
    .await)
}
