//! The paths of the checkout, the build directory, and the stacks' directories in it.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::{Context, Error};
use crate::files;

/// The number of test stacks that can run at once in one build directory.
const TEST_SLOTS: usize = 32;

/// The paths of the checkout and its build directory.
#[derive(Debug, Clone)]
pub struct Layout {
    checkout: PathBuf,
    target: PathBuf,
}

impl Layout {
    /// Finds the checkout and its build directory: `target/`, or what `CARGO_TARGET_DIR` or cargo's configuration names.
    ///
    /// # Errors
    /// The current directory or this program's own path cannot be read.
    pub fn discover() -> Result<Self, Error> {
        // Cargo sets it when it runs us. A checkout can move after it was built.
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .map(PathBuf::from)
            .filter(|package| package.join("../../Cargo.lock").exists())
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let checkout = package.ancestors().nth(2).unwrap_or(&package).to_owned();
        let executable = std::env::current_exe().context(|| "find the path of this program".to_owned())?;
        // This program lies in cargo's build directory, which has a mark.
        let target = executable.ancestors().find(|above| above.join("CACHEDIR.TAG").exists()).map(Path::to_owned);
        let target = match (target, std::env::var_os("CARGO_TARGET_DIR")) {
            (Some(target), _) => target,
            (None, Some(given)) => std::path::absolute(given).context(|| "resolve CARGO_TARGET_DIR".to_owned())?,
            (None, None) => checkout.join("target"),
        };
        Ok(Self { checkout, target })
    }

    /// The workspace's root.
    #[must_use]
    pub fn checkout(&self) -> &Path {
        &self.checkout
    }

    /// The directory that cargo builds in.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The directory of the downloaded servers.
    #[must_use]
    pub fn distributions(&self) -> PathBuf {
        self.target.join("cartlog-dist")
    }

    /// The directory of `cargo dev up`.
    #[must_use]
    pub fn stack(&self) -> PathBuf {
        self.target.join("cartlog")
    }

    /// Creates an empty directory for a test's own servers. `name` must be unique among the running tests.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, Error> {
        let directory = self.target.join("cartlog-test").join("scratch").join(name);
        files::remove(&directory)?;
        files::create_directory(&directory)?;
        Ok(directory)
    }

    /// Claims a directory for a test stack. The lock keeps others out until it is dropped or this process ends.
    ///
    /// # Errors
    /// The operating system refuses, or too many test stacks run.
    pub fn claim_test(&self) -> Result<(PathBuf, File), Error> {
        let all = self.target.join("cartlog-test");
        files::create_directory(&all)?;
        for slot in 0..TEST_SLOTS {
            let path = all.join(format!("{slot}.lock"));
            let lock = File::create(&path).context(|| format!("create {}", path.display()))?;
            if lock.try_lock().is_ok() {
                return Ok((all.join(slot.to_string()), lock));
            }
        }
        Err(Error::Refused(format!("{TEST_SLOTS} test stacks already run in {}", all.display())))
    }

    /// Creates a directory that `account` can enter: `wanted` if possible, otherwise one under /var/tmp. A checkout may lie in a folder
    /// that only its owner can enter.
    ///
    /// # Errors
    /// The operating system refuses, or the directory under /var/tmp belongs to another user.
    pub async fn reachable(&self, wanted: &Path, account: Option<&Account>) -> Result<PathBuf, Error> {
        files::create_directory(wanted)?;
        let Some(account) = account else {
            return Ok(wanted.to_owned());
        };
        if account.can_enter(wanted).await {
            return Ok(wanted.to_owned());
        }
        let own = PathBuf::from(format!("/var/tmp/cartlog-{:016x}", hash(&self.target)));
        // Everyone can create directories in /var/tmp. The owner of this one chooses the programs that we run.
        if own.is_symlink() || own.exists() && !Account::owner(&own)?.is_own() {
            return Err(Error::Refused(format!("{} belongs to another user. Remove it.", own.display())));
        }
        files::create_directory(&own)?;
        let directory = match wanted.strip_prefix(&self.target) {
            Ok(below) => own.join(below),
            Err(_) => own.join(format!("{:016x}", hash(wanted))),
        };
        // Level by level, because every user must be able to enter each.
        let mut level = own.clone();
        for part in directory.strip_prefix(&own).unwrap_or(&directory) {
            level.push(part);
            files::create_directory(&level)?;
        }
        Ok(directory)
    }
}

/// FNV-1a. Unlike the standard library's hasher it is the same in every build.
fn hash(path: &Path) -> u64 {
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
