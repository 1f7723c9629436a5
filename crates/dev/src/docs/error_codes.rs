//! Error codes: the shared ones from `crates/service`, those of the domain from the OpenAPI documents and the slices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use embedded::error::Error;
use serde_json::Value;
use shop::services;

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
    for service in services::ALL {
        for (code, status) in documented(&routes::document(checkout, service.name)?) {
            match codes.iter_mut().find(|known| known.code == code) {
                Some(known) => _ = known.statuses.insert(status),
                None => {
                    let meaning = meanings.get(&code).cloned().unwrap_or_default();
                    codes.push(Code { code, statuses: BTreeSet::from([status]), meaning });
                }
            }
        }
    }
    rows(codes).map_err(|reason| unreadable(checkout, reason))
}

struct Code {
    code: String,
    statuses: BTreeSet<u16>,
    meaning: String,
}

/// The table, by status.
///
/// # Errors
/// A code is no word of small letters, or it has no meaning in plain words.
fn rows(mut codes: Vec<Code>) -> Result<String, String> {
    codes.sort_by_key(|code| code.statuses.first().copied());
    let mut table = String::from("| code | status | meaning |\n| --- | --- | --- |\n");
    for Code { code, statuses, meaning } in codes {
        if code.is_empty() || !code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            return Err(format!("an OpenAPI document has the error code {code:?}, which is no word of small letters and underscores"));
        }
        if meaning.is_empty() || meaning.contains(['{', '}']) {
            return Err(format!(
                "the error code {code} has the meaning {meaning:?}: give it an entry in {SHARED}, or a plain #[error(\"…\")] in its slice"
            ));
        }
        let statuses: Vec<_> = statuses.iter().map(u16::to_string).collect();
        let _ = writeln!(table, "| `{code}` | {} | {} |", statuses.join(", "), cell(&meaning));
    }
    Ok(table)
}

/// The codes of a document's error answers, each with its status.
fn documented(document: &Value) -> BTreeSet<(String, u16)> {
    let none = serde_json::Map::new();
    let object = |value: &Value| value.as_object().unwrap_or(&none).clone();
    let answers =
        object(&document["paths"]).into_iter().flat_map(|(_, methods)| object(&methods)).flat_map(|(_, one)| object(&one["responses"]));
    let mut codes = BTreeSet::new();
    for (status, answer) in answers {
        let Ok(status) = status.parse() else { continue };
        let shared = answer["$ref"].as_str().and_then(|name| document.pointer(name.trim_start_matches('#')));
        let content = &shared.unwrap_or(&answer)["content"]["application/json"];
        let listed = content["schema"]["properties"]["code"]["enum"].as_array();
        codes.extend(listed.into_iter().flatten().filter_map(Value::as_str).map(|code| (code.to_owned(), status)));
    }
    codes
}

/// `Name = "code", 400, "Meaning.";`
fn shared(source: &str) -> Vec<Code> {
    let list = source.split("\nerror_codes! {").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap_or_default();
    let entry = |entry: &str| {
        let (name, rest) = entry.split_once(" = ")?;
        name.trim().chars().all(char::is_alphanumeric).then_some(())?;
        let (_, behind) = rest.split_once(", ")?;
        let (status, meaning) = behind.split_once(',')?;
        let statuses = BTreeSet::from([status.trim().parse().ok()?]);
        Some(Code { code: literal(rest)?, statuses, meaning: literal(meaning)? })
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
        let text = literal(attribute)?;
        let text = match text.strip_prefix("there is no ").and_then(|rest| rest.strip_suffix(" {0}")) {
            Some(what) => format!("there is no such {what}"),
            None => text.replace(" {0}", "").replace("{0} ", ""),
        };
        (name == variant).then_some(text)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn code(code: &str, statuses: &[u16], meaning: &str) -> Code {
        Code { code: code.to_owned(), statuses: statuses.iter().copied().collect(), meaning: meaning.to_owned() }
    }

    #[test]
    fn shared_codes_are_read_from_their_list() {
        let source = "x\nerror_codes! {\n    InvalidJson = \"invalid_json\", 400, \"No JSON.\";\n    Busy = \"busy\", 503,\n        \"Busy; \
                      later.\";\n}\n";
        let codes: Vec<_> = shared(source).into_iter().map(|code| (code.code, code.statuses, code.meaning)).collect();
        let expected = [("invalid_json", 400, "No JSON."), ("busy", 503, "Busy; later.")];
        assert_eq!(codes, expected.map(|(code, status, meaning)| (code.to_owned(), BTreeSet::from([status]), meaning.to_owned())));
    }

    #[test]
    fn documented_codes_are_those_of_the_schemas() {
        let answer = |codes: &[&str]| json!({"description": "`some_text`: Words.", "content": {"application/json": {"schema": {"properties": {"code": {"enum": codes}}}}}});
        let document = json!({
            "paths": {"/additem/{cart_id}": {"post": {"responses": {
                "200": {"description": "Done."}, "409": answer(&["cart_full", "item_gone"]), "502": {"$ref": "#/components/responses/Unknown"}
            }}}},
            "components": {"responses": {"Unknown": answer(&["outcome_unknown"])}}
        });
        let expected = [("cart_full", 409), ("item_gone", 409), ("outcome_unknown", 502)];
        assert_eq!(documented(&document), expected.map(|(code, status)| (code.to_owned(), status)).into());
    }

    #[test]
    fn codes_that_are_no_words_or_have_no_meaning_are_refused() {
        let table = rows(vec![code("behind", &[503], "Later."), code("cart_full", &[409, 404], "Full.")]).unwrap();
        assert!(table.ends_with("| `cart_full` | 404, 409 | Full. |\n| `behind` | 503 | Later. |\n"), "{table}");
        for wrong in ["", "`cart_full`:", "read.\n\n`invalid_json`:", "CartFull"] {
            assert!(rows(vec![code(wrong, &[409], "Full.")]).unwrap_err().contains("no word"), "{wrong}");
        }
        for wrong in ["", "There is no cart {id}."] {
            assert!(rows(vec![code("unknown_cart", &[404], wrong)]).unwrap_err().contains("unknown_cart has the meaning"), "{wrong}");
        }
    }

    #[test]
    fn every_code_of_the_services_is_explained_once() {
        let table = table(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).unwrap();
        let codes: Vec<_> = table.lines().skip(2).map(|row| row.split('`').nth(1).unwrap()).collect();
        assert_eq!(codes.len(), codes.iter().collect::<BTreeSet<_>>().len(), "{table}");
        for row in ["| `cart_full` | 409 | The cart already has three items. |\n", "| `unknown_cart` | 404 | There is no such cart. |\n"] {
            assert!(table.contains(row), "{table}");
        }
        assert!(table.contains("| `outcome_unknown` | 502, 503, 504 |"), "{table}");
    }

    #[test]
    fn refusal_is_explained_by_its_message() {
        let source =
            "#[error(\"the cart is empty\")]\n    CartEmpty,\n    #[error(\"the product {0} is out of stock\")]\n    OutOfStock(Id),";
        assert_eq!(message(source, "OutOfStock").as_deref(), Some("the product is out of stock"));
        assert_eq!(
            message("#[error(\"there is no cart {0}\")]\n    UnknownCart(Id),", "UnknownCart").as_deref(),
            Some("there is no such cart")
        );
    }
}
