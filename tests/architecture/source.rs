//! The crate's source as a tree of modules, parsed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{Attribute, Item, ItemMod, ItemUse, UseTree, Visibility, visit::Visit};

/// The module `src/lib.rs` and each module below it with a file of its own, by its path in the
/// crate.
pub(crate) struct Crate(BTreeMap<Vec<String>, Module>);

/// One file of the crate.
pub(crate) struct Module {
    /// Path below `src`, such as `log/ring/mod.rs`.
    pub(crate) file: String,
    /// The file's text.
    pub(crate) text: String,
    /// The file, parsed, without what is compiled for tests only.
    pub(crate) code: syn::File,
    /// True if the module is compiled for tests only, or is test support behind a feature.
    pub(crate) is_for_tests: bool,
    /// Names that this file re-exports (`pub use`), with the paths of their origins.
    pub(crate) reexports: Vec<(String, Vec<String>)>,
    /// Paths below the crate that the file's code names, without re-exports.
    pub(crate) paths: BTreeSet<Vec<String>>,
}

impl Module {
    /// Replaces the file's text.
    pub(crate) fn write(&self, text: &str) {
        let written = fs::write(source_dir().join(&self.file), text);
        written.unwrap_or_else(|error| panic!("{}: {error}", self.file));
    }
}

impl Crate {
    /// Reads and parses the crate from `src/lib.rs` on.
    pub(crate) fn read() -> Self {
        let mut modules = Self(BTreeMap::new());
        modules.add(Vec::new(), &source_dir().join("lib.rs"), false);
        assert!(modules.0.len() > 100, "the test finds the modules: {}", modules.0.len());
        modules
    }

    /// Returns every module, its path first.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (&[String], &Module)> {
        self.0.iter().map(|(path, module)| (path.as_slice(), module))
    }

    /// Returns the modules that are part of the binary.
    pub(crate) fn in_binary(&self) -> impl Iterator<Item = (&[String], &Module)> {
        self.modules().filter(|(_, module)| !module.is_for_tests)
    }

    /// Returns the module that defines what `path` names, re-exports followed.
    pub(crate) fn definer_of(&self, path: &[String]) -> &[String] {
        let mut path = path.to_vec();
        // A re-export of a re-export is followed, too; longer chains do not occur.
        for _ in 0..8 {
            let length =
                (0..=path.len()).rev().find(|length| self.0.contains_key(&path[..*length]));
            let (module, rest) = path.split_at(length.unwrap_or(0));
            let reexports = &self.0[module].reexports;
            let Some(name) = rest.first() else { break };
            match reexports.iter().find(|(exported, _)| exported == name) {
                Some((_, origin)) => path = origin.iter().chain(&rest[1..]).cloned().collect(),
                None => break,
            }
        }
        let length = (0..=path.len()).rev().find(|length| self.0.contains_key(&path[..*length]));
        let (found, _) =
            self.0.get_key_value(&path[..length.unwrap_or(0)]).expect("the root is there");
        found
    }

    fn add(&mut self, path: Vec<String>, file: &Path, is_for_tests: bool) {
        let text =
            fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut code =
            syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for item in &code.items {
            if let Item::Mod(ItemMod { content: None, ident, attrs, .. }) = item {
                let child: Vec<_> = path.iter().cloned().chain([ident.to_string()]).collect();
                let child_file = file_of(&child);
                self.add(child, &child_file, is_for_tests || is_test_only(attrs));
            }
        }
        code.items.retain(|item| !is_test_only(attributes_of(item)));
        let mut names = Names { module: &path, paths: BTreeSet::new(), reexports: Vec::new() };
        names.visit_file(&code);
        let Names { paths, reexports, .. } = names;
        let below_source = file.strip_prefix(source_dir()).expect("it is below src");
        let file = below_source.to_string_lossy().into_owned();
        self.0.insert(path, Module { file, text, code, is_for_tests, reexports, paths });
    }
}

/// Collects the paths below the crate that code names.
struct Names<'a> {
    module: &'a [String],
    paths: BTreeSet<Vec<String>>,
    reexports: Vec<(String, Vec<String>)>,
}

impl Names<'_> {
    /// Returns the path from the crate's root on, or nothing for a path of another crate.
    fn below_crate(&self, segments: &[String]) -> Option<Vec<String>> {
        let mut module = self.module.to_vec();
        let mut segments = segments.iter().peekable();
        match segments.peek()?.as_str() {
            "crate" => {
                segments.next();
                module.clear();
            }
            "self" => {
                segments.next();
            }
            "super" => {
                while segments.next_if(|segment| *segment == "super").is_some() {
                    module.pop();
                }
            }
            _ => return None,
        }
        module.extend(segments.cloned());
        Some(module)
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let mut leaves = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut leaves);
        for (segments, name) in leaves {
            let Some(path) = self.below_crate(&segments) else { continue };
            if matches!(item.vis, Visibility::Inherited) {
                self.paths.insert(path);
            } else {
                self.reexports.push((name, path));
            }
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_test_only(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        // A lone `self` or `super` names no module.
        if let Some(path) = self.below_crate(&segments).filter(|_| segments.len() > 1) {
            self.paths.insert(path);
        }
        syn::visit::visit_path(self, path);
    }
}

/// Turns `a::{b, c::d as e}` into `a::b` and `a::c::d`, with the names that they get.
fn flatten(tree: &UseTree, prefix: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, String)>) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, leaves);
            prefix.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, prefix, leaves);
            }
        }
        UseTree::Name(leaf) if leaf.ident == "self" => {
            leaves.push((prefix.clone(), prefix.last().cloned().unwrap_or_default()));
        }
        UseTree::Name(leaf) => leaves.push(leaf_of(prefix, &leaf.ident, &leaf.ident)),
        UseTree::Rename(leaf) => leaves.push(leaf_of(prefix, &leaf.ident, &leaf.rename)),
        UseTree::Glob(_) => leaves.push((prefix.clone(), String::new())),
    }
}

fn leaf_of(prefix: &[String], name: &syn::Ident, new_name: &syn::Ident) -> (Vec<String>, String) {
    (prefix.iter().cloned().chain([name.to_string()]).collect(), new_name.to_string())
}

/// Returns true for `#[cfg(test)]`, and for what only tests, fuzzing or benches compile.
pub(crate) fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let condition = attribute.meta.require_list().expect("cfg has a list").tokens.to_string();
        condition == "test" || condition.contains("fuzzing") || condition.contains("\"micro\"")
    })
}

fn attributes_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Returns the file of a module that is not the root.
///
/// # Panics
///
/// If the file is beside a folder of its name: a module with children is a `mod.rs`.
fn file_of(module: &[String]) -> PathBuf {
    let folder = module.iter().fold(source_dir(), |folder, name| folder.join(name));
    let file = folder.with_extension("rs");
    match (file.exists(), folder.is_dir()) {
        (true, true) => panic!("{} is beside its folder: rename it to mod.rs", file.display()),
        (true, false) => file,
        (false, _) => folder.join("mod.rs"),
    }
}

fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}
