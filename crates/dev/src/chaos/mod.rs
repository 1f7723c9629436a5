//! `cargo dev chaos`: kills, freezes and disconnects real processes under load. A seed determines the schedule.
//!
//! When the schedule is over, the system must recover alone. Then every table, to-do, message and answer is compared with a model of the log.

mod actor;
mod check;
mod journal;
mod schedule;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use sqlx::{PgPool, Postgres as Sql, Transaction};
use tokio::process::Command;
use tokio::time::Instant;
use uuid::Uuid;

use self::actor::Actor;
use self::check::Evidence;
use self::journal::Journal;
use self::schedule::{REPLICAS, Step, Timed, VICTIMS};
use self::tables::{Source, TABLES};
use crate::cargo::{self, PROGRAMS};
use embedded::database;
use embedded::error::{Context, Error, chain};
use embedded::files;
use embedded::kafka::{Topic, create_topics};
use embedded::layout::Layout;
use embedded::postgres::{self, Postgres};
use embedded::report::{self, Report};
use embedded::signals::Signals;
use embedded::test_stack::TestStack;
use shop::load::{Load, Ports, Told};
use shop::model::Model;
use shop::published::Published;
use shop::services::{COMMANDS, PROJECTIONS, PUBLISHER, TRANSLATOR};

/// The time in which a service must be ready on a busy machine.
const READY: Duration = Duration::from_secs(120);
/// The time in which the undisturbed system must finish its work.
const REST: Duration = Duration::from_secs(240);
/// The time to wait until a victim is in a transaction.
const CAUGHT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(100);
/// The number of differences in the error. The journal has all.
const SHOWN: usize = 30;

/// What the chaos disturbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// Three cart-projections and the publisher
    Projections,
}

/// Builds and starts everything, and runs the chaos with this seed, or with a random one.
///
/// # Errors
/// Something does not start, or the result differs from the log. The message says how to repeat the schedule.
pub async fn run(layout: &Layout, subject: Subject, minutes: f64, seed: Option<u64>, report: &Report) -> Result<(), Error> {
    let seed = seed.unwrap_or_else(rand::random);
    let name = subject.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let again = format!("cargo dev chaos {name} --minutes {minutes} --seed {seed}");
    report.say(format!("seed {seed}: `{again}` draws the same schedule"));
    let length = Duration::try_from_secs_f64(minutes * 60.0).map_err(|error| Error::Refused(format!("--minutes: {error}")))?;
    report.say("building the services");
    let (programs, mut stack) = TestStack::start_beside(layout, report, cargo::build(layout, &PROGRAMS, false)).await?;
    let (kafka, logs) = (stack.bootstrap_servers(), stack.logs());
    let mut signals = Signals::listen()?;
    let outcome = tokio::select! {
        outcome = all(Place { programs, logs, kafka, postgres: stack.postgres() }, seed, length, report) => outcome,
        () = signals.next() => Err(Error::Interrupted),
    };
    let ended = stack.end().await;
    let outcome = outcome?;
    ended?;
    report::answer(&outcome);
    outcome.verdict(&again)
}

async fn all(place: Place<'_>, seed: u64, length: Duration, report: &Report) -> Result<Outcome, Error> {
    let mut chaos = Chaos::begin(place, seed, report).await?;
    chaos.storm(length).await?;
    chaos.calm().await?;
    let outcome = chaos.check().await?;
    chaos.end().await?;
    Ok(outcome)
}

/// The servers and programs of a chaos.
#[derive(Debug)]
pub struct Place<'a> {
    /// The directory of the services' programs and cartctl.
    pub programs: PathBuf,
    /// The directory of the journal and the services' logs.
    pub logs: PathBuf,
    /// A broker, which is not disturbed.
    pub kafka: String,
    /// A server for the chaos alone, which is killed and stopped.
    pub postgres: &'a mut Postgres,
}

/// The result.
#[derive(Debug, Clone)]
pub struct Outcome {
    seed: u64,
    journal: PathBuf,
    counts: Vec<(String, u64)>,
    differences: Vec<String>,
}

impl Outcome {
    /// The differences; none if everything is right.
    #[must_use]
    pub fn differences(&self) -> &[String] {
        &self.differences
    }

    /// Fails if there are differences.
    ///
    /// # Errors
    /// The differences, and `again`, the command that repeats the schedule.
    pub fn verdict(&self, again: &str) -> Result<(), Error> {
        if self.differences.is_empty() {
            return Ok(());
        }
        let shown = self.differences.iter().take(SHOWN).fold(String::new(), |all, difference| all + "\n    " + difference);
        Err(Error::Refused(format!(
            "{} differences with seed {}; the journal is {}, beside the services' logs. `{again}` repeats the schedule. The first ones:{shown}",
            self.differences.len(),
            self.seed,
            self.journal.display(),
        )))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (what, count) in &self.counts {
            writeln!(f, "    {what:<48} {count:>12}")?;
        }
        write!(f, "    {:<48} {:>12}", "differences", self.differences.len())
    }
}

/// The running system, its load, and the findings so far.
#[derive(Debug)]
pub struct Chaos<'a> {
    seed: u64,
    report: Report,
    logs: PathBuf,
    /// cartctl, and its database.
    cartctl: (PathBuf, String),
    journal: Journal,
    postgres: &'a mut Postgres,
    pool: PgPool,
    /// The victims in the schedule's order, then the services that are not disturbed.
    actors: Vec<Actor>,
    ports: Ports,
    kafka: String,
    topics: [String; 2],
    told: Arc<Told>,
    published: Published,
    steps: u64,
    found: Vec<String>,
}

impl<'a> Chaos<'a> {
    /// Starts everything, and waits until it is ready.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn begin(place: Place<'a>, seed: u64, report: &Report) -> Result<Self, Error> {
        let Place { programs, logs, kafka, postgres } = place;
        files::create_directory(&logs)?;
        let mut journal = Journal::open(&logs.join("chaos.log"))?;
        journal.note(format!("seed {seed}"));
        database::create(&postgres.url("postgres", "postgres"), database::NAME).await?;
        let owner = postgres.url("postgres", database::NAME);
        database::migrate(&owner).await?;

        let run = Uuid::now_v7().simple();
        let topics = ["inventories", "price-changes", "published-carts"].map(|topic| format!("{topic}-{run}"));
        let dead_letters = ["inventories", "price-changes"].map(|topic| format!("{topic}-{run}.dead-letters"));
        let all: Vec<_> = topics.iter().chain(&dead_letters).map(|name| Topic { name, partitions: 3, max_message_bytes: None }).collect();
        create_topics(&kafka, &all).await?;
        let [inventories, price_changes, published_carts] = topics;
        // Small transactions meet other faults than large ones.
        let batch = [20, 500, 10_000].choose(&mut StdRng::seed_from_u64(seed)).copied().unwrap_or(10_000);
        journal.note(format!("a batch has at most {batch} positions"));
        let environment: Vec<(String, String)> = [
            ("KAFKA_BOOTSTRAP_SERVERS", kafka.clone()),
            ("CARTLOG_INVENTORIES_TOPIC", inventories.clone()),
            ("CARTLOG_PRICE_CHANGES_TOPIC", price_changes.clone()),
            ("CARTLOG_PUBLISHED_CARTS_TOPIC", published_carts.clone()),
            ("CARTLOG_CONSUMER_GROUP", format!("chaos-{run}")),
            ("CARTLOG_PROJECTION_BATCH", batch.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();

        let kinds = (0..VICTIMS).map(|victim| (if victim < REPLICAS { PROJECTIONS } else { PUBLISHER }, schedule::name(victim)));
        let others = [COMMANDS, TRANSLATOR].map(|kind| (kind, kind.name.to_owned()));
        let mut actors = vec![];
        for (kind, name) in kinds.chain(others) {
            // The name tells its connections apart.
            let database_url = format!("{}?application_name={name}", postgres::url(postgres.port(), kind.role, database::NAME));
            actors.push(Actor::new(kind, name, &programs, &logs, database_url, environment.clone()));
        }
        for actor in &mut actors {
            actor.start()?;
        }
        for actor in &mut actors {
            actor.until_ready(READY).await?;
        }
        let projections = actors[..REPLICAS].iter().map(Actor::port).collect();
        let ports = Ports { commands: actors[VICTIMS].port(), projections };
        let published = Published::follow(&kafka, &published_carts).await?;
        report.say(format!("everything is up; {} is the journal", journal.path().display()));
        Ok(Self {
            seed,
            report: *report,
            logs,
            journal,
            pool: database::connect(&owner).await?,
            cartctl: (programs.join("cartctl"), owner),
            postgres,
            actors,
            ports,
            kafka,
            topics: [inventories, price_changes],
            told: Arc::default(),
            published,
            steps: 0,
            found: vec![],
        })
    }

    /// The owner's connections to the database.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Runs the load and the schedule for this time.
    ///
    /// # Errors
    /// PostgreSQL does not start again, or the load ended early.
    pub async fn storm(&mut self, length: Duration) -> Result<(), Error> {
        let load = Load::start(self.seed, &self.ports, &self.kafka, self.topics.clone(), &self.told)?;
        let bar = self.report.bar(length.as_secs(), "           chaos {bar:40} {elapsed}  {msg}");
        self.journal.show_on(bar.clone());
        // A step that takes long moves all later steps: otherwise a late PostgreSQL would shorten a freeze.
        let mut began = Instant::now();
        for Timed { at, step } in schedule::draw(self.seed, length) {
            while began.elapsed() < at {
                bar.set_position(began.elapsed().as_secs());
                tokio::time::sleep_until((Instant::now() + POLL).min(began + at)).await;
            }
            self.look_after_all()?;
            self.steps += 1;
            self.act(step).await?;
            began += began.elapsed().saturating_sub(at);
        }
        tokio::time::sleep_until(began + length).await;
        self.look_after_all()?;
        self.note_progress().await;
        self.journal.note("the load stops");
        load.stop().await?;
        self.journal.show_on(indicatif::ProgressBar::hidden());
        bar.finish_and_clear();
        self.report.say(format!("{} steps are over, {} commands were acknowledged", self.steps, self.told.count()));
        Ok(())
    }

    async fn act(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Kill { victim, table } => {
                let lock = self.caught(victim, table).await;
                self.note_step(step, lock.is_some());
                self.actors[victim].kill().await?;
                let_go(lock).await;
            }
            Step::Freeze { victim, table } => {
                let lock = self.caught(victim, table).await;
                self.note_step(step, lock.is_some());
                self.actors[victim].freeze()?;
                let_go(lock).await;
            }
            Step::Cut { victim, table } => {
                let lock = self.caught(victim, table).await;
                self.note_step(step, lock.is_some());
                let cut = sqlx::query_scalar("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1");
                let cut: i64 = cut.bind(schedule::name(victim)).fetch_one(&self.pool).await.context(|| "cut connections".to_owned())?;
                let_go(lock).await;
                self.journal.note(format!("{cut} connections were cut"));
            }
            Step::Stop { victim } => {
                self.journal.note(step);
                let status = self.actors[victim].stop().await?;
                self.journal.note(format!("{} ended with {status}", schedule::name(victim)));
                if !status.success() {
                    self.find(format!("{} was asked to stop, and ended with {status}", schedule::name(victim)));
                }
            }
            Step::Start { victim } => {
                let log = self.actors[victim].start()?;
                self.journal.note(format!("{step}, with its log in {}", log.display()));
            }
            Step::Thaw { victim } => {
                self.journal.note(step);
                self.actors[victim].thaw()?;
            }
            Step::StopPostgres { crash } => {
                self.journal.note(step);
                if crash { self.postgres.kill().await? } else { self.postgres.stop().await? }
            }
            Step::StartPostgres => {
                self.start_postgres().await?;
                self.journal.note("PostgreSQL is up again");
                self.note_progress().await;
            }
            Step::Rebuild { read_model } => {
                self.journal.note(step);
                let (cartctl, owner) = &self.cartctl;
                let mut command = Command::new(cartctl);
                command.args(["--database-url", owner, "projections", "rebuild", read_model, "--detach", "--yes"]);
                let output = command.kill_on_drop(true).output().await.context(|| "run cartctl".to_owned())?;
                // While PostgreSQL is away, a rebuild cannot start.
                if !output.status.success() {
                    let said = String::from_utf8_lossy(&output.stderr);
                    self.journal.note(format!("{read_model} is not rebuilt: {}", said.trim()));
                }
            }
        }
        Ok(())
    }

    async fn start_postgres(&mut self) -> Result<(), Error> {
        let mut attempts = 1;
        loop {
            match self.postgres.restart().await {
                // Another process's connection may have taken the port.
                Err(Error::Ended { tail, .. }) if tail.contains("Address already in use") && attempts < 20 => attempts += 1,
                other => return other,
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Notes each projection's position, if the database answers.
    async fn note_progress(&mut self) {
        let progress = "SELECT string_agg(concat(name, ' ', status, ' ', at, ' of ', head), ', ' ORDER BY name, status)
             FROM (SELECT p.name, p.status, min(c.position) AS at, (SELECT coalesce(max(event_id), 0) FROM event) AS head
                   FROM projection p JOIN checkpoint c USING (name, build) WHERE p.status <> 'retired' GROUP BY p.name, p.status) AS builds";
        if let Ok(progress) = sqlx::query_scalar::<_, Option<String>>(progress).fetch_one(&self.pool).await {
            self.journal.note(progress.unwrap_or_default());
        }
    }

    fn note_step(&mut self, step: Step, caught: bool) {
        let wanted =
            matches!(step, Step::Kill { table: Some(_), .. } | Step::Freeze { table: Some(_), .. } | Step::Cut { table: Some(_), .. });
        self.journal.note(if wanted && !caught { format!("{step}, but it was in none") } else { step.to_string() });
    }

    /// Blocks a victim in the middle of a transaction while the answer is kept; none if it does not start one in time.
    async fn caught(&mut self, victim: usize, table: Option<&'static str>) -> Option<Transaction<'static, Sql>> {
        let source = TABLES.iter().find(|source| Some(source.name) == table)?;
        match catch(&self.pool, source, &schedule::name(victim)).await {
            Ok(lock) => lock,
            Err(error) => {
                self.journal.note(format!("cannot lock {}: {}", source.name, chain(&error)));
                None
            }
        }
    }

    /// Finds services that ended unexpectedly.
    fn look_after_all(&mut self) -> Result<(), Error> {
        for actor in 0..self.actors.len() {
            if let Some(ended) = self.actors[actor].ended_by_itself()? {
                self.find(ended);
            }
        }
        Ok(())
    }

    fn find(&mut self, what: String) {
        self.journal.note(format!("FOUND: {what}"));
        self.found.push(what);
    }

    /// Waits until the undisturbed system has finished its work. Unfinished work is a finding.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn calm(&mut self) -> Result<(), Error> {
        self.report.say("the load is over; waiting until the system has finished its work");
        let until = Instant::now() + REST;
        for actor in 0..self.actors.len() {
            // An ended service is a finding already.
            let left = until.saturating_duration_since(Instant::now());
            if self.actors[actor].is_running()?
                && let Err(error) = self.actors[actor].until_ready(left).await
            {
                self.find(chain(&error));
            }
        }
        loop {
            self.look_after_all()?;
            match self.unrest().await? {
                None => break,
                Some(unrest) if Instant::now() >= until => {
                    self.find(format!("{} s after the load and the schedule, {unrest}", REST.as_secs()));
                    break;
                }
                Some(_) => tokio::time::sleep(POLL).await,
            }
        }
        self.journal.note("the system has finished its work");
        Ok(())
    }

    /// Describes the unfinished work; none if there is none.
    async fn unrest(&self) -> Result<Option<String>, Error> {
        let read = || "read the state of the projections".to_owned();
        let heard = "SELECT count(*) FROM event WHERE event_type IN ('InventoryChanged', 'PriceChanged')";
        let heard: i64 = sqlx::query_scalar(heard).fetch_one(&self.pool).await.context(read)?;
        let sent = self.told.messages();
        if usize::try_from(heard).is_ok_and(|heard| heard < sent) {
            return Ok(Some(format!("{heard} of {sent} messages are in the log")));
        }
        // In one snapshot: a projection that has applied everything and has no open to-do writes nothing more.
        let behind = "SELECT concat(p.name, ' ', p.build, ' (', p.status, ') is at ', min(c.position), ' of ', h.head)
             FROM (SELECT coalesce(max(event_id), 0) AS head FROM event) h, projection p JOIN checkpoint c USING (name, build)
             WHERE p.status <> 'retired' GROUP BY p.name, p.build, p.status, h.head HAVING p.status = 'building' OR min(c.position) < h.head
             UNION ALL
             SELECT concat(count(*), ' to-dos of ', automation, ' are open, with the last errors ', array_agg(DISTINCT last_error))
             FROM todo WHERE status = 'open' GROUP BY automation";
        let behind: Vec<String> = sqlx::query_scalar(behind).fetch_all(&self.pool).await.context(read)?;
        if !behind.is_empty() {
            return Ok(Some(behind.join("; ")));
        }
        // Every replica is alive and has its share of the segments.
        let uneven = "SELECT concat('the segments of ', name, ' are shared out as ', array_agg(held))
             FROM (SELECT c.name, count(*) AS held FROM checkpoint c JOIN projection p USING (name, build)
                   LEFT JOIN replica r ON r.name = c.name AND r.id = c.owner AND r.alive_until > clock_timestamp()
                   WHERE p.status = 'serving' GROUP BY c.name, r.id) AS shares
             GROUP BY name HAVING count(*) <> CASE name WHEN 'publish_cart' THEN 1 ELSE $1 END OR max(held) - min(held) > 1";
        let uneven: Vec<String> =
            sqlx::query_scalar(uneven).bind(i64::try_from(REPLICAS).unwrap_or_default()).fetch_all(&self.pool).await.context(read)?;
        if !uneven.is_empty() {
            return Ok(Some(uneven.join("; ")));
        }
        let submitted: i64 = sqlx::query_scalar("SELECT count(*) FROM event WHERE event_type = 'CartSubmitted'")
            .fetch_one(&self.pool)
            .await
            .context(read)?;
        let published = self.published.count();
        Ok((usize::try_from(submitted) != Ok(published)).then(|| format!("{published} of {submitted} carts are on the topic")))
    }

    /// Compares everything with the log.
    ///
    /// # Errors
    /// The database cannot be reached, or an event cannot be read.
    pub async fn check(&mut self) -> Result<Outcome, Error> {
        let evidence = Evidence::collect(&self.pool, self.published.received(), self.told.entries()).await?;
        let model = Model::of(&evidence.log, 0)?;
        let mut differences = self.found.clone();
        differences.extend(evidence.differences(&model));
        for difference in &differences {
            self.journal.note(format!("difference: {difference}"));
        }
        if !differences.is_empty() {
            self.keep(&evidence)?;
        }
        let mut counts = vec![("steps of the schedule".to_owned(), self.steps)];
        counts.extend(model.events);
        counts.extend(evidence.told.answers.clone());
        counts.push(("messages sent again with the same ce_id".to_owned(), evidence.received.repeated));
        Ok(Outcome { seed: self.seed, journal: self.journal.path().to_owned(), counts, differences })
    }

    /// Writes the events to a file, because the database is deleted and a difference needs them.
    fn keep(&self, evidence: &Evidence) -> Result<(), Error> {
        let mut text = String::new();
        for event in &evidence.log {
            text += &format!("{} {}\n", event.position, String::from_utf8_lossy(&event.payload));
        }
        files::write_atomically(&self.logs.join("chaos-events.log"), text.as_bytes())
    }

    /// Stops everything as an operator would.
    ///
    /// # Errors
    /// The operating system refuses.
    pub async fn end(mut self) -> Result<(), Error> {
        for actor in &mut self.actors {
            actor.stop().await?;
        }
        self.pool.close().await;
        Ok(())
    }
}

/// Locks a table against writes, and waits until a connection called `name` waits for the lock.
async fn catch(pool: &PgPool, source: &Source, name: &str) -> Result<Option<Transaction<'static, Sql>>, Error> {
    let table = source.qualified(pool).await?;
    let failed = || format!("lock {table}");
    let mut lock = pool.begin().await.context(failed)?;
    sqlx::raw_sql("SET LOCAL lock_timeout = '5s'").execute(&mut *lock).await.context(failed)?;
    sqlx::raw_sql(&format!("LOCK TABLE {table} IN SHARE MODE")).execute(&mut *lock).await.context(failed)?;
    let until = Instant::now() + CAUGHT;
    loop {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'relation'";
        let waiting: i64 = sqlx::query_scalar(waiting).bind(name).fetch_one(&mut *lock).await.context(failed)?;
        if waiting > 0 {
            return Ok(Some(lock));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn let_go(lock: Option<Transaction<'static, Sql>>) {
    if let Some(lock) = lock {
        // If its connection is lost, so is the lock.
        let _ = lock.rollback().await;
    }
}
