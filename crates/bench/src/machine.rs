//! The machine and the versions that a report was made with.

use anyhow::Result;
use event_store::StoreSettings;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The machine, PostgreSQL and Cartlog. A value that cannot be found out is empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    date: String,
    /// The commit, with a + if the checkout had changes.
    commit: String,
    cores: usize,
    cpu: String,
    memory_gb: f64,
    kernel: String,
    postgres: String,
    postgres_settings: Vec<(String, String)>,
    /// The settings of `event-store` in every measurement, except for the rival without the cache.
    our_settings: String,
    optimised: bool,
}

impl Machine {
    pub(crate) async fn here(postgres: &PgPool) -> Result<Self> {
        let memory = line_of("/proc/meminfo", "MemTotal:");
        let memory_kb: f64 = memory.trim_end_matches("kB").trim().parse().unwrap_or_default();
        let names = ["fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "wal_buffers", "max_wal_size", "max_connections"];
        let ours = StoreSettings::default();
        Ok(Self {
            date: OffsetDateTime::now_utc().format(&Rfc3339)?,
            commit: commit().unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: line_of("/proc/cpuinfo", "model name").trim_start_matches([' ', '\t', ':']).to_owned(),
            memory_gb: (memory_kb / 1_048_576.0 * 10.0).round() / 10.0,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            postgres: sqlx::query_scalar("SELECT version()").fetch_one(postgres).await?,
            postgres_settings: sqlx::query_as("SELECT name, current_setting(name) FROM unnest($1) name")
                .bind(names.map(str::to_owned).to_vec())
                .fetch_all(postgres)
                .await?,
            our_settings: format!("{ours:?}"),
            optimised: !cfg!(debug_assertions),
        })
    }

    /// Returns all values as text, one per line.
    pub(crate) fn lines(&self) -> Vec<String> {
        let settings: Vec<_> = self.postgres_settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let mut lines = vec![
            format!("{}, commit {}", self.date, self.commit),
            format!("{} cores ({}), {} GB, Linux {}", self.cores, self.cpu, self.memory_gb, self.kernel),
            self.postgres.clone(),
            settings.join(", "),
            self.our_settings.clone(),
        ];
        if !self.optimised {
            lines.push("NOT OPTIMISED: these figures say nothing".to_owned());
        }
        lines
    }
}

/// Returns the value of `name` in a file under /proc.
fn line_of(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(git(&["rev-parse", "--short", "HEAD"])? + if changed { "+" } else { "" })
}
