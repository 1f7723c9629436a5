//! Projections: tables made of the log. A projection says what it takes and how a batch becomes SQL; the runtime does the rest.
//!
//! The batch and its checkpoints are written in one transaction, so an event is applied exactly once, whatever dies. Each read model's
//! tables stand in two database schemas, so that a new build can be made beside the one in service; the runtime sets the search path.
//!
//! A projection is cut into segments by a hash of its key. The replicas that are alive, any number of processes, share its segments out
//! among themselves (`replica`, `worker`); what a replica holds it works as one: it reads the log once, writes a batch for all segments that
//! stand at the same position in one transaction, and lets those that are behind catch up with the others first.

mod backlog;
mod backoff;
mod batch;
mod courtesy;
mod error;
mod lately;
mod lease;
mod metrics;
mod pace;
mod parking;
mod projection;
mod projections;
mod registration;
mod replica;
mod run;
mod running;
mod segment;
mod serving;
mod settings;
pub mod todo;
mod worker;

#[doc(hidden)]
pub use backlog::tenths;
pub use backlog::{Backlog, Rebuild};
pub use error::ProjectionError;
pub use projection::{Kind, Projection};
pub use projections::Projections;
pub use registration::{Switch, rebuild, rebuild_named, switch_when_ready, switch_with_parked};
pub use segment::segment_of;
pub use serving::Wait;
pub use settings::Settings;
