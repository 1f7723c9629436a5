//! Everything that an operator can see and do: builds of projections, parked keys, to-dos, stored offsets, the log as it is stored.
//!
//! The functions need the role cartlog_operator, or the owner of the database. `cartctl` is their command line, and the console has pages for
//! them.

mod ask;
mod attention;
mod builds;
mod dead_letters;
mod log;
mod offsets;
mod parked;
mod search;
mod status;
pub mod text;
mod todos;

pub use attention::{Attention, Counted, NEWEST_LETTERS, Overview, Translation, WaitingLetters, attention, overview, with_broker_offsets};
pub use builds::{CompareError, Difference, Row, TableDifference, compare, drop_build, pause, release_hold, retire, revive};
pub use dead_letters::{DeadLetter, Letter, NewestLetters, OperateError, Operator, Place};
pub use event_store::{StoredOffset, stored_offsets};
pub use log::{Entry, Which, before, newest, up_to};
pub use offsets::seek;
pub use parked::{Parked, Retried, Skip, Skipped, parked, parked_queue, retry_parked, skip, skipped, wait_for_retry};
pub use projections::{Switch, rebuild_automation, rebuild_named, switch_when_ready, switch_with_parked};
pub use search::{Flow, Found, RowsOf, SEARCHED, Search, Step, count_types, flow, metadata, rows_of, search};
pub use status::{Build, NoWayBack, Replica, Segment, builds, replicas, running_rebuild, way_back};
pub use todos::{TodoCounts, TodoEntry, retry_todos, todo_counts, todos, todos_of};
