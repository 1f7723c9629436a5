//! The markers around a generated table.

use std::collections::BTreeMap;

const BEGIN: &str = "<!-- generated: ";
const END: &str = "<!-- /generated -->";

/// Fills the space between `<!-- generated: NAME -->` and `<!-- /generated -->` with the table of that name.
///
/// # Errors
/// There is no such table, or a marker is not closed.
pub(super) fn filled(text: &str, tables: &BTreeMap<&str, String>) -> Result<String, String> {
    let mut parts = text.split(BEGIN);
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(" -->").ok_or("a marker has no end")?;
        let table = tables.get(name).ok_or_else(|| format!("no table is called {name:?}"))?;
        let (_, rest) = rest.split_once(END).ok_or_else(|| format!("the marker of {name:?} is not closed with {END}"))?;
        filled += &format!("{BEGIN}{name} -->\n{}\n{END}{rest}", table.trim_end());
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_replace_what_stands_between_their_markers() {
        let tables = BTreeMap::from([("routes", "| a |\n".to_owned()), ("metrics", "| b |".to_owned())]);
        let text = "A\n<!-- generated: routes -->\nold\n<!-- /generated -->\nB\n<!-- generated: metrics --><!-- /generated -->\n";
        let once = filled(text, &tables).unwrap();
        let expected =
            "A\n<!-- generated: routes -->\n| a |\n<!-- /generated -->\nB\n<!-- generated: metrics -->\n| b |\n<!-- /generated -->\n";
        assert_eq!(once, expected);
        assert_eq!(filled(&once, &tables).unwrap(), once);
    }

    #[test]
    fn unknown_and_open_markers_are_refused() {
        let tables = BTreeMap::from([("routes", String::new())]);
        assert!(filled("<!-- generated: rutes --><!-- /generated -->", &tables).unwrap_err().contains("rutes"));
        assert!(filled("<!-- generated: routes -->\n", &tables).unwrap_err().contains("not closed"));
    }
}
