//! Reading the serving build of a projection, with one statement.
//!
//! The statement reads three things from one snapshot: which build serves, whether the key is parked, and the query's rows from the build that
//! this process takes for the serving one. If another build serves, the rows are empty, and the statement is sent again for that build.
//!
//! A rebuild cannot empty the tables meanwhile. It empties only a build that does not serve, in a transaction that waits for the statement's
//! locks; and a statement whose snapshot is newer finds that build out of service.

use std::{sync::atomic::Ordering, time::Duration};

use event_store::{EventStore, LogEvent, Position, StoreError, connection::with_timeout};
use opentelemetry::KeyValue;
use sqlx::{
    Arguments as _, Encode, FromRow, Postgres, Row as _, Type,
    error::BoxDynError,
    postgres::{PgArguments, PgRow},
};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    error::ProjectionError,
    metrics::METRICS,
    replica::Replicas,
    segment::segment_of,
    wait::{self, Wait},
};

/// A query of a projection's tables, in SQL. It names each table as `{build}.table`, and its parameters as `$1`, `$2` and so on.
pub struct Query {
    sql: &'static str,
    arguments: Result<PgArguments, BoxDynError>,
}

impl Query {
    /// Creates a query without values for its parameters.
    pub fn new(sql: &'static str) -> Self {
        Self { sql, arguments: Ok(PgArguments::default()) }
    }

    /// Binds the value of the next parameter.
    #[must_use]
    pub fn bind<'q, T: Encode<'q, Postgres> + Type<Postgres> + 'q>(mut self, value: T) -> Self {
        self.arguments = self.arguments.and_then(|mut arguments| {
            arguments.add(value)?;
            Ok(arguments)
        });
        self
    }

    /// Returns the statement for a build. Its last parameters are the key and its segment, if there is a key.
    fn statement(&self, name: &str, build: &str, key: Option<usize>) -> String {
        let name = name.replace('\'', "''");
        let (of_key, of_segment) = match key {
            Some(before) => (format!("AND k.key = ${}", before + 1), format!("AND c.segment = ${}", before + 2)),
            None => (String::new(), String::new()),
        };
        let query = self.sql.replace("{build}", build);
        format!(
            "WITH s AS MATERIALIZED (
                 SELECT p.build AS \"serving build\",
                        (SELECT k.key FROM public.parked_key k WHERE k.name = p.name AND k.build = p.build {of_key}
                         ORDER BY k.parked_at LIMIT 1) AS \"parked key\",
                        (SELECT min(c.position) FROM public.checkpoint c WHERE c.name = p.name AND c.build = p.build {of_segment})
                            AS \"stored position\"
                 FROM public.projection p WHERE p.name = '{name}' AND p.status = 'serving'
             )
             SELECT q.*, s.* FROM s
             LEFT JOIN (SELECT q.*, true AS \"is row\" FROM ({query}) q) q ON s.\"serving build\" = '{build}' AND s.\"parked key\" IS NULL"
        )
    }
}

/// See [`Projections::read`](crate::Projections::read).
pub(crate) async fn read<E: LogEvent, R: for<'r> FromRow<'r, PgRow>>(
    store: &EventStore<E>,
    replicas: &Replicas,
    name: &'static str,
    key: Option<Uuid>,
    query: &Query,
) -> Result<(Vec<R>, Position), ProjectionError> {
    let serves_b = &replicas.checkpoint_cache(name).serves_b;
    loop {
        let build = if serves_b.load(Ordering::Relaxed) { "projection_b" } else { "projection_a" };
        let mut arguments =
            query.arguments.as_ref().map_err(|error| sqlx::Error::Encode(error.to_string().into())).cloned().map_err(StoreError::from)?;
        let bound = arguments.len();
        if let Some(key) = key {
            let add = arguments.add(key).and_then(|()| arguments.add(segment_of(key)));
            add.map_err(|error| StoreError::from(sqlx::Error::Encode(error)))?;
        }
        let sql = query.statement(name, build, key.map(|_| bound));
        let permit = store.read_permit().await?;
        let rows = with_timeout(async {
            let mut connection = store.connection().await?;
            let rows = sqlx::query_with(&sql, arguments).fetch_all(&mut *connection).await?;
            connection.done();
            Ok(rows)
        })
        .await?;
        drop(permit);
        let Some(first) = rows.first() else {
            return Err(StoreError::from(sqlx::Error::Protocol(format!("the projection {name} never ran"))).into());
        };
        let get = |error: sqlx::Error| ProjectionError::from(StoreError::from(error));
        let serving: String = first.try_get("serving build").map_err(get)?;
        match serving.as_str() {
            serving if serving == build => {}
            // Another build serves since.
            "projection_a" | "projection_b" => {
                serves_b.store(serving == "projection_b", Ordering::Relaxed);
                continue;
            }
            _ => return Err(StoreError::Schema(format!("{name} is an automation, and only read models can be read")).into()),
        }
        if let Some(key) = first.try_get("parked key").map_err(get)? {
            METRICS.parked_queries.add(1, &[KeyValue::new("query", name)]);
            return Err(ProjectionError::Parked { projection: name.to_owned(), key });
        }
        let stored: Position = first.try_get::<Option<_>, _>("stored position").map_err(get)?.unwrap_or_default();
        let is_row = |row: &PgRow| row.try_get::<Option<bool>, _>("is row").map(|is_row| is_row == Some(true));
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            if is_row(row).map_err(get)? {
                found.push(R::from_row(row).map_err(get)?);
            }
        }
        return Ok((found, stored));
    }
}

/// See [`Projections::read_from`](crate::Projections::read_from).
pub(crate) async fn read_from<E: LogEvent, R: for<'r> FromRow<'r, PgRow>>(
    store: &EventStore<E>,
    replicas: &Replicas,
    name: &'static str,
    key: Option<Uuid>,
    min: Position,
    timeout: Duration,
    query: &Query,
) -> Result<(Vec<R>, Position), ProjectionError> {
    if min == Position::START {
        return read(store, replicas, name, key, query).await;
    }
    let until = Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let stored = match wait::wait(store, replicas, name, key, min, left).await? {
            (Wait::Reached, stored) => stored,
            (Wait::TimedOut(position), _) => return Err(ProjectionError::Behind(position)),
            (Wait::Parked(key), _) => return Err(ProjectionError::Parked { projection: name.to_owned(), key }),
        };
        let (rows, at) = read(store, replicas, name, key, query).await?;
        // A server that is behind answers less than was waited for.
        if at >= stored {
            return Ok((rows, at.max(min)));
        }
        if Instant::now() >= until {
            return Err(ProjectionError::Behind(at));
        }
        sleep(RETRY).await;
    }
}

/// The pause before another server may answer.
const RETRY: Duration = Duration::from_millis(50);
