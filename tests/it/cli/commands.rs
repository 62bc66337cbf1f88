//! The commands other than `serve`, and how `serve` starts or fails to start.

use std::net::{SocketAddr, TcpListener};

use crate::common::{
    PRODUCT, STREAM,
    connector::Connector,
    events::event,
    http,
    process::{Finished, Process},
    relay::{Relay, Setup, TOKEN},
    subscriber::Subscriber,
    wait,
};

#[test]
fn check_prints_the_effective_configuration_with_secrets_masked() {
    let setup = Setup::new()
        .upstream(PRODUCT, "http://127.0.0.1:1/stream/prod_abc", "token = 'hush-hush'")
        .server("heartbeat_interval = '90s'");
    let (_directory, file) = setup.write();
    let file = file.to_str().unwrap();
    let done = Process::run(
        &["check", "--config", file],
        &[("AUTOPLAY_RELAY__SERVER__WRITE_TIMEOUT", "7s")],
    );
    assert_eq!(done.code, Some(0), "{done:?}");
    let printed: toml::Table = done.stdout.parse().expect("the output is a configuration");
    let server = printed["server"].as_table().unwrap();
    assert_eq!(server["write_timeout"].as_str(), Some("7s"), "the environment overrides the file");
    assert_eq!(server["head_timeout"].as_str(), Some("10s"), "defaults are shown");
    let upstream = printed["upstreams"][0].as_table().unwrap();
    assert_eq!(upstream["product_id"].as_str(), Some(PRODUCT));
    assert!(!done.stdout.contains("hush-hush") && done.stdout.contains("****"), "{}", done.stdout);
}

#[test]
fn every_error_of_a_configuration_is_reported_with_file_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay.toml");
    let text = "[server]\nlisten = 'nonsense'\nhead_timeout = '10'\ncolour = 'blue'\n\n[[upstreams]]\nurl = 'ftp://x/'\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    for command in ["check", "serve"] {
        let done = Process::run(&[command, "--config", file], &[]);
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{done:?}");
        let finding = |line: usize, key: &str| {
            let found =
                done.stderr.lines().any(|found| found.contains(&format!("{file}:{line}: {key}: ")));
            assert!(found, "line {line}, {key} in:\n{}", done.stderr);
        };
        finding(2, "server.listen");
        finding(3, "server.head_timeout");
        finding(4, "server.colour");
        finding(6, "upstreams[0].product_id");
        finding(7, "upstreams[0].url");
    }
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let done = Process::run(&["check", "--config", "/no/such/relay.toml"], &[]);
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains("/no/such/relay.toml"), "{}", done.stderr);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay.toml");
    std::fs::write(&file, "[server]\n[[").unwrap();
    let done = Process::run(&["check", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains(&format!("{}:2", file.display())), "{}", done.stderr);
}

#[test]
fn invalid_usage_exits_with_2() {
    for arguments in [
        [].as_slice(),
        &["nonsense"],
        &["serve", "--nonsense"],
        &["check"],
        &["tail"],
        &["tail", "ftp://x/"],
        &["simulate", "--heartbeat", "30"],
        &["simulate", "--rate", "0"],
        &["--log-format", "xml", "serve"],
        &["serve"],
    ] {
        let done = Process::run(arguments, &[]);
        assert_eq!(done.code, Some(2), "{arguments:?}: {done:?}");
        assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "{arguments:?}: {done:?}");
    }
}

#[test]
fn anonymous_access_on_a_public_address_requires_a_flag() {
    let setup = Setup::new().server("listen = '0.0.0.0:0'");
    let (_directory, file) = setup.write();
    let file = file.to_str().unwrap();
    let done = Process::run(&["serve", "--config", file], &[]);
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(
        done.stderr.contains("auth.allow_anonymous") && done.stderr.contains("--allow-anonymous"),
        "{done:?}"
    );
    Relay::of(Process::start(
        &["--log-format", "json", "serve", "--config", file, "--allow-anonymous"],
        &[],
    ));
}

#[test]
fn a_port_in_use_is_named_and_serve_exits_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for key in ["listen", "admin_listen", "probe_listen"] {
        let (_directory, file) = Setup::new().server(&format!("{key} = '{address}'")).write();
        let done = Process::run(&["serve", "--config", file.to_str().unwrap()], &[]);
        assert_eq!(done.code, Some(1), "{key}: {done:?}");
        assert!(done.stderr.contains(&address.to_string()), "{key}: {}", done.stderr);
    }
}

#[test]
fn the_environment_alone_configures_a_sidecar() {
    let connector = Connector::new();
    let environment = [
        ("AUTOPLAY_STREAM_URL", connector.url("prod%20x")),
        ("AUTOPLAY_APP_UNKEY_TOKEN", TOKEN.to_owned()),
        ("AUTOPLAY_RELAY__SERVER__LISTEN", "127.0.0.1:0".to_owned()),
        ("AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let relay = Relay::of(Process::start(&["serve", "--log-format", "json"], &environment));
    let mut link = connector.stream();
    assert_eq!(link.request.path(), "/stream/prod%20x");
    assert_eq!(link.request.field("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    let mut anonymous = relay.subscribe_to("/stream/prod%20x");
    let with_token = format!("Bearer {TOKEN}");
    let mut sdk =
        Subscriber::open(relay.public, "/stream/prod%20x", &[("Authorization", &with_token)]);
    link.event(r#"{"type":"summary","count":3}"#);
    assert_eq!((anonymous.numbers(1), sdk.numbers(1)), (vec![3], vec![3]));
    relay.get("/stream/prod%20x", &[("Authorization", "Bearer x")]).problem(401);
}

#[test]
fn healthcheck_exits_by_the_readiness_of_the_relay() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let check = |path: &str| {
        Process::run(&["healthcheck", "--url", &format!("http://{}{path}", relay.admin)], &[]).code
    };
    assert_eq!(check("/readyz"), Some(0));
    assert_eq!(check("/healthz"), Some(0));
    assert_eq!(check("/readyz?require=upstream"), Some(1));
    assert_eq!(check("/nothing"), Some(1));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(
        Process::run(&["healthcheck", "--url", &format!("http://{free}/readyz")], &[]).code,
        Some(1)
    );
    assert_eq!(Process::run(&["healthcheck", "--url", "readyz"], &[]).code, Some(2));
}

#[test]
fn healthcheck_of_an_address_without_a_path_asks_for_readiness() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("drain_window = '6s'").start();
    let check = |path: &str| {
        Process::run(&["healthcheck", "--url", &format!("http://{}{path}", relay.admin)], &[]).code
    };
    assert_eq!([check(""), check("/")], [Some(0); 2]);
    let _subscribers: Vec<Subscriber> = (0..12).map(|_| relay.subscribe()).collect();
    relay.wait_for_subscribers(12.0);
    relay.process.signal("TERM");
    wait::until("readiness ends", || relay.ask_admin("/readyz").status() == 503);
    assert_eq!(relay.ask_admin("/").status(), 200, "the console is still served");
    assert_eq!([check(""), check("/")], [Some(1); 2]);
}

#[test]
fn tail_json_prints_a_line_for_each_block() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("heartbeat_interval = '500ms'").start();
    let mut link = connector.stream();
    let url = format!("http://{}{STREAM}", relay.public);
    let tail = Process::start(
        &["tail", &url, "--json", "--type", "actions", "--session-id", "s1", "--user-id", "ada"],
        &[],
    );
    let heartbeat = json(&tail.stdout.wait_for(1)[0]);
    assert_eq!(heartbeat, serde_json::json!({"id": null, "event": "heartbeat", "data": null}));
    let mut subscriber = relay.subscribe();
    link.event(r#"{"type":"summary","session_id":"s1"}"#);
    link.event(r#"{"type":"actions","session_id":"s2"}"#);
    link.event(r#"{"type":"actions","session_id":"s1","user_id":"bob"}"#);
    let of_ada = r#"{"type":"actions","session_id":"s1","user_id":"ada","count":4}"#;
    link.event(of_ada);
    (0..3).for_each(|_| drop(subscriber.event()));
    let id = subscriber.event().id.unwrap();
    let line = tail.stdout.first("the event is printed", |line| {
        Some(json(line)).filter(|line| line["event"] == "message")
    });
    assert_eq!(line, serde_json::json!({"id": id, "event": "message", "data": json(of_ada)}));
}

#[test]
fn tail_reconnects_and_resumes_after_its_last_id() {
    let connector = Connector::new();
    let url = connector.url(PRODUCT);
    let tail = Process::start(
        &["tail", &url, "--token", "key-of-tail", "--last-event-id", "5-1", "--json"],
        &[],
    );
    let mut link = connector.stream();
    assert_eq!(link.request.field("authorization"), Some("Bearer key-of-tail"));
    assert_eq!(link.request.field("last-event-id"), Some("5-1"));
    link.send(format!("retry: 1\nid: 5-2\ndata: {}\n\n", event(2)));
    tail.stdout.wait_for(1);
    link.reset();
    let mut link = connector.stream();
    assert_eq!(link.request.field("last-event-id"), Some("5-2"));
    link.send(format!("id: 5-3\ndata: {}\n\n", event(3)));
    link.send("id: 5-7\nevent: heartbeat\ndata:\n\n");
    tail.stdout.wait_for(3);
    link.end();
    connector.accept().refuse("503 Service Unavailable", "");
    let link = connector.accept();
    assert_eq!(link.request.field("last-event-id"), Some("5-7"));
    let lines = tail.stdout.so_far();
    assert_eq!(
        json(&lines[1]),
        serde_json::json!({"id": "5-3", "event": "message", "data": json(&event(3))})
    );
}

#[test]
fn tail_exits_with_0_after_its_count_of_events() {
    let connector = Connector::new();
    let mut tail =
        Process::start(&["tail", &connector.url(PRODUCT), "--json", "--count", "2"], &[]);
    let mut link = connector.stream();
    link.send(format!("event: heartbeat\ndata:\n\ndata: {}\n\n", event(1)));
    link.reset();
    let mut link = connector.stream();
    link.send(format!("event: gap\ndata: {{}}\n\ndata: {}\n\ndata: {}\n\n", event(2), event(3)));
    assert_eq!(tail.exit_code(), Some(0));
    let names: Vec<_> =
        tail.stdout.so_far().iter().map(|line| json(line)["event"].clone()).collect();
    assert_eq!(names, ["heartbeat", "message", "gap", "message"]);
}

#[test]
fn tail_exits_with_1_on_a_permanent_error() {
    for status in ["401 Unauthorized", "403 Forbidden", "404 Not Found"] {
        let connector = Connector::new();
        let mut tail = Process::start(&["tail", &connector.url(PRODUCT)], &[]);
        connector.accept().refuse(status, "");
        assert_eq!(tail.exit_code(), Some(1), "{status}");
        assert!(tail.stderr.whole().contains(&status[..3]), "{}", tail.stderr.whole());
    }
}

#[test]
fn tail_prints_a_readable_line_without_control_characters() {
    let connector = Connector::new();
    let tail = Process::start(&["tail", &connector.url(PRODUCT)], &[]);
    let mut link = connector.stream();
    link.heartbeat();
    link.event(
        r#"{"type":"summary","session_id":"ps_1","summary":"bought \u001b[31mred\u0007 shoes"}"#,
    );
    let line = tail.stdout.wait_for(1)[0].clone();
    assert!(line.contains("summary") && line.contains("ps_1") && line.contains("shoes"), "{line}");
    assert!(!line.chars().any(char::is_control), "{line:?}");
}

#[test]
fn tail_escapes_what_a_terminal_would_obey_and_keeps_the_value_of_json() {
    let hidden = "\u{202e}\u{2066}\u{61c}\u{200f}\u{9b}31m\u{7f}";
    let payload =
        format!(r#"{{"type":"summary{hidden}","session_id":"s{hidden}","summary":"é{hidden}"}}"#);
    for json_flag in [None, Some("--json")] {
        let connector = Connector::new();
        let url = connector.url(PRODUCT);
        let arguments: Vec<&str> = ["tail", &url].into_iter().chain(json_flag).collect();
        let tail = Process::start(&arguments, &[]);
        let mut link = connector.stream();
        link.send(format!("id: 1{hidden}\nevent: x{hidden}\ndata: {payload}\n\n"));
        link.send(format!("data: no JSON {hidden}\n\n"));
        for line in tail.stdout.wait_for(2) {
            let is_hidden = |c: char| !c.is_ascii() && hidden.contains(c);
            assert!(!line.chars().any(|c| c.is_control() || is_hidden(c)), "{line:?}");
            assert!(line.contains(r"\u202e\u2066\u061c\u200f\u009b31m\u007f"), "{line:?}");
        }
        let line = tail.stdout.wait_for(2)[0].clone();
        assert!(line.contains('é') || json_flag.is_none(), "other characters stay: {line}");
        if json_flag.is_some() {
            let (id, event) = (format!("1{hidden}"), format!("x{hidden}"));
            let whole = serde_json::json!({"id": id, "event": event, "data": json(&payload)});
            assert_eq!(json(&line), whole);
        }
    }
}

#[test]
fn a_servers_text_in_an_error_is_escaped() {
    let connector = Connector::new();
    let mut tail = Process::start(&["tail", &connector.url(PRODUCT)], &[]);
    let mut link = connector.accept();
    link.send("HTTP/1.1 200 OK\r\ncontent-type: text/\u{202e}\u{9b}31m\r\n\r\n");
    let line = tail.stderr.first("the answer is refused", |line| {
        line.contains("content type").then(|| line.to_owned())
    });
    assert!(
        !line.chars().any(|c| c == '\u{202e}' || ('\u{7f}'..'\u{a0}').contains(&c)),
        "{line:?}"
    );
    tail.kill();
}

#[test]
fn demo_starts_and_the_commands_that_it_prints_work() {
    let environment = [
        ("AUTOPLAY_RELAY__SERVER__LISTEN", "127.0.0.1:0"),
        ("AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN", "127.0.0.1:0"),
    ];
    let mut demo = Process::start(&["--log-format", "json", "demo"], &environment);
    let relay = demo.log_line("serving")["listen"].as_str().unwrap().to_owned();
    let url = demo.stdout.first("the demo prints a stream to curl", |line| {
        let url = line.split("curl -N http://").nth(1)?.split_whitespace().next()?;
        Some(url.to_owned())
    });
    let path = url.strip_prefix(&relay).expect("the address is the relay's");
    let mut subscriber = Subscriber::open(relay.parse().unwrap(), path, &[]);
    let event = subscriber.event();
    assert!(event.json()["type"].is_string());
    drop(subscriber);
    demo.signal("INT");
    assert_eq!(demo.exit_code(), Some(0));
}

#[test]
fn every_command_has_help() {
    let help = |arguments: &[&str]| {
        let done = Process::run(arguments, &[]);
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{arguments:?}: {done:?}");
        done.stdout
    };
    let all = help(&["--help"]);
    for command in ["serve", "demo", "simulate", "tail", "healthcheck", "check"] {
        assert!(all.contains(command), "{command} in {all}");
        assert!(help(&[command, "--help"]).contains("Usage"), "{command}");
    }
    assert!(help(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn global_options_are_accepted_before_and_after_the_command() {
    let setup = Setup::new();
    let (_directory, file) = setup.write();
    let file = file.to_str().unwrap();
    for arguments in [
        ["--log-format", "json", "serve", "--config", file],
        ["serve", "--log-format", "json", "--config", file],
        ["serve", "--config", file, "--log-format", "json"],
    ] {
        Relay::of(Process::start(&arguments, &[]));
    }
}

#[test]
fn rust_log_sets_the_level_and_an_invalid_value_exits_with_2() {
    let (_directory, file) = Setup::new().write();
    let arguments = ["serve", "--config", file.to_str().unwrap()];
    let Finished { code, stderr, .. } =
        Process::run(&arguments, &[("RUST_LOG", "autoplay_relay=loud")]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("RUST_LOG"), "{stderr}");
    let connector = Connector::new();
    let (_directory, file) = Setup::behind(&connector).write();
    let mut quiet =
        Process::start(&["serve", "--config", file.to_str().unwrap()], &[("RUST_LOG", "warn")]);
    let _link = connector.stream();
    quiet.signal("TERM");
    assert_eq!((quiet.exit_code(), quiet.stderr.whole().as_str()), (Some(0), ""));
}

#[test]
fn the_simulator_answers_unknown_routes_and_tokens_as_the_connector_does() {
    let simulator = Process::start(
        &[
            "--log-format",
            "json",
            "simulate",
            "--listen",
            "127.0.0.1:0",
            "--product",
            "prod_1",
            "--token",
            "t0ken",
        ],
        &[],
    );
    let address =
        crate::common::process::address(&simulator.log_line("simulating"), "listen").unwrap();
    let token = [("Authorization", "Bearer t0ken")];
    assert_eq!(http::get(address, "/stream/prod_1", &[]).status(), 401);
    assert_eq!(
        http::get(address, "/stream/prod_1", &[("Authorization", "Bearer x")]).status(),
        401
    );
    assert_eq!(http::get(address, "/stream/prod_2", &token).status(), 404);
    assert_eq!(http::status(address, "/stream/prod_1", &token), 200);
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Writes a configuration whose admin listener is `admin`.
fn configured_admin(admin: SocketAddr) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("[server]\nadmin_listen = '{admin}'\n")).unwrap();
    file
}

fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

const ADMIN_LISTEN: &str = "AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN";

#[test]
fn healthcheck_asks_the_admin_listener_of_the_file_and_the_environment() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let admin = relay.admin.to_string();
    let (this, other) = (configured_admin(relay.admin), configured_admin(unused_address()));
    let check = |file: &tempfile::NamedTempFile, environment: &[(&str, &str)]| {
        let arguments = ["healthcheck", "--config", file.path().to_str().unwrap()];
        Process::run(&arguments, environment).code
    };
    assert_eq!(check(&this, &[]), Some(0));
    assert_eq!(check(&other, &[(ADMIN_LISTEN, &admin)]), Some(0), "the environment wins");
    assert_eq!(Process::run(&["healthcheck"], &[(ADMIN_LISTEN, &admin)]).code, Some(0));
}

#[test]
fn healthcheck_does_not_take_another_relays_health_for_its_own() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let (this, unused) = (configured_admin(relay.admin), unused_address().to_string());
    let arguments = ["healthcheck", "--config", this.path().to_str().unwrap()];
    assert_eq!(Process::run(&arguments, &[(ADMIN_LISTEN, &unused)]).code, Some(1));
    assert_eq!(Process::run(&["healthcheck"], &[(ADMIN_LISTEN, &unused)]).code, Some(1));
}

#[test]
fn healthcheck_names_what_is_wrong_with_the_configured_address() {
    let port_0 = configured_admin("127.0.0.1:0".parse().unwrap());
    let done = Process::run(&["healthcheck", "--config", port_0.path().to_str().unwrap()], &[]);
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains("server.admin_listen") && done.stderr.contains("--url"));
    let done = Process::run(&["healthcheck"], &[(ADMIN_LISTEN, "here")]);
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stderr.contains(ADMIN_LISTEN), "{done:?}");
    let done = Process::run(&["healthcheck", "--config", "/nowhere/relay.toml"], &[]);
    assert_eq!(done.code, Some(2), "{done:?}");
}
