//! The log, as services open it.

use event_store::{EventStore, LogEvent, StoreSettings};
use sqlx::postgres::PgConnectOptions;

use crate::{Fault, settings::Common};

/// Opens the log that the settings name. It connects when it is needed: a database that is away shows in readiness and answers.
///
/// # Errors
/// Where the URL cannot be read; settings are validated before, so this does not happen.
pub fn open_log<E: LogEvent>(common: &Common) -> Result<EventStore<E>, Fault> {
    let mut options: PgConnectOptions = common.database_url.expose().parse()?;
    if let Some(password) = common.database_password_file.expose() {
        options = options.password(password);
    }
    let settings = StoreSettings {
        max_connections: common.database_max_connections.as_u32(),
        command_timeout: common.command_timeout_milliseconds.milliseconds(),
        state_cache_bytes: common.state_cache_megabytes.as_u32() as usize * 1_000_000,
        ..StoreSettings::default()
    };
    Ok(EventStore::new(options, settings))
}
