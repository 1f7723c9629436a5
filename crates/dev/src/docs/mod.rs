//! `cargo dev docs`: the tables in the documentation that repeat the code, written from the code.

mod bench;
mod cartctl;
mod error_codes;
mod markers;
mod metrics;
mod routes;
mod settings;
mod sources;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use embedded::error::{Context, Error};
use embedded::files;
use embedded::layout::Layout;
use embedded::report::Report;

use crate::cargo;

/// Writes every generated table into the Markdown files that have its markers. With `check`, only says which files would change.
///
/// # Errors
/// cartctl does not compile, a source cannot be read, or a marker names no table. With `check`, also if a file would change.
pub async fn run(layout: &Layout, check: bool, report: &Report) -> Result<(), Error> {
    report.say("building cartctl, whose --help is read");
    let programs = cargo::build(layout, &["cartctl"], false).await?;
    let checkout = layout.checkout();
    let tables = tables(checkout, &programs.join("cartctl"))?;
    let mut changed = vec![];
    for path in markdown(&checkout.join("docs"))? {
        let old = sources::text(&path)?;
        let new = markers::filled(&old, &tables).map_err(|reason| Error::Unreadable { path: path.clone(), reason })?;
        if new != old {
            if !check {
                files::write_atomically(&path, new.as_bytes())?;
            }
            changed.push(path.strip_prefix(checkout).unwrap_or(&path).display().to_string());
        }
    }
    match (changed.is_empty(), check) {
        (true, _) => report.say("the generated tables are up to date"),
        (false, false) => report.say(format!("wrote {}", changed.join(", "))),
        (false, true) => {
            let files = changed.join(", ");
            return Err(Error::Refused(format!("generated tables differ from the code in {files}: run `cargo dev docs`")));
        }
    }
    Ok(())
}

fn tables(checkout: &Path, cartctl: &Path) -> Result<BTreeMap<&'static str, String>, Error> {
    Ok(BTreeMap::from([
        ("settings", settings::table(checkout)?),
        ("routes", routes::table(checkout)?),
        ("error-codes", error_codes::table(checkout)?),
        ("cartctl", cartctl::table(cartctl)?),
        ("metrics", metrics::table(checkout)?),
        ("bench", bench::table(checkout)?),
    ]))
}

/// Every Markdown file below a folder.
fn markdown(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).context(|| format!("read {}", folder.display()))? {
        let path = entry.context(|| format!("read {}", folder.display()))?.path();
        if path.is_dir() {
            found.extend(markdown(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
