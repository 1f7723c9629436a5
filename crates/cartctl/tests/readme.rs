//! What README.md says of the command is so.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use crate::common::*;

fn help(words: &[&str]) -> String {
    let help = cartctl(&[words, &["--help"]].concat());
    assert_eq!(help.code, Some(0), "{words:?}: {help:?}");
    help.stdout
}

/// The names of the commands below one.
fn below(words: &[&str]) -> Vec<String> {
    let help = help(words);
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1).take_while(|line| line.starts_with("  "));
    commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_is_in_the_table_with_flags_that_it_has() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let mut named = BTreeSet::new();
    for row in readme.lines().filter(|line| line.starts_with("| `cartctl ")) {
        let command = row.split('`').nth(1).unwrap();
        let words: Vec<_> =
            command.split_whitespace().skip(1).take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-')).collect();
        let help = help(&words);
        for flag in row.split('`').filter(|code| code.starts_with("--")) {
            assert!(help.contains(flag), "{command} {flag}");
        }
        named.insert(words.join(" "));
    }
    let mut known = BTreeSet::new();
    for command in below(&[]) {
        let below = below(&[&command]);
        known.extend(below.iter().map(|name| format!("{command} {name}")));
        if below.is_empty() {
            known.insert(command);
        }
    }
    assert_eq!(named, known);
    // The exit codes that --help names.
    let stated = readme.split("Exit codes: ").nth(1).unwrap();
    for line in help(&[]).lines().skip_while(|line| !line.starts_with("Exit codes:")).skip(1) {
        let (code, meaning) = line.trim().split_once("  ").unwrap();
        let meaning = meaning.split(';').next().unwrap();
        assert!(stated.replace('\n', " ").contains(&format!("{code} {meaning}")), "{line}");
    }
}
