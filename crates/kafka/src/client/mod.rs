//! Clients of Kafka: where the brokers are, and a producer that waits for their word.

pub(crate) mod authentication;
pub(crate) mod brokers;
pub(crate) mod context;
pub(crate) mod error;
pub(crate) mod metrics;
pub(crate) mod producer;
pub(crate) mod topics;
pub(crate) mod traceparent;
