//! The end of a campaign: the undisturbed system must finish its work, and every pool, replica and partition must be whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use embedded::error::{Context, Error, chain};
use shop::published;
use shop::services::{PROJECTIONS, PUBLISHER, TRANSLATOR};
use tokio::time::Instant;
use uuid::Uuid;

use super::metrics::{self, Sample};
use super::{Chaos, POLL};

/// The time in which the undisturbed system must finish its work.
const REST: Duration = Duration::from_secs(240);
/// The time in which each pool must once have all its connections back.
const GIVEN_BACK: Duration = Duration::from_secs(20);
/// The greatest age of a heartbeat. It beats every second.
const YOUNG: Duration = Duration::from_secs(10);
/// The time in which a translator must read a partition again whose offset the operator has set.
const CONTINUED: Duration = Duration::from_secs(30);
/// The time between two looks of the operator.
const LOOK: Duration = Duration::from_secs(2);

impl Chaos {
    /// Waits until the undisturbed system has finished its work. Unfinished work is a finding.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn calm(&mut self) -> Result<(), Error> {
        self.report.say("the load is over; waiting until the system has finished its work");
        let began = Instant::now();
        let until = began + REST;
        for actor in 0..self.actors.len() {
            // An ended service is a finding already.
            let left = until.saturating_duration_since(Instant::now());
            if self.actors[actor].is_running()?
                && let Err(error) = self.actors[actor].until_ready(left).await
            {
                self.find(chain(&error));
            }
        }
        let mut looked = began;
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
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.continue_blocked_partitions().await?;
            }
        }
        self.recovery = began.elapsed();
        self.journal.note("the system has finished its work");
        self.look_for_lost_connections().await?;
        self.look_for_old_heartbeats().await;
        Ok(())
    }

    /// Describes the unfinished work; none if there is none.
    async fn unrest(&self) -> Result<Option<String>, Error> {
        let read = || "read the state of the projections".to_owned();
        if let Some(unread) = self.unread_messages().await? {
            return Ok(Some(unread));
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
                   LEFT JOIN replica r ON r.name = c.name AND r.id = c.owner AND r.beaten_at + r.lease > clock_timestamp()
                   WHERE p.status = 'serving' GROUP BY c.name, r.id) AS shares
             GROUP BY name HAVING count(*) <> $1 OR max(held) - min(held) > 1";
        let replicas = i64::try_from(self.plan.replicas).unwrap_or_default();
        let uneven: Vec<String> = sqlx::query_scalar(uneven).bind(replicas).fetch_all(&self.pool).await.context(read)?;
        if !uneven.is_empty() {
            return Ok(Some(uneven.join("; ")));
        }
        let submitted: Vec<Uuid> =
            sqlx::query_scalar("SELECT cart_id FROM event WHERE event_type = 'CartSubmitted'").fetch_all(&self.pool).await.context(read)?;
        let received = published::read_all(self.broker.servers(), &self.broker.topics().published_carts).await?;
        let published: BTreeSet<Uuid> = received.carts.values().map(|cart| cart.cart_id).collect();
        let missing = submitted.iter().filter(|cart| !published.contains(cart)).count();
        Ok((missing > 0).then(|| format!("{missing} of {} carts are not on the topic", submitted.len())))
    }

    /// Describes the messages that are not in the log; none if all are.
    pub(super) async fn unread_messages(&self) -> Result<Option<String>, Error> {
        let heard = "SELECT (fields ->> 'product_id')::uuid, coalesce(fields ->> 'inventory', fields ->> 'new_price'), count(*)
             FROM (SELECT convert_from(payload, 'UTF8')::jsonb -> event_type AS fields FROM event
                   WHERE event_type IN ('InventoryChanged', 'PriceChanged')) AS messages
             GROUP BY 1, 2";
        let heard: Vec<(Uuid, String, i64)> =
            sqlx::query_as(heard).fetch_all(&self.pool).await.context(|| "count the messages in the log".to_owned())?;
        let heard = heard.into_iter().map(|(product, value, count)| ((product, value), usize::try_from(count).unwrap_or_default()));
        let unread = self.history.unheard(&heard.collect());
        Ok((unread > 0).then(|| format!("{unread} acknowledged messages are not in the log")))
    }

    /// Does what the runbook says about a blocked partition after its topic was created again.
    pub(super) async fn continue_blocked_partitions(&mut self) -> Result<(), Error> {
        let blocked = self.blocked_partitions().await;
        for (topic, partition) in &blocked {
            let seek = ["translations", "seek", topic, partition, "--beginning", "--yes", "--group", &self.consumer_group];
            let done = self.cartctl(&seek).await?;
            self.journal.note(format!("partition {partition} of {topic} is blocked; the operator continues at its beginning: {done:?}"));
        }
        // To continue at the beginning once more would translate everything twice.
        let until = Instant::now() + CONTINUED;
        while Instant::now() < until && !self.blocked_partitions().await.is_disjoint(&blocked) {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The partitions that a translator does not read, by topic and number.
    async fn blocked_partitions(&self) -> BTreeSet<(String, String)> {
        let mut blocked = BTreeSet::new();
        for (name, samples) in self.samples("translation_blocked").await {
            let is_translator = name.starts_with(TRANSLATOR.name);
            let of_sample =
                |(labels, value): Sample| (value > 0.0).then(|| Some((labels.get("topic")?.clone(), labels.get("partition")?.clone())));
            blocked.extend(samples.into_iter().filter(|_| is_translator).filter_map(of_sample).flatten());
        }
        blocked
    }

    /// Finds pools that never have all their connections back. Undisturbed, a service uses its connections for moments only.
    async fn look_for_lost_connections(&mut self) -> Result<(), Error> {
        let mut least: BTreeMap<String, f64> = BTreeMap::new();
        let until = Instant::now() + GIVEN_BACK;
        loop {
            for (name, samples) in self.samples("db_client_connection_count").await {
                for (labels, used) in samples.into_iter().filter(|(labels, _)| labels.values().any(|value| value == "used")) {
                    let pool = format!("{name}, {}", labels.values().cloned().collect::<Vec<_>>().join(" "));
                    let least = least.entry(pool).or_insert(f64::MAX);
                    *least = least.min(used);
                }
            }
            let lost: Vec<_> = least.iter().filter(|(_, used)| **used > 0.0).map(|(pool, used)| format!("{pool}: {used}")).collect();
            if !least.is_empty() && lost.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                self.find(format!("for {} s, connections were never given back: {}", GIVEN_BACK.as_secs(), lost.join("; ")));
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Finds processes whose projections have no young heartbeat.
    async fn look_for_old_heartbeats(&mut self) {
        let mut old = vec![];
        for (name, samples) in self.samples("projection_heartbeat_age_seconds").await {
            let has_projections = [PROJECTIONS, PUBLISHER].iter().any(|kind| name.starts_with(kind.name));
            let age = samples.iter().map(|(_, age)| *age).reduce(f64::max);
            if has_projections && age.is_none_or(|age| age > YOUNG.as_secs_f64()) {
                old.push(format!("the heartbeat of {name} is {age:?} seconds old"));
            }
        }
        old.into_iter().for_each(|old| self.find(old));
    }

    /// Reads a metric of every process that answers.
    async fn samples(&self, metric: &str) -> Vec<(String, Vec<Sample>)> {
        let client = reqwest::Client::new();
        let mut all = vec![];
        for (victim, actor) in self.victims.iter().zip(&self.actors) {
            if let Ok(samples) = metrics::read(&client, actor.port().load(Ordering::Relaxed), metric).await {
                all.push((victim.to_string(), samples));
            }
        }
        all
    }
}
