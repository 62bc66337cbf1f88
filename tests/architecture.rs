//! Imports point one way: a room knows only the rooms below it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The rooms, lowest first. A room may use any room before it, and none after it.
const ROOMS: [&str; 28] = [
    "sse",
    "event",
    "config",
    "envelope",
    "rejected",
    "error_chain",
    "log_limit",
    "timer_wheel",
    "shutdown",
    "webhook_delivery",
    "metrics",
    "log",
    "store",
    "fanout",
    "auth",
    "net",
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
    "lib",
];

/// Imports against the order that the move into this layout leaves, until the types between them have modules of their own.
const OPEN: [(&str, &str); 2] = [("log", "store"), ("shard", "http")];

/// Pairs that must not know each other although their order would allow it.
const STRANGERS: [(&str, &str); 8] = [
    ("webhook", "auth"),
    ("upstream", "webhook"),
    ("upstream", "http"),
    ("upstream", "fanout"),
    ("upstream", "log"),
    ("ingest", "http"),
    ("ingest", "fanout"),
    ("log", "auth"),
];

#[test]
fn imports_point_one_way() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let room = room_of(&file);
        let text = fs::read_to_string(&file).expect("a source file can be read");
        for used in used_rooms(&text) {
            seen += 1;
            if used == room {
                continue;
            }
            if rank(&used) > rank(&room) && !OPEN.contains(&(&room, &used)) || STRANGERS.contains(&(&room, &used)) {
                wrong.push(format!("{}: {room} uses {used}", file.display()));
            }
        }
    }
    assert!(seen > 50, "the test finds the imports: {seen}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_pure_touches_no_runtime_and_no_disk() {
    let event = ["event/mod.rs", "event/id.rs", "event/kind.rs", "event/scope.rs"];
    let envelope = ["envelope/mod.rs", "envelope/payload.rs", "envelope/published.rs"];
    for file in ["sse/mod.rs", "upstream/backoff.rs"].into_iter().chain(event).chain(envelope) {
        let room = file;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let text = fs::read_to_string(&file).expect("a source file can be read");
        for forbidden in ["tokio::sync", "tokio::task", "tokio::net", "std::fs", "std::net", "hyper", "axum"] {
            assert!(!text.contains(forbidden), "{room} uses {forbidden}");
        }
    }
}

/// A threat whose test has gone, or has another name, is one that nobody watches.
#[test]
fn every_test_that_the_page_on_security_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/security.md")).expect("the page can be read");
    let (mut file, mut text, mut named) = (String::new(), String::new(), 0);
    for word in page.split('`').skip(1).step_by(2) {
        if [".rs", ".py"].iter().any(|ending| word.ends_with(ending)) {
            file = word.to_owned();
            text = fs::read_to_string(root.join(word)).unwrap_or_else(|error| panic!("{word}: {error}"));
        } else if word.matches('_').count() > 2 && word == word.to_lowercase() {
            let is_there = ["fn", "def"].iter().any(|keyword| text.contains(&format!("{keyword} {word}(")));
            assert!(is_there, "{word} in {file}");
            named += 1;
        }
    }
    assert!(named > 60, "the test finds the names: {named}");
}

fn rank(room: &str) -> usize {
    let rank = ROOMS.iter().position(|known| *known == room);
    rank.expect("every room has a place in ROOMS")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("src can be listed") {
        let path = entry.expect("src can be listed").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// `src/log/ring/mod.rs` and `src/log/mod.rs` are the room `log`.
fn room_of(file: &Path) -> String {
    let inside = file.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).expect("it is in src");
    let first = inside.components().next().expect("it has a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Every room named by `crate::room`, in import lists of several levels, too.
fn used_rooms(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut rooms = BTreeSet::new();
    for (at, marker) in code.match_indices("crate::") {
        let rest = &code[at + marker.len()..];
        if let Some(list) = rest.strip_prefix('{') {
            rooms.extend(top_level(list));
        } else {
            rooms.insert(name(rest));
        }
    }
    rooms.remove("");
    rooms
}

/// The names directly inside a brace that has just been opened.
fn top_level(list: &str) -> Vec<String> {
    let mut depth = 0_usize;
    let mut names = Vec::new();
    let mut is_start = true;
    for (at, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_start = true,
            _ if letter.is_whitespace() => {}
            _ if is_start => {
                names.push(name(&list[at..]));
                is_start = false;
            }
            _ => {}
        }
    }
    names
}

fn name(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}
