//! The trait of a projection.

use async_trait::async_trait;
use disintegrate::Event;
use event_store::{LogEvent, Recorded};
use sqlx::PgConnection;
use uuid::Uuid;

/// The purpose of a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Tables for queries. Can be rebuilt at any time.
    ReadModel,
    /// The state and the to-dos of an [`Automation`](crate::Automation). Only an operator rebuilds it, with
    /// [`rebuild_automation`](crate::rebuild_automation): its to-dos are enqueued and attempted again.
    Automation,
}

/// Turns batches of events into SQL.
#[async_trait]
pub trait Projection: Send + Sync + 'static {
    /// The events of the log.
    type Log: LogEvent;
    /// The events that the projection takes: one of the log's streams. Other types, also those of newer releases, are not read.
    type Event: Event + TryFrom<Self::Log> + Clone + Send + Sync;

    /// The name in tables, metrics and logs.
    const NAME: &'static str;
    /// Raise it if the same events lead to other rows: the runtime then rebuilds the read model beside the serving build.
    const VERSION: i32 = 1;
    /// The purpose of the projection.
    const KIND: Kind = Kind::ReadModel;
    /// The tables, without schema. A rebuild empties them first.
    const TABLES: &'static [&'static str];

    /// The domain id that is the key, as the log names it. With it, an event that cannot be decoded parks its key. Without it, such an
    /// event blocks every segment.
    const KEYED_BY: Option<&'static str> = None;

    /// Whether `apply` reads the events' metadata. If not, only the first events of a batch come with metadata, for its trace.
    const METADATA: bool = matches!(Self::KIND, Kind::Automation);

    /// Returns the key within which events keep their order. An event without a key is applied once per segment. Then
    /// `apply` may only write rows whose key passes the SQL function `key_in_scope`.
    fn key(event: &Self::Event) -> Option<Uuid>;

    /// Applies a batch in the order of the log, in the transaction that moves the checkpoint. Use one statement per kind of change, not one
    /// per row.
    ///
    /// # Errors
    /// Database errors. The transaction is rolled back, and the batch is retried in smaller batches. An event that fails alone parks its
    /// key; all other keys continue.
    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<Self::Event>]) -> Result<(), sqlx::Error>;
}
