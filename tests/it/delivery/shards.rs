//! Streams of several products share shards and are independent of each other.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    relay::{Relay, Setup},
    subscriber::Subscriber,
    wait,
};

/// Uses enough subscribers on two shards that one event takes each shard several turns: a new
/// subscriber may get the slot key of one that has disconnected meanwhile.
#[test]
fn products_get_all_and_only_their_events_while_subscribers_connect_and_disconnect() {
    let connectors = [Connector::new(), Connector::new()];
    let both = PRODUCTS.iter().zip(&connectors);
    let relay = both
        .fold(Setup::new(), |setup, (product, it)| setup.upstream(product, &it.url(product), ""))
        .start();
    let mut links = connectors.each_ref().map(Connector::stream);
    let mut subscribers = PRODUCTS
        .map(|product| (0..SUBSCRIBERS).map(|_| follow(&relay, product)).collect::<Vec<_>>());
    let is_over = AtomicBool::new(false);
    let read_by = PRODUCTS.map(|_| AtomicUsize::new(0));
    let visit = |product| {
        while !is_over.load(Ordering::SeqCst) {
            let mut visitor = follow(&relay, product);
            let first = next(&mut visitor, product);
            for n in 1..1 + first % 4 {
                assert_eq!(next(&mut visitor, product), first + n, "{product}");
            }
        }
    };
    thread::scope(|scope| {
        let visit = &visit;
        let visitors: Vec<_> = (0..VISITORS)
            .map(|turn| scope.spawn(move || visit(PRODUCTS[turn % PRODUCTS.len()])))
            .collect();
        let readers = PRODUCTS.into_iter().zip(&mut subscribers).zip(&read_by);
        let readers = readers.map(|((product, subscribers), read)| {
            scope.spawn(move || {
                for n in 0..EVENTS {
                    read.store(n, Ordering::SeqCst);
                    subscribers.iter_mut().for_each(|subscriber| {
                        assert_eq!(next(subscriber, product), n, "{product}");
                    });
                }
            })
        });
        let readers: Vec<_> = readers.collect();
        for n in 0.. {
            is_over.store(readers.iter().all(ScopedJoinHandle::is_finished), Ordering::SeqCst);
            if visitors.iter().all(ScopedJoinHandle::is_finished) {
                break; // the last visitors have received their events, too
            }
            // A flood without a bound would starve its own readers, and other tests.
            let read = || read_by.iter().map(|read| read.load(Ordering::SeqCst)).min().unwrap();
            while n > read() + MAX_AHEAD && !is_over.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
                is_over.store(readers.iter().all(ScopedJoinHandle::is_finished), Ordering::SeqCst);
            }
            links.iter_mut().zip(PRODUCTS).for_each(|(link, product)| publish(link, product, n));
        }
    });
}

/// All subscribers begin on the product's home shard. Once that is busy, the other shards work as
/// well, and each subscriber still receives every event in order.
#[test]
fn a_busy_shard_gives_subscribers_to_the_others_and_none_of_them_misses_an_event() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).start();
    let mut link = connector.stream();
    let mut subscribers: Vec<_> = (0..SUBSCRIBERS).map(|_| follow(&relay, PRODUCT)).collect();
    let shards = thread::available_parallelism().unwrap().get();
    let has_worked = |name: &str| relay.process.thread_time(name) > Duration::from_millis(50);
    let until = Instant::now() + wait::TIMEOUT;
    let mut published = 0;
    while (0..shards).filter(|shard| has_worked(&format!("shard-{shard}"))).count() < shards.min(2)
    {
        assert!(Instant::now() < until, "one shard does all the work");
        // One after the other: events that wait together cost a subscriber one write. The sockets
        // hold them until they are read.
        let burst = published..published + BURST;
        for n in burst.clone() {
            publish(&mut link, PRODUCT, n);
            thread::sleep(Duration::from_millis(1));
        }
        for subscriber in &mut subscribers {
            burst.clone().for_each(|n| assert_eq!(next(subscriber, PRODUCT), n));
        }
        published = burst.end;
    }
}

fn follow(relay: &Relay, product: &str) -> Subscriber {
    Subscriber::open(relay.public, &format!("/stream/{product}"), &[])
}

fn publish(link: &mut Link, product: &str, number: usize) {
    link.event(format!(r#"{{"type":"actions","of":"{product}","number":{number}}}"#));
}

fn next(subscriber: &mut Subscriber, product: &str) -> usize {
    let event: serde_json::Value =
        serde_json::from_slice(subscriber.event().data.as_ref()).unwrap();
    assert_eq!(event["of"], product, "another product's event");
    event["number"].as_u64().unwrap() as usize
}

const PRODUCTS: [&str; 2] = ["one", "two"];

const SUBSCRIBERS: usize = 300;

/// Events, one each millisecond, that one shard is busy with for longer than it takes to find out.
const BURST: usize = 500;

/// Events that the connectors may be ahead of the slowest reader: enough to keep all shards busy.
const MAX_AHEAD: usize = 50;

const VISITORS: usize = 8;

const EVENTS: usize = 300;
