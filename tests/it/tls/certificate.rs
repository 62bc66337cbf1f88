//! The certificate of the listener, and its replacement.

use super::{Scene, next_number, subscribe};
use crate::common::{
    STREAM,
    connector::Connector,
    events::event,
    process::{Finished, Process},
    relay::{Relay, Setup},
    tls::{Authority, TlsClient},
    wait::{self},
};
use rustls::HandshakeKind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_served_to_new_connections_and_open_streams_continue() {
    let mut scene = Scene::new("");
    let mut before = scene.secure();
    assert_eq!(before.ask(scene.relay.public, STREAM, &[]).status(), 200);
    let (mut client, _) = scene.http2().await;
    let mut stream = subscribe(&mut client, scene.relay.public).await;
    let ends = |relay: &Relay| {
        relay.metrics().value("autoplay_relay_certificate_not_after_timestamp_seconds", &[])
    };
    let former_end = ends(&scene.relay).unwrap();
    // A client with a ticket of its last connection.
    let client_config = scene.authority.client(&["http/1.1"]);
    let connect = || {
        let mut secure = TlsClient::connect(scene.relay.public, &client_config);
        assert_eq!(secure.ask(scene.relay.public, "/nothing", &[]).status(), 404);
        (secure.stream.conn.handshake_kind().unwrap(), secure.certificate())
    };
    let former = scene.authority.certificate("relay");
    assert_eq!(connect(), (HandshakeKind::Full, former.clone()));
    assert_eq!(connect(), (HandshakeKind::Resumed, former));

    scene.authority.issue_as("next", "IP:127.0.0.1", "-days 9");
    scene.authority.replace("relay", "next");
    let next = scene.authority.certificate("next");
    wait::until("newcomers get the new certificate", || scene.secure().certificate() == next);
    assert_eq!(
        connect(),
        (HandshakeKind::Full, next),
        "a ticket of the former certificate resumes no session"
    );
    let later = ends(&scene.relay).unwrap() - former_end;
    assert!((6.9..7.1).contains(&(later / 86_400.0)), "{later} s");
    scene.link.event(event(5));
    before.through(event(5).as_bytes());
    assert_eq!(next_number(&mut stream).await, 5);
    let again = subscribe(&mut client, scene.relay.public).await;
    assert_eq!(again.buffer, b"", "a new stream on the open connection");
}

#[test]
fn a_mismatched_pair_is_refused_whole_and_accepted_once_it_matches() {
    let scene = Scene::new("");
    let served = || scene.secure().certificate();
    let (former, authority) = (scene.authority.certificate("relay"), &scene.authority);
    authority.issue_as("next", "IP:127.0.0.1", "-days 9");
    authority.replace_file("relay.pem", "next.pem"); // its key is not replaced yet
    let line = scene.relay.process.log_line(REFUSED);
    let error = line["error"].as_str().unwrap();
    assert!(
        error.contains("server.tls_key_file: ") && error.contains("holds another key"),
        "{error}"
    );
    assert_eq!(served(), former);
    authority.replace_file("relay.key", "next.key");
    wait::until("the pair is accepted", || served() == authority.certificate("next"));

    std::fs::remove_file(authority.path("relay.pem")).unwrap();
    wait::until("the missing file is logged", || {
        scene
            .relay
            .process
            .stderr
            .so_far()
            .iter()
            .any(|line| line.contains("cannot read") && line.contains("relay.pem"))
    });
    assert_eq!(served(), authority.certificate("next"));
    authority.issue_as("third", "IP:127.0.0.1", "-days 9");
    authority.replace("relay", "third");
    wait::until("the third pair is accepted", || served() == authority.certificate("third"));
    let refusals =
        scene.relay.process.stderr.so_far().iter().filter(|line| line.contains(REFUSED)).count();
    assert!(refusals <= 4, "logged once for each reason: {refusals}");
}

#[test]
fn a_certificate_behind_kubernetes_symlinks_is_replaced() {
    let authority = Authority::new();
    for (folder, name) in [("..1", "one"), ("..2", "two")] {
        authority.issue_as(name, "IP:127.0.0.1", "-days 2");
        std::fs::create_dir(authority.path(folder)).unwrap();
        std::fs::rename(
            authority.path(&format!("{name}.pem")),
            authority.path(&format!("{folder}/tls.crt")),
        )
        .unwrap();
        std::fs::rename(
            authority.path(&format!("{name}.key")),
            authority.path(&format!("{folder}/tls.key")),
        )
        .unwrap();
    }
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, authority.path(name)).unwrap();
    link("..1", "..data");
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    let connector = Connector::new();
    let setup =
        Setup::behind(&connector).with_tls(&authority.path("tls.crt"), &authority.path("tls.key"));
    let relay = setup.start();
    let served = || TlsClient::connect(relay.public, &authority.client(&[])).certificate();
    let former = served();
    link("..2", "..data_tmp");
    std::fs::rename(authority.path("..data_tmp"), authority.path("..data")).unwrap();
    wait::until("the other certificate is served", || served() != former);
}

#[test]
fn an_expired_certificate_is_served_with_a_warning() {
    let authority = Authority::new();
    authority.issue_as("relay", "IP:127.0.0.1", "-days 0");
    let connector = Connector::new();
    let setup = Setup::behind(&connector)
        .with_tls(&authority.path("relay.pem"), &authority.path("relay.key"));
    let relay = setup.start();
    let line = relay.process.log_line("the certificate has ended, and clients refuse it; renew it");
    assert_eq!(line["level"], "WARN");
    let refused = || {
        TlsClient::try_connect(relay.public, &authority.client(&[]))
            .err()
            .map(|error| error.to_string())
    };
    wait::until("clients refuse it", || refused().is_some_and(|error| error.contains("xpired")));
    let ended = relay
        .metrics()
        .value("autoplay_relay_certificate_not_after_timestamp_seconds", &[])
        .unwrap();
    assert!((0.0..60.0).contains(&(crate::common::token::now() - ended)), "{ended}");
}

#[test]
fn a_mismatched_pair_is_a_configuration_error_that_names_file_and_key() {
    let authority = Authority::new();
    ["one", "two"].iter().for_each(|name| authority.issue_as(name, "IP:127.0.0.1", "-days 2"));
    let setup = Setup::new().with_tls(&authority.path("one.pem"), &authority.path("two.key"));
    let (_directory, file) = setup.write();
    for command in ["check", "serve"] {
        let done = Process::run(&[command, "--config", file.to_str().unwrap()], &[]);
        let Finished { code, stdout, stderr } = &done;
        assert_eq!((*code, stdout.as_str()), (Some(2), ""), "{done:?}");
        let names_all = ["server.tls_key_file: ", "two.key", "one.pem", "holds another key"]
            .iter()
            .all(|it| stderr.contains(it));
        assert!(names_all, "{stderr}");
    }
    let good = Setup::new().with_tls(&authority.path("one.pem"), &authority.path("one.key"));
    let (_directory, file) = good.write();
    let done = Process::run(&["check", "--config", file.to_str().unwrap()], &[]);
    assert!(done.code == Some(0) && done.stdout.contains("one.key"), "{done:?}");
    assert!(!done.stdout.contains("PRIVATE"), "the name of the file, not its contents");
}

const REFUSED: &str =
    "the new certificate is refused, and tried again; the former one is still served";
