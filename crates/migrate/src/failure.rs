//! The reasons why the migrations are not applied.

use std::{error::Error as _, io, process::ExitCode};

use event_store::MigrateError;
use sqlx::migrate::MigrateError as SqlxMigrateError;

/// Why the migrations are not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    // The URL may contain a password, so the message repeats neither the URL nor the parser's error.
    #[error(
        "DATABASE_URL is missing or malformed. Set it to a URL such as postgres://owner:password@host:5432/cartlog. In a password, write %2F for a slash, %23 for a hash and %40 for an at sign"
    )]
    Url,
    #[error("Cannot read {0}, which CARTLOG_DATABASE_PASSWORD_FILE names. It must be a file that contains only the password")]
    PasswordFile(String, #[source] io::Error),
    #[error("Cannot read {0}. CARTLOG_ROLE_PASSWORDS must name a directory with a password for each role")]
    RolePassword(String, #[source] io::Error),
    #[error("Cannot set the password of a role")]
    Password(#[source] sqlx::Error),
    #[error("Cannot connect to the database")]
    Unreachable(#[source] sqlx::Error),
    #[error("Cannot connect to the database: no answer within {0} seconds")]
    NoAnswer(u64),
    #[error(transparent)]
    Migration(#[from] MigrateError),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Url | Self::PasswordFile(..) | Self::RolePassword(..) => ExitCode::from(2),
            Self::Migration(MigrateError::Encoding(_)) => ExitCode::from(3),
            Self::Migration(error) if is_wrong_build(error) => ExitCode::from(3),
            Self::Unreachable(_) | Self::NoAnswer(_) | Self::Migration(_) | Self::Password(_) => ExitCode::from(1),
        }
    }
}

/// Returns whether the database was migrated by a build with other migrations.
fn is_wrong_build(error: &MigrateError) -> bool {
    matches!(
        error.source().and_then(|source| source.downcast_ref()),
        Some(SqlxMigrateError::VersionMissing(_) | SqlxMigrateError::VersionMismatch(_))
    )
}
