//! Clients without a key that occupy the public listener with connections that do nothing, and good
//! clients beside them.

use std::{
    io::Write,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::common::{
    STREAM,
    connector::Connector,
    events::event,
    frames::{self, INITIAL_WINDOW_SIZE},
    http::{self, Look, Wire},
    http2::Http2Subscriber,
    page::PAGES,
    relay::Setup,
    tls::{Authority, TlsClient},
    wait,
};

#[test]
fn idle_connections_on_the_public_listener_keep_no_other_client_out() {
    let connector = Connector::new();
    let relay = crowded(&connector).start();
    let mut link = connector.stream();
    let mut connected = relay.subscribe();
    let to = relay.public;
    let settings = [frames::PREFACE, &frames::settings(&[])].concat();
    let blocked = [
        frames::PREFACE,
        &frames::settings(&[(INITIAL_WINDOW_SIZE, 0)]),
        &frames::frame(
            frames::HEADERS,
            frames::END_STREAM | frames::END_HEADERS,
            1,
            &frames::head(to, "GET", "/stream/prod_none"),
        ),
    ]
    .concat();
    let beginnings: [(&str, Vec<u8>); 6] = [
        ("nothing", Vec::new()),
        ("a head without its end", format!("GET {STREAM} HTTP/1.1\r\nHost: {to}\r\n").into()),
        ("a request, and no other", http::request(to, "GET", "/nothing", &[]).into()),
        (
            "a refused request whose body does not come",
            http::request(to, "POST", "/events/prod_none", &[("Content-Length", "99999")]).into(),
        ),
        ("HTTP/2 without a stream", settings),
        ("HTTP/2 with a refusal that is not taken", blocked),
    ];
    for (n, (what, beginning)) in beginnings.iter().enumerate() {
        let mut idle = fill(to, beginning);
        let began = Instant::now();
        let mut newcomer = relay.subscribe();
        assert_eq!(http::get(to, "/nothing", &[]).status(), 404, "{what}");
        wait::assert_within(Duration::ZERO, began);
        link.event(event(n));
        assert_eq!((connected.numbers(1), newcomer.numbers(1)), (vec![n], vec![n]), "{what}");
        // Not exactly the oldest ones: a newcomer looks at a bounded number of connections.
        wait::until("others have given way", || idle.iter_mut().any(is_closed));
        assert_eq!(relay.shed("max_connections"), 0.0, "{what}");
    }
}

#[test]
fn idle_connections_over_tls_keep_no_other_client_out() {
    let authority = Authority::new();
    authority.issue_as("relay", "IP:127.0.0.1,DNS:localhost", "-days 2");
    let setup = Setup::new().with_tls(&authority.path("relay.pem"), &authority.path("relay.key"));
    let relay = setup.server("max_subscribers = 2\nhead_timeout = '60s'").start();
    // The beginning of a TLS record with a ClientHello of 512 bytes.
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3];
    for beginning in [&b""[..], &hello] {
        let _idle = fill(relay.public, beginning);
        let began = Instant::now();
        let mut secure = TlsClient::connect(relay.public, &authority.client(&["http/1.1"]));
        assert_eq!(secure.ask(relay.public, "/nothing", &[]).status(), 404);
        wait::assert_within(Duration::ZERO, began);
    }
}

/// All these connections are older than the idle ones.
#[test]
fn streams_requests_in_work_and_the_few_connections_of_another_address_stay_beside_idle_ones() {
    let connector = Connector::new();
    let relay = crowded(&connector).start();
    let mut link = connector.stream();
    let to = relay.public;
    let mut kept = Wire::connect_from([127, 0, 0, 2], to);
    ask(&mut kept, to);
    let mut over_http2 = Http2Subscriber::open(to);
    let mut over_http1 = relay.subscribe();
    let mut over_old_http = Wire::connect(to);
    over_old_http.send(format!("GET {STREAM} HTTP/1.0\r\nHost: {to}\r\n\r\n"));
    assert_eq!(over_old_http.head().status(), 200);
    let body = event(1000);
    let length = body.len().to_string();
    let mut publisher = Wire::connect(to);
    publisher.send(http::request(to, "POST", PAGES, &[("Content-Length", &length)]));
    let mut idle = fill(to, http::request(to, "GET", "/nothing", &[]).as_bytes());
    wait::until("the first one has given way", || is_closed(&mut idle[0]));
    link.event(event(0));
    assert_eq!((over_http2.numbers(1), over_http1.numbers(1)), (vec![0], vec![0]));
    wait::until("it came over HTTP/1.0, too", || {
        over_old_http.look(Instant::now() + Duration::from_millis(50));
        String::from_utf8_lossy(over_old_http.seen()).contains("data: {")
    });
    ask(&mut kept, to);
    publisher.send(body);
    assert_eq!(publisher.head().status(), 202);
}

/// Starts a relay with three subscribers' places and 1 024 further connections, where a connection
/// that does nothing would stay for a minute.
fn crowded(connector: &Connector) -> Setup {
    let auth = "allow_anonymous = true\nanonymous_permissions = ['subscribe', 'publish']";
    Setup::behind(connector).auth(auth).server("max_subscribers = 9\nhead_timeout = '60s'")
}

/// Opens more connections than the listener serves, which send this and nothing more.
fn fill(to: SocketAddr, beginning: &[u8]) -> Vec<Wire> {
    let open = |_| {
        let wire = Wire::connect(to);
        let _ = wire.socket().write_all(beginning); // the relay may have closed it
        wire
    };
    (0..1300).map(open).collect()
}

fn ask(wire: &mut Wire, to: SocketAddr) {
    wire.send(http::request(to, "GET", "/nothing", &[]));
    let head = wire.head();
    assert_eq!(head.status(), 404);
    wire.body(head.field("content-length").unwrap().parse().unwrap());
}

fn is_closed(wire: &mut Wire) -> bool {
    while wire.look(Instant::now()) == Look::Bytes {}
    wire.is_at_end()
}
