//! A small disk, which can be full: a file system in memory. Mounting it needs root.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use embedded::error::{Context, Error};
use embedded::files;

/// PostgreSQL and Kafka need about half of it for a short campaign.
const SIZE: &str = "size=768m,mode=755";

/// A mounted disk. Dropping it unmounts it.
#[derive(Debug)]
pub(super) struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// Mounts a disk at a directory.
    pub(super) fn mount(directory: &Path) -> Result<Self, Error> {
        files::create_directory(directory)?;
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(directory).status().context(|| "run mount".to_owned())?;
        if status.success() {
            return Ok(Self { directory: directory.to_owned() });
        }
        Err(Error::Refused(format!("cannot mount a small file system at {}: only root may", directory.display())))
    }

    /// Leaves no byte free.
    pub(super) fn fill(&self) -> Result<(), Error> {
        let path = self.filler();
        let mut filler = File::create(&path).context(|| format!("create {}", path.display()))?;
        // The last bytes need small writes.
        for size in [1 << 20, 1 << 12] {
            let block = vec![0; size];
            loop {
                match filler.write(&block) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context(|| format!("write {}", path.display())),
                }
            }
        }
        Ok(())
    }

    pub(super) fn free(&self) -> Result<(), Error> {
        files::remove(&self.filler())
    }

    fn filler(&self) -> PathBuf {
        self.directory.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because a killed server's processes may live for another moment.
        let _ = Command::new("umount").arg("--lazy").arg(&self.directory).status();
    }
}
