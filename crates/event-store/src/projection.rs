//! Projections: tables made of the log. A projection says what it takes and how a batch becomes SQL; the runtime does the rest.
//!
//! The batch and its checkpoint are written in one transaction, so an event is applied exactly once, whatever dies. Each read model's
//! tables stand in two database schemas, so that a new build can be made beside the one in service; the runtime sets the search path.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use disintegrate::Event;
use opentelemetry::KeyValue;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    EventStore, LogEvent, Metadata, Position, Recorded, StoreError,
    event::decode,
    lease::{Held, Leases},
    metrics::METRICS,
    trace,
};

/// What a projection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tables that are read; they can be made anew at any time.
    ReadModel,
    /// The state and to-dos of an automation. Never made anew: what it did would be done again.
    Automation,
}

/// A function from batches of events to SQL.
#[async_trait]
pub trait Projection: Send + Sync + 'static {
    /// The log's events.
    type Log: LogEvent;
    /// Those it takes: one of the log's streams. It is asked for no others, so an event type that a newer release added is none of its
    /// business.
    type Event: Event + TryFrom<Self::Log> + Clone + Send + Sync;

    /// Its name, in tables, metrics and logs.
    const NAME: &'static str;
    /// Raised when it makes other rows of the same events: it is then made anew, beside the one in service.
    const VERSION: i32 = 1;
    /// What it is for.
    const KIND: Kind = Kind::ReadModel;
    /// Its tables, without schema: emptied before it is made anew.
    const TABLES: &'static [&'static str];

    /// What events keep their order by. An event without a key concerns every key.
    fn key(event: &Self::Event) -> Option<Uuid>;

    /// Applies a batch, in the order of the log, within the transaction that moves the checkpoint. Set-based: one statement a kind of
    /// change, not one a row.
    ///
    /// # Errors
    /// The database's. The transaction is rolled back then, and the batch is tried again.
    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<Self::Event>]) -> Result<(), sqlx::Error>;
}

/// How projections are run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Positions of the log that one transaction takes at the most.
    pub batch: i64,
    /// How long a process may be silent before another takes over. Renewed three times in it.
    pub lease: Duration,
    /// The longest pause before a batch that failed is tried again.
    pub max_backoff: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { batch: 5_000, lease: Duration::from_secs(3), max_backoff: Duration::from_secs(10) }
    }
}

/// Runs a projection until it is told to stop. Any number of processes may run the same one: each segment is worked by one of them, and
/// another takes it over when that one dies. `applied` is told how far this process has come.
pub async fn run<P: Projection>(
    store: EventStore<P::Log>,
    projection: P,
    settings: Settings,
    applied: Arc<watch::Sender<Position>>,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let worker = Worker { store, projection, settings, applied, owner: Uuid::now_v7() };
    let first_backoff = Duration::from_millis(50);
    let mut backoff = first_backoff;
    loop {
        let started = tokio::time::Instant::now();
        match worker.work(&shutdown).await {
            Ok(()) => break,
            Err(error) => {
                // What went well for longer than the longest pause is not the same trouble any more.
                if started.elapsed() > worker.settings.max_backoff {
                    backoff = first_backoff;
                }
                METRICS.projection_faults.add(1, &[KeyValue::new("projection", P::NAME)]);
                if error.is_unavailable() {
                    tracing::warn!(projection = P::NAME, error = &error as &dyn std::error::Error, "waiting for the log");
                } else {
                    tracing::error!(projection = P::NAME, error = &error as &dyn std::error::Error, "the projection stands still");
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(worker.settings.max_backoff),
        }
    }
    // Where the database is away, the lease runs out by itself.
    let _ = worker.leases().release().await;
    Ok(())
}

struct Worker<P: Projection> {
    store: EventStore<P::Log>,
    projection: P,
    settings: Settings,
    applied: Arc<watch::Sender<Position>>,
    owner: Uuid,
}

impl<P: Projection> Worker<P> {
    fn leases(&self) -> Leases<'_> {
        Leases { pool: self.store.pool(), name: P::NAME, version: P::VERSION, owner: self.owner, duration: self.settings.lease }
    }

    async fn work(&self, shutdown: &CancellationToken) -> Result<(), StoreError> {
        if self.store.wait_ready(shutdown).await.is_err() {
            return Ok(());
        }
        register::<P>(self.store.pool()).await?;
        let leases = self.leases();
        let mut heads = self.store.heads().subscribe();
        let mut heartbeat = tokio::time::interval(self.settings.lease / 3);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut held: Vec<Held> = vec![];
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                _ = heartbeat.tick() => held = leases.renew(&held).await?,
                changed = heads.changed() => if changed.is_err() { return Ok(()) },
            }
            let head = *heads.borrow_and_update();
            let mut kept = vec![];
            for mut segment in std::mem::take(&mut held) {
                if segment.position > head && segment.position > self.store.head().await? {
                    return Err(StoreError::Reset(format!(
                        "{} has applied it up to {}, and it ends before that; restore both, or make the projection anew",
                        P::NAME,
                        segment.position
                    )));
                }
                let caught_up = self.catch_up(&leases, &mut segment, head).await?;
                self.measure(&segment, head);
                match caught_up {
                    CaughtUp::Lost => continue,
                    CaughtUp::More => heads.mark_changed(),
                    CaughtUp::Yes if segment.building => {
                        if switch(self.store.pool(), P::NAME, self.owner, &segment).await? {
                            tracing::info!(projection = P::NAME, build = segment.build, "the new build is in service");
                            segment.building = false;
                        }
                    }
                    CaughtUp::Yes => {}
                }
                kept.push(segment);
            }
            held = kept;
        }
    }

    fn measure(&self, segment: &Held, head: Position) {
        let of = [KeyValue::new("projection", P::NAME), KeyValue::new("build", segment.build.clone())];
        METRICS.projection_position.record(segment.position.0, &of);
        METRICS.projection_lag.record((head.0 - segment.position.0).max(0), &of);
    }

    /// Applies what is there, a batch at a time, for as long as the lease need not be renewed.
    async fn catch_up(&self, leases: &Leases<'_>, segment: &mut Held, head: Position) -> Result<CaughtUp, StoreError> {
        let until = tokio::time::Instant::now() + self.settings.lease / 3;
        let mut window = self.settings.batch;
        while segment.position < head {
            if tokio::time::Instant::now() >= until {
                return Ok(CaughtUp::More);
            }
            let to = Position(head.0.min(segment.position.0 + window));
            let batch = self.read(segment.position, to).await?;
            if batch.is_empty() {
                // Nothing to write: the checkpoint follows with the next heartbeat.
                segment.position = to;
            } else {
                match self.apply(leases, segment, &batch, to).await {
                    Ok(true) => {}
                    Ok(false) => return Ok(CaughtUp::Lost),
                    // Down to the event that cannot be applied, so that the error names it.
                    Err(error) if !error.is_unavailable() && to.0 - segment.position.0 > 1 => {
                        window = (window / 10).max(1).min(to.0 - segment.position.0 - 1);
                        tracing::warn!(projection = P::NAME, after = %segment.position, error = &error as &dyn std::error::Error, "a batch could not be applied: trying smaller ones");
                        continue;
                    }
                    Err(error) => {
                        if !error.is_unavailable() {
                            tracing::error!(projection = P::NAME, position = %to, "the event cannot be applied");
                        }
                        return Err(error);
                    }
                }
            }
            self.tell(segment);
        }
        self.tell(segment);
        Ok(CaughtUp::Yes)
    }

    fn tell(&self, segment: &Held) {
        self.applied.send_if_modified(|applied| std::mem::replace(applied, segment.position) != segment.position);
    }

    async fn read(&self, after: Position, to: Position) -> Result<Vec<Recorded<P::Event>>, StoreError> {
        let types: Vec<String> = P::Event::SCHEMA.events.iter().map(|name| (*name).to_owned()).collect();
        let rows = sqlx::query!(
            r#"SELECT event_id, payload, inserted_at, metadata AS "metadata: sqlx::types::Json<Metadata>" FROM event
               WHERE event_id > $1 AND event_id <= $2 AND event_type = ANY ($3) ORDER BY event_id"#,
            after.0,
            to.0,
            &types
        )
        .fetch_all(self.store.pool())
        .await?;
        let mut batch = Vec::with_capacity(rows.len());
        for row in rows {
            let event: P::Log = decode(row.event_id, &row.payload)?;
            if let Ok(event) = event.try_into() {
                batch.push(Recorded { position: Position(row.event_id), event, metadata: row.metadata.0, recorded_at: row.inserted_at });
            }
        }
        Ok(batch)
    }

    /// Applies a batch and moves the checkpoint, both or neither. `false`: the segment is another's now.
    async fn apply(&self, leases: &Leases<'_>, segment: &mut Held, batch: &[Recorded<P::Event>], to: Position) -> Result<bool, StoreError> {
        let span = tracing::info_span!("project", otel.name = format!("project {}", P::NAME), events = batch.len(), position = %to);
        trace::follow(&span, batch.iter().map(|event| event.metadata.traceparent.as_deref()));
        async {
            let mut transaction = self.store.pool().begin().await?;
            // First, for it is also the fence: who lost the lease waits for nobody and writes nothing.
            if !leases.advance(&mut transaction, segment, to).await? {
                return Ok(false);
            }
            search(&mut transaction, &segment.build).await?;
            self.projection.apply(&mut transaction, batch).await?;
            transaction.commit().await?;
            segment.stored = to;
            segment.position = to;
            METRICS.projection_events.add(batch.len() as u64, &[KeyValue::new("projection", P::NAME)]);
            Ok(true)
        }
        .instrument(span)
        .await
    }
}

enum CaughtUp {
    Yes,
    More,
    Lost,
}

async fn search(transaction: &mut PgConnection, build: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT set_config('search_path', $1, true)", format!("{build}, public")).fetch_one(transaction).await?;
    Ok(())
}

/// Makes a projection known, and asks for it to be made anew where the one in service is of an older version.
async fn register<P: Projection>(pool: &PgPool) -> Result<(), StoreError> {
    let build = match P::KIND {
        Kind::ReadModel => "projection_a",
        Kind::Automation => "automation",
    };
    let mut transaction = pool.begin().await?;
    sqlx::query!(
        "INSERT INTO projection (name, build, version, status)
         SELECT $1, $2, $3, 'serving' WHERE NOT EXISTS (SELECT FROM projection WHERE name = $1 AND status = 'serving')
         ON CONFLICT DO NOTHING",
        P::NAME,
        build,
        P::VERSION
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "INSERT INTO checkpoint (name, build) SELECT name, build FROM projection WHERE name = $1 AND status = 'serving'
         ON CONFLICT DO NOTHING",
        P::NAME
    )
    .execute(&mut *transaction)
    .await?;
    // An automation is never made anew: a newer release goes on with its state.
    if P::KIND == Kind::Automation {
        sqlx::query!("UPDATE projection SET version = $2 WHERE name = $1 AND version < $2", P::NAME, P::VERSION)
            .execute(&mut *transaction)
            .await?;
    }
    let serving = sqlx::query_scalar!("SELECT version FROM projection WHERE name = $1 AND status = 'serving'", P::NAME)
        .fetch_optional(&mut *transaction)
        .await?;
    transaction.commit().await?;
    if P::KIND == Kind::ReadModel && serving.is_some_and(|version| version < P::VERSION) {
        rebuild::<P>(pool).await?;
    }
    Ok(())
}

/// Asks for a read model to be made anew beside the one in service; the processes that run it do so, and switch when the new one has come
/// as far. Where that is already under way, nothing is asked.
///
/// # Errors
/// Where the database is away or the migrations are missing; where it is an automation, which is never made anew.
pub async fn rebuild<P: Projection>(pool: &PgPool) -> Result<(), StoreError> {
    if P::KIND == Kind::Automation {
        return Err(StoreError::Schema(format!("{} is an automation: made anew, it would do again what it did", P::NAME)));
    }
    let mut transaction = pool.begin().await?;
    let Some(serving) = sqlx::query_scalar!("SELECT build FROM projection WHERE name = $1 AND status = 'serving' FOR UPDATE", P::NAME)
        .fetch_optional(&mut *transaction)
        .await?
    else {
        return Ok(()); // Never made yet, so there is nothing to make anew.
    };
    let other = if serving == "projection_a" { "projection_b" } else { "projection_a" };
    let under_way = sqlx::query_scalar!(
        r#"SELECT true AS "yes!" FROM projection WHERE name = $1 AND build = $2 AND status = 'building' AND version = $3"#,
        P::NAME,
        other,
        P::VERSION
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if under_way.is_some() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO projection (name, build, version, status) VALUES ($1, $2, $3, 'building')
         ON CONFLICT (name, build) DO UPDATE SET version = $3, status = 'building', started_at = clock_timestamp()",
        P::NAME,
        other,
        P::VERSION
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "INSERT INTO checkpoint (name, build) VALUES ($1, $2)
         ON CONFLICT (name, build, segment) DO UPDATE SET position = 0, owner = NULL, lease_until = NULL",
        P::NAME,
        other
    )
    .execute(&mut *transaction)
    .await?;
    for table in P::TABLES {
        // Both names are this build's own.
        sqlx::query(&format!("TRUNCATE {other}.{table}")).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    tracing::info!(projection = P::NAME, build = other, "making the projection anew beside the one in service");
    Ok(())
}

/// Puts a new build into service where it has come as far as the one that is.
async fn switch(pool: &PgPool, name: &str, owner: Uuid, new: &Held) -> Result<bool, StoreError> {
    let mut transaction = pool.begin().await?;
    // Still this process's, and still where it left it: a build that was begun anew meanwhile is not the one that caught up.
    let held = sqlx::query_scalar!(
        r#"SELECT true AS "yes!" FROM checkpoint WHERE name = $1 AND build = $2 AND owner = $3 AND position = $4 FOR UPDATE"#,
        name,
        new.build,
        owner,
        new.stored.0
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if held.is_none() {
        return Ok(false);
    }
    let behind = sqlx::query_scalar!(
        r#"SELECT true AS "yes!" FROM checkpoint c JOIN projection p USING (name, build)
           WHERE c.name = $1 AND p.status = 'serving' AND c.position > $2 FOR UPDATE OF p"#,
        name,
        new.position.0
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if behind.is_some() {
        return Ok(false);
    }
    sqlx::query!("UPDATE projection SET status = 'retired' WHERE name = $1 AND status = 'serving'", name)
        .execute(&mut *transaction)
        .await?;
    let switched =
        sqlx::query!("UPDATE projection SET status = 'serving' WHERE name = $1 AND build = $2 AND status = 'building'", name, new.build)
            .execute(&mut *transaction)
            .await?;
    if switched.rows_affected() != 1 {
        return Ok(false);
    }
    transaction.commit().await?;
    Ok(true)
}

/// A transaction that reads the build of a projection that is in service.
pub struct Serving {
    transaction: Transaction<'static, Postgres>,
    _turn: OwnedSemaphorePermit,
}

impl Deref for Serving {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.transaction
    }
}

impl DerefMut for Serving {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

/// Begins to read the build of a projection that is in service.
///
/// # Errors
/// Where the database is away or busy, or the projection was never run.
pub async fn serving<E: LogEvent>(store: &EventStore<E>, name: &str) -> Result<Serving, StoreError> {
    let turn = store.turn().await?;
    let mut transaction = store.pool().begin().await?;
    sqlx::query_scalar!(
        "SELECT set_config('search_path', build || ', public', true) FROM projection WHERE name = $1 AND status = 'serving'",
        name
    )
    .fetch_one(&mut *transaction)
    .await
    .map_err(|error| match error {
        sqlx::Error::RowNotFound => StoreError::Unavailable(sqlx::Error::Protocol(format!("the projection {name} was never run"))),
        error => error.into(),
    })?;
    Ok(Serving { transaction, _turn: turn })
}
