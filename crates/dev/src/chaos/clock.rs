//! The clock of PostgreSQL, as libfaketime shows it to the server.

use std::path::PathBuf;

use embedded::distribution::PostgresDistribution;
use embedded::error::{Context, Error};
use embedded::files;

/// A clock that can be set.
#[derive(Debug)]
pub(super) struct Clock {
    file: PathBuf,
}

impl Clock {
    /// Makes a clock with the true time, in a file.
    pub(super) fn new(file: PathBuf) -> Result<Self, Error> {
        let clock = Self { file };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it to this many seconds after the true time. The server sees it within a second.
    pub(super) fn set(&self, seconds: i64) -> Result<(), Error> {
        files::write_atomically(&self.file, format!("{seconds:+}\n").as_bytes())
    }

    /// Lets servers see this clock. Their monotonic clock stays true, as that of a machine whose time is set.
    pub(super) fn show_to(&self, distribution: PostgresDistribution) -> Result<PostgresDistribution, Error> {
        let library = library()?;
        let variables = [
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        Ok(variables.iter().fold(distribution, |distribution, (name, value)| distribution.with_environment(name, value)))
    }
}

fn library() -> Result<PathBuf, Error> {
    let libraries = std::fs::read_dir("/usr/lib").context(|| "read /usr/lib".to_owned())?;
    let found = libraries.flatten().map(|entry| entry.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    found.ok_or_else(|| Error::Missing("this campaign sets the clock with libfaketime: apt-get install faketime".to_owned()))
}
