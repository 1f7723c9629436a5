//! `cargo dev queries`: writes .sqlx, from which `sqlx::query!` knows the database's types. Builds need no database.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use crate::cargo;
use crate::supervise::supervise;
use embedded::database;
use embedded::error::{Context, Error};
use embedded::files;
use embedded::layout::Layout;
use embedded::report::Report;
use embedded::test_stack::TestStack;

/// The schemas in which the slices' SQL finds its tables.
const SEARCH_PATH: &str = "options=-c%20search_path%3Dprojection_a%2Cautomation%2Cpublic";

/// Compiles every query against a migrated database, and writes `.sqlx`. With `check`, only compares.
///
/// # Errors
/// A query does not compile, or a server does not start. With `check`, also if `.sqlx` differs.
pub async fn run(layout: &Layout, check: bool, report: &Report) -> Result<(), Error> {
    let stack = TestStack::start(layout, report).await?;
    let made = make(layout, &stack, report).await;
    let ended = stack.end().await;
    let made = made?;
    ended?;
    let committed = layout.checkout().join(".sqlx");
    let (old, new) = (read(&committed)?, read(&made)?);
    let count = |of: &BTreeMap<String, Vec<u8>>, but: &BTreeMap<String, Vec<u8>>| {
        of.iter().filter(|(name, text)| but.get(*name) != Some(*text)).count()
    };
    let (added, gone) = (count(&new, &old), count(&old, &new));
    if check && added + gone > 0 {
        return Err(Error::Refused(format!(".sqlx differs from the queries ({added} to add, {gone} to remove): run `cargo dev queries`")));
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        files::remove(&committed.join(name))?;
    }
    for (name, text) in new.iter().filter(|(name, text)| old.get(*name) != Some(*text)) {
        let path = committed.join(name);
        std::fs::write(&path, text).context(|| format!("write {}", path.display()))?;
    }
    report.say(format!("{} queries in .sqlx: {added} added, {gone} removed", new.len()));
    Ok(())
}

async fn make(layout: &Layout, stack: &TestStack, report: &Report) -> Result<PathBuf, Error> {
    const DATABASE: &str = "queries";
    database::create(&stack.database_url(), DATABASE).await?;
    let url = stack.url_of(DATABASE);
    database::migrate(&url).await?;
    let made = layout.target().join("queries");
    files::remove(&made)?;
    files::create_directory(&made)?;
    let mut command = cargo::command(layout);
    command.args(["check", "--all-targets"]);
    let mut names = vec![];
    for package in cargo::packages(layout).await? {
        // The macro reads a query when its crate is compiled.
        if touch(&package.sources())? {
            command.args(["--package", &package.name]);
            names.push(package.name);
        }
    }
    report.say(format!("compiling the queries of {} against the migrations", names.join(", ")));
    command
        .env("DATABASE_URL", format!("{url}?{SEARCH_PATH}"))
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", &made)
        .stdin(Stdio::null());
    let status = supervise("cargo check", command).await?;
    if status.success() { Ok(made) } else { Err(cargo::failed("cargo check", status)) }
}

fn read(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let failed = || format!("read {}", folder.display());
    let mut texts = BTreeMap::new();
    for entry in std::fs::read_dir(folder).context(failed)? {
        let entry = entry.context(failed)?;
        texts.insert(entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).context(failed)?);
    }
    Ok(texts)
}

/// Makes cargo compile the sources in a folder that hold a query, and returns whether there are any.
fn touch(folder: &Path) -> Result<bool, Error> {
    let failed = || format!("look for queries in {}", folder.display());
    let mut found = false;
    for entry in std::fs::read_dir(folder).context(failed)? {
        let path = entry.context(failed)?.path();
        if path.is_dir() {
            found |= touch(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") && has_query(&std::fs::read_to_string(&path).context(failed)?)
        {
            let file = File::options().append(true).open(&path).context(failed)?;
            file.set_modified(SystemTime::now()).context(failed)?;
            found = true;
        }
    }
    Ok(found)
}

/// `sqlx::query!`, `sqlx::query_as!` and the like: macros that read the database, and not the functions of the same names.
fn has_query(source: &str) -> bool {
    source.split("sqlx::query").skip(1).any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_').starts_with("!("))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_query_tells_macros_from_functions() {
        assert!(
            ["query", "query_as", "query_scalar", "query_file"].iter().all(|name| has_query(&format!("let row = sqlx::{name}!(\"…\"")))
        );
        assert!(!has_query("sqlx::query(\"…\"); sqlx::query_as::<_, Row>(\"…\")"));
    }
}
