//! Progress messages on the screen.

use std::fmt::Display;
use std::io::Write;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

/// Prints messages with the time since the start, or nothing.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    started: Instant,
    quiet: bool,
}

impl Report {
    /// Prints to standard error. Standard output is for the command's answer.
    #[must_use]
    pub fn terminal() -> Self {
        Self { started: Instant::now(), quiet: false }
    }

    /// Prints nothing.
    #[must_use]
    pub fn quiet() -> Self {
        Self { started: Instant::now(), quiet: true }
    }

    /// Draws a progress bar, unless the report is quiet or there is no terminal.
    #[must_use]
    pub fn bar(&self, length: u64, template: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(template);
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(length) };
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// Prints one line.
    pub fn say(&self, text: impl Display) {
        if !self.quiet {
            // A closed terminal must not prevent the stack from stopping in order.
            let _ = writeln!(std::io::stderr(), "[{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
        }
    }
}

/// Prints a command's answer on standard output. A closed pipe is no error.
pub fn answer(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a message on standard error.
pub fn complain(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
