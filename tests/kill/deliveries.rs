//! `kill -9` in mid-delivery: what was received 50 ms before it is delivered after the restart,
//! little of it twice.

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

/// Deliveries under way at one time, and so the most that may come twice after a kill.
const MAX_IN_FLIGHT: usize = 8;

const SESSIONS: [&str; 5] = ["a", "b", "c", "d", "e"];

#[test]
fn an_event_received_50_ms_before_a_kill_is_delivered_in_order_and_rarely_twice() {
    let _turn = crate::alone();
    let is_long = std::env::var_os("AUTOPLAY_RELAY_LONG").is_some();
    let seed = std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("AUTOPLAY_RELAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (connector, data) = (Connector::new(), DataDir::new());
    let receiver = Receiver::new(slowly(seed));
    let lines = format!("max_in_flight = {MAX_IN_FLIGHT}");
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, &lines) + LOOPBACK));
    let mut history = History::default();
    for life in 0..if is_long { 100 } else { 5 } {
        let what = format!("seed {seed}, life {life}");
        let mut relay = setup.start();
        let link = if life == 0 { connector.stream() } else { relay.reconnect(&connector) };
        history.check_after_restart(&relay, &receiver, &what);
        let time = Duration::from_millis(random.u64(60..600));
        history.live(&mut relay, link, time);
    }
    let relay = setup.start();
    history.check_after_restart(&relay, &receiver, &format!("seed {seed}, at the end"));
    assert_eq!(relay.webhook("hook")["dead"], 0);
    relay.stop();
}

/// Takes a moment for each request, so that there is always something under way when the kill
/// comes.
fn slowly(seed: u64) -> impl FnMut(&Request) -> Answer + Send {
    let mut random = fastrand::Rng::with_seed(seed);
    move |_| {
        // The script has the receiver to itself, so this is what it takes for all of them, one
        // after the other.
        thread::sleep(Duration::from_micros(random.u64(0..800)));
        Answer::Status([200, 202, 204][random.usize(0..3)])
    }
}

/// All lives so far.
#[derive(Default)]
struct History {
    sent: usize,
    /// What was promised and has not been looked for yet: seen by a subscriber 50 ms before the
    /// kill.
    promised: Vec<usize>,
    /// Requests that have been looked at.
    checked: usize,
    /// The body of each event id that came.
    bodies: HashMap<String, Vec<u8>>,
}

impl History {
    /// Sends events for a time, kills the relay among them, and notes what it owes now.
    fn live(&mut self, relay: &mut Relay, mut link: Link, time: Duration) {
        let mut subscriber = relay.subscribe();
        let reader = thread::spawn(move || follow(&mut subscriber));
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, mut sent) = (Arc::clone(&is_over), self.sent);
        let sender = thread::spawn(move || {
            while !over.load(Ordering::SeqCst)
                && link.try_event(event_of(SESSIONS[sent % SESSIONS.len()], sent))
            {
                sent += 1;
                thread::sleep(Duration::from_micros(300)); // the pace, not a wait
            }
            sent
        });
        thread::sleep(time);
        let killed_at = Instant::now();
        relay.process.kill_dash_nine();
        is_over.store(true, Ordering::SeqCst);
        self.sent = sender.join().unwrap() + 1;
        let seen = reader.join().unwrap();
        let is_promised = |at: &Instant| killed_at.duration_since(*at) >= Duration::from_millis(50);
        self.promised
            .extend(seen.into_iter().filter(|(_, at)| is_promised(at)).map(|(number, _)| number));
    }

    /// Waits until the relay owes nothing, and holds what came against what was promised.
    fn check_after_restart(&mut self, relay: &Relay, receiver: &Receiver, life: &str) {
        relay.wait_until_settled("hook");
        let requests = receiver.requests();
        let new = &requests[self.checked..];
        let accepted: HashSet<usize> = requests.iter().map(|request| request.number()).collect();
        let missing: Vec<_> =
            self.promised.iter().filter(|number| !accepted.contains(number)).collect();
        assert!(
            missing.is_empty(),
            "{life}: {} of {} are missing: {missing:?}",
            missing.len(),
            self.promised.len()
        );
        let mut twice = 0;
        for request in new {
            let known = self.bodies.entry(request.id().to_owned());
            twice += usize::from(matches!(known, std::collections::hash_map::Entry::Occupied(_)));
            assert_eq!(
                *known.or_insert_with(|| request.body.clone()),
                request.body,
                "{life}: an id has one body"
            );
        }
        assert!(twice <= MAX_IN_FLIGHT, "{life}: {twice} came twice");
        assert_first_deliveries_in_order(&requests, life);
        eprintln!(
            "{life}: {} came, {} were promised, {twice} twice",
            new.len(),
            self.promised.len()
        );
        (self.checked, self.promised) = (requests.len(), Vec::new());
    }
}

/// Reads until the stream breaks off: the numbers, and when each had come.
fn follow(subscriber: &mut Subscriber) -> Vec<(usize, Instant)> {
    let mut seen = Vec::new();
    while let Some(frame) = subscriber.try_frame() {
        if frame.event.is_none() {
            seen.push((number(&frame.data), Instant::now()));
        }
    }
    seen
}

/// What comes for the first time is in order within its session; a second time it may come when it
/// will.
fn assert_first_deliveries_in_order(requests: &[Arc<Request>], life: &str) {
    let mut newest = HashMap::<String, usize>::new();
    let mut known = HashSet::new();
    for request in requests.iter().filter(|request| known.insert(request.number())) {
        let number = request.number();
        let before = newest.insert(request.session(), number);
        assert!(before.is_none_or(|before| before < number), "{life}: {number} after {before:?}");
    }
}
