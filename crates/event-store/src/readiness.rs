//! Readiness: whether the log can be used, and what an operator has to do if it cannot.

use std::{borrow::Cow, fmt::Display, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgDatabaseError};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    connection::{Pool, PooledConnection, with_timeout},
    error::StoreError,
    migrate,
};

/// Why a server refuses to serve this role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AccessRefused {
    UnknownRole,
    WrongPassword,
    /// `pg_hba.conf` wants TLS, a certificate, or another address.
    HostBasedRules,
    Certificate,
}

impl AccessRefused {
    fn remedy(self) -> Cow<'static, str> {
        match self {
            Self::UnknownRole => format!("the role does not exist. The migrations create the services' roles: {}", migrate::HOW).into(),
            Self::WrongPassword => "set the role's password in DATABASE_URL, or change it with ALTER ROLE".into(),
            Self::HostBasedRules => {
                "its pg_hba.conf does not admit this role over this connection. Use TLS: set sslmode=verify-full in DATABASE_URL".into()
            }
            Self::Certificate => {
                "TLS verification failed. Set sslrootcert in DATABASE_URL to a file with the server's CA certificate, and \
                                  the host to the name in the server's certificate"
                    .into()
            }
        }
    }

    fn of(error: &sqlx::Error) -> Option<Self> {
        match error {
            sqlx::Error::Tls(_) => Some(Self::Certificate),
            // rustls reports a certificate that it does not accept as an I/O error.
            sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => Some(Self::Certificate),
            sqlx::Error::Database(error) => match (error.code().as_deref(), error.try_downcast_ref::<PgDatabaseError>()?.routine()) {
                (Some("28P01"), _) => Some(Self::WrongPassword),
                // PostgreSQL has one code for both.
                (Some("28000"), Some("ClientAuthentication")) => Some(Self::HostBasedRules),
                (Some("28000"), _) => Some(Self::UnknownRole),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Returns the address of a database, without the role and its password.
fn address(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    match options.get_socket() {
        Some(socket) => format!("{}/{database}", socket.display()),
        None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
    }
}

/// Checks that the log can be reached, is migrated, and takes writes.
///
/// # Errors
/// The reason to wait, in words for an operator.
pub(crate) async fn ready(pool: &Pool) -> Result<(), String> {
    let checked = with_timeout(async {
        let mut connection = PooledConnection::from(pool).await?;
        let missing = match migrate::missing(&mut connection).await? {
            None if sqlx::query_scalar("SELECT current_setting('transaction_read_only')::boolean").fetch_one(&mut *connection).await? => {
                Some("the database to take writes: transactions are read-only by default".to_owned())
            }
            missing => missing,
        };
        // A new session may find what this one misses.
        if missing.is_none() {
            connection.done();
        }
        Ok(missing)
    });
    let away = |error: &dyn Display| format!("the database at {} ({error})", address(pool.connector().options()));
    match checked.await {
        Ok(None) => Ok(()),
        Ok(Some(missing)) => Err(missing),
        // The functions that a new connection calls are missing, or not granted.
        Err(error) if matches!(error.sqlstate().as_deref(), Some("42883" | "42P01" | "42501")) => Err(migrate::all_missing()),
        Err(StoreError::Unavailable(error) | StoreError::Database(error)) => Err(match AccessRefused::of(&error) {
            Some(refused) => format!("{}: {}", away(&error), refused.remedy()),
            None => away(&error),
        }),
        Err(error) => Err(away(&error)),
    }
}

/// Waits until [`ready`] succeeds. Logs what it waits for, whenever that changes.
pub(crate) async fn wait_ready(pool: &Pool, cancelled: &CancellationToken) -> Result<(), StoreError> {
    let mut logged = String::new();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match ready(pool).await {
            Ok(()) => return Ok(()),
            Err(reason) if reason != logged => {
                tracing::warn!(waiting_for = %reason, "not ready");
                logged = reason;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = cancelled.cancelled() => return Err(StoreError::Closed),
            () = backoff.wait() => {}
        }
    }
}
