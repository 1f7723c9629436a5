//! The campaigns: which kinds of trouble each of them makes.

use clap::ValueEnum;

use self::Disturbance::{Lost, Refused, Silent, Slow};

/// A campaign, by the part that it disturbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Campaign {
    /// The services: killed, stopped, frozen and cut off in the middle of transactions; PostgreSQL is restarted, read models are rebuilt
    Processes,
    /// PostgreSQL's primary: frozen, replaced by its synchronous standby, thawed and killed
    Failover,
    /// Connections to PostgreSQL and Kafka: reset, silent, lost for ever, slow, too few; a database that is read-only
    Network,
    /// PostgreSQL's data: an earlier copy is put back, or an asynchronous standby takes over. Newest events are lost
    Restore,
    /// Kafka: frozen three times, killed and restarted; the topic of inventories is created again
    Kafka,
    /// All of these in turns
    Everything,
    /// Full disks of PostgreSQL and Kafka. Needs root, to mount small file systems
    Disk,
    /// The clock of PostgreSQL, which steps forward and back. Needs libfaketime
    Clock,
}

/// A kind of trouble. Most of them are two steps: a beginning and an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
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
    Failover,
    AsynchronousFailover,
    VolumePutBack,
    KafkaFrozen,
    KafkaKilled,
    TopicRemade,
    TopicRemadeUnderTranslators,
    /// The database takes no writes.
    ReadOnly,
    /// A service's role gets few connections, or none.
    ConnectionsLimited,
    PostgresDiskFull,
    KafkaDiskFull,
    ClockStepped,
    NetworkToDatabase(Disturbance),
    NetworkToDatabases(Disturbance),
    NetworkToKafka(Disturbance),
}

/// How a network is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// Connections are reset.
    Refused,
    /// Connections fall silent, and speak again.
    Silent,
    /// Connections fall silent for ever.
    Lost,
    /// Every byte takes long.
    Slow,
}

/// Rebuilds occur twice, because others must happen during one.
const PROCESSES: &[Trouble] = &[
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
const FAILOVER: &[Trouble] = &[Trouble::Failover];
const NETWORK: &[Trouble] = &[
    Trouble::NetworkToDatabase(Refused),
    Trouble::NetworkToDatabase(Silent),
    Trouble::NetworkToDatabase(Lost),
    Trouble::NetworkToDatabase(Lost),
    Trouble::NetworkToDatabase(Slow),
    Trouble::NetworkToDatabases(Lost),
    Trouble::NetworkToKafka(Refused),
    Trouble::NetworkToKafka(Silent),
    Trouble::NetworkToKafka(Lost),
    Trouble::NetworkToKafka(Slow),
    Trouble::ConnectionsLimited,
    Trouble::ReadOnly,
];
const RESTORE: &[Trouble] = &[Trouble::VolumePutBack, Trouble::AsynchronousFailover];
const KAFKA: &[Trouble] = &[Trouble::KafkaFrozen, Trouble::KafkaKilled, Trouble::TopicRemade, Trouble::TopicRemadeUnderTranslators];
const DISK: &[Trouble] = &[Trouble::PostgresDiskFull, Trouble::KafkaDiskFull];
/// Leases and deadlines must bear the steps, so processes die and the broker is away meanwhile.
const CLOCK: &[Trouble] = &[Trouble::ClockStepped, Trouble::ClockStepped, Trouble::Killed, Trouble::FrozenLong, Trouble::KafkaKilled];

impl Campaign {
    /// The troubles. They are dealt like cards, because every kind must occur before one occurs again.
    pub(super) fn deck(self) -> Vec<Trouble> {
        match self {
            Self::Processes => PROCESSES.to_vec(),
            Self::Failover => FAILOVER.to_vec(),
            Self::Network => NETWORK.to_vec(),
            Self::Restore => RESTORE.to_vec(),
            Self::Kafka => KAFKA.to_vec(),
            Self::Everything => [PROCESSES, FAILOVER, NETWORK, RESTORE, KAFKA].concat(),
            Self::Disk => DISK.to_vec(),
            Self::Clock => CLOCK.to_vec(),
        }
    }

    /// Whether it disturbs Kafka.
    pub(super) fn disturbs_kafka(self) -> bool {
        matches!(self, Self::Network | Self::Kafka | Self::Everything | Self::Disk | Self::Clock)
    }

    /// Whether PostgreSQL needs a standby, and whether a command waits until the standby has its events.
    pub(super) fn standby(self) -> Standby {
        match self {
            Self::Failover | Self::Everything => Standby::Synchronous,
            Self::Restore => Standby::Asynchronous,
            Self::Processes | Self::Network | Self::Kafka | Self::Disk | Self::Clock => Standby::None,
        }
    }
}

/// The standby of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standby {
    None,
    Asynchronous,
    Synchronous,
}
