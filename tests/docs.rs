//! Checks of the documentation: configurations are accepted, references match the program, links
//! lead to existing headings.
//!
//! `AUTOPLAY_RELAY_WRITE=1 cargo test --test docs` writes the references.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use common::{
    PRODUCT, connector::Connector, events::event, process::Process, relay::Setup, tls::Authority,
    wait,
};

#[test]
fn every_configuration_in_the_docs_is_accepted() {
    let authority = Authority::new();
    authority.issue_as("leaf", "DNS:localhost", "-days 2");
    fs::write(authority.path("secret"), "0123456789abcdef0123456789abcdef").unwrap();
    let mut shown = 0;
    for page in pages() {
        for block in blocks(&fs::read_to_string(&page).unwrap(), "toml") {
            let done = check(&completed(&block), &authority);
            assert_eq!(done.0, Some(0), "{}: {}\n{block}", page.display(), done.2);
            shown += 1;
        }
    }
    assert!(shown >= 8, "the test finds them: {shown}");
}

#[test]
fn the_configuration_page_has_every_key_with_its_default() {
    let path = root().join("docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let block = blocks(&page, "toml").into_iter().next().unwrap();
    let defaults = keys(&check(MINIMAL, &Authority::new()).1);
    let given: BTreeSet<String> = keys(MINIMAL).into_keys().collect();
    let mut section = String::new();
    let mut seen = BTreeSet::new();
    let mut lines = Vec::new();
    for line in block.lines() {
        if let Some(name) = header(line) {
            section = name.to_owned();
        }
        let Some((key, rest)) = line.split_once(" = ") else {
            lines.push(line.to_owned());
            continue;
        };
        let path = format!("{section}.{key}");
        let Some(default) = defaults.get(&path).filter(|_| !given.contains(&path)) else {
            let is_known =
                ["_env", "_file"].iter().any(|form| key.ends_with(form)) || given.contains(&path);
            assert!(is_known, "{path} is no key");
            seen.insert(path.replace("_env", "").replace("_file", ""));
            lines.push(line.to_owned());
            continue;
        };
        let (_, comment) = rest.split_once(" #").unwrap_or_else(|| panic!("{path} has no comment"));
        let column = line.find(" #").unwrap();
        lines.push(format!("{:column$} #{comment}", format!("{key} = {default}")));
        seen.insert(path);
    }
    let missing: Vec<&String> =
        defaults.keys().chain(&given).filter(|key| !seen.contains(*key)).collect();
    assert!(missing.is_empty(), "not on the page: {missing:?}");
    compare_or_write(&path, &page, &page.replace(&block, &format!("{}\n", lines.join("\n"))));
}

#[test]
fn the_metrics_page_has_every_metric_with_its_type_labels_and_help() {
    let connector = Connector::new();
    let hook = format!(
        "[[webhooks]]\nid = 'crm'\nproduct_id = '{PRODUCT}'\nurl = 'http://127.0.0.1:1/'\nsecret = 'x'\n"
    );
    let relay = Setup::behind(&connector).more(&hook).start();
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.event(event(1));
    assert_eq!(subscriber.numbers(1), [1]);
    drop(subscriber);
    let gone = "autoplay_relay_subscriber_disconnects_total{";
    let text = wait::value("a subscriber is counted as gone", || {
        Some(relay.ask_admin("/metrics").text()).filter(|text| text.contains(gone))
    });
    let mut table = String::from("| name | type | labels | tells |\n|---|---|---|---|\n");
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let metrics = relay.metrics();
    for (name, help) in helps {
        let kind = metrics.kind(name).unwrap();
        let sample = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
        let labels = metrics.label_names(&sample).unwrap().join("`, `");
        let labels = if labels.is_empty() { labels } else { format!("`{labels}`") };
        table += &format!("| `{name}` | {kind} | {labels} | {help} |\n");
    }
    let path = root().join("docs/metrics.md");
    let page = fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once("| name |").unwrap();
    let foot = rest.split_once("\n\n").unwrap().1;
    compare_or_write(&path, &page, &format!("{head}{table}\n{foot}"));
}

#[test]
fn every_link_within_the_repository_leads_to_a_file_and_a_heading() {
    let mut followed = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !anchor.is_empty() {
                let headings = fs::read_to_string(&target).unwrap();
                let is_there =
                    headings.lines().any(|line| line.starts_with('#') && slug(line) == anchor);
                assert!(is_there, "{}: {link}", page.display());
            }
            followed += 1;
        }
    }
    assert!(followed > 30, "the test finds them: {followed}");
}

/// Compares a page with its expected text, or writes it.
fn compare_or_write(path: &Path, actual: &str, expected: &str) {
    if std::env::var_os("AUTOPLAY_RELAY_WRITE").is_some() {
        fs::write(path, expected).unwrap();
    } else {
        let differing = actual.lines().zip(expected.lines()).find(|(is, should)| is != should);
        assert!(
            actual == expected,
            "run AUTOPLAY_RELAY_WRITE=1 cargo test --test docs: {differing:?}"
        );
    }
}

/// Returns the paths of all pages for users.
fn pages() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md"), root().join("helm/autoplay-relay/README.md")];
    for folder in ["docs", "docs/runbooks"] {
        let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        found.extend(
            entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")),
        );
    }
    found
}

/// Returns the texts of a page's code blocks in one language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fenced = page.split("\n```").skip(1).step_by(2);
    fenced
        .filter_map(|block| {
            Some(format!("{}\n", block.strip_prefix(language)?.strip_prefix('\n')?))
        })
        .collect()
}

/// Completes a part of a configuration with an upstream, unless it has one.
fn completed(block: &str) -> String {
    let mut text = block.to_owned();
    if !block.contains("[[upstreams]]") {
        text += "\n[[upstreams]]\nproduct_id = 'prod_abc'\nurl = 'https://connector.example.com/stream/prod_abc'\n";
    }
    text
}

/// Runs `check` on a configuration whose variables and files all exist: returns exit code, output
/// and findings.
fn check(text: &str, authority: &Authority) -> (Option<i32>, String, String) {
    let mut variables = Vec::new();
    let with_files = text.lines().map(|line| {
        let value = line.split('"').nth(1).filter(|value| !value.is_empty());
        let Some((key, value)) = line.split_once(" = ").map(|(key, _)| key).zip(value) else {
            return line.to_owned();
        };
        if key.ends_with("_env") {
            variables.push((value, "0123456789abcdef0123456789abcdef"));
        }
        let name = match key {
            "tls_cert_file" => "leaf.pem",
            "tls_key_file" => "leaf.key",
            "ca_file" => "ca.pem",
            key if key.ends_with("_file") => "secret",
            _ => return line.to_owned(),
        };
        format!("{key} = '{}'", authority.path(name).display())
    });
    let with_files: Vec<String> = with_files.collect();
    let file = authority.path("relay.toml");
    fs::write(&file, with_files.join("\n")).unwrap();
    let done = Process::run(&["check", "--config", file.to_str().unwrap()], &variables);
    (done.code, done.stdout, done.stderr)
}

/// Returns the values of all keys by `section.key`.
fn keys(text: &str) -> BTreeMap<String, String> {
    let mut section = "";
    let mut found = BTreeMap::new();
    for line in text.lines() {
        section = header(line).unwrap_or(section);
        if let Some((key, value)) = line.split_once(" = ") {
            found.insert(format!("{section}.{key}"), value.to_owned());
        }
    }
    found
}

/// Returns the name of the table that a line begins.
fn header(line: &str) -> Option<&str> {
    Some(line.trim_start_matches('[').split_once(']')?.0).filter(|_| line.starts_with('['))
}

/// Returns the anchor of a heading.
fn slug(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.collect::<String>().replace(' ', "-")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A configuration with one table of each kind and the keys without a default.
const MINIMAL: &str = r#"
[[upstreams]]
product_id = "p"
url = "http://h/stream/p"
token = "x"
[[products]]
product_id = "published"
[auth]
admin_key = "x"
[[auth.keys]]
name = "a"
key = "x"
products = ["p"]
[auth.jwt]
secret = "0123456789abcdef0123456789abcdef"
previous_secret = "0123456789abcdef0123456789abcdeg"
[[webhooks]]
id = "w"
product_id = "p"
url = "https://h/w"
secret = "x"
"#;
