//! The floor: the least that PostgreSQL must do.
//!
//! One prepared INSERT of two rows per autocommit, with one connection per task, into a table with the log's columns and indexes.

use std::{path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions, types::Json};
use tokio::{
    process::Command,
    sync::{Mutex, MutexGuard},
};
use uuid::Uuid;

use crate::{
    add_item::AddItem,
    database::{Database, SHOP},
    measure::{Sample, Until, measure},
};

/// One connection per task.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Vec<Mutex<PgConnection>>>);

impl Connections {
    pub(crate) async fn open(database: &Database, count: usize) -> Result<Self> {
        let options = database.url.parse::<PgConnectOptions>()?.disable_statement_logging();
        let mut made = vec![];
        for _ in 0..count {
            made.push(Mutex::new(options.connect().await?));
        }
        Ok(Self(Arc::new(made)))
    }

    /// The connection of a task.
    pub(crate) async fn of(&self, task: usize) -> MutexGuard<'_, PgConnection> {
        self.0[task % self.0.len()].lock().await
    }

    pub(crate) async fn close(self) {
        for connection in Arc::into_inner(self.0).into_iter().flatten() {
            // If closing fails, the connection ends with the database.
            let _ = connection.into_inner().close().await;
        }
    }
}

/// The floor's connections.
#[derive(Clone)]
pub(crate) struct Floor(Connections);

const INSERT: &str = "INSERT INTO floor.event (event_type, payload, metadata, cart_id, item_id, product_id)
    VALUES ('CartCreated', $1, $2, $3, NULL, NULL), ('ItemAdded', $4, $2, $3, $5, $6)";

impl Floor {
    pub(crate) async fn connect(database: &Database, connections: usize) -> Result<Self> {
        Ok(Self(Connections::open(database, connections).await?))
    }

    /// Inserts the two rows of a cart's first Add Item.
    pub(crate) async fn insert(&self, task: usize, command: &AddItem) -> Result<(), String> {
        let [created, added] = command.events().map(|event| serde_json::to_vec(&event).unwrap_or_default());
        let query = sqlx::query(INSERT)
            .bind(created)
            .bind(Json(serde_json::json!({"append_id": Uuid::now_v7()})))
            .bind(command.cart_id.uuid())
            .bind(added)
            .bind(command.item_id.uuid())
            .bind(command.product_id.uuid());
        let mut connection = self.0.of(task).await;
        query.execute(&mut *connection).await.map(drop).map_err(|error| error.to_string())
    }

    pub(crate) async fn close(self) {
        self.0.close().await;
    }

    /// Compares this load generator with `pgbench -M prepared`, with the same statement and number of clients. `None` if pgbench is not
    /// installed. The statement makes its own ids, because pgbench cannot.
    pub(crate) async fn against_pgbench(&self, database: &Database, length: Duration) -> Result<Option<PgbenchCheck>> {
        if !pgbench_is_installed().await {
            return Ok(None);
        }
        let command = AddItem::new(cart_events::CartId::new(), cart_events::ProductId::new(), false)?;
        let [created, added] = command.events().map(|event| serde_json::to_string(&event).unwrap_or_default());
        let statement = |product: &str| {
            format!(
                "INSERT INTO floor.event (event_type, payload, metadata, cart_id, item_id, product_id) VALUES
                 ('CartCreated', '{created}', '{{\"append_id\": \"{id}\"}}', uuidv7(), NULL, NULL),
                 ('ItemAdded', '{added}', '{{\"append_id\": \"{id}\"}}', uuidv7(), uuidv7(),
                  ('{SHOP}' || lpad(to_hex({product}::bigint), 12, '0'))::uuid)",
                id = command.item_id
            )
            .replace('\n', " ")
        };
        // pgbench would take a colon with a letter for a variable.
        let script = PgbenchScript::write(&format!("\\set product random(0, 999)\n{}", statement(":product"))).await?;
        let (clients, ours) = (self.0.0.len(), Arc::new(statement("$1")));
        let (mut pgbench, mut generator) = (vec![], vec![]);
        for _ in 0..3 {
            pgbench.push(script.run(database, clients, length).await?);
            let (floor, statement) = (self.clone(), ours.clone());
            let sample: Sample = measure(clients, Until::Elapsed(length), move |task| {
                let (floor, statement) = (floor.clone(), statement.clone());
                async move {
                    let mut connection = floor.0.of(task).await;
                    let query = sqlx::query(&statement).bind(rand::random_range(0..1_000_i64));
                    query.execute(&mut *connection).await.map(drop).map_err(|error| error.to_string())
                }
            })
            .await;
            generator.push(sample.per_second);
        }
        Ok(Some(PgbenchCheck { clients, pgbench, generator }))
    }
}

/// The rates of both, measured in turns.
pub(crate) struct PgbenchCheck {
    pub(crate) clients: usize,
    pub(crate) pgbench: Vec<f64>,
    pub(crate) generator: Vec<f64>,
}

pub(crate) async fn pgbench_is_installed() -> bool {
    Command::new("pgbench").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await.is_ok()
}

/// A script for pgbench, in a temporary file.
pub(crate) struct PgbenchScript(PathBuf);

impl PgbenchScript {
    pub(crate) async fn write(text: &str) -> Result<Self> {
        let script = Self(std::env::temp_dir().join(format!("{}.sql", Uuid::now_v7())));
        tokio::fs::write(&script.0, text).await?;
        Ok(script)
    }

    /// Returns how often the script ran in a second.
    pub(crate) async fn run(&self, database: &Database, clients: usize, length: Duration) -> Result<f64> {
        let threads = clients.min(2).to_string();
        let output = Command::new("pgbench")
            .args(["-n", "-M", "prepared", "-j", &threads, "-c", &clients.to_string(), "-T", &length.as_secs().max(1).to_string(), "-f"])
            .arg(&self.0)
            .arg(&database.url)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        if !output.status.success() {
            bail!("pgbench: {}", String::from_utf8_lossy(&output.stderr));
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok());
        rate.with_context(|| format!("pgbench said no tps: {said}"))
    }
}

impl Drop for PgbenchScript {
    fn drop(&mut self) {
        // A temporary file; if it stays, the system removes it.
        let _ = std::fs::remove_file(&self.0);
    }
}
