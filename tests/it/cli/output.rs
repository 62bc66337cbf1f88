//! Data on standard output: a failed write is a failed command.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, pipe},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::event,
    frames::{END_HEADERS, END_STREAM, Frames, HEADERS, frame, head},
    process::{Process, address},
    relay::{Relay, Setup},
};

/// Runs a command with this standard output.
fn run(arguments: &[&str], stdout: impl Into<Stdio>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_autoplay-relay"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(stdout)
        .output()
        .unwrap()
}

/// Returns a file that takes nothing, as on a full disk.
fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

fn null() -> File {
    OpenOptions::new().write(true).open("/dev/null").unwrap()
}

/// Calls `try_command` with the arguments of each command that prints data and ends.
fn for_each_command(try_command: impl Fn(&[&str])) {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    relay.publish(&mut connector.stream(), 0..1);
    let stream = format!("http://{}/stream/{PRODUCT}", relay.public);
    let setup = Setup::new()
        .upstream(PRODUCT, "http://127.0.0.1:1/stream/prod_abc", "")
        .auth("[auth.jwt]\nalgorithm = 'HS256'\nsecret = '0123456789abcdef0123456789abcdef'");
    let (_directory, file) = setup.write();
    let file = file.to_str().unwrap();
    let commands: [&[&str]; 7] = [
        &["check", "--config", file],
        &["check", "--restart-keys", "--config", file],
        &["token", "--config", file, "--product", PRODUCT],
        &["tail", &stream, "--last-event-id", "0", "--count", "1"],
        &["--help"],
        &["tail", "--help"],
        &["--version"],
    ];
    commands.into_iter().for_each(try_command);
}

fn assert_reports_full_disk(arguments: &[&str]) {
    let output = run(arguments, full());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert!(
        stderr.contains("cannot write to standard output: No space left on device"),
        "{arguments:?}: {stderr}"
    );
}

#[test]
fn a_command_whose_data_the_disk_does_not_take_fails_and_says_so() {
    for_each_command(assert_reports_full_disk);
}

#[test]
fn servers_that_print_where_they_listen_report_a_full_disk_too() {
    assert_reports_full_disk(&["simulate", "--listen", "127.0.0.1:0"]);
    let demo = Command::new(env!("CARGO_BIN_EXE_autoplay-relay"))
        .arg("demo")
        .env_clear()
        .env("AUTOPLAY_RELAY__SERVER__LISTEN", "127.0.0.1:0")
        .env("AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN", "127.0.0.1:0")
        .stdout(full())
        .output()
        .unwrap();
    assert_eq!(demo.status.code(), Some(1), "{}", String::from_utf8_lossy(&demo.stderr));
}

#[test]
fn a_reader_that_has_closed_the_pipe_is_no_failure() {
    for_each_command(|arguments| {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = run(arguments, writer);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{arguments:?}");
    });
}

#[test]
fn commands_succeed_where_their_data_can_be_written() {
    for_each_command(|arguments| {
        let output = run(arguments, null());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{arguments:?}");
    });
}

#[test]
fn the_simulator_prints_the_url_of_each_stream() {
    let mut simulator = Process::start(
        &["simulate", "--listen", "127.0.0.1:0", "--product", "a b", "--product", PRODUCT],
        &[],
    );
    let urls = simulator.stdout.wait_for(2);
    assert!(urls[0].starts_with("http://127.0.0.1:") && urls[0].ends_with("/stream/a%20b"));
    assert!(urls[1].ends_with(&format!("/stream/{PRODUCT}")), "{urls:?}");
    let setup = Setup::new().upstream(PRODUCT, &urls[1], "");
    let relay = setup.start();
    assert!(relay.subscribe().event().json()["type"].is_string());
    simulator.signal("TERM");
    assert_eq!(simulator.exit_code(), Some(0));
}

#[test]
fn an_event_after_the_disk_is_full_ends_tail() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let stream = format!("http://{}/stream/{PRODUCT}", relay.public);
    std::thread::scope(|scope| {
        let tail = scope.spawn(|| run(&["tail", "--json", &stream], full()));
        relay.wait_for_subscribers(1.0);
        link.event(event(1));
        assert_eq!(tail.join().unwrap().status.code(), Some(1));
    });
}

#[test]
fn a_reader_of_the_log_that_stands_still_delays_no_request_and_learns_what_it_missed() {
    let (_directory, file) = Setup::new().upstream(PRODUCT, "http://127.0.0.1:1/s", "").write();
    let mut relay = Command::new(env!("CARGO_BIN_EXE_autoplay-relay"))
        .args(["serve", "--log-format", "json", "--config", file.to_str().unwrap()])
        .env_clear()
        .env("RUST_LOG", "info,h2=trace")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(relay.stderr.take().unwrap()).lines().map(Result::unwrap);
    let serving = (&mut log)
        .map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap())
        .find(|line| line["message"] == "serving")
        .unwrap();
    let to = address(&serving, "listen").unwrap();
    let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &head(to, "GET", "/nothing"));
    // h2 writes some 40 KiB for each connection: far more than the pipe and the buffer hold.
    for _ in 0..200 {
        let began = Instant::now();
        let mut client = Frames::connect(to, &[]);
        client.send(&request);
        while client.next().expect("an answer").kind != HEADERS {}
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    assert!(log.any(|line| line.contains("log lines were dropped")), "the log tells of it");
    let stop = format!("-TERM {}", relay.id());
    assert!(Command::new("kill").args(stop.split(' ')).status().unwrap().success());
    assert!(log.any(|line| line.contains("\"left\"")), "the end is in the log");
    log.for_each(drop);
    assert_eq!(relay.wait().unwrap().code(), Some(0));
}
