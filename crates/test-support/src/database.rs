//! Gives each test its own database.

use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

/// A database for one test. It is dropped with the test stack.
pub struct Database {
    options: PgConnectOptions,
}

impl Database {
    /// Creates a migrated database on the server that `cargo dev test` started.
    ///
    /// # Panics
    /// If there is no server.
    pub async fn create() -> Self {
        let database = Self::create_empty().await;
        event_store::migrate(&database.pool().await).await.expect("the migrations apply");
        database
    }

    /// Creates a migrated database in which every role may append events of every type, for logs of events that are no cart's.
    ///
    /// # Panics
    /// If there is no server.
    pub async fn create_for_any_event() -> Self {
        let database = Self::create().await;
        let anything = "CREATE OR REPLACE FUNCTION event_types(role name) RETURNS text[] LANGUAGE sql IMMUTABLE RETURN NULL::text[]";
        sqlx::query(anything).execute(&database.pool().await).await.expect("the owner may replace a function");
        database
    }

    /// Creates an empty database, without migrations.
    ///
    /// # Panics
    /// If there is no server.
    pub async fn create_empty() -> Self {
        Self::create_with("").await
    }

    /// Creates an empty database with options of `CREATE DATABASE`.
    ///
    /// # Panics
    /// If there is no server.
    pub async fn create_with(options: &str) -> Self {
        let url = std::env::var("CARTLOG_TEST_DATABASE_URL")
            .expect("these tests need PostgreSQL and Kafka: run `cargo dev test`, which starts both and sets CARTLOG_TEST_DATABASE_URL");
        let server: PgConnectOptions = url.parse().expect("CARTLOG_TEST_DATABASE_URL is a database's URL");
        let name = format!("test_{}", Uuid::now_v7().simple());
        let mut connection = PgConnection::connect_with(&server).await.expect("the test server can be reached");
        sqlx::query(&format!("CREATE DATABASE {name} {options}")).execute(&mut connection).await.expect("a database can be created");
        Self { options: server.database(&name) }
    }

    /// Returns the options to connect as the owner.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Returns the options to connect as a service's role.
    pub fn options_as(&self, role: &str) -> PgConnectOptions {
        self.options.clone().username(role)
    }

    /// Returns the URL for a service's role.
    pub fn url_as(&self, role: &str) -> String {
        format!(
            "postgres://{role}@{}:{}/{}",
            self.options.get_host(),
            self.options.get_port(),
            self.options.get_database().unwrap_or_default()
        )
    }

    /// Opens a pool of connections as the owner.
    ///
    /// # Panics
    /// If the server cannot be reached.
    pub async fn pool(&self) -> PgPool {
        PgPoolOptions::new().max_connections(4).connect_with(self.options()).await.expect("the test database can be reached")
    }
}

/// Returns the broker that `cargo dev test` started.
///
/// # Panics
/// If there is no broker.
pub fn kafka_bootstrap_servers() -> String {
    std::env::var("CARTLOG_TEST_KAFKA_BOOTSTRAP_SERVERS").expect(
        "these tests need PostgreSQL and Kafka: run `cargo dev test`, which starts both and sets CARTLOG_TEST_KAFKA_BOOTSTRAP_SERVERS",
    )
}
