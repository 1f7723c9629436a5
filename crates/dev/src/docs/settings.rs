//! Settings: from the services' settings.toml, which has a comment above each key.

use std::fmt::Write as _;
use std::path::Path;

use embedded::error::Error;

use super::sources::{cell, text};

/// The owner of each settings file, and the file.
const FILES: [(&str, &str); 7] = [
    ("Every service", "crates/service/src/settings.toml"),
    ("inventory-translator, publisher and console: Kafka", "crates/service/src/kafka.toml"),
    ("cart-commands", "services/cart-commands/src/settings.toml"),
    ("inventory-translator", "services/inventory-translator/src/settings.toml"),
    ("cart-projections", "services/cart-projections/src/settings.toml"),
    ("publisher", "services/publisher/src/settings.toml"),
    ("console", "services/console/src/settings.toml"),
];

/// Keys whose variable is the key in capitals, without `CARTLOG_`.
const BARE: [&str; 3] = ["database_url", "kafka_bootstrap_servers", "otel_exporter_otlp_endpoint"];

pub(super) fn table(checkout: &Path) -> Result<String, Error> {
    let mut table = String::new();
    for (owner, path) in FILES {
        let _ = writeln!(table, "### {owner}\n\n| setting | default | variable | what it is |\n| --- | --- | --- | --- |");
        for Setting { key, default, comment } in settings(&text(&checkout.join(path))?) {
            let _ = writeln!(table, "| `{key}` | `{}` | `{}` | {} |", cell(&default), variable(&key), cell(&comment));
        }
        table.push('\n');
    }
    Ok(table)
}

struct Setting {
    key: String,
    /// As it is written in TOML.
    default: String,
    comment: String,
}

fn settings(toml: &str) -> Vec<Setting> {
    let (mut settings, mut comment) = (vec![], String::new());
    for line in toml.lines() {
        if let Some(words) = line.strip_prefix('#') {
            comment += words;
        } else if let Some((key, default)) = line.split_once(" = ") {
            settings.push(Setting { key: key.to_owned(), default: default.to_owned(), comment: std::mem::take(&mut comment) });
        } else {
            comment.clear();
        }
    }
    settings
}

/// The environment variable that overrides a setting.
fn variable(key: &str) -> String {
    if BARE.contains(&key) { key.to_uppercase() } else { format!("CARTLOG_{}", key.to_uppercase()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_has_the_comment_right_above_it() {
        let read = settings("# The file.\n\n# The port\n# to listen on. 1 to 65535.\nport = 8081\nother = \"a\"\n");
        let read: Vec<_> = read.iter().map(|one| (one.key.as_str(), one.default.as_str(), one.comment.trim())).collect();
        assert_eq!(read, [("port", "8081", "The port to listen on. 1 to 65535."), ("other", "\"a\"", "")]);
    }

    #[test]
    fn variables_have_the_prefix_but_for_three() {
        assert_eq!(["port", "database_url"].map(variable), ["CARTLOG_PORT", "DATABASE_URL"]);
    }
}
