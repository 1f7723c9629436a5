//! Which build this is. A crate of its own, so that another commit rebuilds what says its version and nothing else.

/// The version, and behind it in parentheses the commit, where the build was told one in `CARTLOG_COMMIT`, as that of the images is.
pub const VERSION: &str = env!("CARTLOG_VERSION");
