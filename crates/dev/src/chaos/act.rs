//! The steps of a schedule, carried out.

use std::time::Duration;

use embedded::error::{Context, Error, chain};
use embedded::forwarder::Forwarder;
use shop::services::TRANSLATOR;
use sqlx::{PgPool, Postgres as Sql, Transaction};
use tokio::process::Command;
use tokio::time::Instant;

use super::disk::Disk;
use super::schedule::{Link, Server, Step};
use super::tables::{Source, TABLES};
use super::victim::Victim;
use super::{Chaos, POLL};

/// The time to wait until a victim is in a transaction.
const CAUGHT: Duration = Duration::from_secs(3);
/// The number of messages that a topic which is created again has more than the deleted one.
const MORE: usize = 60;
/// The time in which translators must have read a topic that is about to be deleted, or was created again.
const READ: Duration = Duration::from_secs(60);

impl Chaos {
    pub(super) async fn act(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Kill { victim, table } => {
                let lock = self.caught(victim, table).await;
                self.note_step(step, lock.is_some());
                self.actor(victim).kill().await?;
                let_go(lock).await;
            }
            Step::Freeze { victim, table } => {
                let lock = self.caught(victim, table).await;
                self.note_step(step, lock.is_some());
                self.actor(victim).freeze()?;
                let_go(lock).await;
            }
            Step::Cut { victim, table } => {
                let lock = self.caught(victim, table).await;
                self.note_step(step, lock.is_some());
                let cut = sqlx::query_scalar("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1");
                let cut: i64 = cut.bind(victim.to_string()).fetch_one(&self.pool).await.context(|| "cut connections".to_owned())?;
                let_go(lock).await;
                self.journal.note(format!("{cut} connections were cut"));
            }
            Step::Stop { victim } => {
                self.journal.note(step);
                self.stop(victim).await?;
            }
            Step::Start { victim } => {
                let log = self.actor(victim).start()?;
                self.journal.note(format!("{step}, with its log in {}", log.display()));
            }
            Step::Thaw { victim } => {
                self.journal.note(step);
                self.actor(victim).thaw()?;
            }
            Step::Rebuild { read_model } => {
                self.journal.note(step);
                // While PostgreSQL is away, a rebuild cannot start.
                if let Err(said) = self.cartctl(&["projections", "rebuild", read_model, "--detach", "--yes"]).await? {
                    self.journal.note(format!("{read_model} is not rebuilt: {said}"));
                }
            }
            Step::Disturb { link, network } => {
                self.journal.note(step);
                self.link(link, |link| link.set(network))?;
            }
            Step::Heal { link, loses } => {
                self.journal.note(step);
                self.link(link, |link| if loses { link.lose_connections() } else { link.set(embedded::forwarder::Network::Whole) })?;
            }
            of_server => {
                self.journal.note(of_server);
                let began = Instant::now();
                self.act_on_server(of_server).await?;
                self.journal.note(format!("{of_server}: done after {:.1} s", began.elapsed().as_secs_f64()));
            }
        }
        Ok(())
    }

    async fn act_on_server(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::StopPostgres { crash } => self.cluster.stop_primary(crash).await?,
            Step::StartPostgres => self.cluster.start_primary().await?,
            Step::FreezePrimary => self.cluster.freeze_primary().await?,
            Step::HoldReplication => self.cluster.hold_replication().await?,
            Step::Promote => {
                let (was_held, loss) = (self.cluster.is_held(), self.cluster.promote().await?);
                self.journal.note(format!("the log's head is {}", loss.kept));
                if was_held {
                    self.losses.push(loss);
                }
                self.pool = self.cluster.connect().await?;
            }
            Step::ThawOldPrimary => self.cluster.thaw_old().await?,
            Step::KillOldPrimary => self.cluster.kill_old().await?,
            Step::AddStandby => self.cluster.add_standby().await?,
            Step::CopyVolume => self.cluster.copy_volume().await?,
            Step::PutVolumeBack => {
                let loss = self.cluster.put_volume_back().await?;
                self.journal.note(format!("the log's head is {}", loss.kept));
                self.losses.push(loss);
                self.cluster.add_standby().await?;
            }
            Step::FreezeKafka => self.broker.own()?.0.process().freeze()?,
            Step::ThawKafka => self.broker.own()?.0.process().thaw()?,
            Step::KillKafka => self.broker.own()?.0.kill().await?,
            Step::StartKafka => self.broker.own()?.0.restart().await?,
            Step::RemakeTopic { translated } => self.remake_topic(translated).await?,
            Step::ReadOnly { on } => {
                self.cluster.set_read_only(on).await?;
                // A session of that phase would stay read-only.
                self.pool = self.cluster.connect().await?;
            }
            Step::LimitConnections { of, to } => self.cluster.limit_connections(of.role, to).await?,
            Step::FillDisk { of } => self.disk(of)?.fill()?,
            Step::FreeDisk { of } => {
                self.disk(of)?.free()?;
                match of {
                    Server::Postgres => self.cluster.start_primary_if_it_ended().await?,
                    Server::Kafka => self.broker.start_if_it_ended().await?,
                }
            }
            Step::SetClock { seconds } => match &self.clock {
                Some(clock) => clock.set(seconds)?,
                None => return Err(Error::Refused("this campaign has no clock".to_owned())),
            },
            _ => {}
        }
        if let Step::StartPostgres | Step::Promote | Step::PutVolumeBack = step {
            self.note_progress().await;
        }
        Ok(())
    }

    fn disk(&self, of: Server) -> Result<&Disk, Error> {
        let disks = self.disks.as_ref().ok_or_else(|| Error::Refused("this campaign has no disks".to_owned()))?;
        Ok(match of {
            Server::Postgres => &disks[0],
            Server::Kafka => &disks[1],
        })
    }

    /// As an operator would: no producer writes, and every message has been read. But the new topic has more messages than the old one had,
    /// so that the stored offsets exist in it. If translators are stopped meanwhile, they cannot see the topic grow.
    async fn remake_topic(&mut self, translated: bool) -> Result<(), Error> {
        let Some(load) = self.load.take() else { return Ok(()) };
        load.pause_inventories().await;
        match self.until_read().await {
            Ok(None) => {
                let mut stopped = vec![];
                for victim in self.victims.clone().into_iter().filter(|victim| !translated && victim.kind == TRANSLATOR) {
                    // One that another step has stopped or frozen is started or thawed by that step's end.
                    if self.actor(victim).is_well()? {
                        self.stop(victim).await?;
                        stopped.push(victim);
                    }
                }
                self.broker.remake_inventories().await?;
                let sent: usize = self.history.entries().inventories.values().map(Vec::len).sum();
                let remade = u32::try_from(self.steps).ok().filter(|_| translated);
                load.send_inventories(sent - self.sent_to_older_topics + MORE, remade).await;
                self.sent_to_older_topics = sent;
                for victim in stopped {
                    self.actor(victim).start()?;
                }
                // The next messages may be read once only.
                if translated && let Ok(Some(unread)) = self.until_read().await {
                    self.find(format!("{} s after the topic was created again, {unread}", READ.as_secs()));
                }
            }
            unread => self.journal.note(format!("the topic stays: after {} s {unread:?}", READ.as_secs())),
        }
        load.resume_inventories();
        self.load = Some(load);
        Ok(())
    }

    /// Waits until every message has been read, and continues blocked partitions. Returns what is unread at the end of its patience.
    async fn until_read(&mut self) -> Result<Option<String>, Error> {
        let until = Instant::now() + READ;
        loop {
            let unread = self.unread_messages().await;
            if matches!(unread, Ok(None)) || Instant::now() >= until {
                return unread;
            }
            self.continue_blocked_partitions().await?;
            tokio::time::sleep(POLL).await;
        }
    }

    async fn stop(&mut self, victim: Victim) -> Result<(), Error> {
        let status = self.actor(victim).stop().await?;
        self.journal.note(format!("{victim} ended with {status}"));
        if !status.success() {
            self.find(format!("{victim} was asked to stop, and ended with {status}"));
        }
        Ok(())
    }

    /// Runs cartctl as the owner. Returns its error if it fails.
    pub(super) async fn cartctl(&self, arguments: &[&str]) -> Result<Result<(), String>, Error> {
        let mut command = Command::new(&self.cartctl);
        command.args(["--database-url", &self.cluster.owner_url()]).args(arguments);
        command.env("KAFKA_BOOTSTRAP_SERVERS", self.broker.servers());
        let output = command.kill_on_drop(true).output().await.context(|| "run cartctl".to_owned())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(said) })
    }

    fn link(&mut self, link: Link, change: impl Fn(&Forwarder)) -> Result<(), Error> {
        match link {
            Link::Kafka => change(&self.broker.own()?.1),
            Link::EveryDatabase => self.cluster.addresses().iter().for_each(change),
            Link::Database(victim) => {
                let of_victim = self.victims.iter().zip(self.cluster.addresses()).filter(|(other, _)| **other == victim);
                of_victim.for_each(|(_, address)| change(address));
            }
        }
        Ok(())
    }

    fn actor(&mut self, victim: Victim) -> &mut super::actor::Actor {
        let index = self.victims.iter().position(|other| *other == victim).unwrap_or_default();
        &mut self.actors[index]
    }

    fn note_step(&mut self, step: Step, caught: bool) {
        let wanted =
            matches!(step, Step::Kill { table: Some(_), .. } | Step::Freeze { table: Some(_), .. } | Step::Cut { table: Some(_), .. });
        self.journal.note(if wanted && !caught { format!("{step}, but it was in none") } else { step.to_string() });
    }

    /// Blocks a victim in the middle of a transaction while the answer is kept; none if it does not start one in time.
    async fn caught(&mut self, victim: Victim, table: Option<&'static str>) -> Option<Transaction<'static, Sql>> {
        let source = TABLES.iter().find(|source| Some(source.name) == table)?;
        match catch(&self.pool, source, &victim.to_string()).await {
            Ok(lock) => lock,
            Err(error) => {
                self.journal.note(format!("cannot lock {}: {}", source.name, chain(&error)));
                None
            }
        }
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
