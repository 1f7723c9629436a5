//! Recovery of a call whose answer was lost: finds out which of its appends were committed.

use std::collections::HashMap;

use sqlx::{Executor, FromRow, PgConnection};
use uuid::Uuid;

use crate::{
    connection::{log_connection::Backend, with_timeout},
    error::StoreError,
    position::Position,
};

/// Looks up which of these appends were written after `known`, and the position of each one's last event.
///
/// The lost connection's server process is ended first: while it lives, it may still read the call from its socket and commit it.
///
/// # Errors
/// [`StoreError::Busy`] if that process does not end yet.
pub(crate) async fn look_up(
    connection: &mut PgConnection,
    lost: &Backend,
    appends: &[Uuid],
    known: i64,
) -> Result<HashMap<Uuid, Position>, StoreError> {
    let rows = with_timeout(written_since(connection, lost, appends, known)).await?;
    let rows = rows.ok_or(StoreError::Busy)?;
    Ok(rows.into_iter().map(|(id, last)| (id, Position(last))).collect())
}

/// Returns `None` if the server process has not ended.
async fn written_since(
    connection: &mut PgConnection,
    lost: &Backend,
    appends: &[Uuid],
    known: i64,
) -> Result<Option<Vec<(Uuid, i64)>>, sqlx::Error> {
    let gone: Option<bool> =
        sqlx::query_scalar("SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2")
            .bind(lost.pid)
            .bind(&lost.started)
            .fetch_optional(&mut *connection)
            .await?;
    if gone == Some(false) {
        return Ok(None);
    }
    // One message is one transaction, and its answer fits into the socket. So the server releases the lock even if this process freezes
    // here. With several messages, the process's two connections could hold the lock one after the other until the idle timeout.
    //
    // The transaction writes something, so that its commit waits for what an append's commit waits for. Suppose that the synchronous
    // standby is missing: the server that ended the append's process left the events in the log, the standby does not have them, and they
    // would be lost with the primary. A standby, which may not have all of the log yet, refuses to write.
    let appends: Vec<_> = appends.iter().map(Uuid::to_string).collect();
    //
    // Ids are compared as text: an id of another shape in the log must not fail the look-up.
    let sql = format!(
        "DO $$ BEGIN PERFORM lock_log(), pg_logical_emit_message(true, 'cartlog', ''); END $$; \
         SELECT (metadata->>'append_id')::uuid, max(event_id) FROM event \
         WHERE event_id > {known} AND metadata->>'append_id' = ANY('{{{}}}') GROUP BY metadata->>'append_id'",
        appends.join(",")
    );
    let rows = connection.fetch_all(sql.as_str()).await?;
    rows.iter().map(FromRow::from_row).collect::<Result<_, _>>().map(Some)
}
