//! Runs a statement on its own connection.

use event_store::{
    StoreError,
    connection::{PooledConnection, with_timeout},
};
use sqlx::{PgConnection, PgPool};

/// Runs a statement on its own connection, with the usual timeout.
pub(crate) async fn ask<T>(
    pool: &PgPool,
    statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, StoreError> {
    with_timeout(async {
        let mut connection = PooledConnection::from(pool).await?;
        let answer = statement(&mut connection).await?;
        connection.done();
        Ok(answer)
    })
    .await
}
