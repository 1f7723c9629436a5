//! The log on PostgreSQL: decide, read, wait. Knows no cart and no projection.
//!
//! [`EventStore`] appends and reads. [`Decision`] is a command's rule, in disintegrate's language: states fold the events that their
//! queries name, and what they name *is* the consistency boundary; [`EventStore::decide`] is the only way to run one.
//! [`HeadWatcher`] wakes readers.
//!
//! The model (`Event` and its derives, `StateQuery`, `StreamQuery`) is [disintegrate](https://docs.rs/disintegrate)'s. Reading,
//! deciding and appending are this crate's own: see `ARCHITECTURE.md`.

mod append;
pub mod connection;
mod decide;
mod error;
mod event;
mod metrics;
mod migrate;
mod password;
mod position;
mod query;
mod read;
mod readiness;
mod settings;
mod store;
pub mod trace;

pub use append::source::{SourcePartition, StoredOffset, Translated, stored_offsets};
#[doc(hidden)]
pub use decide::state_cache::StateCache;
pub use decide::{
    catch_up::fold_history,
    decision::{DecideError, Decided, Decision, View},
    stages::{AnyPart, Dependent, Stages, States},
    state::State,
};
pub use error::StoreError;
pub use event::{LogEvent, Metadata, Recorded, decode, domain_ids};
pub use metrics::record_query_wait;
pub use migrate::{MIGRATOR, MigrateError, migrate};
pub use password::read_password;
pub use position::Position;
pub use query::state_query::{Query, QueryError};
pub use read::{head_watcher::HeadWatcher, reader::Wait};
pub use settings::StoreSettings;
pub use store::EventStore;
