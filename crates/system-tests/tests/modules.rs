//! The modules of each crate use each other in one direction: there is no cycle between files.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot continue fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module's path below the crate's root; the root's own is empty.
type ModulePath = Vec<String>;

/// The names of other modules in a file.
#[derive(Debug, Default)]
struct Source {
    /// The imported names, with their paths.
    imports: Vec<Import>,
    /// Paths in code that begin with `crate`, `super`, `self` or a module of this one.
    paths: Vec<ModulePath>,
    /// All other words of the code.
    words: BTreeSet<String>,
}

#[derive(Debug)]
struct Import {
    name: String,
    path: ModulePath,
    is_public: bool,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The source folder of each crate, by the crate's name.
fn crates() -> BTreeMap<String, PathBuf> {
    ["crates", "services"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(root().join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("Cargo.toml").exists())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path.join("src")))
        .collect()
}

/// Every module of a crate but those of tests, by its path.
fn modules(source: &Path) -> BTreeMap<ModulePath, Source> {
    fn collect(folder: &Path, path: &ModulePath, texts: &mut BTreeMap<ModulePath, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap().path();
            let name = entry.file_stem().unwrap().to_string_lossy().into_owned();
            let below: ModulePath = path.iter().cloned().chain([name.clone()]).collect();
            if name == "tests" || name == "bin" {
                continue;
            }
            if entry.is_dir() {
                collect(&entry, &below, texts);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let is_second_root = name == "main" && folder.join("lib.rs").exists();
                let own = if matches!(name.as_str(), "lib" | "main" | "mod") { path.clone() } else { below };
                if !is_second_root {
                    texts.insert(own, std::fs::read_to_string(&entry).unwrap());
                }
            }
        }
    }
    let mut texts = BTreeMap::new();
    collect(source, &vec![], &mut texts);
    let known: BTreeSet<ModulePath> = texts.keys().cloned().collect();
    texts.iter().map(|(path, text)| (path.clone(), parse(path, text, &known))).collect()
}

/// Splits a file into words and punctuation, without comments, strings and test modules.
fn tokens(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let at = |index: usize| characters.get(index).copied().unwrap_or('\0');
    let (mut tokens, mut i) = (vec![], 0);
    while i < characters.len() {
        match characters[i] {
            '/' if at(i + 1) == '/' => {
                while i < characters.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            'r' if at(i + 1) == '#' && at(i + 2) == '"' => {
                i += 3;
                while i < characters.len() && !(at(i) == '"' && at(i + 1) == '#') {
                    i += 1;
                }
                i += 2;
            }
            '"' => {
                i += 1;
                while i < characters.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            // A character, and not a lifetime.
            '\'' if at(i + 1) == '\\' => i = (i + 3..characters.len()).find(|end| at(*end) == '\'').unwrap_or(characters.len()) + 1,
            '\'' if at(i + 2) == '\'' => i += 3,
            c if c.is_alphanumeric() || c == '_' => {
                let end = (i..characters.len()).find(|end| !(at(*end).is_alphanumeric() || at(*end) == '_')).unwrap_or(characters.len());
                tokens.push(characters[i..end].iter().collect());
                i = end;
            }
            ':' if at(i + 1) == ':' => {
                tokens.push("::".to_owned());
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                i += 1;
            }
        }
    }
    without_tests(&tokens)
}

fn without_tests(tokens: &[String]) -> Vec<String> {
    let mut kept = vec![];
    let mut i = 0;
    while i < tokens.len() {
        let begins = |words: &[&str]| tokens[i..].iter().map(String::as_str).take(words.len()).eq(words.iter().copied());
        if begins(&["#", "[", "cfg", "(", "test", ")", "]"]) {
            // Skip the whole item: up to its semicolon or its closing bracket.
            let mut depth = 0;
            i += 7;
            while i < tokens.len() {
                match tokens[i].as_str() {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    _ => {}
                }
                i += 1;
                if depth == 0 && matches!(tokens[i - 1].as_str(), ";" | "}") {
                    break;
                }
            }
        } else {
            kept.push(tokens[i].clone());
            i += 1;
        }
    }
    kept
}

fn parse(module: &ModulePath, text: &str, known: &BTreeSet<ModulePath>) -> Source {
    let tokens = tokens(text);
    let mut source = Source::default();
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i] == "use" {
            let is_public = i > 0 && matches!(tokens[i - 1].as_str(), "pub" | ")");
            let end = (i..tokens.len()).find(|end| tokens[*end] == ";").unwrap_or(tokens.len());
            for (name, path) in used(&tokens[i + 1..end]) {
                if let Some(path) = absolute(module, &path, known) {
                    source.imports.push(Import { name, path, is_public });
                }
            }
            i = end;
        } else if i > 0 && tokens[i - 1] == "::" {
            i += 1;
        } else {
            let mut path = vec![tokens[i].clone()];
            while tokens.get(i + 1).is_some_and(|token| token == "::") && tokens.get(i + 2).is_some_and(|token| is_word(token)) {
                path.push(tokens[i + 2].clone());
                i += 2;
            }
            if path.len() > 1
                && let Some(path) = absolute(module, &path, known)
            {
                source.paths.push(path);
            } else {
                source.words.insert(path[0].clone());
            }
            i += 1;
        }
    }
    source
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Returns the names that an import tree imports, each with its path.
fn used(tree: &[String]) -> Vec<(String, ModulePath)> {
    let mut prefix: ModulePath = vec![];
    let mut i = 0;
    while i < tree.len() {
        match tree[i].as_str() {
            "{" => {
                let (mut all, mut depth, mut start) = (vec![], 0, i + 1);
                for (end, token) in tree.iter().enumerate().skip(i) {
                    match token.as_str() {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 || (depth == 1 && token == ",") {
                        all.extend(used(&tree[start..end]));
                        start = end + 1;
                    }
                }
                let below = |path: ModulePath| prefix.iter().cloned().chain(path).collect();
                return all.into_iter().map(|(name, path)| (name, below(path))).collect();
            }
            "as" => return vec![(tree[i + 1].clone(), prefix)],
            "::" => {}
            // A path that ends in `self` imports the module itself.
            "self" if !prefix.is_empty() || i + 1 == tree.len() => {}
            word => prefix.push(word.to_owned()),
        }
        i += 1;
    }
    if tree.is_empty() { vec![] } else { vec![(prefix.last().cloned().unwrap_or_default(), prefix)] }
}

/// Returns the path from the crate's root; none if it leads out of the crate.
fn absolute(module: &ModulePath, path: &[String], known: &BTreeSet<ModulePath>) -> Option<ModulePath> {
    let below = |module: &[String], rest: &[String]| Some(module.iter().chain(rest).cloned().collect());
    let ups = path.iter().take_while(|part| *part == "super").count();
    match path.first()?.as_str() {
        "crate" => below(&[], &path[1..]),
        "self" => below(module, &path[1..]),
        "super" => below(&module[..module.len().checked_sub(ups)?], &path[ups..]),
        first => {
            let child: ModulePath = module.iter().cloned().chain([first.to_owned()]).collect();
            if known.contains(&child) { below(module, path) } else { None }
        }
    }
}

/// Finds the module that defines what a path names. Follows re-exports.
fn defined_in(path: &[String], modules: &BTreeMap<ModulePath, Source>, depth: usize) -> ModulePath {
    let module = (0..=path.len()).rev().map(|length| &path[..length]).find(|prefix| modules.contains_key(*prefix)).unwrap();
    let Some(name) = path.get(module.len()).filter(|_| depth < 8) else { return module.to_vec() };
    let import = modules[module].imports.iter().find(|import| import.name == *name && import.path != path);
    import.map_or_else(|| module.to_vec(), |import| defined_in(&import.path, modules, depth + 1))
}

/// Returns the modules that each module uses.
fn arrows(modules: &BTreeMap<ModulePath, Source>) -> BTreeMap<&ModulePath, BTreeSet<ModulePath>> {
    modules
        .iter()
        .map(|(module, source)| {
            // A re-export alone is no use.
            let imports = source.imports.iter().filter(|import| !import.is_public || source.words.contains(&import.name));
            let paths = imports.map(|import| &import.path).chain(&source.paths);
            let targets = paths.map(|path| defined_in(path, modules, 0)).filter(|target| target != module);
            (module, targets.collect())
        })
        .collect()
}

/// Returns the arrows that are part of a cycle.
fn cycles(modules: &BTreeMap<ModulePath, Source>) -> BTreeSet<String> {
    let arrows = arrows(modules);
    let leads_to = |from: &ModulePath, to: &ModulePath| {
        let (mut reached, mut open) = (BTreeSet::from([from]), vec![from]);
        while let Some(module) = open.pop() {
            open.extend(arrows[module].iter().filter(|target| reached.insert(target)));
        }
        reached.contains(to)
    };
    let name = |module: &ModulePath| if module.is_empty() { "the root".to_owned() } else { module.join("::") };
    let all = arrows.iter().flat_map(|(from, targets)| targets.iter().map(move |to| (*from, to)));
    all.filter(|(from, to)| leads_to(to, from)).map(|(from, to)| format!("{} -> {}", name(from), name(to))).collect()
}

#[test]
fn crates_have_no_module_cycles() {
    let mut wrong = vec![];
    for (name, source) in crates() {
        let cycles = cycles(&modules(&source));
        if !cycles.is_empty() {
            wrong.push(format!("{name}: {cycles:#?}"));
        }
    }
    assert!(wrong.is_empty(), "modules that use each other in a circle: {}", wrong.join("\n"));
}

#[test]
fn cycles_are_found_and_re_exports_are_none() {
    let of = |files: &[(&str, &str)]| {
        let path = |name: &str| name.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect::<ModulePath>();
        let known: BTreeSet<ModulePath> = files.iter().map(|(name, _)| path(name)).collect();
        cycles(&files.iter().map(|(name, text)| (path(name), parse(&path(name), text, &known))).collect())
    };
    let root = ("", "mod a; mod b; pub use a::A; pub use b::{B, self as other};");
    assert!(of(&[root, ("a", "pub struct A;"), ("b", "use crate::A; // crate::b\npub struct B(A);")]).is_empty());
    let found = of(&[root, ("a", "pub struct A(crate::B);"), ("b", "use crate::A; pub struct B(A);")]);
    assert_eq!(found, ["a -> b".to_owned(), "b -> a".to_owned()].into());
    // A cycle through the root, which defines something itself.
    let found = of(&[("", "mod a; pub struct C; fn f() { a::g() }"), ("a", "use super::C; pub fn g() {}")]);
    assert_eq!(found, ["a -> the root".to_owned(), "the root -> a".to_owned()].into());
    // Test modules may use everything.
    let tests = "#[cfg(test)] mod tests { use crate::a::g; } pub struct C;";
    assert!(of(&[("", tests), ("a", "use super::C; pub fn g() {}")]).is_empty());
}
