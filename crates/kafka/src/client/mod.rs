//! Clients of Kafka, for the modules of this crate and for crates that operate on topics.

pub(crate) mod authentication;
pub(crate) mod brokers;
pub(crate) mod connected;
pub(crate) mod context;
pub(crate) mod error;
pub(crate) mod headers;
pub(crate) mod inspect;
pub(crate) mod metrics;
pub(crate) mod producer;
pub(crate) mod traceparent;

pub use context::ClientLog;
pub use headers::{Headers, Unread, to_send};
pub use inspect::{ANSWER_TIMEOUT, InspectError, Inspector, ends};
pub use producer::{Outgoing, Producer};
