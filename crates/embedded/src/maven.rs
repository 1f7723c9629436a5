//! Downloads from Maven Central. Maven does it, because its settings name mirrors and proxies.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;

use crate::error::{Context, Error};
use crate::files;
use crate::java;
use crate::report::Report;

/// An artifact by its coordinates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Artifact<'a> {
    pub(crate) group: &'a str,
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    /// Without its dependencies, because the other artifacts bring those that are needed.
    pub(crate) alone: bool,
}

/// The treatment of the jars.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Jars {
    Kept,
    Unpacked,
}

/// Downloads the artifacts and their dependencies into `directory`.
pub(crate) async fn fetch(artifacts: &[Artifact<'_>], jars: Jars, directory: &Path, report: &Report) -> Result<(), Error> {
    let goal = match jars {
        Jars::Kept => "dependency:copy-dependencies",
        Jars::Unpacked => "dependency:unpack-dependencies",
    };
    let mut maven = java::maven(report).await?;
    files::create_directory(directory)?;
    let pom = directory.join("pom.xml");
    files::write_atomically(&pom, pom_of(artifacts).as_bytes())?;
    let output = maven
        .args(["--quiet", "--batch-mode", "--file"])
        .arg(&pom)
        .arg(goal)
        .arg(format!("-DoutputDirectory={}", directory.display()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context(|| "run mvn".to_owned())?;
    if output.status.success() {
        return files::remove(&pom);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("ERROR")).take(4).collect();
    let names: Vec<&str> = artifacts.iter().map(|artifact| artifact.name).collect();
    Err(Error::Command { command: format!("mvn {goal} (for {})", names.join(", ")), status: output.status, output: lines.join("\n") })
}

fn pom_of(artifacts: &[Artifact<'_>]) -> String {
    let mut dependencies = String::new();
    for Artifact { group, name, version, alone } in artifacts {
        let exclusions =
            if *alone { "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>" } else { "" };
        let _ = write!(
            dependencies,
            "<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version>{exclusions}</dependency>"
        );
    }
    // A fixed version: every Maven does the same.
    format!(
        r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>cartlog</groupId><artifactId>dev</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>{dependencies}</dependencies>
<build><plugins><plugin><groupId>org.apache.maven.plugins</groupId><artifactId>maven-dependency-plugin</artifactId><version>3.8.1</version></plugin></plugins></build>
</project>
"#
    )
}
