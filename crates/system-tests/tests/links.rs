//! Every link in every Markdown file leads somewhere.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Lists every Markdown file below a folder, except in build directories.
fn markdown(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found = vec![];
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && !path.is_symlink() && !name.starts_with('.') && name != "target" {
            found.extend(markdown(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found
}

/// The text without its code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).flat_map(|outside| outside.split('`').step_by(2)).collect()
}

/// A heading's anchor, as GitHub makes it.
fn anchor(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

/// Why a link leads nowhere.
fn fault(document: &Path, target: &str) -> Option<String> {
    let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
    let file = if path.is_empty() { document.to_owned() } else { document.parent().unwrap().join(path) };
    if !file.exists() {
        return Some("there is no such file".to_owned());
    }
    let is_heading = |text: String| text.lines().filter_map(anchor).any(|anchor| anchor == fragment);
    let leads = fragment.is_empty()
        || file.extension().is_none_or(|extension| extension != "md")
        || is_heading(std::fs::read_to_string(&file).unwrap());
    (!leads).then(|| "there is no such heading".to_owned())
}

#[test]
fn links_lead_somewhere() {
    let documents = markdown(&root());
    assert!(documents.len() > 20, "only {} Markdown files were found", documents.len());
    let mut wrong = BTreeSet::new();
    for document in documents {
        let text = prose(&std::fs::read_to_string(&document).unwrap());
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()) {
            if let Some(fault) = fault(&document, target).filter(|_| !target.contains("://") && !target.starts_with("mailto:")) {
                wrong.insert(format!("{}: {target}: {fault}", document.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn anchors_follow_github() {
    assert_eq!(anchor("## What's `new`, in 2026?").as_deref(), Some("whats-new-in-2026"));
    assert_eq!(anchor("no heading"), None);
}
