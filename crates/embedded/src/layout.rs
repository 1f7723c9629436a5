//! Where things are: the checkout, the build directory, the stacks' directories in it.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::{Context, Error};
use crate::files;

/// How many test stacks may run beside each other in one build directory.
const TEST_SLOTS: usize = 32;

/// The places that a stack's files have.
#[derive(Debug, Clone)]
pub struct Layout {
    checkout: PathBuf,
    target: PathBuf,
}

impl Layout {
    /// Finds the checkout and the build directory that cargo uses for it (`target/`, or wherever `CARGO_TARGET_DIR`
    /// or cargo's configuration puts it).
    ///
    /// # Errors
    /// The current directory or this program's own path cannot be read.
    pub fn discover() -> Result<Self, Error> {
        // Set by cargo when it runs us, so that a checkout may move after it was built.
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .map(PathBuf::from)
            .filter(|package| package.join("../../Cargo.lock").exists())
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let checkout = package.ancestors().nth(2).unwrap_or(&package).to_owned();
        let executable = std::env::current_exe().context(|| "find the path of this program".to_owned())?;
        // We lie in the directory that cargo builds in, and it marks that directory.
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

    /// The servers' programs, fetched once.
    #[must_use]
    pub fn distributions(&self) -> PathBuf {
        self.target.join("cartlog-dist")
    }

    /// All that `cargo dev up` keeps.
    #[must_use]
    pub fn stack(&self) -> PathBuf {
        self.target.join("cartlog")
    }

    /// A fresh, empty directory for what a test starts itself; `name` must be unique among the tests that run.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, Error> {
        let directory = self.target.join("cartlog-test").join("scratch").join(name);
        files::remove(&directory)?;
        files::create_directory(&directory)?;
        Ok(directory)
    }

    /// A test stack's directory that nobody else uses, and the lock that keeps it ours until it is dropped or we die.
    ///
    /// # Errors
    /// The operating system's refusal, or too many test stacks are running.
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
        Err(Error::Refused(format!("{TEST_SLOTS} test stacks run in {} already", all.display())))
    }

    /// Where files that `account` must reach go instead of `wanted`: there, where it can enter it, else under
    /// /var/tmp, because a checkout may lie in a folder that only its owner can enter. Makes the directory.
    ///
    /// # Errors
    /// The operating system's refusal, or the place under /var/tmp is somebody else's.
    pub async fn reachable(&self, wanted: &Path, account: Option<&Account>) -> Result<PathBuf, Error> {
        files::create_directory(wanted)?;
        let Some(account) = account else {
            return Ok(wanted.to_owned());
        };
        if account.can_enter(wanted).await {
            return Ok(wanted.to_owned());
        }
        let own = PathBuf::from(format!("/var/tmp/cartlog-{:016x}", hash(&self.target)));
        // Anybody may make directories in /var/tmp, and a stranger's would choose the programs that we run.
        if own.is_symlink() || own.exists() && !Account::owner(&own)?.is_own() {
            return Err(Error::Refused(format!("{} is not ours: remove it", own.display())));
        }
        files::create_directory(&own)?;
        let directory = match wanted.strip_prefix(&self.target) {
            Ok(below) => own.join(below),
            Err(_) => own.join(format!("{:016x}", hash(wanted))),
        };
        // One level after the other, so that each is open to all.
        let mut level = own.clone();
        for part in directory.strip_prefix(&own).unwrap_or(&directory) {
            level.push(part);
            files::create_directory(&level)?;
        }
        Ok(directory)
    }
}

/// FNV-1a: the same in every build, unlike the standard library's hasher.
fn hash(path: &Path) -> u64 {
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
