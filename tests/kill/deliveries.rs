//! SIGKILL during deliveries: events received 50 ms before are delivered after the restart, few of
//! them twice.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    connector::{Connector, Link},
    events::{event_of, number},
    receiver::{Answer, Receiver, Request},
    relay::Relay,
    store::DataDir,
    subscriber::Subscriber,
    webhooks::{LOOPBACK, table},
};

/// Deliveries in flight at one time, and so the maximum that may be repeated after a kill.
const MAX_IN_FLIGHT: usize = 8;

const SESSIONS: [&str; 5] = ["a", "b", "c", "d", "e"];

#[test]
fn an_event_received_50_ms_before_a_kill_is_delivered_in_order_and_rarely_twice() {
    let _turn = crate::exclusive();
    let is_long = std::env::var_os("AUTOPLAY_RELAY_LONG").is_some();
    let seed = std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("AUTOPLAY_RELAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (connector, data) = (Connector::new(), DataDir::new());
    let receiver = Receiver::new(slow_script(seed));
    let lines = format!("max_in_flight = {MAX_IN_FLIGHT}");
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, &lines) + LOOPBACK));
    let mut history = History::default();
    for run in 0..if is_long { 100 } else { 5 } {
        let what = format!("seed {seed}, run {run}");
        let mut relay = setup.start();
        let link = if run == 0 { connector.stream() } else { relay.reconnect(&connector) };
        history.check_after_restart(&relay, &receiver, &what);
        let time = Duration::from_millis(random.u64(60..600));
        history.run_and_kill(&mut relay, link, time);
    }
    let relay = setup.start();
    history.check_after_restart(&relay, &receiver, &format!("seed {seed}, at the end"));
    assert_eq!(relay.webhook("hook")["dead"], 0);
    relay.stop();
}

/// Returns a script that takes a moment for each request, so that there are always deliveries in
/// flight at the kill.
fn slow_script(seed: u64) -> impl FnMut(&Request) -> Answer + Send {
    let mut random = fastrand::Rng::with_seed(seed);
    move |_| {
        // The receiver runs the script under a lock, so this is the time for all requests, one
        // after the other.
        thread::sleep(Duration::from_micros(random.u64(0..800)));
        Answer::Status([200, 202, 204][random.usize(0..3)])
    }
}

/// All runs of the relay so far.
#[derive(Default)]
struct History {
    sent: usize,
    /// Events that must be delivered and have not been checked yet: a subscriber received them 50
    /// ms before the kill.
    due: Vec<usize>,
    /// Number of requests that have been checked.
    checked: usize,
    /// The body of each received event id.
    bodies: HashMap<String, Vec<u8>>,
}

impl History {
    /// Sends events for a time, kills the relay meanwhile, and records the events that it must
    /// deliver.
    fn run_and_kill(&mut self, relay: &mut Relay, mut link: Link, time: Duration) {
        let mut subscriber = relay.subscribe();
        let reader = thread::spawn(move || follow(&mut subscriber));
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, mut sent) = (Arc::clone(&is_over), self.sent);
        let sender = thread::spawn(move || {
            while !over.load(Ordering::SeqCst)
                && link.try_event(event_of(SESSIONS[sent % SESSIONS.len()], sent))
            {
                sent += 1;
                thread::sleep(Duration::from_micros(300)); // the rate of events, not a wait
            }
            sent
        });
        thread::sleep(time);
        let killed_at = Instant::now();
        relay.process.kill();
        is_over.store(true, Ordering::SeqCst);
        self.sent = sender.join().unwrap() + 1;
        let seen = reader.join().unwrap();
        let is_due = |at: &Instant| killed_at.duration_since(*at) >= Duration::from_millis(50);
        self.due.extend(seen.into_iter().filter(|(_, at)| is_due(at)).map(|(number, _)| number));
    }

    /// Waits until no delivery is pending, and checks the received requests.
    fn check_after_restart(&mut self, relay: &Relay, receiver: &Receiver, run: &str) {
        relay.wait_until_settled("hook");
        let requests = receiver.requests();
        let new = &requests[self.checked..];
        let accepted: HashSet<usize> = requests.iter().map(|request| request.number()).collect();
        let missing: Vec<_> = self.due.iter().filter(|number| !accepted.contains(number)).collect();
        assert!(
            missing.is_empty(),
            "{run}: {} of {} are missing: {missing:?}",
            missing.len(),
            self.due.len()
        );
        let mut twice = 0;
        for request in new {
            let known = self.bodies.entry(request.id().to_owned());
            twice += usize::from(matches!(known, std::collections::hash_map::Entry::Occupied(_)));
            assert_eq!(
                *known.or_insert_with(|| request.body.clone()),
                request.body,
                "{run}: an id has one body"
            );
        }
        assert!(twice <= MAX_IN_FLIGHT, "{run}: {twice} arrived twice");
        assert_first_deliveries_in_order(&requests, run);
        eprintln!("{run}: {} requests, {} events due, {twice} twice", new.len(), self.due.len());
        (self.checked, self.due) = (requests.len(), Vec::new());
    }
}

/// Reads until the stream breaks off, and returns each number with its time of arrival.
fn follow(subscriber: &mut Subscriber) -> Vec<(usize, Instant)> {
    let mut seen = Vec::new();
    while let Some(frame) = subscriber.try_frame() {
        if frame.event.is_none() {
            seen.push((number(&frame.data), Instant::now()));
        }
    }
    seen
}

/// Checks that first deliveries are in order within their session. Repeated ones may come in any
/// order.
fn assert_first_deliveries_in_order(requests: &[Arc<Request>], run: &str) {
    let mut newest = HashMap::<String, usize>::new();
    let mut known = HashSet::new();
    for request in requests.iter().filter(|request| known.insert(request.number())) {
        let number = request.number();
        let before = newest.insert(request.session(), number);
        assert!(before.is_none_or(|before| before < number), "{run}: {number} after {before:?}");
    }
}
