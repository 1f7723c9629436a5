//! Read models and automations, made from the log's events.
//!
//! A [`Projection`] names the events that it takes, a key, and a function from a batch of events to SQL. The runtime does the rest:
//!
//! - **Exactly once.** A batch's rows and its checkpoint are written in one transaction.
//! - **Scaling.** The keys are cut into [`SEGMENTS`] segments. Any number of processes share them; if one dies, the others take over.
//! - **Rebuilds.** The tables exist in two schemas. A rebuild fills one while the other serves, and then they switch.
//! - **Parked keys.** If an event cannot be applied, its key is parked and all other keys continue.
//!
//! An [`Automation`] is a projection that enqueues to-dos, and the command that each to-do runs.
//!
//! # Example
//!
//! A library counts the books that each member has.
//!
//! ```no_run
//! use async_trait::async_trait;
//! use disintegrate::Event;
//! use event_store::{EventStore, Recorded, StoreSettings};
//! use projections::{Projection, Projections, Query, Settings};
//! use serde::{Deserialize, Serialize};
//! use sqlx::PgConnection;
//! use tokio_util::sync::CancellationToken;
//! use uuid::Uuid;
//!
//! #[derive(Debug, Clone, PartialEq, Eq, Event, Serialize, Deserialize)]
//! #[stream(LoanStream, [BookLent, BookReturned])]
//! enum LibraryEvent {
//!     BookLent { #[id] member_id: Uuid, #[id] book_id: Uuid },
//!     BookReturned { #[id] member_id: Uuid, #[id] book_id: Uuid },
//! }
//!
//! /// A migration creates its table in the schemas projection_a and projection_b:
//! /// CREATE TABLE loans (member_id uuid PRIMARY KEY, books bigint NOT NULL)
//! struct Loans;
//!
//! #[async_trait]
//! impl Projection for Loans {
//!     type Log = LibraryEvent;
//!     type Event = LoanStream;
//!     const NAME: &'static str = "loans";
//!     const TABLES: &'static [&'static str] = &["loans"];
//!     const KEYED_BY: Option<&'static str> = Some("member_id");
//!
//!     fn key(event: &LoanStream) -> Option<Uuid> {
//!         match event {
//!             LoanStream::BookLent { member_id, .. } | LoanStream::BookReturned { member_id, .. } => Some(*member_id),
//!         }
//!     }
//!
//!     async fn apply(&self, transaction: &mut PgConnection, batch: &[Recorded<LoanStream>]) -> Result<(), sqlx::Error> {
//!         let (members, changes): (Vec<Uuid>, Vec<i64>) = batch
//!             .iter()
//!             .map(|event| match event.event {
//!                 LoanStream::BookLent { member_id, .. } => (member_id, 1),
//!                 LoanStream::BookReturned { member_id, .. } => (member_id, -1),
//!             })
//!             .unzip();
//!         // One statement for the whole batch.
//!         sqlx::query(
//!             "INSERT INTO loans SELECT member_id, sum(change) FROM unnest($1::uuid[], $2::bigint[]) AS b(member_id, change) GROUP BY member_id
//!              ON CONFLICT (member_id) DO UPDATE SET books = loans.books + excluded.books",
//!         )
//!         .bind(members)
//!         .bind(changes)
//!         .execute(transaction)
//!         .await?;
//!         Ok(())
//!     }
//! }
//!
//! # async fn example(member: Uuid) -> Result<(), Box<dyn std::error::Error>> {
//! let store = EventStore::<LibraryEvent>::new("postgres://localhost/library".parse()?, StoreSettings::default());
//! let projections = Projections::new(store);
//! let shutdown = CancellationToken::new();
//! tokio::spawn(projections.run(Loans, Settings::default(), shutdown.clone()));
//!
//! let books: Vec<(i64,)> = projections
//!     .read("loans", Some(member), Query::new("SELECT books FROM {build}.loans WHERE member_id = $1").bind(member))
//!     .await?;
//! # let _ = books;
//! # Ok(())
//! # }
//! ```
//!
//! # How a replica works
//!
//! Each process has one replica per projection. Its heartbeat keeps it alive and reads the state of all builds (`replica`). A worker per
//! build acquires the replica's share of the segments (`lease`). It reads the log once, and writes one batch for all segments at the same
//! position (`worker`). Segments that are behind catch up first and then join the others.

mod automation;
mod backlog;
mod batch;
mod checkpoint_cache;
mod clock;
mod error;
mod health;
mod lease;
mod metrics;
mod parking;
mod projection;
mod projections;
mod read;
mod rebuild;
mod registration;
mod replica;
mod run;
mod running;
mod segment;
mod settings;
mod throughput;
pub mod todo;
mod wait;
mod watch;
mod worker;

pub use automation::{Automation, todo_settings};
#[doc(hidden)]
pub use backlog::tenths;
pub use backlog::{Backlog, Rebuild};
pub use error::ProjectionError;
pub use projection::{Kind, Projection};
pub use projections::Projections;
pub use read::Query;
pub use rebuild::{Switch, build_tables, lock_builds, rebuild, rebuild_automation, rebuild_named, switch_when_ready, switch_with_parked};
pub use segment::{SEGMENTS, segment_of};
pub use settings::Settings;
pub use wait::Wait;
