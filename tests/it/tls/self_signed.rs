//! Servers with a self-signed certificate that the operator lists as a root.

use std::io::{Read, Write};

use super::upstream::{TlsServer, read_head, wait_for_failure};
use crate::common::{
    PRODUCT,
    connector::{Connector, STREAM_HEAD},
    events::event,
    page::publish,
    relay::{Relay, Setup},
    tls::Authority,
    wait,
    webhooks::outcomes,
};

#[test]
fn the_certificate_of_an_upstream_is_trusted_by_itself() {
    let authority = Authority::new();
    let server = TlsServer::with(authority.self_sign("own", "DNS:localhost"));
    let own = authority.path("own.pem");
    let setup = |is_file: bool| server.setup("localhost", is_file.then_some(own.as_path()));
    for relay in
        [setup(true).start(), setup(false).start_with(&[("SSL_CERT_FILE", own.to_str().unwrap())])]
    {
        let mut subscriber = relay.subscribe();
        let mut stream = server.accept().expect("a request over TLS");
        read_head(&mut stream);
        stream.write_all(format!("{STREAM_HEAD}data: {}\n\n", event(1)).as_bytes()).unwrap();
        assert_eq!(subscriber.numbers(1), [1]);
    }
}

#[test]
fn another_name_and_another_certificate_are_not_and_the_log_says_why() {
    let authority = Authority::new();
    let server = TlsServer::with(authority.self_sign("own", "DNS:other.test"));
    authority.self_sign("second", "DNS:localhost");
    for (root, reason) in [("own", "is for another name"), ("second", "CA:TRUE")] {
        let relay = server.relay("localhost", Some(&authority.path(&format!("{root}.pem"))));
        assert!(server.accept().is_none());
        wait_for_failure(&relay);
        let line = relay.process.log_line("upstream connection failed");
        let problem = line["problem"].as_str().unwrap();
        assert!(problem.starts_with("the server's certificate ") && problem.contains(reason));
    }
}

#[test]
fn the_certificate_of_a_receiver_is_trusted_by_itself_and_its_head_accepts() {
    let authority = Authority::new();
    let server = TlsServer::with(authority.self_sign("own", "IP:127.0.0.1"));
    let (connector, relay) = relay_to(&server, &authority, "own");
    publish(&relay, &mut connector.stream(), [event(0)]);
    let mut stream = server.accept().expect("a request over TLS");
    let head = read_head(&mut stream);
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    stream.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").unwrap();
    drop(stream); // without close_notify
    let delivery = relay.wait_for_deliveries("hook", "delivered", 1).remove(0);
    assert_eq!(outcomes(&delivery), ["accepted"]);
}

#[test]
fn a_receiver_with_another_certificate_is_reported_to_the_operator() {
    let authority = Authority::new();
    let server = TlsServer::with(authority.self_sign("own", "IP:127.0.0.1"));
    authority.self_sign("second", "IP:127.0.0.1");
    let (connector, relay) = relay_to(&server, &authority, "second");
    publish(&relay, &mut connector.stream(), [event(0)]);
    assert!(server.accept().is_none());
    let attempt = wait::value("an attempt has failed", || {
        let delivery = relay.deliveries("hook", "pending").pop()?;
        delivery["attempts"].get(0).cloned()
    });
    let error = attempt["error"].as_str().unwrap();
    assert!(error.contains("CA:TRUE") && error.contains("egress.ca_file"), "{error}");
}

/// Starts a relay with a webhook to this server that trusts `root` beside the platform's roots.
fn relay_to(server: &TlsServer, authority: &Authority, root: &str) -> (Connector, Relay) {
    let connector = Connector::new();
    let webhook = format!(
        "[[webhooks]]\nid = 'hook'\nproduct_id = '{PRODUCT}'\nurl = 'https://{}/'\n\
         secret = 'secret-of-the-test'\n\
         [egress]\nallow_networks = ['127.0.0.0/8']\nca_file = '{}'\n",
        server.address(),
        authority.path(&format!("{root}.pem")).display()
    );
    let relay = Setup::behind(&connector).more(&webhook).start();
    (connector, relay)
}
