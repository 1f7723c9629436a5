//! What the screen is told while a stack starts and stops.

use std::fmt::Display;
use std::io::Write;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

/// Says what goes on, with the time since the start; or nothing, as tests want it.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    started: Instant,
    quiet: bool,
}

impl Report {
    /// Speaks to standard error, so that standard output stays the command's answer.
    #[must_use]
    pub fn terminal() -> Self {
        Self { started: Instant::now(), quiet: false }
    }

    /// Says nothing.
    #[must_use]
    pub fn quiet() -> Self {
        Self { started: Instant::now(), quiet: true }
    }

    /// A bar of this length, drawn as `template` says; where nothing is said, and on no terminal, it is not drawn.
    #[must_use]
    pub fn bar(&self, length: u64, template: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(template);
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(length) };
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// One step, as one line.
    pub fn say(&self, text: impl Display) {
        if !self.quiet {
            // A terminal that was closed must not take the stack's orderly stop with it.
            let _ = writeln!(std::io::stderr(), "[{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
        }
    }
}

/// Prints a command's answer on standard output; a reader that went away is no fault of ours.
pub fn answer(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a message on standard error.
pub fn complain(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
