//! Whether the log can be used, and what is missing where it cannot.

use std::{borrow::Cow, fmt::Display, time::Duration};

use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgDatabaseError},
};

use tokio_util::sync::CancellationToken;

use crate::{
    connection::{ConnectionPool, with_timeout},
    error::StoreError,
    migrate,
};

/// Why a server that is there is no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotLetIn {
    UnknownRole,
    WrongPassword,
    /// It wants TLS, a certificate, or another address.
    NotThisWay,
    Tls,
}

impl NotLetIn {
    fn mend(self) -> Cow<'static, str> {
        match self {
            Self::UnknownRole => format!("the migrations make the services' roles: {}", migrate::HOW).into(),
            Self::WrongPassword => "put the role's password into DATABASE_URL, or give the role that one with ALTER ROLE".into(),
            Self::NotThisWay => {
                "its pg_hba.conf does not let this role in so; with sslmode=verify-full in DATABASE_URL, TLS is used".into()
            }
            Self::Tls => {
                "sslrootcert in DATABASE_URL is to name a file with the certificate that the server's is signed by, and the host the \
                          name that is in it"
                    .into()
            }
        }
    }
}

/// Where a database is, without who connects.
fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    match options.get_socket() {
        Some(socket) => format!("{}/{database}", socket.display()),
        None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
    }
}

fn not_let_in(error: &sqlx::Error) -> Option<NotLetIn> {
    match error {
        sqlx::Error::Tls(_) => Some(NotLetIn::Tls),
        // rustls reports a certificate it does not accept as an error of the connection.
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => Some(NotLetIn::Tls),
        sqlx::Error::Database(error) => match (error.code().as_deref(), error.try_downcast_ref::<PgDatabaseError>()?.routine()) {
            (Some("28P01"), _) => Some(NotLetIn::WrongPassword),
            // One code for both.
            (Some("28000"), Some("ClientAuthentication")) => Some(NotLetIn::NotThisWay),
            (Some("28000"), _) => Some(NotLetIn::UnknownRole),
            _ => None,
        },
        _ => None,
    }
}

/// Whether the log can be reached and is migrated.
///
/// # Errors
/// What is waited for, as words for an operator.
pub(crate) async fn ready(connections: &ConnectionPool, connect_timeout: Duration) -> Result<(), String> {
    let missing = with_timeout(async {
        let mut connection = connections.connection().await?;
        let missing = migrate::missing(&mut connection).await?;
        connection.done();
        Ok(missing)
    });
    let away = |error: &dyn Display| format!("the database at {} ({error})", place(&connections.pool().connect_options()));
    match missing.await {
        Ok(None) => Ok(()),
        Ok(Some(missing)) => Err(missing),
        Err(StoreError::Unavailable(error) | StoreError::Database(error)) => {
            let error = cause(error, connections, connect_timeout).await;
            Err(match not_let_in(&error) {
                Some(why) => format!("{}: {}", away(&error), why.mend()),
                None => away(&error),
            })
        }
        Err(error) => Err(away(&error)),
    }
}

/// The pool keeps trying and says only that its time was over: what the server says, or the network, is asked here.
async fn cause(error: sqlx::Error, connections: &ConnectionPool, connect_timeout: Duration) -> sqlx::Error {
    if !matches!(error, sqlx::Error::PoolTimedOut) {
        return error;
    }
    let options = connections.pool().connect_options();
    let connecting = PgConnection::connect_with(&options);
    // The pool has had most of the time that a probe waits.
    match tokio::time::timeout(connect_timeout / 4, connecting).await {
        Ok(Err(cause)) => cause,
        // It is there, and the pool's connections are all in use; or it does not answer at all.
        Ok(Ok(_)) | Err(_) => error,
    }
}

/// Waits until [`ready`] says so, saying in the log what it waits for, whenever that changes.
///
/// # Errors
/// Where `cancelled` comes first.
pub(crate) async fn wait_ready(
    connections: &ConnectionPool,
    connect_timeout: Duration,
    cancelled: &CancellationToken,
) -> Result<(), StoreError> {
    let mut said = String::new();
    let mut pause = Duration::from_millis(100);
    loop {
        match ready(connections, connect_timeout).await {
            Ok(()) => return Ok(()),
            Err(reason) if reason != said => {
                tracing::warn!(waiting_for = %reason, "not ready yet");
                said = reason;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = cancelled.cancelled() => return Err(StoreError::Closed),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(2)),
        }
    }
}
