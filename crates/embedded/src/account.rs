//! The unprivileged account that PostgreSQL runs as if we are root. PostgreSQL refuses to run as root.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Stdio;

use nix::unistd::{Gid, Uid, User};
use tokio::process::Command;

use crate::error::{Context, Error};

/// An unprivileged account of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// Finds the account for PostgreSQL's processes; none if we are not root, because they then run as ourselves.
    ///
    /// # Errors
    /// We are root, and the machine has neither a user `postgres` nor a user `nobody`.
    pub fn for_postgres() -> Result<Option<Self>, Error> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            let user = User::from_name(name).context(|| format!("look up the user {name}"))?;
            if let Some(user) = user.filter(|user| !user.uid.is_root()) {
                return Ok(Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
            }
        }
        Err(Error::Missing(
            "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody` to run it as: \
             add one, run `cargo dev` as an ordinary user, or set DATABASE_URL to a server that you run"
                .to_owned(),
        ))
    }

    /// Finds the account that owns a directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn owner(path: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).context(|| format!("read {}", path.display()))?;
        Ok(Self { uid: metadata.uid(), gid: metadata.gid() })
    }

    /// Tells whether this account is our own.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.uid == Uid::effective().as_raw() && self.gid == Gid::effective().as_raw()
    }

    /// Makes `command` run as this account, with no other groups.
    pub fn run(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives a directory to this account.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn own(&self, path: &Path) -> Result<(), Error> {
        chown(path, Some(self.uid), Some(self.gid)).context(|| format!("change the owner of {}", path.display()))
    }

    /// Tells whether this account can enter a directory. The directories above it must allow it, too.
    pub async fn can_enter(&self, directory: &Path) -> bool {
        let mut command = Command::new("true");
        self.run(&mut command);
        command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await
            .is_ok_and(|status| status.success())
    }
}
