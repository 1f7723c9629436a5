//! Options that commands share.

use std::ffi::OsString;

use clap::Args;

use crate::{error::Error, output::Output};

/// The default for `--bootstrap-servers`.
pub(crate) const BOOTSTRAP_SERVERS: &str = "127.0.0.1:9092";

/// Options of every command.
#[derive(Args)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct Common {
    /// The database, e.g. postgres://cartlog_operator:password@host:5432/cartlog
    #[arg(long, global = true, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// A file that contains only the database password, for a URL without one
    #[arg(long, global = true, env = "CARTLOG_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    // Not a PathBuf: an empty variable counts as unset.
    pub(crate) database_password_file: Option<OsString>,
    /// The brokers as host:port, separated by commas
    #[arg(long, global = true, env = "KAFKA_BOOTSTRAP_SERVERS", default_value = BOOTSTRAP_SERVERS, value_name = "SERVERS")]
    pub(crate) bootstrap_servers: String,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Options of a destructive command.
#[derive(Args)]
pub(crate) struct Confirmed {
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) yes: bool,
}

impl Confirmed {
    /// Asks for confirmation, unless `--yes` was given.
    pub(crate) fn ask(&self, output: &Output, what: &str) -> Result<(), Error> {
        if self.yes { Ok(()) } else { output.ask(what) }
    }
}
