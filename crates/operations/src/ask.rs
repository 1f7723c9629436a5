//! Runs a statement on its own connection.

use event_store::{
    Pool, StoreError,
    connection::{PooledConnection, with_timeout},
};
use sqlx::PgConnection;

/// Runs a statement on its own connection, with the usual timeout.
pub(crate) async fn ask<T>(pool: &Pool, statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>) -> Result<T, StoreError> {
    with_timeout(async {
        let mut connection = PooledConnection::from(pool).await?;
        let answer = statement(&mut connection).await?;
        connection.done();
        Ok(answer)
    })
    .await
}
