//! The schedule: what happens to which process or server at what time. It is drawn from the seed before anything runs.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use embedded::forwarder::Network;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use shop::services::{self, Kind, TRANSLATOR};

use super::campaign::{Campaign, Disturbance, Trouble};
use super::victim::Victim;

/// Read models that can be rebuilt.
const READ_MODELS: [&str; 4] = ["cart_items", "carts_with_products", "changed_prices", "inventories"];

/// No limit of a role's connections, as PostgreSQL calls it.
const UNLIMITED: i32 = -1;

/// A step. With a table, the victim is caught in a transaction that writes the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// SIGKILL.
    Kill {
        victim: Victim,
        table: Option<&'static str>,
    },
    /// SIGTERM, and wait until it has ended.
    Stop {
        victim: Victim,
    },
    /// Start it again, as a supervisor would.
    Start {
        victim: Victim,
    },
    /// SIGSTOP.
    Freeze {
        victim: Victim,
        table: Option<&'static str>,
    },
    /// SIGCONT.
    Thaw {
        victim: Victim,
    },
    /// End all its connections to the database, in the database.
    Cut {
        victim: Victim,
        table: Option<&'static str>,
    },
    /// Rebuild a read model beside the build in service.
    Rebuild {
        read_model: &'static str,
    },
    /// Kill or stop PostgreSQL.
    StopPostgres {
        crash: bool,
    },
    StartPostgres,
    /// Freeze the primary. Its standby has every acknowledged event.
    FreezePrimary,
    /// Keep what is written from the standby.
    HoldReplication,
    /// Make the standby the primary, and lead the services' address to it.
    Promote,
    /// Thaw the old primary. Connections to it are still open.
    ThawOldPrimary,
    KillOldPrimary,
    /// Start a standby of the present primary.
    AddStandby,
    /// Copy the data of PostgreSQL while it is stopped.
    CopyVolume,
    /// Replace the data of PostgreSQL by the copy.
    PutVolumeBack,
    /// Disturb the network.
    Disturb {
        link: Link,
        network: Network,
    },
    /// Make it whole again. If it loses its connections, they stay silent for ever.
    Heal {
        link: Link,
        loses: bool,
    },
    FreezeKafka,
    ThawKafka,
    KillKafka,
    StartKafka,
    /// Delete the topic of inventories and create it again, with more messages than before.
    RemakeTopic {
        /// Whether translators run meanwhile.
        translated: bool,
    },
    /// Let new sessions of the database only read, or write again. Sessions of such a phase stay as they are.
    ReadOnly {
        on: bool,
    },
    /// Limit the connections of a service's role, or no longer.
    LimitConnections {
        of: Kind,
        to: i32,
    },
    FillDisk {
        of: Server,
    },
    /// Make room again, and start the server if it has ended.
    FreeDisk {
        of: Server,
    },
    /// Set the clock of PostgreSQL to this many seconds after the true time.
    SetClock {
        seconds: i64,
    },
}

/// A server with a disk of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Postgres,
    Kafka,
}

/// A part of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// From one process to PostgreSQL.
    Database(Victim),
    /// From every process to PostgreSQL.
    EveryDatabase,
    /// From every process to Kafka.
    Kafka,
}

/// A step, with its time since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timed {
    pub(super) at: Duration,
    pub(super) step: Step,
}

/// Draws the schedule of a seed. Every trouble that begins within `length` also ends within it.
pub(super) fn draw(campaign: Campaign, replicas: usize, seed: u64, length: Duration) -> Vec<Timed> {
    let well = Victim::all(replicas).into_iter().map(|victim| (victim, Duration::ZERO)).collect();
    let (postgres_from, kafka_from) = (Duration::ZERO, Duration::ZERO);
    let mut drawing = Drawing { random: StdRng::seed_from_u64(seed), length, well, postgres_from, kafka_from, steps: vec![] };
    let mut deck = vec![];
    let mut at = drawing.between(300, 1_000);
    while at < length {
        if deck.is_empty() {
            deck.extend(campaign.deck());
            deck.shuffle(&mut drawing.random);
        }
        // The next trouble whose victim is well, or the one that waits least.
        let next = (0..deck.len()).min_by_key(|index| drawing.well_from(deck[*index]).max(at));
        if let Some(next) = next {
            let trouble = deck.remove(next);
            at = drawing.add(trouble, at);
        }
        // Troubles overlap most of the time. Sometimes the system has time to recover.
        let calm = drawing.random.random_bool(0.15);
        at += if calm { drawing.between(4_000, 8_000) } else { drawing.between(100, 1_700) };
    }
    let mut steps = drawing.steps;
    steps.sort_by_key(|step| step.at);
    steps
}

struct Drawing {
    random: StdRng,
    length: Duration,
    /// When each victim is well again.
    well: Vec<(Victim, Duration)>,
    postgres_from: Duration,
    kafka_from: Duration,
    steps: Vec<Timed>,
}

impl Drawing {
    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.random_range(least..=most))
    }

    /// Returns when a trouble can begin.
    fn well_from(&self, trouble: Trouble) -> Duration {
        let victims = || self.well.iter().map(|(_, from)| *from);
        match trouble {
            Trouble::KafkaFrozen | Trouble::KafkaKilled | Trouble::KafkaDiskFull | Trouble::NetworkToKafka(_) => self.kafka_from,
            Trouble::TopicRemade | Trouble::TopicRemadeUnderTranslators => {
                let translators = self.well.iter().filter(|(victim, _)| victim.kind == TRANSLATOR).map(|(_, from)| *from);
                translators.fold(self.kafka_from.max(self.postgres_from), Duration::max)
            }
            Trouble::NetworkToDatabases(_) => victims().fold(self.postgres_from, Duration::max),
            Trouble::Killed | Trouble::Stopped | Trouble::Frozen | Trouble::FrozenLong | Trouble::NetworkToDatabase(_) => {
                victims().min().unwrap_or_default()
            }
            _ => self.postgres_from,
        }
    }

    /// Adds a trouble at this time, or as soon as what it disturbs is well. Returns the time.
    fn add(&mut self, trouble: Trouble, at: Duration) -> Duration {
        match trouble {
            Trouble::Rebuilt => {
                let at = at.max(self.postgres_from);
                let read_model = READ_MODELS.choose(&mut self.random).copied().unwrap_or(READ_MODELS[0]);
                self.push(at, Step::Rebuild { read_model });
                at
            }
            Trouble::PostgresCrashed | Trouble::PostgresStopped => {
                let crash = trouble == Trouble::PostgresCrashed;
                let away = self.between(0, 3_000);
                self.postgres(at, &[(Duration::ZERO, Step::StopPostgres { crash }), (away, Step::StartPostgres)])
            }
            Trouble::Failover => {
                let (until_promoted, until_thawed) = (self.between(1_000, 4_000), self.between(500, 3_000));
                let thawed = self.between(2_000, 6_000);
                self.postgres(
                    at,
                    &[
                        (Duration::ZERO, Step::FreezePrimary),
                        (until_promoted, Step::Promote),
                        (until_thawed, Step::ThawOldPrimary),
                        (thawed, Step::KillOldPrimary),
                        (Duration::ZERO, Step::AddStandby),
                    ],
                )
            }
            Trouble::AsynchronousFailover => {
                let (held, away, alone) = (self.between(1_000, 4_000), self.between(0, 3_000), self.between(1_000, 3_000));
                self.postgres(
                    at,
                    &[
                        (Duration::ZERO, Step::HoldReplication),
                        (held, Step::StopPostgres { crash: true }),
                        (away, Step::Promote),
                        (alone, Step::AddStandby),
                    ],
                )
            }
            Trouble::VolumePutBack => {
                let lost = self.between(2_000, 8_000);
                self.postgres(at, &[(Duration::ZERO, Step::CopyVolume), (lost, Step::PutVolumeBack)])
            }
            Trouble::KafkaFrozen => {
                // A broker that is fenced again and again. In a short schedule once.
                let mut steps = vec![(Duration::ZERO, Step::FreezeKafka)];
                let freeze = Duration::from_secs(15);
                for _ in 0..if at + 4 * freeze < self.length { 2 } else { 0 } {
                    steps.extend([(freeze, Step::ThawKafka), (self.between(1_500, 3_000), Step::FreezeKafka)]);
                }
                steps.push((freeze, Step::ThawKafka));
                self.kafka(at, &steps)
            }
            Trouble::KafkaKilled => {
                let away = self.between(0, 6_000);
                self.kafka(at, &[(Duration::ZERO, Step::KillKafka), (away, Step::StartKafka)])
            }
            Trouble::PostgresDiskFull => {
                let (of, lasts) = (Server::Postgres, self.between(3_000, 10_000));
                self.postgres(at, &[(Duration::ZERO, Step::FillDisk { of }), (lasts, Step::FreeDisk { of })])
            }
            Trouble::KafkaDiskFull => {
                let (of, lasts) = (Server::Kafka, self.between(3_000, 10_000));
                self.kafka(at, &[(Duration::ZERO, Step::FillDisk { of }), (lasts, Step::FreeDisk { of })])
            }
            Trouble::ClockStepped => {
                let seconds = [-3_600, -90, 90, 3_600].choose(&mut self.random).copied().unwrap_or_default();
                self.postgres(at, &[(Duration::ZERO, Step::SetClock { seconds })])
            }
            Trouble::TopicRemade | Trouble::TopicRemadeUnderTranslators => {
                // Every message must have been read before, and a restore must not bring a deleted topic's offsets back.
                let (translated, at) = (trouble == Trouble::TopicRemadeUnderTranslators, at.max(self.well_from(trouble)));
                self.kafka(at, &[(Duration::ZERO, Step::RemakeTopic { translated })])
            }
            Trouble::ReadOnly => {
                let lasts = self.between(2_000, 8_000);
                self.postgres(at, &[(Duration::ZERO, Step::ReadOnly { on: true }), (lasts, Step::ReadOnly { on: false })])
            }
            Trouble::ConnectionsLimited => {
                let of = services::ALL.choose(&mut self.random).copied().unwrap_or(TRANSLATOR);
                let (to, lasts) = (self.random.random_range(0..=8), self.between(2_000, 10_000));
                let steps = [(Duration::ZERO, Step::LimitConnections { of, to }), (lasts, Step::LimitConnections { of, to: UNLIMITED })];
                self.postgres(at, &steps)
            }
            Trouble::NetworkToKafka(how) => {
                let (network, loses) = self.network(how);
                let lasts = self.between(1_000, 9_000);
                let link = Link::Kafka;
                self.kafka(at, &[(Duration::ZERO, Step::Disturb { link, network }), (lasts, Step::Heal { link, loses })])
            }
            Trouble::NetworkToDatabases(how) => {
                let (network, loses) = self.network(how);
                let lasts = self.between(1_000, 9_000);
                let link = Link::EveryDatabase;
                // Beside it no other link is disturbed.
                let at = at.max(self.well_from(trouble));
                let until = self.postgres(at, &[(Duration::ZERO, Step::Disturb { link, network }), (lasts, Step::Heal { link, loses })]);
                for (_, from) in &mut self.well {
                    *from = self.postgres_from;
                }
                until
            }
            of_process => self.disturb(of_process, at),
        }
    }

    /// Adds a trouble of one process.
    fn disturb(&mut self, trouble: Trouble, at: Duration) -> Duration {
        let in_transaction = matches!(
            trouble,
            Trouble::KilledInTransaction | Trouble::CutInTransaction | Trouble::FrozenInTransaction | Trouble::FrozenInTransactionLong
        );
        let needs_database = in_transaction || trouble == Trouble::Cut;
        let at = if needs_database { at.max(self.postgres_from) } else { at };
        let (victim, at) = self.victim(at, in_transaction);
        let table = if in_transaction { victim.tables().choose(&mut self.random).copied() } else { None };
        // The default lease and the default idle time of a transaction are 3 seconds.
        let (step, lasts, end) = match trouble {
            Trouble::Killed | Trouble::KilledInTransaction => {
                (Step::Kill { victim, table }, self.between(100, 6_000), Step::Start { victim })
            }
            Trouble::Stopped => (Step::Stop { victim }, self.between(100, 6_000), Step::Start { victim }),
            Trouble::Frozen | Trouble::FrozenInTransaction => {
                (Step::Freeze { victim, table }, self.between(300, 2_500), Step::Thaw { victim })
            }
            Trouble::FrozenLong | Trouble::FrozenInTransactionLong => {
                (Step::Freeze { victim, table }, self.between(4_000, 9_000), Step::Thaw { victim })
            }
            Trouble::NetworkToDatabase(how) => {
                let (network, loses) = self.network(how);
                let link = Link::Database(victim);
                (Step::Disturb { link, network }, self.between(1_000, 12_000), Step::Heal { link, loses })
            }
            _ => {
                self.push(at, Step::Cut { victim, table });
                return at;
            }
        };
        let until = self.sequence(at, &[(Duration::ZERO, step), (lasts, end)]);
        if let Some((_, from)) = self.well.iter_mut().find(|(well, _)| *well == victim) {
            *from = until;
        }
        at
    }

    fn network(&mut self, how: Disturbance) -> (Network, bool) {
        match how {
            Disturbance::Refused => (Network::Refusing, false),
            Disturbance::Silent => (Network::Silent, false),
            Disturbance::Lost => (Network::Silent, true),
            Disturbance::Slow => (Network::Slow(self.between(20, 300)), false),
        }
    }

    /// Adds steps that need PostgreSQL for themselves. Returns the time of the first.
    fn postgres(&mut self, at: Duration, steps: &[(Duration, Step)]) -> Duration {
        let at = at.max(self.postgres_from);
        self.postgres_from = self.sequence(at, steps);
        at
    }

    /// Adds steps that need Kafka for themselves. Returns the time of the first.
    fn kafka(&mut self, at: Duration, steps: &[(Duration, Step)]) -> Duration {
        let at = at.max(self.kafka_from);
        self.kafka_from = self.sequence(at, steps);
        at
    }

    /// Adds steps, each with its time after the one before. Returns the time of the last.
    fn sequence(&mut self, mut at: Duration, steps: &[(Duration, Step)]) -> Duration {
        for (after, step) in steps {
            at = (at + *after).min(self.length.max(at));
            self.push(at, *step);
        }
        at
    }

    fn push(&mut self, at: Duration, step: Step) {
        self.steps.push(Timed { at, step });
    }

    /// Chooses a victim that is well.
    fn victim(&mut self, at: Duration, with_tables: bool) -> (Victim, Duration) {
        let fit: Vec<(Victim, Duration)> =
            self.well.iter().copied().filter(|(victim, _)| !with_tables || !victim.tables().is_empty()).collect();
        let at = at.max(fit.iter().map(|(_, from)| *from).min().unwrap_or_default());
        let well: Vec<Victim> = fit.iter().filter(|(_, from)| *from <= at).map(|(victim, _)| *victim).collect();
        (well.choose(&mut self.random).copied().unwrap_or(fit[0].0), at)
    }
}

impl Step {
    /// Whether it makes trouble. Other steps prepare a fault or end one.
    pub(super) fn is_fault(self) -> bool {
        match self {
            Self::Kill { .. }
            | Self::Stop { .. }
            | Self::Freeze { .. }
            | Self::Cut { .. }
            | Self::StopPostgres { .. }
            | Self::FreezePrimary
            | Self::HoldReplication
            | Self::ThawOldPrimary
            | Self::PutVolumeBack
            | Self::Disturb { .. }
            | Self::Heal { loses: true, .. }
            | Self::FreezeKafka
            | Self::KillKafka
            | Self::RemakeTopic { .. }
            | Self::ReadOnly { on: true }
            | Self::FillDisk { .. }
            | Self::SetClock { .. } => true,
            Self::LimitConnections { to, .. } => to != UNLIMITED,
            Self::Start { .. }
            | Self::Thaw { .. }
            | Self::Rebuild { .. }
            | Self::StartPostgres
            | Self::Promote
            | Self::KillOldPrimary
            | Self::AddStandby
            | Self::CopyVolume
            | Self::Heal { loses: false, .. }
            | Self::ThawKafka
            | Self::StartKafka
            | Self::ReadOnly { on: false }
            | Self::FreeDisk { .. } => false,
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (what, victim, table) = match self {
            Self::Kill { victim, table } => ("kill -9", victim, table),
            Self::Stop { victim } => ("stop", victim, &None),
            Self::Start { victim } => ("start", victim, &None),
            Self::Freeze { victim, table } => ("freeze", victim, table),
            Self::Thaw { victim } => ("thaw", victim, &None),
            Self::Cut { victim, table } => ("end the connections of", victim, table),
            Self::Rebuild { read_model } => return write!(f, "rebuild {read_model}"),
            Self::Disturb { link, network } => return write!(f, "network {link}: {network:?}"),
            Self::Heal { link, loses: false } => return write!(f, "network {link}: whole"),
            Self::Heal { link, loses: true } => return write!(f, "network {link}: whole, but its old connections stay silent"),
            Self::StopPostgres { crash: true } => return f.write_str("kill -9 PostgreSQL"),
            Self::StopPostgres { crash: false } => return f.write_str("stop PostgreSQL"),
            Self::StartPostgres => return f.write_str("start PostgreSQL"),
            Self::FreezePrimary => return f.write_str("freeze the primary"),
            Self::HoldReplication => return f.write_str("hold back what the standby is sent"),
            Self::Promote => return f.write_str("promote the standby and move the address to it"),
            Self::ThawOldPrimary => return f.write_str("thaw the old primary"),
            Self::KillOldPrimary => return f.write_str("kill -9 the old primary"),
            Self::AddStandby => return f.write_str("start a new standby"),
            Self::CopyVolume => return f.write_str("copy the volume of PostgreSQL"),
            Self::PutVolumeBack => return f.write_str("put the volume of PostgreSQL back"),
            Self::FreezeKafka => return f.write_str("freeze Kafka"),
            Self::ThawKafka => return f.write_str("thaw Kafka"),
            Self::KillKafka => return f.write_str("kill -9 Kafka"),
            Self::StartKafka => return f.write_str("start Kafka"),
            Self::FillDisk { of } => return write!(f, "fill the disk of {of:?}"),
            Self::FreeDisk { of } => return write!(f, "free the disk of {of:?}"),
            Self::SetClock { seconds } => return write!(f, "set the clock of PostgreSQL to {seconds:+} s"),
            Self::RemakeTopic { translated } => {
                let translators = if *translated { "run" } else { "are stopped" };
                return write!(f, "delete the topic of inventories, and create it with more messages; translators {translators}");
            }
            Self::ReadOnly { on: true } => return f.write_str("make the database read-only, and end its sessions"),
            Self::ReadOnly { on: false } => return f.write_str("let new sessions of the database write again"),
            Self::LimitConnections { of, to: UNLIMITED } => return write!(f, "let {} have as many connections as it needs", of.name),
            Self::LimitConnections { of, to } => return write!(f, "let {} have {to} connections, and end those it has", of.name),
        };
        write!(f, "{what} {victim}")?;
        match table {
            Some(table) => write!(f, " in a transaction on {table}"),
            None => Ok(()),
        }
    }
}

impl Display for Link {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(victim) => write!(f, "from {victim} to PostgreSQL"),
            Self::EveryDatabase => f.write_str("to PostgreSQL"),
            Self::Kafka => f.write_str("to Kafka"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const REPLICAS: usize = 2;

    fn steps(campaign: Campaign, seed: u64, length: Duration) -> Vec<Step> {
        draw(campaign, REPLICAS, seed, length).into_iter().map(|timed| timed.step).collect()
    }

    #[test]
    fn seed_determines_the_schedule() {
        for campaign in Campaign::value_variants() {
            assert_eq!(draw(*campaign, REPLICAS, 7, MINUTE), draw(*campaign, REPLICAS, 7, MINUTE));
            assert_ne!(draw(*campaign, REPLICAS, 7, MINUTE), draw(*campaign, REPLICAS, 8, MINUTE));
        }
    }

    /// The state of everything that a schedule disturbs.
    struct World {
        ill: BTreeSet<String>,
        postgres: bool,
        kafka: bool,
        standby: bool,
        copied: bool,
        is_held: bool,
    }

    impl World {
        fn begins(&mut self, what: impl Display) -> bool {
            self.ill.insert(what.to_string())
        }

        fn ends(&mut self, what: impl Display) -> bool {
            self.ill.remove(&what.to_string())
        }

        /// Tells whether a step fits the state, and changes the state.
        fn take(&mut self, step: Step) -> bool {
            match step {
                Step::Kill { victim, table } | Step::Freeze { victim, table } => self.begins(victim) && (self.postgres || table.is_none()),
                Step::Stop { victim } => self.begins(victim),
                Step::Start { victim } | Step::Thaw { victim } => self.ends(victim),
                Step::Cut { victim, .. } => !self.ill.contains(&victim.to_string()) && self.postgres,
                Step::Rebuild { .. } => self.postgres,
                Step::StopPostgres { .. } | Step::FreezePrimary => std::mem::replace(&mut self.postgres, false),
                Step::StartPostgres => !std::mem::replace(&mut self.postgres, true),
                Step::HoldReplication => {
                    self.is_held = true;
                    self.postgres && self.standby
                }
                Step::Promote => {
                    self.is_held = false;
                    !std::mem::replace(&mut self.postgres, true) && std::mem::replace(&mut self.standby, false)
                }
                Step::ThawOldPrimary | Step::KillOldPrimary => self.postgres && !self.standby,
                Step::AddStandby => self.postgres && !std::mem::replace(&mut self.standby, true),
                Step::CopyVolume => {
                    self.copied = true;
                    self.postgres
                }
                Step::PutVolumeBack => self.postgres && std::mem::replace(&mut self.copied, false),
                Step::Disturb { link: Link::Database(victim), .. } => self.begins(victim),
                Step::Heal { link: Link::Database(victim), .. } => self.ends(victim),
                Step::Disturb { link, .. } => self.begins(link),
                Step::Heal { link, .. } => self.ends(link),
                Step::FreezeKafka | Step::KillKafka => std::mem::replace(&mut self.kafka, false),
                Step::ThawKafka | Step::StartKafka => !std::mem::replace(&mut self.kafka, true),
                // Translators are among the victims, and restores are over.
                Step::RemakeTopic { .. } => {
                    self.kafka
                        && self.postgres
                        && !self.copied
                        && !self.is_held
                        && !self.ill.iter().any(|ill| ill.contains(TRANSLATOR.name))
                }
                Step::ReadOnly { on: true } => std::mem::replace(&mut self.postgres, false),
                Step::ReadOnly { on: false } => !std::mem::replace(&mut self.postgres, true),
                Step::LimitConnections { to: UNLIMITED, .. } => !std::mem::replace(&mut self.postgres, true),
                Step::LimitConnections { .. } => std::mem::replace(&mut self.postgres, false),
                Step::FillDisk { of: Server::Postgres } => std::mem::replace(&mut self.postgres, false),
                Step::FreeDisk { of: Server::Postgres } => !std::mem::replace(&mut self.postgres, true),
                Step::FillDisk { of: Server::Kafka } => std::mem::replace(&mut self.kafka, false),
                Step::FreeDisk { of: Server::Kafka } => !std::mem::replace(&mut self.kafka, true),
                Step::SetClock { .. } => self.postgres,
            }
        }
    }

    #[test]
    fn troubles_end_and_everything_has_one_at_a_time() {
        for campaign in Campaign::value_variants() {
            for seed in 0..100 {
                let mut world = World { ill: BTreeSet::new(), postgres: true, kafka: true, standby: true, copied: false, is_held: false };
                for Timed { at, step } in draw(*campaign, REPLICAS, seed, MINUTE) {
                    // A trouble that waits for a victim may begin later, and then ends at once.
                    assert!(at <= MINUTE + Duration::from_secs(60), "{at:?} {step}");
                    assert!(world.take(step), "{campaign:?}, seed {seed}, {at:?}: {step}");
                }
                assert!(world.ill.is_empty() && world.postgres && world.kafka && world.standby, "{campaign:?}, seed {seed}");
            }
        }
    }

    #[test]
    fn every_trouble_of_a_campaign_occurs() {
        for campaign in Campaign::value_variants() {
            for seed in 0..20 {
                let kinds = |length| -> BTreeSet<String> {
                    let text = |step: &Step| format!("{step:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
                    steps(*campaign, seed, length).iter().map(text).collect()
                };
                let missing: Vec<_> = kinds(100 * MINUTE).difference(&kinds(10 * MINUTE)).cloned().collect();
                assert!(missing.is_empty(), "{campaign:?}, seed {seed}: no {missing:?} in ten minutes");
            }
        }
    }

    #[test]
    fn short_schedules_have_what_their_campaign_is_for() {
        for seed in 0..50 {
            let has = |campaign, of: fn(&Step) -> bool| {
                let seconds = if campaign == Campaign::Kafka { 40 } else { 25 };
                let steps = steps(campaign, seed, Duration::from_secs(seconds));
                assert!(steps.iter().any(of), "{campaign:?}, seed {seed}: {steps:?}");
            };
            has(Campaign::Failover, |step| *step == Step::ThawOldPrimary);
            has(Campaign::Restore, |step| *step == Step::PutVolumeBack);
            has(Campaign::Restore, |step| *step == Step::HoldReplication);
            has(Campaign::Network, |step| matches!(step, Step::Heal { loses: true, .. }));
            has(Campaign::Kafka, |step| matches!(step, Step::RemakeTopic { translated: true }));
            has(Campaign::Kafka, |step| matches!(step, Step::RemakeTopic { translated: false }));
            has(Campaign::Kafka, |step| *step == Step::KillKafka);
            has(Campaign::Kafka, |step| *step == Step::FreezeKafka);
            has(Campaign::Processes, |step| matches!(step, Step::Kill { .. } | Step::Freeze { .. }));
        }
    }
}
