//! The floor: the least that PostgreSQL must do.
//!
//! One prepared INSERT of two rows per autocommit, with one connection per task, into a table with the log's columns and indexes.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions, types::Json};
use tokio::{process::Command, sync::Mutex};
use uuid::Uuid;

use crate::{
    add_item::AddItem,
    database::{Database, SHOP},
    measure::{Sample, Until, measure},
};

/// One connection per task.
#[derive(Clone)]
pub(crate) struct Floor(Arc<Vec<Mutex<PgConnection>>>);

const INSERT: &str = "INSERT INTO floor.event (event_type, payload, metadata, cart_id, item_id, product_id)
    VALUES ('CartCreated', $1, $2, $3, NULL, NULL), ('ItemAdded', $4, $2, $3, $5, $6)";

impl Floor {
    pub(crate) async fn connect(database: &Database, connections: usize) -> Result<Self> {
        let options = database.url.parse::<PgConnectOptions>()?.disable_statement_logging();
        let mut made = vec![];
        for _ in 0..connections {
            made.push(Mutex::new(options.connect().await?));
        }
        Ok(Self(Arc::new(made)))
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
        let mut connection = self.0[task % self.0.len()].lock().await;
        query.execute(&mut *connection).await.map(drop).map_err(|error| error.to_string())
    }

    pub(crate) async fn close(self) {
        for connection in Arc::into_inner(self.0).into_iter().flatten() {
            // If closing fails, the connection ends with the database.
            let _ = connection.into_inner().close().await;
        }
    }

    /// Compares this load generator with `pgbench -M prepared`, with the same statement and number of clients. `None` if pgbench is not
    /// installed. The statement makes its own ids, because pgbench cannot.
    pub(crate) async fn against_pgbench(&self, database: &Database, length: Duration) -> Result<Option<PgbenchCheck>> {
        if Command::new("pgbench").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await.is_err() {
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
        let script = std::env::temp_dir().join(format!("{}.sql", command.item_id));
        // pgbench would take a colon with a letter for a variable.
        tokio::fs::write(&script, format!("\\set product random(0, 999)\n{}", statement(":product"))).await?;
        let (clients, ours) = (self.0.len(), Arc::new(statement("$1")));
        let (mut pgbench, mut generator) = (vec![], vec![]);
        for _ in 0..3 {
            pgbench.push(run_pgbench(database, &script, clients, length).await?);
            let (floor, statement) = (self.clone(), ours.clone());
            let sample: Sample = measure(clients, Until::Elapsed(length), move |task| {
                let (floor, statement) = (floor.clone(), statement.clone());
                async move {
                    let mut connection = floor.0[task % floor.0.len()].lock().await;
                    let query = sqlx::query(&statement).bind(rand::random_range(0..1_000_i64));
                    query.execute(&mut *connection).await.map(drop).map_err(|error| error.to_string())
                }
            })
            .await;
            generator.push(sample.per_second);
        }
        tokio::fs::remove_file(&script).await?;
        Ok(Some(PgbenchCheck { clients, pgbench, generator }))
    }
}

/// The rates of both, measured in turns.
pub(crate) struct PgbenchCheck {
    pub(crate) clients: usize,
    pub(crate) pgbench: Vec<f64>,
    pub(crate) generator: Vec<f64>,
}

async fn run_pgbench(database: &Database, script: &std::path::Path, clients: usize, length: Duration) -> Result<f64> {
    let output = Command::new("pgbench")
        .args(["-n", "-M", "prepared", "-j", "2", "-c", &clients.to_string(), "-T", &length.as_secs().max(1).to_string(), "-f"])
        .arg(script)
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
