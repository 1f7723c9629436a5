//! A standby: a PostgreSQL server that follows another one, and can take its place.

use std::path::Path;

use sqlx::{Connection, PgConnection};

use crate::backup;
use crate::error::{Context, Error};
use crate::layout::Layout;
use crate::ports;
use crate::postgres::{self, Postgres};

/// Starts a server on a free port that follows `primary` from now on, through `address`, a port of 127.0.0.1 that leads to it. Its data lie in
/// `directory`. The primary knows it as `name`.
///
/// # Errors
/// The primary's data cannot be copied, or the standby does not start. The error has the end of its log.
pub async fn start(layout: &Layout, primary: &Postgres, address: u16, directory: &Path, name: &str) -> Result<Postgres, Error> {
    let data = postgres::data_directory(layout, directory, primary.distribution()).await?;
    backup::copy_running(primary, &data).await?;
    let settings = data.join("postgresql.auto.conf");
    let before = std::fs::read_to_string(&settings).context(|| format!("read {}", settings.display()))?;
    let follow = format!("{before}primary_conninfo = 'host=127.0.0.1 port={address} user=postgres application_name={name}'\n");
    backup::write(&settings, &follow, &data)?;
    backup::write(&data.join("standby.signal"), "", &data)?;
    let [port] = ports::free([None])?;
    Postgres::start(layout, primary.distribution(), directory, port).await
}

/// Makes a standby a primary, and waits until it is one. It starts a new timeline.
///
/// # Errors
/// It cannot be reached, or does not become a primary within a minute.
pub async fn promote(standby: &Postgres) -> Result<(), Error> {
    let failed = || "promote the standby".to_owned();
    let mut session = PgConnection::connect(&standby.url("postgres", "postgres")).await.context(failed)?;
    let promoted: bool = sqlx::query_scalar("SELECT pg_promote(wait => true)").fetch_one(&mut session).await.context(failed)?;
    session.close().await.context(failed)?;
    if promoted { Ok(()) } else { Err(Error::Refused("the standby did not become a primary within 60 s".to_owned())) }
}
