//! The log on PostgreSQL: decide, read, project, wait. Knows no cart.
//!
//! [`EventStore`] appends and reads. [`Decision`] is a command's rule, in disintegrate's language: states fold the events that their
//! queries name, and what they name *is* the consistency boundary; [`EventStore::decide`] is the only way to run one.
//! [`projection`] turns the log into tables, [`mod@todo`] keeps what automations have to do, [`Heads`] wakes readers; [`operate`] is for
//! operators.
//!
//! The model (`Event` and its derives, `StateQuery`, `StreamQuery`) is [disintegrate](https://docs.rs/disintegrate)'s. Reading,
//! deciding and appending are this crate's own: see `ARCHITECTURE.md`.

mod appender;
mod batch;
mod criteria;
mod decide;
mod error;
mod event;
mod heads;
mod known;
mod lease;
mod lookup;
mod metrics;
mod migrate;
pub mod operate;
mod password;
pub mod projection;
mod read;
mod signals;
mod state;
mod store;
pub mod todo;
mod together;
pub mod trace;
mod translate;
mod turns;

pub use criteria::{Criteria, CriteriaError};
pub use decide::{DecideError, Decided, Decision, View};
pub use error::StoreError;
pub use event::{LogEvent, Metadata, Position, Recorded};
pub use heads::Heads;
#[doc(hidden)]
pub use known::Known;
pub use migrate::{MIGRATOR, MigrateError, migrate};
pub use password::read_password;
pub use read::fold_history;
pub use signals::{Backlog, Rebuild, Waiting};
pub use state::{AnyPart, Stages, State, States, Then};
pub use store::{EventStore, StoreSettings};
pub use translate::{SourcePartition, Translated};
