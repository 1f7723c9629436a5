//! One statement on a connection of its own.

use event_store::{
    StoreError,
    connection::{PooledConnection, with_timeout},
};
use sqlx::{PgConnection, PgPool};

/// The answer of one statement, on a connection of its own and in time.
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
