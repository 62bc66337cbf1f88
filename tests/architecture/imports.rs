//! The order of modules, the circles of files, and the "May use:" lines.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    MAX_COLUMNS,
    source::{Crate, Module},
};

/// The top-level modules, lowest first. A module may use any before it, and none after it.
const ORDER: [&str; 38] = [
    "sse",
    "event",
    "ws_frame",
    "config",
    "envelope",
    "rejected",
    "error_chain",
    "printable",
    "client_address",
    "log_limit",
    "wall_clock",
    "near_name",
    "wake_state",
    "timer_wheel",
    "shutdown",
    "webhook_delivery",
    "scope_index",
    "metrics",
    "log",
    "store",
    "fanout",
    "feed",
    "subscription",
    "auth",
    "net",
    "admission",
    "subscriber",
    "outbound",
    "webhook",
    "shard",
    "upstream",
    "http",
    "ingest",
    "simulate",
    "app",
    "cli",
    "laws",
    "bench_support",
];

/// Pairs of modules of which the first must not use the second although the order would allow it.
const FORBIDDEN_PAIRS: [(&str, &str); 8] = [
    ("webhook", "auth"),
    ("upstream", "webhook"),
    ("upstream", "http"),
    ("upstream", "fanout"),
    ("upstream", "log"),
    ("ingest", "http"),
    ("ingest", "fanout"),
    ("log", "auth"),
];

/// Modules that are functions of their input: no runtime, no disk, no socket.
const PURE: [&str; 11] = [
    "sse/mod.rs",
    "near_name.rs",
    "envelope/mod.rs",
    "envelope/payload.rs",
    "envelope/published.rs",
    "upstream/backoff.rs",
    "event/mod.rs",
    "event/id.rs",
    "event/kind.rs",
    "event/scope.rs",
    "event/value_set.rs",
];

#[test]
fn imports_point_one_way() {
    let source = Crate::read();
    let mut wrong = Vec::new();
    for (path, module) in source.modules() {
        let Some(own) = path.first() else { continue };
        for used in top_level_uses(path, module) {
            if rank(used) > rank(own) || FORBIDDEN_PAIRS.contains(&(own, used)) {
                wrong.push(format!("{}: {own} uses {used}", module.file));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pure_modules_use_no_runtime_and_no_disk() {
    let source = Crate::read();
    let forbidden =
        ["tokio::sync", "tokio::task", "tokio::net", "std::fs", "std::net", "hyper", "axum"];
    let mut seen = 0;
    for (_, module) in source.modules().filter(|(_, module)| PURE.contains(&&*module.file)) {
        seen += 1;
        let found = forbidden.iter().find(|name| module.text.contains(**name));
        assert!(found.is_none(), "{} uses {found:?}", module.file);
    }
    assert_eq!(seen, PURE.len(), "each of PURE is a file of the crate");
}

/// Checks the lines, or writes them if `AUTOPLAY_RELAY_WRITE=1` is set.
#[test]
fn the_may_use_line_of_each_header_is_true() {
    let source = Crate::read();
    let writes = std::env::var_os("AUTOPLAY_RELAY_WRITE").is_some();
    let mut wrong = Vec::new();
    for (path, module) in source.in_binary().filter(|(path, _)| !path.is_empty()) {
        let uses: BTreeSet<&str> = top_level_uses(path, module).collect();
        let line = may_use_line(&uses);
        let (header, rest) = split_header(&module.text);
        if !header.ends_with(&format!("//!\n{line}")) {
            wrong.push(format!("{}: the header ends with\n{line}", module.file));
            if writes {
                let start = header.find("//! May use:").unwrap_or(header.len());
                let text = header[..start].trim_end_matches("//!\n").to_owned();
                module.write(&format!("{text}//!\n{line}{rest}"));
            }
        }
    }
    assert!(writes || wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let source = Crate::read();
    let mut arrows: BTreeMap<&[String], BTreeSet<&[String]>> = BTreeMap::new();
    for (path, module) in source.in_binary() {
        let targets = module.paths.iter().map(|used| source.definer_of(used));
        arrows.entry(path).or_default().extend(targets.filter(|target| *target != path));
    }
    let reached: BTreeMap<_, _> =
        arrows.keys().map(|start| (*start, reachable(&arrows, start))).collect();
    let mut circles = BTreeSet::new();
    for (start, targets) in &reached {
        let back = targets
            .iter()
            .filter(|target| reached.get(*target).is_some_and(|back| back.contains(start)));
        let circle: BTreeSet<String> = back.map(|path| path.join("::")).collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

fn reachable<'a>(
    arrows: &BTreeMap<&'a [String], BTreeSet<&'a [String]>>,
    start: &[String],
) -> BTreeSet<&'a [String]> {
    let mut found = BTreeSet::new();
    let mut waiting: Vec<&[String]> = arrows[start].iter().copied().collect();
    while let Some(next) = waiting.pop() {
        let (path, _) = arrows.get_key_value(next).expect("each target is a module of the binary");
        if found.insert(*path) {
            waiting.extend(arrows[next].iter().copied());
        }
    }
    found
}

/// Returns the top-level modules other than its own that a file's code names.
fn top_level_uses<'a>(path: &'a [String], module: &'a Module) -> impl Iterator<Item = &'a str> {
    let exported = module.reexports.iter().map(|(_, origin)| origin);
    let names = module.paths.iter().chain(exported).filter_map(|used| used.first());
    let is_module = |name: &&String| name.chars().all(|letter| !letter.is_uppercase());
    names.filter(is_module).filter(|name| Some(*name) != path.first()).map(String::as_str)
}

/// Returns the last paragraph of a header, in lines of the usual width.
fn may_use_line(uses: &BTreeSet<&str>) -> String {
    let names: Vec<_> = uses.iter().map(|name| format!("`{name}`")).collect();
    let mut lines = vec!["//! May use:".to_owned()];
    if names.is_empty() {
        lines[0] += " no other module.";
    }
    for (index, name) in names.iter().enumerate() {
        let end = if index + 1 == names.len() { "." } else { "," };
        let last = lines.last_mut().expect("there is a first line");
        if last.chars().count() + name.len() + 2 > MAX_COLUMNS {
            lines.push(format!("//! {name}{end}"));
        } else {
            *last += &format!(" {name}{end}");
        }
    }
    lines.join("\n") + "\n"
}

/// Splits a file after its header, the lines that begin with `//!`.
fn split_header(text: &str) -> (&str, &str) {
    let header = text.split_inclusive('\n').take_while(|line| line.starts_with("//!"));
    text.split_at(header.map(str::len).sum())
}

fn rank(module: &str) -> usize {
    let rank = ORDER.iter().position(|known| *known == module);
    rank.unwrap_or_else(|| panic!("{module} has no place in ORDER"))
}
