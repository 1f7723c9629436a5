//! Java and Maven: found, or installed with apt, or asked for in an error.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::unistd::Uid;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::error::{Context, Error};
use crate::files;
use crate::report::Report;

/// The oldest Java that Kafka's server runs on.
const OLDEST: u32 = 17;

/// apt installs one package at a time, and Maven often brings Java along.
static LOOKING: Mutex<()> = Mutex::const_new(());

/// Finds a Java that Kafka runs on, and installs one if it can.
///
/// # Errors
/// There is none and it cannot be installed. The message says what to do.
pub async fn java(report: &Report) -> Result<PathBuf, Error> {
    let _alone = LOOKING.lock().await;
    let (found, seen) = find_java().await;
    if let Some(java) = found {
        return Ok(java);
    }
    let need = match seen {
        Some(version) => format!("Kafka needs Java {OLDEST} or later, and this machine has Java {version}"),
        None => format!("Kafka needs Java {OLDEST} or later, and this machine has none"),
    };
    apt_install("default-jre-headless", &need, report).await?;
    find_java().await.0.ok_or_else(|| ways_out(&format!("{need}, even after `apt-get install default-jre-headless`")))
}

/// Finds Maven, and installs it if it can.
///
/// # Errors
/// It is missing and cannot be installed. The message says what to do.
pub async fn maven(report: &Report) -> Result<Command, Error> {
    let need = "Maven (`mvn`) downloads PostgreSQL and Kafka, and it is missing";
    let _alone = LOOKING.lock().await;
    if !runs("mvn").await {
        apt_install("maven", need, report).await?;
        if !runs("mvn").await {
            return Err(ways_out(&format!("{need}, even after `apt-get install maven`")));
        }
    }
    Ok(Command::new("mvn"))
}

/// Finds the Java to use; if none is new enough, the newest version that was seen.
async fn find_java() -> (Option<PathBuf>, Option<u32>) {
    let mut candidates = Vec::new();
    if let Some(home) = std::env::var_os("JAVA_HOME") {
        candidates.push(Path::new(&home).join("bin/java"));
    }
    candidates.push(PathBuf::from("java"));
    // A newer Java may be installed beside an older default.
    if let Ok(installed) = std::fs::read_dir("/usr/lib/jvm") {
        candidates.extend(installed.flatten().map(|home| home.path().join("bin/java")));
    }
    let mut seen = None;
    for candidate in candidates {
        let version = java_version(&candidate).await;
        if version.is_some_and(|version| version >= OLDEST) {
            return (Some(candidate), version);
        }
        seen = seen.max(version);
    }
    (None, seen)
}

async fn java_version(java: &Path) -> Option<u32> {
    let output = Command::new(java).arg("-version").stdin(Stdio::null()).output().await.ok()?;
    major_version(&String::from_utf8_lossy(&output.stderr)).filter(|_| output.status.success())
}

/// `openjdk version "17.0.15" 2025-04-15` is 17, and `java version "1.8.0_402"` is 8.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split('"').nth(1)?;
    let mut numbers = version.split(|other: char| !other.is_ascii_digit()).map(str::parse);
    match numbers.next()?.ok()? {
        1 => numbers.next()?.ok(),
        major => Some(major),
    }
}

async fn runs(program: &str) -> bool {
    let status = Command::new(program).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.await.is_ok_and(|status| status.success())
}

async fn apt_install(package: &str, need: &str, report: &Report) -> Result<(), Error> {
    if !Uid::effective().is_root() || !runs("apt-get").await {
        return Err(ways_out(need));
    }
    report.say(format!("{need}: apt-get install {package}"));
    let log = std::env::temp_dir().join(format!("cartlog-apt-{}.log", std::process::id()));
    let file = files::open_log(&log)?;
    for arguments in [vec!["update"], vec!["install", "--yes", "--no-install-recommends", package]] {
        let errors = file.try_clone().context(|| format!("open {} twice", log.display()))?;
        let output = file.try_clone().context(|| format!("open {} twice", log.display()))?;
        let status = Command::new("apt-get")
            .args(&arguments)
            .env("DEBIAN_FRONTEND", OsString::from("noninteractive"))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .status()
            .await
            .context(|| "run apt-get".to_owned())?;
        // An old package list often suffices, so a failed update is no failure.
        if !status.success() && arguments[0] == "install" {
            let last = files::tail(&log, 1);
            return Err(ways_out(&format!("{need}; `apt-get install {package}` failed ({status}: {last})")));
        }
    }
    files::remove(&log)
}

fn ways_out(need: &str) -> Error {
    Error::Missing(format!(
        "{need}. Install Java {OLDEST} or later and Maven (Debian or Ubuntu: `apt-get install default-jre-headless maven`; macOS: \
         `brew install openjdk maven`), or set DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS to servers that you run."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_version_reads_what_java_prints() {
        assert_eq!(major_version("openjdk version \"17.0.15\" 2025-04-15"), Some(17));
        assert_eq!(major_version("java version \"1.8.0_402\""), Some(8));
        assert_eq!(major_version("openjdk version \"25\" 2025-09-16"), Some(25));
        assert_eq!(major_version("openjdk version \"26-ea\" 2026-03-17"), Some(26));
        assert_eq!(major_version("No Java runtime present"), None);
    }
}
