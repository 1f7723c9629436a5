//! Joins the version and the commit, if one is given.
#![allow(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

const COMMIT: &str = "CARTLOG_COMMIT";

fn main() {
    println!("cargo::rerun-if-env-changed={COMMIT}");
    let version = env!("CARGO_PKG_VERSION");
    let version = match std::env::var(COMMIT) {
        Ok(commit) if !commit.is_empty() => format!("{version} ({commit})"),
        _ => version.to_owned(),
    };
    println!("cargo::rustc-env=CARTLOG_VERSION={version}");
}
