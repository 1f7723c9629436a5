//! The ids that new events carry.

use std::collections::HashMap;

use sqlx::Row as _;
use uuid::Uuid;

use crate::{
    connection::{Pool, PooledConnection, with_timeout},
    error::StoreError,
    position::Position,
};

/// The most events that one question covers.
const LIMIT: i64 = 10_000;

/// The ids of the events after a position.
#[derive(Debug, Clone)]
pub struct Touched {
    /// Each id with the position of the newest event that carries it.
    pub ids: HashMap<Uuid, Position>,
    /// The position up to which the answer is complete.
    pub up_to: Position,
}

/// See [`EventStore::touched`](crate::EventStore::touched).
pub(crate) async fn touched(pool: &Pool, ids: &[&str], after: Position) -> Result<Touched, StoreError> {
    let sql = format!("SELECT event_id, {} FROM public.event WHERE event_id > $1 ORDER BY event_id LIMIT $2", ids.join(", "));
    let permit = pool.read_permit().await?;
    let rows = with_timeout(async {
        let mut connection = PooledConnection::from(pool).await?;
        let rows = sqlx::query(&sql).bind(after.0).bind(LIMIT).fetch_all(&mut *connection).await?;
        connection.done();
        Ok(rows)
    })
    .await?;
    drop(permit);
    let mut touched = Touched { ids: HashMap::new(), up_to: after };
    for row in &rows {
        touched.up_to = row.try_get(0)?;
        for column in 1..=ids.len() {
            if let Some(id) = row.try_get::<Option<Uuid>, _>(column)? {
                touched.ids.insert(id, touched.up_to);
            }
        }
    }
    Ok(touched)
}
