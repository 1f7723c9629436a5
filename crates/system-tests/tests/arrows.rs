//! The dependencies between crates point one way, and ARCHITECTURE.md draws them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or none for a normal one.
    kind: Option<String>,
}

impl Package {
    fn is_service(&self) -> bool {
        self.manifest_path.starts_with(root().join("services"))
    }

    fn depends_on(&self, kind: Option<&str>) -> BTreeSet<&str> {
        self.dependencies.iter().filter(|one| one.kind.as_deref() == kind).map(|one| one.name.as_str()).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn workspace() -> BTreeMap<String, Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output =
        Command::new(cargo).args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    metadata.packages.into_iter().map(|package| (package.name.clone(), package)).collect()
}

/// The dependencies between our crates, without those of tests.
fn arrows(workspace: &BTreeMap<String, Package>) -> BTreeSet<(&str, &str)> {
    let normal = |package: &'_ Package| -> Vec<_> {
        [None, Some("build")].iter().flat_map(|kind| package.depends_on(*kind)).map(str::to_owned).collect()
    };
    workspace
        .values()
        .flat_map(|package| normal(package).into_iter().map(|dependency| (package.name.as_str(), dependency)))
        .filter_map(|(from, to)| Some((from, workspace.get_key_value(&to)?.0.as_str())))
        .collect()
}

#[test]
fn architecture_md_draws_the_crates_dependencies() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let drawing = text.split("```mermaid").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let drawn: BTreeSet<_> = drawing.lines().filter_map(|line| line.trim().split_once(" --> ")).collect();
    let workspace = workspace();
    let actual = arrows(&workspace);
    let missing: Vec<_> = actual.difference(&drawn).collect();
    let gone: Vec<_> = drawn.difference(&actual).collect();
    assert!(missing.is_empty(), "the manifests have arrows that ARCHITECTURE.md does not draw: {missing:?}");
    assert!(gone.is_empty(), "ARCHITECTURE.md draws arrows that the manifests do not have: {gone:?}");
}

#[test]
fn nothing_depends_on_a_service() {
    let workspace = workspace();
    for package in workspace.values() {
        for dependency in package.dependencies.iter().filter_map(|one| workspace.get(&one.name)) {
            assert!(!dependency.is_service(), "{} depends on the service {}", package.name, dependency.name);
        }
    }
    assert_eq!(workspace.values().filter(|package| package.is_service()).count(), 5);
}

#[test]
fn crates_without_carts_depend_on_none_with_carts() {
    let workspace = workspace();
    let arrows = arrows(&workspace);
    let needs = |name: &str| -> Vec<&str> { arrows.iter().filter(|(from, _)| *from == name).map(|(_, to)| *to).collect() };
    assert!(needs("event-store").is_empty());
    assert!(needs("cart-events").is_empty());
    assert!(needs("version").is_empty());
    assert!(needs("embedded").is_empty());
    assert!(needs("event-model").is_empty());
    let known = [
        ("kafka", &["event-store"] as &[_]),
        ("migrate", &["event-store"]),
        ("operations", &["event-store", "kafka", "projections"]),
        ("projections", &["event-store"]),
        ("service", &["event-store", "projections"]),
        ("test-support", &["event-store", "projections"]),
    ];
    for (name, expected) in known {
        let others: Vec<_> = needs(name).into_iter().filter(|needed| *needed != "version").collect();
        assert_eq!(others, expected, "{name}");
    }
}

#[test]
fn only_these_crates_know_a_cart() {
    let workspace = workspace();
    let knows_carts = |name: &str| ["cart-events", "cartctl", "bench"].contains(&name) || workspace[name].is_service();
    for (from, to) in arrows(&workspace) {
        assert!(knows_carts(from) || !knows_carts(to), "{from} depends on {to}, which knows a cart");
    }
}

#[test]
fn cart_events_has_no_input_or_output() {
    let workspace = workspace();
    let needs = workspace["cart-events"].depends_on(None);
    for io in ["actix-web", "rdkafka", "reqwest", "sqlx", "tokio"] {
        assert!(!needs.contains(io), "cart-events depends on {io}");
    }
}

#[test]
fn nothing_depends_on_bench_system_tests_or_cartctl() {
    for package in workspace().values() {
        let dependency = package.dependencies.iter().find(|one| ["bench", "system-tests", "cartctl"].contains(&one.name.as_str()));
        assert!(dependency.is_none(), "{} depends on {:?}", package.name, dependency.map(|one| &one.name));
    }
}

#[test]
fn only_bench_depends_on_disintegrate_postgres() {
    for package in workspace().values().filter(|package| package.name != "bench") {
        assert!(package.dependencies.iter().all(|one| one.name != "disintegrate-postgres"), "{}", package.name);
    }
}
