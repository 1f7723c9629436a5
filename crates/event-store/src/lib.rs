//! An event log on PostgreSQL, with dynamic consistency boundaries.
//!
//! An [`EventStore`] is the handle on a log. A [`Decision`] is a command's rule: it folds one or more [`State`]s from the log, and then
//! refuses or returns new events. [`EventStore::decide`] runs a decision. It appends the events only if no event that the states fold was
//! written in the meantime. If one was, it folds that event and decides again. So the states *are* the consistency boundary, and no
//! aggregate is needed.
//!
//! Events and queries are those of [disintegrate](https://docs.rs/disintegrate) (`Event`, `StateQuery`). Each domain id is a UUID and a
//! column of the table `event`; [`migrate()`] creates the table.
//!
//! # Example
//!
//! A student subscribes to a course that has a limited number of seats.
//!
//! ```no_run
//! use disintegrate::{Event, StateQuery};
//! use event_store::{DecideError, Decided, Decision, EventStore, Position, State, StoreSettings};
//! use serde::{Deserialize, Serialize};
//! use uuid::Uuid;
//!
//! // The events of the log. An `#[id]` is a domain id. A `#[stream]` names the events that a state may fold.
//! #[derive(Debug, Clone, PartialEq, Eq, Event, Serialize, Deserialize)]
//! #[stream(CourseStream, [CourseOpened, StudentSubscribed])]
//! enum SchoolEvent {
//!     CourseOpened {
//!         #[id]
//!         course_id: Uuid,
//!         seats: usize,
//!     },
//!     StudentSubscribed {
//!         #[id]
//!         course_id: Uuid,
//!         #[id]
//!         student_id: Uuid,
//!     },
//! }
//!
//! // What the decision depends on: the free seats of one course.
//! #[derive(Debug, Clone, PartialEq, Eq, Hash, StateQuery)]
//! #[state_query(CourseStream)]
//! struct Course {
//!     #[id]
//!     course_id: Uuid,
//!     free_seats: usize,
//! }
//!
//! impl State for Course {
//!     fn mutate(&mut self, event: CourseStream, _at: Position) {
//!         match event {
//!             CourseStream::CourseOpened { seats, .. } => self.free_seats = seats,
//!             CourseStream::StudentSubscribed { .. } => self.free_seats -= 1,
//!         }
//!     }
//! }
//!
//! // The command and its rule.
//! struct Subscribe {
//!     course_id: Uuid,
//!     student_id: Uuid,
//! }
//!
//! #[derive(Debug)]
//! struct CourseFull;
//!
//! impl Decision for Subscribe {
//!     type Event = SchoolEvent;
//!     type StateQuery = Course;
//!     type Error = CourseFull;
//!
//!     fn state_query(&self) -> Course {
//!         Course { course_id: self.course_id, free_seats: 0 }
//!     }
//!
//!     fn process(&self, course: &Course) -> Result<Decided<SchoolEvent>, CourseFull> {
//!         if course.free_seats == 0 {
//!             return Err(CourseFull);
//!         }
//!         let Self { course_id, student_id } = *self;
//!         Ok(Decided::Events(vec![SchoolEvent::StudentSubscribed { course_id, student_id }]))
//!     }
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = "postgres://school@localhost/school".parse()?;
//! let log = EventStore::<SchoolEvent>::new(options, StoreSettings::default());
//!
//! let subscribe = Subscribe { course_id: Uuid::now_v7(), student_id: Uuid::now_v7() };
//! match log.decide(&subscribe).await {
//!     Ok(position) => println!("subscribed at position {position}"),
//!     Err(DecideError::Refused(CourseFull)) => println!("the course is full"),
//!     Err(DecideError::Store(fault)) => return Err(fault.into()),
//! }
//!
//! // Reading folds the same states, without deciding.
//! let (course, position) = log.read(Course { course_id: subscribe.course_id, free_seats: 0 }).await?;
//! println!("{} free seats at position {position}", course.free_seats);
//! # Ok(())
//! # }
//! ```
//!
//! # Where to go from here
//!
//! | to | use |
//! | --- | --- |
//! | test a decision without a database | [`fold_history`] |
//! | read more states because of what a state says | [`Dependent`] |
//! | succeed without an event | [`Decided::AlreadyDone`], [`Decided::Nothing`] |
//! | read your own write | [`EventStore::wait`], [`EventStore::read_at`] |
//! | learn of new events | [`HeadWatcher`] |
//! | append messages from another log, each once | [`EventStore::append_from`] |
//! | retry with pauses | [`Backoff`] |

mod append;
mod backoff;
pub mod connection;
pub mod correlation;
mod decide;
mod error;
mod event;
mod installation;
mod log_identity;
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

pub use append::source::{NextOffset, SourceMessage, SourcePartition, StoredOffset, Translated, stored_offsets};
pub use backoff::Backoff;
pub use connection::{LogConnection, Pool, PooledConnection};
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
pub use installation::Finding;
pub use metrics::record_query_wait;
pub use migrate::{MIGRATOR, MigrateError, migrate};
pub use password::{is_password_cut, read_password};
pub use position::Position;
pub use query::state_query::{Query, QueryError};
pub use read::{head_watcher::HeadWatcher, reader::Wait, touched::Touched};
pub use settings::{SessionTimeouts, StoreSettings};
pub use store::EventStore;
