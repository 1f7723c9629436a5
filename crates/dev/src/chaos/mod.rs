//! `cargo dev chaos`: campaigns of faults against the whole system under load. A seed determines the schedule.
//!
//! When the schedule is over, the system must recover alone. Then every event, table, to-do, message and answer is compared with a model of
//! the log and with the history of the clients.

mod act;
mod actor;
mod broker;
mod campaign;
mod check;
mod clock;
mod cluster;
mod commands;
mod disk;
mod journal;
mod metrics;
mod rest;
mod schedule;
mod tables;
mod victim;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use embedded::database;
use embedded::distribution;
use embedded::error::Error;
use embedded::files;
use embedded::layout::Layout;
use embedded::postgres;
use embedded::report::{self, Report};
use embedded::signals::Signals;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use shop::history::History;
use shop::load::{Load, Ports};
use shop::model::Model;
use shop::published;
use shop::services::{COMMANDS, Kind, PROJECTIONS};
use sqlx::PgPool;
use tokio::time::Instant;

use self::actor::Actor;
use self::broker::Broker;
pub use self::campaign::Campaign;
use self::check::Evidence;
use self::clock::Clock;
use self::cluster::Cluster;
use self::commands::Loss;
use self::disk::Disk;
use self::journal::Journal;
use self::schedule::Timed;
use self::victim::Victim;
use crate::cargo::{self, PROGRAMS};

/// The time in which a service must be ready on a busy machine.
const READY: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// The number of differences in the error. The journal has all.
const SHOWN: usize = 30;

/// A campaign to run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The kinds of faults.
    pub campaign: Campaign,
    /// Determines the schedule and the load.
    pub seed: u64,
    /// The time in which faults begin.
    pub length: Duration,
    /// The number of processes of each service.
    pub replicas: usize,
}

impl Plan {
    /// The command that draws the same schedule.
    #[must_use]
    pub fn command(&self) -> String {
        let campaign = clap::ValueEnum::to_possible_value(&self.campaign).map(|value| value.get_name().to_owned()).unwrap_or_default();
        let (minutes, replicas, seed) = (self.length.as_secs_f64() / 60.0, self.replicas, self.seed);
        format!("cargo dev chaos {campaign} --minutes {minutes} --replicas {replicas} --seed {seed}")
    }
}

/// The place of a campaign.
#[derive(Debug)]
pub struct Place {
    /// The directory of the services' programs and cartctl.
    pub programs: PathBuf,
    /// An empty directory for its servers, its journal and the services' logs.
    pub directory: PathBuf,
    /// A broker for a campaign that does not disturb Kafka; none: it starts its own.
    pub kafka: Option<String>,
}

/// Builds the services and runs a campaign on servers of its own.
///
/// # Errors
/// Something does not start, or the result differs from the log. The message says how to repeat the schedule.
pub async fn run(layout: &Layout, plan: Plan, release: bool, report: &Report) -> Result<(), Error> {
    report.say(format!("seed {}: `{}` draws the same schedule", plan.seed, plan.command()));
    report.say("building the services");
    let programs = cargo::build(layout, &PROGRAMS, release).await?;
    let place = Place { programs, directory: layout.scratch(&format!("chaos-{}", std::process::id()))?, kafka: None };
    let mut signals = Signals::listen()?;
    let outcome = tokio::select! {
        outcome = all(layout, place, plan, report) => outcome?,
        () = signals.next() => return Err(Error::Interrupted),
    };
    report::answer(&outcome);
    outcome.verdict()
}

async fn all(layout: &Layout, place: Place, plan: Plan, report: &Report) -> Result<Outcome, Error> {
    let mut chaos = Chaos::begin(layout, place, plan, report).await?;
    chaos.storm().await?;
    chaos.calm().await?;
    let outcome = chaos.check().await?;
    chaos.end().await?;
    Ok(outcome)
}

/// The result.
#[derive(Debug, Clone)]
pub struct Outcome {
    plan: Plan,
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
    /// The differences, and the command that repeats the schedule.
    pub fn verdict(&self) -> Result<(), Error> {
        if self.differences.is_empty() {
            return Ok(());
        }
        let shown = self.differences.iter().take(SHOWN).fold(String::new(), |all, difference| all + "\n    " + difference);
        Err(Error::Refused(format!(
            "{} differences with seed {}; the journal is {}, beside the services' logs. `{}` repeats the schedule. The first ones:{shown}",
            self.differences.len(),
            self.plan.seed,
            self.journal.display(),
            self.plan.command(),
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
pub struct Chaos {
    plan: Plan,
    report: Report,
    logs: PathBuf,
    cartctl: PathBuf,
    consumer_group: String,
    journal: Journal,
    cluster: Cluster,
    /// The owner's connections to the present primary.
    pool: PgPool,
    broker: Broker,
    /// PostgreSQL's and Kafka's, if the campaign fills them.
    disks: Option<[Disk; 2]>,
    /// PostgreSQL's, if the campaign sets it.
    clock: Option<Clock>,
    victims: Vec<Victim>,
    /// In the order of the victims.
    actors: Vec<Actor>,
    history: Arc<History>,
    load: Option<Load>,
    /// The number of inventories that were sent to deleted topics.
    sent_to_older_topics: usize,
    /// The times at which events were lost, and the last position that was not.
    losses: Vec<Loss>,
    steps: u64,
    /// The steps that make trouble. The others end it.
    faults: u64,
    /// How long the system needed for its work after the schedule.
    recovery: Duration,
    found: Vec<String>,
}

impl Chaos {
    /// Starts everything, and waits until it is ready.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn begin(layout: &Layout, place: Place, plan: Plan, report: &Report) -> Result<Self, Error> {
        let Place { programs, directory, kafka } = place;
        let Plan { campaign, seed, replicas, .. } = plan;
        let logs = directory.join("logs");
        files::create_directory(&logs)?;
        let mut journal = Journal::open(&logs.join("chaos.log"))?;
        journal.note(plan.command());
        let victims = Victim::all(replicas);
        let disks = match campaign {
            Campaign::Disk => Some([Disk::mount(&directory.join("postgres-1"))?, Disk::mount(&directory.join("kafka"))?]),
            _ => None,
        };
        let clock = match campaign {
            Campaign::Clock => Some(Clock::new(directory.join("clock"))?),
            _ => None,
        };
        let cluster = async {
            let mut distribution = distribution::postgres(layout, report).await?;
            if let Some(clock) = &clock {
                distribution = clock.show_to(distribution)?;
            }
            Cluster::start(layout, &distribution, directory.clone(), victims.len(), campaign.standby()).await
        };
        let broker = async {
            match kafka.filter(|_| !campaign.disturbs_kafka()) {
                Some(servers) => Broker::on(servers).await,
                None => Broker::start(&distribution::kafka(layout, report).await?, &directory).await,
            }
        };
        let (cluster, broker) = tokio::try_join!(cluster, broker)?;
        if disks.is_some() && !cluster.is_below(&directory) {
            return Err(Error::Refused(format!("the account of PostgreSQL cannot enter {}", directory.display())));
        }

        // Small transactions meet other faults than large ones.
        let batch = [20, 500, 10_000].choose(&mut StdRng::seed_from_u64(seed)).copied().unwrap_or(10_000);
        journal.note(format!("a batch has at most {batch} positions"));
        let consumer_group = format!("chaos-{seed}");
        let topics = broker.topics();
        let environment: Vec<(String, String)> = [
            ("KAFKA_BOOTSTRAP_SERVERS", broker.address()),
            ("CARTLOG_INVENTORIES_TOPIC", topics.inventories.clone()),
            ("CARTLOG_PRICE_CHANGES_TOPIC", topics.price_changes.clone()),
            ("CARTLOG_PUBLISHED_CARTS_TOPIC", topics.published_carts.clone()),
            ("CARTLOG_CONSUMER_GROUP", consumer_group.clone()),
            ("CARTLOG_PROJECTION_BATCH", batch.to_string()),
            // A connection that is never given back is missed sooner in a small pool.
            ("CARTLOG_DATABASE_MAX_CONNECTIONS", "6".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let mut actors = vec![];
        for (victim, address) in victims.iter().zip(cluster.addresses()) {
            let (kind, name) = (victim.kind, victim.to_string());
            // The name tells its connections apart.
            let database_url = format!("{}?application_name={name}", postgres::url(address.port(), kind.role, database::NAME));
            actors.push(Actor::new(kind, name, &programs, &logs, database_url, environment.clone()));
        }
        for actor in &mut actors {
            actor.start()?;
        }
        for actor in &mut actors {
            actor.until_ready(READY).await?;
        }
        report.say(format!("everything is up; {} is the journal", journal.path().display()));
        Ok(Self {
            plan,
            report: *report,
            logs,
            cartctl: programs.join("cartctl"),
            consumer_group,
            journal,
            pool: cluster.connect().await?,
            cluster,
            broker,
            disks,
            clock,
            victims,
            actors,
            history: Arc::default(),
            load: None,
            sent_to_older_topics: 0,
            losses: vec![],
            steps: 0,
            faults: 0,
            recovery: Duration::ZERO,
            found: vec![],
        })
    }

    /// The owner's connections to the database.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Runs the load and the schedule.
    ///
    /// # Errors
    /// A server does not start again, or the load ended early.
    pub async fn storm(&mut self) -> Result<(), Error> {
        let Plan { campaign, seed, length, replicas } = self.plan;
        let ports = |kind: Kind| {
            let of_kind = self.victims.iter().zip(&self.actors).filter(|(victim, _)| victim.kind == kind);
            of_kind.map(|(_, actor)| actor.port()).collect()
        };
        let ports = Ports { commands: ports(COMMANDS), projections: ports(PROJECTIONS) };
        let topics = self.broker.topics().clone();
        let load = Load::start(seed, &ports, self.broker.servers(), [topics.inventories, topics.price_changes], &self.history)?;
        self.load = Some(load);
        let bar = self.report.bar(length.as_secs(), "           chaos {bar:40} {elapsed}  {msg}");
        self.journal.show_on(bar.clone());
        // A step that takes long moves all later steps: otherwise a late PostgreSQL would shorten a freeze.
        let mut began = Instant::now();
        for Timed { at, step } in schedule::draw(campaign, replicas, seed, length) {
            while began.elapsed() < at {
                bar.set_position(began.elapsed().as_secs());
                tokio::time::sleep_until((Instant::now() + POLL).min(began + at)).await;
            }
            self.look_after_all()?;
            self.steps += 1;
            self.faults += u64::from(step.is_fault());
            self.act(step).await?;
            began += began.elapsed().saturating_sub(at);
        }
        tokio::time::sleep_until(began + length).await;
        self.look_after_all()?;
        self.note_progress().await;
        self.journal.note("the load stops");
        if let Some(load) = self.load.take() {
            load.stop().await?;
        }
        self.journal.show_on(indicatif::ProgressBar::hidden());
        bar.finish_and_clear();
        self.report.say(format!("{} steps are over, {} commands were acknowledged", self.steps, self.history.done()));
        Ok(())
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

    /// Compares everything with the log.
    ///
    /// # Errors
    /// The database or the broker cannot be reached, or an event cannot be read.
    pub async fn check(&mut self) -> Result<Outcome, Error> {
        let received = published::read_all(self.broker.servers(), &self.broker.topics().published_carts).await?;
        let evidence = Evidence::collect(&self.pool, received, self.history.entries(), self.losses.clone()).await?;
        let model = Model::of(&evidence.log, 0)?;
        let mut differences = self.found.clone();
        differences.extend(evidence.differences(&model));
        for difference in &differences {
            self.journal.note(format!("difference: {difference}"));
        }
        if !differences.is_empty() {
            self.keep(&evidence)?;
        }
        let requests = evidence.history.answers.values().sum();
        let events = u64::try_from(evidence.log.len()).unwrap_or_default();
        let totals =
            [("steps of the schedule", self.steps), ("faults among them", self.faults), ("requests", requests), ("events", events)];
        let mut counts: Vec<_> = totals.map(|(what, count)| (what.to_owned(), count)).into();
        counts.extend(model.events);
        counts.extend(evidence.history.answers.clone());
        counts.push(("messages sent again with the same ce_id".to_owned(), evidence.received.repeated));
        counts.push(("acknowledged commands that a restore lost".to_owned(), evidence.lost()));
        let recovery = u64::try_from(self.recovery.as_millis()).unwrap_or(u64::MAX);
        counts.push(("milliseconds of recovery after the schedule".to_owned(), recovery));
        Ok(Outcome { plan: self.plan, journal: self.journal.path().to_owned(), counts, differences })
    }

    /// Writes the events to a file, because the database is deleted and a difference needs them.
    fn keep(&self, evidence: &Evidence) -> Result<(), Error> {
        let mut text = String::new();
        for event in &evidence.log {
            text += &format!("{} {} {} {}\n", event.position, event.append_id, event.trace, String::from_utf8_lossy(&event.payload));
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
        self.cluster.end().await?;
        self.broker.end().await
    }
}
