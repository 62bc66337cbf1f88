//! The configuration as a whole: rules across sections, and reading of files.

mod reload;
mod sample;

use super::*;

/// Returns the configuration of this text, without environment variables.
pub(super) fn parsed(text: &str) -> Config {
    parsed_with(text, &Environment::default())
}

pub(super) fn parsed_with(text: &str, environment: &Environment) -> Config {
    attempt(text, environment, AllowAnonymous::OnLoopback).unwrap_or_else(|found| panic!("{found}"))
}

/// Returns the findings about this text, without environment variables.
pub(super) fn findings(text: &str) -> String {
    attempt(text, &Environment::default(), AllowAnonymous::OnLoopback)
        .expect_err("something is wrong")
}

fn attempt(
    text: &str,
    environment: &Environment,
    anonymous: AllowAnonymous,
) -> Result<Config, String> {
    Config::parse(text, "relay.toml", environment, anonymous)
        .map_err(|findings| findings.to_string())
}

#[test]
fn anonymous_subscribers_need_loopback_or_the_flag() {
    let outside = "[server]\nlisten = '0.0.0.0:80'\n[auth]\nallow_anonymous = true";
    let found = findings(outside);
    assert!(found.starts_with("relay.toml:2: server.listen: 0.0.0.0:80 can be reached"), "{found}");
    assert!(
        found.contains("auth.allow_anonymous") && found.contains("--allow-anonymous"),
        "{found}"
    );
    assert!(
        attempt(outside, &Environment::default(), AllowAnonymous::Anywhere)
            .unwrap()
            .auth
            .allow_anonymous
    );
    for loopback in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
        assert!(parsed(&outside.replace("0.0.0.0:80", loopback)).auth.allow_anonymous);
    }
    // The default listen is not loopback either.
    assert!(
        findings("[auth]\nallow_anonymous = true")
            .starts_with("relay.toml:2: auth.allow_anonymous: [::]:8080 can")
    );
}

#[test]
fn the_flag_alone_admits_no_anonymous_client() {
    let config = attempt("", &Environment::default(), AllowAnonymous::Anywhere).unwrap();
    assert!(!config.auth.allow_anonymous);
}

#[test]
fn without_an_admin_key_the_admin_listener_is_on_loopback() {
    let outside = "[server]\nadmin_listen = '0.0.0.0:9090'\n";
    let found = findings(outside);
    assert!(
        found.starts_with("relay.toml:2: server.admin_listen: ")
            && found.contains("auth.admin_key"),
        "{found}"
    );
    parsed(&format!("{outside}[auth]\nadmin_key = 'hush'"));
}

#[test]
fn an_invalid_value_is_reported_once_and_not_again_by_a_rule_across_sections() {
    let found = findings(
        "[server]\nlisten = 'x'\nadmin_listen = '0.0.0.0:1'\n[auth]\nallow_anonymous = true\nadmin_key_env = 'NO'",
    );
    assert_eq!(found.lines().count(), 2, "{found}");
    assert!(
        found.contains("server.listen: \"x\"")
            && found.contains("auth.admin_key_env: names \"NO\""),
        "{found}"
    );
}

#[test]
fn a_finding_in_a_variable_names_the_variable() {
    let environment = [
        ("AUTOPLAY_RELAY__SERVER__WRITE_TIMEOUT", "30"),
        ("AUTOPLAY_RELAY__SERVER__TRUSTED_PROXIES", "::1,x"),
    ];
    let found =
        attempt("", &environment.into_iter().collect(), AllowAnonymous::OnLoopback).unwrap_err();
    let (proxies, timeout) = found.split_once('\n').unwrap();
    assert!(
        proxies.starts_with(
            "AUTOPLAY_RELAY__SERVER__TRUSTED_PROXIES: server.trusted_proxies[1]: \"x\" is not"
        ),
        "{found}"
    );
    assert!(
        timeout.starts_with(
            "AUTOPLAY_RELAY__SERVER__WRITE_TIMEOUT: server.write_timeout: \"30\" is not a duration"
        ),
        "{found}"
    );
}

#[test]
fn a_file_is_loaded_by_its_path_and_an_unreadable_one_is_found() {
    let path = std::env::temp_dir().join(format!("relay-config-{}.toml", std::process::id()));
    std::fs::write(&path, "[server]\nlisten = '127.0.0.1:1'").unwrap();
    let config = Config::load(&path, &Environment::default(), AllowAnonymous::OnLoopback);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(config.unwrap().server.listen.port(), 1);
    let found = Config::load(&path, &Environment::default(), AllowAnonymous::OnLoopback)
        .unwrap_err()
        .to_string();
    assert!(found.starts_with(&format!("{}: cannot read the file: ", path.display())), "{found}");
}

#[test]
fn no_more_of_a_file_is_read_than_a_configuration_may_have() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let load = || Config::load(file.path(), &Environment::default(), AllowAnonymous::OnLoopback);
    let max_bytes = 4 << 20;
    std::fs::write(&file, "#".repeat(max_bytes)).unwrap();
    assert!(load().is_ok());
    // The bound is within a character, and the file must still be reported as too large.
    std::fs::write(&file, format!("#{}", "\u{e9}".repeat(max_bytes / 2))).unwrap();
    let found = load().unwrap_err().to_string();
    assert!(
        found.starts_with(&format!("{}: is larger than 4 MiB; ", file.path().display())),
        "{found}"
    );
    std::fs::write(&file, b"\xff").unwrap();
    assert!(
        load().unwrap_err().to_string().ends_with("cannot read the file: it is not UTF-8 text")
    );
}

#[test]
fn a_mistake_in_one_key_does_not_hide_a_repeat_of_another() {
    let found = findings(
        "[[upstreams]]\nproduct_id = 'a'\nurl = 'x'\n[[upstreams]]\nproduct_id = 'a'\nurl = 'http://h'",
    );
    assert!(
        found.contains("upstreams[0].url")
            && found.contains("upstreams[1].product_id: is the same"),
        "{found}"
    );
}
