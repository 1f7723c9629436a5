//! Gives a test its own log.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use event_store::{EventStore, LogEvent, Metadata, Position, SessionTimeouts, SourcePartition, StoreSettings, Translated};
use projections::{Projection, Projections, Settings, Wait};
use tokio_util::sync::CancellationToken;

use crate::{Database, eventually};

/// A log in its own database.
pub struct TestLog<E> {
    /// The log's database.
    pub database: Database,
    /// The log, opened as the owner.
    pub store: EventStore<E>,
    /// The log's projections.
    pub projections: Projections<E>,
    appended: AtomicI64,
}

impl<E: LogEvent> TestLog<E> {
    /// Creates an empty log.
    pub async fn create() -> Self {
        let database = Database::create().await;
        // Tests hold locks for longer than a service may.
        let timeouts = SessionTimeouts { idle_in_transaction: Duration::from_secs(60), transaction: None, ..SessionTimeouts::default() };
        let store = EventStore::new(database.options(), StoreSettings { timeouts, ..StoreSettings::default() });
        let projections = Projections::new(store.clone());
        Self { database, store, projections, appended: AtomicI64::new(0) }
    }

    /// Creates a read model's table in both builds, with these columns in SQL.
    ///
    /// # Panics
    /// If the SQL is wrong.
    pub async fn create_table(&self, table: &str, columns: &str) {
        for build in ["projection_a", "projection_b"] {
            let create = format!(
                "CREATE TABLE {build}.{table} ({columns});
                 GRANT ALL ON ALL TABLES IN SCHEMA {build} TO cartlog_projections;
                 GRANT ALL ON ALL SEQUENCES IN SCHEMA {build} TO cartlog_projections"
            );
            sqlx::raw_sql(&create).execute(self.store.pool()).await.expect("the table can be created");
        }
    }

    /// Appends events without a condition. Returns the position of the last one.
    ///
    /// # Panics
    /// If the events cannot be appended.
    pub async fn append(&self, history: impl IntoIterator<Item = E>) -> Position {
        let events: Vec<_> = history.into_iter().map(|event| (event, Metadata::default())).collect();
        let from = self.appended.fetch_add(1, Ordering::SeqCst);
        let source = SourcePartition { consumer: "test", topic: "history", partition: 0 };
        let stored = (from > 0).then_some(from);
        match self.store.append_from(source, stored, from + 1, &events).await.expect("the history can be appended") {
            Translated::Appended { head } => head,
            Translated::Moved { stored } => panic!("the history was appended to by another: {stored:?}"),
        }
    }

    /// Runs a projection until it has applied the whole log and no rebuild is left.
    ///
    /// # Panics
    /// If the projection does not catch up.
    pub async fn project<P: Projection<Log = E>>(&self, projection: P, settings: Settings) {
        let head = self.store.head().await.expect("the log can be read");
        let stop = CancellationToken::new();
        let running = tokio::spawn(self.projections.run(projection, settings, stop.clone()));
        eventually("the projection has applied the log", || async {
            let made = sqlx::query("SELECT FROM projection WHERE name = $1 AND status = 'building'").bind(P::NAME);
            let applied = self.projections.wait(P::NAME, None, head, Duration::from_secs(1)).await;
            let making = made.fetch_optional(self.store.pool()).await.expect("the projections can be read");
            (applied.expect("the checkpoints can be read") == Wait::Reached && making.is_none()).then_some(())
        })
        .await;
        stop.cancel();
        running.await.expect("the projection does not panic").expect("the projection ends well");
    }
}
