//! What a projection is.

use async_trait::async_trait;
use disintegrate::Event;
use event_store::{LogEvent, Recorded};
use sqlx::PgConnection;
use uuid::Uuid;

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
    /// Into how many segments its keys are cut, and so how many replicas can share its work at the most. May be changed in any release:
    /// nothing is made anew for it.
    const SEGMENTS: i32 = 8;

    /// The domain id that is the key, by its name in the log's schema. By it, an event that is not of today's shape is known to be a key's,
    /// which is parked with it; without, it counts as one without key.
    const KEYED_BY: Option<&'static str> = None;

    /// Whether it makes something of the events' metadata. Where it does not, they come without it but for the first few of a batch, by which
    /// that is traced: reading and parsing it would be for nothing.
    const METADATA: bool = matches!(Self::KIND, Kind::Automation);

    /// What events keep their order by. An event without a key concerns every key: it is applied once in each segment, and then may touch
    /// only rows whose key `projection_holds`, in SQL.
    fn key(event: &Self::Event) -> Option<Uuid>;

    /// Applies a batch, in the order of the log, within the transaction that moves the checkpoint. Set-based: one statement a kind of
    /// change, not one a row.
    ///
    /// # Errors
    /// The database's. The transaction is rolled back then, and the batch is tried again, in smaller ones; an event that fails alone parks
    /// its key, and the rest goes on.
    async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<Self::Event>]) -> Result<(), sqlx::Error>;
}
