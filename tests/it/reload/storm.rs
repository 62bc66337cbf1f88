//! A hundred reloads under load: no event is lost or duplicated, no subscriber is disconnected, and
//! no product has two upstream connections.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::common::{
    PRODUCT, SOCKET, STREAM,
    connector::Connector,
    events::event,
    receiver::Receiver,
    relay::{Relay, Setup},
    subscriber::Subscriber,
    token::{SECRET, bearer, jwt},
    wait,
    webhooks::{LOOPBACK, table},
    websocket::Socket,
};
use serde_json::json;

#[test]
fn a_hundred_reloads_under_load_lose_and_duplicate_nothing_and_never_connect_twice() {
    storm(100, |setup| setup);
}

#[test]
fn reloads_under_load_with_a_store_lose_and_duplicate_nothing() {
    let directory = tempfile::tempdir().unwrap();
    storm(30, |setup| setup.log(&format!("data_dir = '{}'", directory.path().display())));
}

fn storm(reloads: usize, with: impl Fn(Setup) -> Setup) {
    let (connector, restless) = (Connector::new(), Connector::new());
    let receiver = Receiver::accepting();
    let setup = |n: usize| with(configuration(n, &connector, &restless, &receiver));
    let relay = setup(0).start();
    let mut link = connector.stream();
    let is_over = AtomicBool::new(false);
    let streams: Vec<_> = (0..40).map(|n| open(&relay, STREAM, n)).collect();
    let sockets: Vec<_> = (0..10).map(|n| socket(&relay, n)).collect();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0;
            while !is_over.load(Ordering::SeqCst) {
                link.event(event(sent));
                sent += 1;
                thread::sleep(EVENT_INTERVAL);
            }
            link.event(event(LAST));
            sent
        });
        // The upstream of the other product changes with each reload. Its connector fails if it has
        // two connections at once.
        let accepting = scope.spawn(|| {
            let (mut links, mut last) = (0, None);
            while !is_over.load(Ordering::SeqCst) {
                if let Some(mut link) = restless.try_accept() {
                    link.send(crate::common::connector::STREAM_HEAD);
                    last = Some(link);
                    links += 1;
                }
                // Not a spin: it would take a processor from the relay and from other tests.
                thread::sleep(EVENT_INTERVAL);
            }
            drop(last);
            links
        });
        let on_streams =
            streams.into_iter().map(|mut it| scope.spawn(move || numbers_of(|| it.numbers(1)[0])));
        let on_streams: Vec<_> = on_streams.collect();
        let on_sockets =
            sockets.into_iter().map(|mut it| scope.spawn(move || numbers_of(|| it.numbers(1)[0])));
        let on_sockets: Vec<_> = on_sockets.collect();
        for n in 1..=reloads {
            setup(n).reload(&relay);
        }
        is_over.store(true, Ordering::SeqCst);
        let sent = sending.join().unwrap();
        for numbers in on_streams.into_iter().chain(on_sockets).map(|reader| reader.join().unwrap())
        {
            assert!(
                numbers.iter().copied().eq(0..sent),
                "lost or duplicated: {} of {sent}",
                numbers.len()
            );
        }
        assert!(accepting.join().unwrap() >= 2, "the other product has reconnected");
        let pushed = receiver.wait_for_accepted(sent + 1);
        let pushed: Vec<_> = pushed.iter().map(|request| request.number()).collect();
        assert!(
            pushed.iter().copied().eq((0..sent).chain([LAST])),
            "the webhook got {} of {sent}",
            pushed.len()
        );
    });
    assert_eq!(connector.open_paths().len(), 1, "the stream was open all the time");
    let outcomes = relay.reload_outcomes();
    assert!(outcomes.iter().all(|outcome| outcome["level"] == "INFO") && outcomes.len() >= reloads);
    wait::until("the last reload has succeeded", || {
        relay.metrics().value("autoplay_relay_config_reload_success", &[]) == Some(1.0)
    });
}

/// Returns the configuration after `n` reloads: each differs from the one before in every key that
/// can be changed.
fn configuration(
    n: usize,
    connector: &Connector,
    restless: &Connector,
    receiver: &Receiver,
) -> Setup {
    let is_odd = n % 2 == 1;
    let either = |one: &'static str, other: &'static str| if is_odd { one } else { other };
    let product = |id: &str| {
        format!("[[auth.keys]]\nname = '{id}'\nkey = 'key-of-{id}'\nproducts = ['{PRODUCT}']\n")
    };
    let keys = format!(
        "{}{}",
        product(either("all", "everybody")).replace("everybody'\np", "all'\np"),
        product("odd")
    );
    let keys = keys.replace("key-of-everybody", "key-of-all");
    let jwt = match is_odd {
        true => format!(
            "[auth.jwt]\nsecret = 'another-secret-of-32-bytes-or-more'\nprevious_secret = '{SECRET}'\n"
        ),
        false => jwt(""),
    };
    let auth = format!("{keys}{jwt}");
    let server = format!(
        "max_subscribers = {}\nmax_subscribers_per_ip = {}\nheartbeat_interval = '{}s'\ncors_allowed_origins = [{}]",
        1000 + n,
        either("0", "100"),
        30 + n,
        either("", "'https://app.example.com'"),
    );
    let webhooks = table("crm", receiver, &format!("timeout = '{}s'", 10 + n % 2));
    let coming =
        if is_odd { table("now-and-then", receiver, "types = ['none']") } else { String::new() };
    let token = format!("token = 'token-{n}'");
    let setup = Setup::new().upstream(PRODUCT, &connector.url(PRODUCT), &token);
    let setup = setup.upstream(
        "restless",
        &restless.url("restless"),
        &format!("heartbeat_timeout = '{}s'", 75 + n),
    );
    let setup = match is_odd {
        true => setup.upstream("passing", &format!("http://127.0.0.1:1/{n}"), ""),
        false => setup,
    };
    setup.auth(&auth).server(&server).more(&format!("{webhooks}{coming}{LOOPBACK}"))
}

fn authorization(n: usize) -> String {
    if n.is_multiple_of(2) { "Bearer key-of-all".to_owned() } else { bearer(&json!({})) }
}

fn open(relay: &Relay, path: &str, n: usize) -> Subscriber {
    Subscriber::open(relay.public, path, &[("Authorization", &authorization(n))])
}

fn socket(relay: &Relay, n: usize) -> Socket {
    Socket::open(relay.public, SOCKET, &[("Authorization", &authorization(n))])
}

/// Collects all numbers up to [`LAST`].
fn numbers_of(mut next: impl FnMut() -> usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    loop {
        match next() {
            LAST => return numbers,
            number => numbers.push(number),
        }
    }
}

/// Number of the event that ends the storm.
const LAST: usize = 1_000_000;

/// Interval between two events.
const EVENT_INTERVAL: Duration = Duration::from_millis(4);
