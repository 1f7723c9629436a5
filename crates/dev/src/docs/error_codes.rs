//! Error codes: the shared ones from `crates/service`, the domain's from the slices.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use embedded::error::Error;

use super::routes;
use super::sources::{cell, literal, rust_files, sentence, text, unreadable};

const SHARED: &str = "crates/service/src/http/error_code.rs";

pub(super) fn table(checkout: &Path) -> Result<String, Error> {
    let path = checkout.join(SHARED);
    let mut codes = shared(&text(&path)?);
    if codes.is_empty() {
        return Err(unreadable(&path, "it lists no code"));
    }
    let meanings = meanings(checkout)?;
    for (code, status) in routes::refusals(checkout)? {
        if codes.iter().any(|known| known.code == code) {
            continue;
        }
        let meaning = meanings.get(&code).cloned().unwrap_or_default();
        codes.push(Code { code, status, meaning });
    }
    codes.sort_by_key(|code| code.status);
    let mut table = String::from("| code | status | meaning |\n| --- | --- | --- |\n");
    for Code { code, status, meaning } in codes {
        let _ = writeln!(table, "| `{code}` | {status} | {} |", cell(&meaning));
    }
    Ok(table)
}

struct Code {
    code: String,
    status: u16,
    meaning: String,
}

/// `Name = "code", 400, "Meaning.";`
fn shared(source: &str) -> Vec<Code> {
    let list = source.split("\nerror_codes! {").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap_or_default();
    let entry = |entry: &str| {
        let (name, rest) = entry.split_once(" = ")?;
        name.trim().chars().all(char::is_alphanumeric).then_some(())?;
        let (_, behind) = rest.split_once(", ")?;
        let (status, meaning) = behind.split_once(',')?;
        Some(Code { code: literal(rest)?, status: status.trim().parse().ok()?, meaning: literal(meaning)? })
    };
    list.split(";\n").filter_map(entry).collect()
}

/// Reads the message of each code of the slices: `#[error("…")] Variant` and `Self::Variant => "code"`.
fn meanings(checkout: &Path) -> Result<BTreeMap<String, String>, Error> {
    let mut meanings = BTreeMap::new();
    for path in rust_files(&checkout.join("services"))? {
        let source = text(&path)?;
        for arm in source.split("Self::").skip(1) {
            let variant: String = arm.chars().take_while(|c| c.is_alphanumeric()).collect();
            let Some(code) = arm.lines().next().and_then(|line| line.split_once("=> \"")).and_then(|(_, rest)| rest.split('"').next())
            else {
                continue;
            };
            if let Some(message) = message(&source, &variant) {
                meanings.entry(code.to_owned()).or_insert_with(|| sentence(&message));
            }
        }
    }
    Ok(meanings)
}

fn message(source: &str, variant: &str) -> Option<String> {
    source.split("#[error(").skip(1).find_map(|rest| {
        let (attribute, behind) = rest.split_once(")]")?;
        let name: String = behind.trim_start().chars().take_while(|c| c.is_alphanumeric()).collect();
        // The message without the values in it.
        let text = literal(attribute)?.replace(" {0}", "").replace("{0} ", "");
        (name == variant).then_some(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_codes_are_read_from_their_list() {
        let source = "x\nerror_codes! {\n    InvalidJson = \"invalid_json\", 400, \"No JSON.\";\n    Busy = \"busy\", 503,\n        \"Busy; \
                      later.\";\n}\n";
        let codes: Vec<_> = shared(source).into_iter().map(|code| (code.code, code.status, code.meaning)).collect();
        let expected = [("invalid_json", 400, "No JSON."), ("busy", 503, "Busy; later.")];
        assert_eq!(codes, expected.map(|(code, status, meaning)| (code.to_owned(), status, meaning.to_owned())));
    }

    #[test]
    fn a_refusal_is_explained_by_its_message() {
        let source =
            "#[error(\"the cart is empty\")]\n    CartEmpty,\n    #[error(\"the product {0} is out of stock\")]\n    OutOfStock(Id),";
        assert_eq!(message(source, "OutOfStock").as_deref(), Some("the product is out of stock"));
    }
}
