//! Gives each test its own database.

use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

/// Lets every role append events of any type. For logs of other events than the shop's.
pub const ANY_EVENT: &str = "CREATE OR REPLACE FUNCTION event_types(role name) RETURNS text[] LANGUAGE sql IMMUTABLE RETURN NULL::text[]";

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
        sqlx::query(ANY_EVENT).execute(&database.pool().await).await.expect("the owner may replace a function");
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

    /// Moves every stored time, as if the database's clock had stepped by so many seconds since.
    ///
    /// # Panics
    /// If the database cannot be reached.
    pub async fn step_clock(&self, seconds: f64) {
        let step = format!(
            "DO $$ DECLARE c record; BEGIN
                 FOR c IN SELECT table_name, column_name FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
                          WHERE table_schema = 'public' AND data_type = 'timestamp with time zone' AND table_type = 'BASE TABLE' LOOP
                     EXECUTE format('UPDATE public.%I SET %I = %2$I - make_interval(secs => {seconds})', c.table_name, c.column_name);
                 END LOOP;
             END $$"
        );
        let mut connection = PgConnection::connect_with(&self.options).await.expect("the test database can be reached");
        sqlx::query(&step).execute(&mut connection).await.expect("every time can be moved");
    }

    /// Keeps a copy of the database as it is, which ends every connection to it.
    ///
    /// # Panics
    /// If the database cannot be copied.
    pub async fn back_up(&self) -> Backup {
        let database = self.options.get_database().unwrap_or_default().to_owned();
        let mut server = PgConnection::connect_with(&self.options.clone().database("postgres")).await.expect("the server can be reached");
        for statement in [end_connections(&database), format!("CREATE DATABASE {database}_copy TEMPLATE {database}")] {
            sqlx::query(&statement).execute(&mut server).await.expect("it can be copied");
        }
        Backup { server, database }
    }

    /// Opens a pool of connections as the owner.
    ///
    /// # Panics
    /// If the server cannot be reached.
    pub async fn pool(&self) -> PgPool {
        PgPoolOptions::new().max_connections(4).connect_with(self.options()).await.expect("the test database can be reached")
    }
}

fn end_connections(database: &str) -> String {
    format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{database}'")
}

/// A copy of a database.
pub struct Backup {
    server: PgConnection,
    database: String,
}

impl Backup {
    /// Puts the copy in the place of the database, as a restore does: every connection ends, and new ones find the copy.
    ///
    /// # Panics
    /// If the database cannot be replaced.
    pub async fn restore(mut self) {
        let database = &self.database;
        for statement in [
            format!("ALTER DATABASE {database} WITH ALLOW_CONNECTIONS false"),
            end_connections(database),
            format!("ALTER DATABASE {database} RENAME TO {database}_lost"),
            format!("ALTER DATABASE {database}_copy RENAME TO {database}"),
        ] {
            sqlx::query(&statement).execute(&mut self.server).await.expect("it can be replaced");
        }
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
