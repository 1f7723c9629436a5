//! Connections to the log's current server, and timeouts for everything that waits for the database.

pub(crate) mod log_connection;
pub(crate) mod pool;
pub(crate) mod timeout;

pub use log_connection::LogConnection;
pub use pool::{Pool, PooledConnection, PooledTransaction};
pub use timeout::{with_timeout, with_timeout_of};
