//! `cargo dev docs`: the tables in the documentation that repeat the code, written from the code, and the drawing of `event-model.json`.

mod bench;
mod cartctl;
mod error_codes;
mod markers;
mod metrics;
mod named_tests;
mod routes;
mod settings;
mod sources;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use embedded::error::{Context, Error};
use embedded::files;
use embedded::layout::Layout;
use embedded::report::Report;
use event_model::EventModel;

use crate::cargo;

use sources::unreadable;

/// Writes every generated table into the Markdown files that have its markers, and draws the event model. With `check`, only says which files
/// would change.
///
/// # Errors
/// - cartctl does not compile, or a source cannot be read.
/// - A marker names no table, or an error code has no meaning.
/// - A page names a test that does not exist.
/// - With `check`: a file would change.
pub async fn run(layout: &Layout, check: bool, report: &Report) -> Result<(), Error> {
    report.say("building cartctl, whose --help is read");
    let programs = cargo::build(layout, &["cartctl"], false).await?;
    let checkout = layout.checkout();
    let tables = tables(checkout, &programs.join("cartctl"))?;
    let mut generated = vec![(checkout.join("docs/event-model.svg"), drawing(checkout)?)];
    for path in markdown(&checkout.join("docs"))? {
        let new = markers::filled(&sources::text(&path)?, &tables).map_err(|reason| unreadable(&path, reason))?;
        generated.push((path, new));
    }
    named_tests::check(checkout, generated.iter().map(|(_, text)| text.as_str()))?;
    let mut changed = vec![];
    for (path, new) in generated {
        if std::fs::read_to_string(&path).ok().as_ref() != Some(&new) {
            if !check {
                files::write_atomically(&path, new.as_bytes())?;
            }
            changed.push(path.strip_prefix(checkout).unwrap_or(&path).display().to_string());
        }
    }
    match (changed.is_empty(), check) {
        (true, _) => report.say("the generated tables and the drawing are up to date"),
        (false, false) => report.say(format!("wrote {}", changed.join(", "))),
        (false, true) => {
            let files = changed.join(", ");
            return Err(Error::Refused(format!("generated text differs from the code in {files}: run `cargo dev docs`")));
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

/// The board, drawn from `event-model.json`.
fn drawing(checkout: &Path) -> Result<String, Error> {
    let path = checkout.join("event-model.json");
    let model = EventModel::parse(&sources::text(&path)?).map_err(|error| unreadable(&path, error.to_string()))?;
    Ok(event_model::svg(&model))
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
