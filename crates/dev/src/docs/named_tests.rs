//! The tests that the documentation names: paragraphs that begin with "Tests: " and list `crate::test`.

use std::path::Path;

use embedded::error::Error;

use super::sources::{rust_files, text};

/// Refuses pages that name a test which is not there.
pub(super) fn check<'a>(checkout: &Path, pages: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
    let mut missing = vec![];
    for name in pages.into_iter().flat_map(named) {
        if !exists(checkout, name)? {
            missing.push(name);
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::Refused(format!("docs name tests that are not there: {}", missing.join(", ")))) }
}

fn named(page: &str) -> impl Iterator<Item = &str> {
    let paragraphs = page.split("\n\n").filter(|paragraph| paragraph.starts_with("Tests: "));
    paragraphs.flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2))
}

fn exists(checkout: &Path, name: &str) -> Result<bool, Error> {
    let Some((package, test)) = name.split_once("::") else { return Ok(false) };
    let Some(folder) = ["crates", "services"].map(|of| checkout.join(of).join(package)).into_iter().find(|folder| folder.is_dir()) else {
        return Ok(false);
    };
    for path in rust_files(&folder)? {
        if has(&text(&path)?, test) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tells whether a source has a function of this name with an attribute such as `#[tokio::test]`.
fn has(source: &str, test: &str) -> bool {
    let function = format!("fn {test}(");
    let mut items = source.match_indices(&function).filter_map(|(at, _)| source[..at].rsplit("\n\n").next());
    items.any(|item| item.contains("test]") || item.contains("::test("))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_paragraphs_of_tests() {
        let page = "A test is named `crate::test`.\n\nTests: `log::appends`,\n`kafka::reads_on`.\n\nMore: `service::command`.\n";
        assert_eq!(named(page).collect::<Vec<_>>(), ["log::appends", "kafka::reads_on"]);
    }

    #[test]
    fn only_functions_with_an_attribute_are_tests() {
        let source = "fn helps() {}\n\n#[tokio::test]\n#[ignore = \"…\"]\nasync fn waits() {}\n";
        assert!(has(source, "waits"));
        assert!(!has(source, "helps") && !has(source, "wait") && !has(source, "gone"));
    }

    #[test]
    fn tests_that_are_gone_are_named() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        check(&checkout, ["Tests: `dev::tests_that_are_gone_are_named`"]).unwrap();
        let gone = ["Tests: `dev::was_renamed`, `nothing::at_all`"];
        assert!(check(&checkout, gone).unwrap_err().to_string().contains("dev::was_renamed, nothing::at_all"));
    }
}
