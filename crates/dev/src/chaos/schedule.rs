//! The schedule: what happens to which process at what time. It is drawn from the seed before anything runs.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

/// The number of cart-projections replicas. They are the first victims, and the publisher is the last.
pub(super) const REPLICAS: usize = 3;
/// The number of victims.
pub(super) const VICTIMS: usize = REPLICAS + 1;

/// Tables that cart-projections writes. A victim is caught in a transaction on one of them.
const TABLES: [&str; 5] = ["cart_items_item", "carts_with_products", "inventories", "archive_item_open_item", "todo"];
/// The only table that the publisher writes.
const TODO: &str = "todo";
/// Read models that can be rebuilt.
const READ_MODELS: [&str; 3] = ["cart_items", "carts_with_products", "inventories"];

/// A step. With a table, the victim is caught in a transaction that writes the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// SIGKILL.
    Kill {
        victim: usize,
        table: Option<&'static str>,
    },
    /// SIGTERM, and wait until it has ended.
    Stop {
        victim: usize,
    },
    /// Start it again, as a supervisor would.
    Start {
        victim: usize,
    },
    /// SIGSTOP.
    Freeze {
        victim: usize,
        table: Option<&'static str>,
    },
    /// SIGCONT.
    Thaw {
        victim: usize,
    },
    /// End all its connections to the database, in the database.
    Cut {
        victim: usize,
        table: Option<&'static str>,
    },
    /// Kill or stop PostgreSQL.
    StopPostgres {
        crash: bool,
    },
    StartPostgres,
    /// Rebuild a read model beside the build in service.
    Rebuild {
        read_model: &'static str,
    },
}

/// A step, with its time since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timed {
    pub(super) at: Duration,
    pub(super) step: Step,
}

/// The kinds of trouble. Most of them are two steps: a beginning and an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Killed,
    KilledInTransaction,
    Stopped,
    Frozen,
    /// Frozen for longer than its lease.
    FrozenLong,
    FrozenInTransaction,
    FrozenInTransactionLong,
    Cut,
    CutInTransaction,
    PostgresCrashed,
    PostgresStopped,
    Rebuilt,
}

/// Dealt like cards, because every kind must occur in every thirteen. Rebuilds occur twice, because others must happen during one.
const DECK: [Trouble; 13] = [
    Trouble::Killed,
    Trouble::KilledInTransaction,
    Trouble::Stopped,
    Trouble::Frozen,
    Trouble::FrozenLong,
    Trouble::FrozenInTransaction,
    Trouble::FrozenInTransactionLong,
    Trouble::Cut,
    Trouble::CutInTransaction,
    Trouble::PostgresCrashed,
    Trouble::PostgresStopped,
    Trouble::Rebuilt,
    Trouble::Rebuilt,
];

/// Draws the schedule of a seed. Every trouble that begins within `length` also ends within it.
pub(super) fn draw(seed: u64, length: Duration) -> Vec<Timed> {
    let mut drawing = Drawing {
        random: StdRng::seed_from_u64(seed),
        length,
        free_from: [Duration::ZERO; VICTIMS],
        postgres_from: Duration::ZERO,
        steps: vec![],
    };
    let mut deck = vec![];
    let mut at = drawing.between(300, 1_000);
    while at < length {
        if deck.is_empty() {
            deck.extend(DECK);
            deck.shuffle(&mut drawing.random);
        }
        if let Some(trouble) = deck.pop() {
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
    free_from: [Duration; VICTIMS],
    postgres_from: Duration,
    steps: Vec<Timed>,
}

impl Drawing {
    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.random.random_range(least..=most))
    }

    /// Adds a trouble at this time, or as soon as a victim is well. Answers the time.
    fn add(&mut self, trouble: Trouble, at: Duration) -> Duration {
        let needs_database = !matches!(trouble, Trouble::Killed | Trouble::Stopped | Trouble::Frozen | Trouble::FrozenLong);
        let at = if needs_database { at.max(self.postgres_from) } else { at };
        if let Trouble::PostgresCrashed | Trouble::PostgresStopped = trouble {
            let away = self.between(0, 3_000);
            self.postgres_from =
                self.push(at, Step::StopPostgres { crash: trouble == Trouble::PostgresCrashed }, away, Step::StartPostgres);
            return at;
        }
        if trouble == Trouble::Rebuilt {
            let read_model = READ_MODELS.choose(&mut self.random).copied().unwrap_or(READ_MODELS[0]);
            self.steps.push(Timed { at, step: Step::Rebuild { read_model } });
            return at;
        }
        let (victim, at) = self.victim(at);
        let table = match trouble {
            Trouble::KilledInTransaction | Trouble::CutInTransaction | Trouble::FrozenInTransaction | Trouble::FrozenInTransactionLong => {
                Some(if victim < REPLICAS { TABLES.choose(&mut self.random).copied().unwrap_or(TODO) } else { TODO })
            }
            _ => None,
        };
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
            Trouble::Cut | Trouble::CutInTransaction | Trouble::PostgresCrashed | Trouble::PostgresStopped | Trouble::Rebuilt => {
                self.steps.push(Timed { at, step: Step::Cut { victim, table } });
                return at;
            }
        };
        self.free_from[victim] = self.push(at, step, lasts, end);
        at
    }

    /// Adds a step and the step that ends it. Answers the time of the second.
    fn push(&mut self, at: Duration, step: Step, lasts: Duration, end: Step) -> Duration {
        let until = (at + lasts).min(self.length.max(at));
        self.steps.push(Timed { at, step });
        self.steps.push(Timed { at: until, step: end });
        until
    }

    /// Chooses a victim that is well, mostly a cart-projections.
    fn victim(&mut self, at: Duration) -> (usize, Duration) {
        let at = at.max(self.free_from.iter().min().copied().unwrap_or_default());
        let well = |victims: std::ops::Range<usize>| -> Vec<usize> { victims.filter(|victim| self.free_from[*victim] <= at).collect() };
        let (replicas, all) = (well(0..REPLICAS), well(0..VICTIMS));
        let among = if replicas.is_empty() || self.random.random_bool(0.15) { all } else { replicas };
        (among.choose(&mut self.random).copied().unwrap_or_default(), at)
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
            Self::StopPostgres { crash: true } => return write!(f, "kill -9 PostgreSQL"),
            Self::StopPostgres { crash: false } => return write!(f, "stop PostgreSQL"),
            Self::StartPostgres => return write!(f, "start PostgreSQL"),
            Self::Rebuild { read_model } => return write!(f, "rebuild {read_model}"),
        };
        write!(f, "{what} {}", name(*victim))?;
        match table {
            Some(table) => write!(f, " in a transaction on {table}"),
            None => Ok(()),
        }
    }
}

/// Answers a victim's name in the journal and in `pg_stat_activity`.
pub(super) fn name(victim: usize) -> String {
    if victim < REPLICAS { format!("cart-projections-{}", victim + 1) } else { "publisher".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn seed_determines_the_schedule() {
        assert_eq!(draw(7, MINUTE), draw(7, MINUTE));
        assert_ne!(draw(7, MINUTE), draw(8, MINUTE));
    }

    #[test]
    fn troubles_end_and_a_victim_has_one_at_a_time() {
        for seed in 0..200 {
            let (mut well, mut postgres) = ([true; VICTIMS], true);
            for Timed { at, step } in draw(seed, MINUTE) {
                // A trouble that waits for a victim may begin later, and then ends at once.
                assert!(at <= MINUTE + Duration::from_secs(10), "{at:?} {step}");
                match step {
                    Step::Kill { victim, table } | Step::Freeze { victim, table } => {
                        assert!(std::mem::replace(&mut well[victim], false), "seed {seed}, {at:?}: {step}");
                        assert!(postgres || table.is_none(), "seed {seed}, {at:?}: {step}");
                    }
                    Step::Stop { victim } => assert!(std::mem::replace(&mut well[victim], false)),
                    Step::Start { victim } | Step::Thaw { victim } => assert!(!std::mem::replace(&mut well[victim], true)),
                    Step::Cut { victim, .. } => assert!(well[victim] && postgres, "seed {seed}, {at:?}: {step}"),
                    Step::StopPostgres { .. } => assert!(std::mem::replace(&mut postgres, false)),
                    Step::StartPostgres => assert!(!std::mem::replace(&mut postgres, true)),
                    Step::Rebuild { .. } => assert!(postgres),
                }
            }
            assert!(well.iter().all(|well| *well) && postgres, "seed {seed}");
        }
    }

    #[test]
    fn every_kind_of_trouble_occurs_in_a_minute() {
        for seed in 0..50 {
            let steps: Vec<Step> = draw(seed, MINUTE).into_iter().map(|timed| timed.step).collect();
            let has = |of: fn(&Step) -> bool| assert!(steps.iter().any(of), "seed {seed}: {steps:?}");
            has(|step| matches!(step, Step::Kill { table: None, .. }));
            has(|step| matches!(step, Step::Kill { table: Some(_), .. }));
            has(|step| matches!(step, Step::Stop { .. }));
            has(|step| matches!(step, Step::Freeze { table: None, .. }));
            has(|step| matches!(step, Step::Freeze { table: Some(_), .. }));
            has(|step| matches!(step, Step::Cut { table: None, .. }));
            has(|step| matches!(step, Step::Cut { table: Some(_), .. }));
            has(|step| matches!(step, Step::StopPostgres { crash: true }));
            has(|step| matches!(step, Step::StopPostgres { crash: false }));
            has(|step| matches!(step, Step::Rebuild { .. }));
        }
    }
}
