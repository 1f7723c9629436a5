//! Reading the serving build of a projection.

use event_store::{
    EventStore, LogEvent,
    connection::{PooledConnection, with_timeout},
};
use opentelemetry::KeyValue;
use sqlx::{Executor as _, PgConnection, Row as _};
use uuid::Uuid;

use crate::{error::ProjectionError, metrics::METRICS};

/// See [`Projections::read`](crate::Projections::read).
pub(crate) async fn read<E: LogEvent, T>(
    store: &EventStore<E>,
    name: &'static str,
    key: Option<Uuid>,
    read: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, ProjectionError> {
    let permit = store.read_permit().await?;
    let begin = begin(name, key);
    let answer = with_timeout(async {
        let mut connection = store.connection().await?;
        let row = sqlx::raw_sql(&begin).fetch_one(&mut *connection).await?;
        let (build, parked): (Option<String>, Option<Uuid>) = (row.try_get(0)?, row.try_get(1)?);
        let answer = match (build, parked) {
            (None, _) => return Err(sqlx::Error::Protocol(format!("the projection {name} never ran"))),
            (Some(_), Some(key)) => Err(key),
            (Some(_), None) => Ok(read(&mut connection).await?),
        };
        Ok((answer, connection))
    });
    let (answer, connection) = answer.await?;
    // The caller does not wait for the end of the transaction. If it fails, the connection is closed.
    tokio::spawn(async move {
        let _ = with_timeout(end(connection)).await;
        drop(permit);
    });
    answer.map_err(|key| {
        METRICS.parked_queries.add(1, &[KeyValue::new("query", name)]);
        ProjectionError::Parked { projection: name.to_owned(), key }
    })
}

async fn end(mut connection: PooledConnection) -> Result<(), sqlx::Error> {
    connection.execute("COMMIT").await?;
    connection.done();
    Ok(())
}

/// Two statements for one round trip, so without parameters. The name is a constant of the projection.
fn begin(name: &str, key: Option<Uuid>) -> String {
    let name = name.replace('\'', "''");
    let key = key.map_or_else(|| "NULL".to_owned(), |key| format!("'{key}'"));
    format!("BEGIN READ ONLY; SELECT serving, parked FROM public.begin_projection_read('{name}', {key})")
}
