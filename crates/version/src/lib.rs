//! The version of the build. A crate of its own, because a new commit then recompiles only its users.

/// The version, followed by the commit in parentheses if `CARTLOG_COMMIT` was set for the build. Images have it.
pub const VERSION: &str = env!("CARTLOG_VERSION");
