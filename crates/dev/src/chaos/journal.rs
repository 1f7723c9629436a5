//! A file with every step and finding and its time. It explains a failure, together with the services' logs.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::ProgressBar;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use embedded::error::Error;
use embedded::files;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    started: Instant,
    bar: ProgressBar,
}

impl Journal {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), file: files::open_log(path)?, started: Instant::now(), bar: ProgressBar::hidden() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Also shows notes behind this bar.
    pub(super) fn show_on(&mut self, bar: ProgressBar) {
        self.bar = bar;
    }

    pub(super) fn note(&mut self, text: impl Display) {
        let now = OffsetDateTime::now_utc();
        let clock = now.format(&Rfc3339).unwrap_or_default();
        let line = format!("{clock} [{:8.3} s] {text}\n", self.started.elapsed().as_secs_f64());
        // A full disk fails elsewhere, too.
        let _ = self.file.write_all(line.as_bytes());
        self.bar.set_message(text.to_string());
    }
}
