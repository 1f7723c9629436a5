//! PostgreSQL as services see it: an address for each process, which leads to the present primary, and the primary's standby.

use std::path::{Path, PathBuf};
use std::time::Duration;

use embedded::backup;
use embedded::database;
use embedded::distribution::PostgresDistribution;
use embedded::error::{Context, Error};
use embedded::files;
use embedded::forwarder::{Forwarder, Network};
use embedded::layout::Layout;
use embedded::postgres::Postgres;
use embedded::standby;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::time::Instant;

use super::campaign::Standby;
use super::commands::Loss;

const POLL: Duration = Duration::from_millis(100);
/// The time in which a standby must follow its primary.
const FOLLOWS: Duration = Duration::from_secs(60);
/// The standby's name at its primary.
const NAME: &str = "standby";

#[derive(Debug)]
pub(super) struct Cluster {
    layout: Layout,
    directory: PathBuf,
    wanted: Standby,
    /// In the order of the processes.
    addresses: Vec<Forwarder>,
    primary: Postgres,
    /// With the connection through which it follows the primary.
    standby: Option<(Postgres, Forwarder)>,
    /// Whether the standby lacks what was acknowledged lately.
    is_held: bool,
    /// Still runs, and nobody is led to it.
    old: Option<Postgres>,
    /// How many servers there were.
    servers: u32,
}

impl Cluster {
    /// Starts a primary with a migrated database, its standby, and an address for each process.
    pub(super) async fn start(
        layout: &Layout,
        distribution: &PostgresDistribution,
        directory: PathBuf,
        processes: usize,
        wanted: Standby,
    ) -> Result<Self, Error> {
        let primary = Postgres::start_on_free_port(layout, distribution, &directory.join("postgres-1")).await?;
        database::create(&primary.url("postgres", "postgres"), database::NAME).await?;
        database::migrate(&primary.url("postgres", database::NAME)).await?;
        let mut addresses = vec![];
        for _ in 0..processes {
            addresses.push(Forwarder::before(primary.port()).await?);
        }
        let layout = layout.clone();
        let mut cluster = Self { layout, directory, wanted, addresses, primary, standby: None, is_held: false, old: None, servers: 1 };
        cluster.add_standby().await?;
        Ok(cluster)
    }

    /// The address of each process.
    pub(super) fn addresses(&self) -> &[Forwarder] {
        &self.addresses
    }

    /// Whether the primary's data lie below a directory. They do not if PostgreSQL's account cannot enter it.
    pub(super) fn is_below(&self, directory: &Path) -> bool {
        self.primary.data().starts_with(directory)
    }

    /// The owner's URL at the present primary, past the addresses.
    pub(super) fn owner_url(&self) -> String {
        self.primary.url("postgres", database::NAME)
    }

    /// Opens the owner's connections to the present primary.
    pub(super) async fn connect(&self) -> Result<PgPool, Error> {
        database::connect(&self.owner_url()).await
    }

    pub(super) async fn stop_primary(&mut self, crash: bool) -> Result<(), Error> {
        if crash { self.primary.kill().await } else { self.primary.stop().await }
    }

    pub(super) async fn start_primary(&mut self) -> Result<(), Error> {
        let mut attempts = 1;
        loop {
            match self.primary.restart().await {
                // Another process's connection may have taken the port.
                Err(Error::Ended { tail, .. }) if tail.contains("Address already in use") && attempts < 20 => attempts += 1,
                other => return other,
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A server that could not write has ended.
    pub(super) async fn start_primary_if_it_ended(&mut self) -> Result<(), Error> {
        match self.primary.process().exited()? {
            Some(_) => self.start_primary().await,
            None => Ok(()),
        }
    }

    pub(super) async fn freeze_primary(&self) -> Result<(), Error> {
        self.primary.freeze().await
    }

    /// Lets commands be acknowledged from now on without the standby, and sends it nothing more.
    pub(super) async fn hold_replication(&mut self) -> Result<(), Error> {
        self.wait_for_standby(false).await?;
        if let Some((_, link)) = &self.standby {
            link.set(Network::Silent);
            self.is_held = true;
        }
        Ok(())
    }

    /// Whether the standby lacks what was acknowledged lately.
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Makes the standby the primary and leads new connections to it. Returns what was lost if the standby was held back.
    pub(super) async fn promote(&mut self) -> Result<Loss, Error> {
        let Some((next, _)) = self.standby.take() else { return Err(Error::Refused("there is no standby".to_owned())) };
        standby::promote(&next).await?;
        self.old = Some(std::mem::replace(&mut self.primary, next));
        self.serve().await
    }

    pub(super) async fn thaw_old(&self) -> Result<(), Error> {
        match &self.old {
            Some(old) => old.thaw().await,
            None => Ok(()),
        }
    }

    pub(super) async fn kill_old(&mut self) -> Result<(), Error> {
        match self.old.take() {
            Some(mut old) => old.kill().await,
            None => Ok(()),
        }
    }

    /// Starts a standby of the present primary, and waits until it follows.
    pub(super) async fn add_standby(&mut self) -> Result<(), Error> {
        self.kill_old().await?;
        if self.wanted == Standby::None {
            return Ok(());
        }
        self.servers += 1;
        let directory = self.directory.join(format!("postgres-{}", self.servers));
        let link = Forwarder::before(self.primary.port()).await?;
        let standby = standby::start(&self.layout, &self.primary, link.port(), &directory, NAME).await?;
        (self.standby, self.is_held) = (Some((standby, link)), false);
        if self.wanted == Standby::Synchronous {
            self.wait_for_standby(true).await?;
        }
        let until = Instant::now() + FOLLOWS;
        let state = match self.wanted {
            Standby::Synchronous => "sync",
            _ => "async",
        };
        loop {
            let follows = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = $1 AND sync_state = $2)";
            let mut session = self.session().await?;
            let follows: bool = sqlx::query_scalar(follows)
                .bind(NAME)
                .bind(state)
                .fetch_one(&mut session)
                .await
                .context(|| "look at the standby".to_owned())?;
            if follows {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Error::Refused(format!("the standby does not follow its primary after {} s", FOLLOWS.as_secs())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops the primary, copies its data, and starts it again.
    pub(super) async fn copy_volume(&mut self) -> Result<(), Error> {
        self.primary.stop().await?;
        files::remove(&self.copied())?;
        backup::copy_stopped(&self.primary, &self.copied()).await?;
        self.start_primary().await
    }

    /// Kills the primary, replaces its data by the copy, and starts it again. Returns what was lost.
    pub(super) async fn put_volume_back(&mut self) -> Result<Loss, Error> {
        // Nobody may append before the head is read.
        self.lead_to(0);
        self.primary.kill().await?;
        if let Some((mut standby, _)) = self.standby.take() {
            standby.kill().await?;
        }
        backup::put_back(&self.primary, &self.copied()).await?;
        self.start_primary().await?;
        self.wait_for_standby(false).await?;
        self.serve().await
    }

    /// Stops every server.
    pub(super) async fn end(mut self) -> Result<(), Error> {
        self.kill_old().await?;
        if let Some((mut standby, _)) = self.standby.take() {
            standby.kill().await?;
        }
        self.primary.kill().await
    }

    fn copied(&self) -> PathBuf {
        // Beside the data, because the account of PostgreSQL can enter that directory.
        self.primary.data().with_file_name("copy")
    }

    fn lead_to(&self, port: u16) {
        for address in &self.addresses {
            address.move_to(port);
        }
    }

    /// Reads the log's head while nobody can append, and then leads the addresses to the primary.
    async fn serve(&self) -> Result<Loss, Error> {
        let mut session = self.session().await?;
        let head = "SELECT coalesce(max(event_id), 0) FROM event";
        let kept = sqlx::query_scalar(head).fetch_one(&mut session).await.context(|| "read the log's head".to_owned())?;
        let loss = Loss { at: std::time::Instant::now(), kept };
        self.lead_to(self.primary.port());
        Ok(loss)
    }

    /// Lets commands wait for the standby, or not.
    async fn wait_for_standby(&self, wait: bool) -> Result<(), Error> {
        let names = if wait { NAME } else { "" };
        self.execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await?;
        self.execute("SELECT pg_reload_conf()").await
    }

    /// Lets new sessions only read, and ends the services', or lets new sessions write again. Those of such a phase stay as they are.
    pub(super) async fn set_read_only(&self, on: bool) -> Result<(), Error> {
        let name = database::NAME;
        if on {
            self.execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await?;
            self.end_sessions("cartlog\\_%").await
        } else {
            self.execute(&format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await
        }
    }

    /// Limits the connections of a role, and ends those it has; -1: no limit.
    pub(super) async fn limit_connections(&self, role: &str, to: i32) -> Result<(), Error> {
        self.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT {to}")).await?;
        if to < 0 { Ok(()) } else { self.end_sessions(role).await }
    }

    /// Ends the sessions of roles with a name like this.
    async fn end_sessions(&self, roles: &str) -> Result<(), Error> {
        self.execute(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE '{roles}'")).await
    }

    async fn execute(&self, statement: &str) -> Result<(), Error> {
        let mut session = self.session().await?;
        // New sessions may be read-only.
        for statement in ["SET default_transaction_read_only = off", statement] {
            sqlx::raw_sql(statement).execute(&mut session).await.context(|| statement.to_owned())?;
        }
        session.close().await.context(|| "close a connection".to_owned())
    }

    async fn session(&self) -> Result<PgConnection, Error> {
        PgConnection::connect(&self.owner_url()).await.context(|| "connect to the primary".to_owned())
    }
}
