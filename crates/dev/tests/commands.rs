//! Every `cargo dev` command that the documentation names exists, with its flags.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_dev")).args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "cargo dev {arguments:?} --help");
    String::from_utf8(output.stdout).unwrap()
}

/// The words after each `cargo dev` in a text, up to what ends a command.
fn commands(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.split("cargo dev ").skip(1).filter_map(|rest| rest.split(['`', '"', '\n', '#', ',', ')', ';', '|', '&']).next()).map(|command| {
        let words = command.split_whitespace();
        words.collect()
    })
}

/// Lists every Markdown file below a folder, except in build directories.
fn markdown(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && !path.is_symlink() && !name.starts_with('.') && name != "target" {
            found.extend(markdown(&path));
        } else if name.ends_with(".md") || name == "justfile" {
            found.push(path);
        }
    }
    found
}

#[test]
fn documented_commands_and_flags_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let general = help(&[]);
    let listed = general.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1).take_while(|line| line.starts_with("  "));
    let known: BTreeMap<&str, String> =
        listed.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(|name| (name, help(&[name]))).collect();
    let (mut wrong, mut named) = (BTreeSet::new(), BTreeSet::new());
    for document in markdown(&root) {
        let text = std::fs::read_to_string(&document).unwrap();
        for words in commands(&text) {
            let [command, arguments @ ..] = words.as_slice() else { continue };
            let Some((command, help)) = known.get_key_value(*command) else {
                if !command.starts_with('-') {
                    wrong.insert(format!("{}: cargo dev {command}", document.display()));
                }
                continue;
            };
            named.insert(command.to_string());
            // Flags after `test` are for cargo.
            for flag in arguments.iter().filter(|word| word.starts_with("--") && *command != "test" && !help.contains(**word)) {
                wrong.insert(format!("{}: cargo dev {command} {flag}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "these do not exist: {wrong:#?}");
    let unnamed: Vec<_> = known.keys().filter(|command| !named.contains(**command)).collect();
    assert!(unnamed.is_empty(), "no document names cargo dev {unnamed:?}");
}
