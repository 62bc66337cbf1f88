//! SIGKILL under load: events received 50 ms before are persisted, and every loss is announced.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    connector::{Connector, Link},
    events::{event_of, number},
    relay::Relay,
    store::DataDir,
    subscriber::{Frame, Subscriber},
};

/// The events that one client had received when a run was killed.
struct Seen {
    frames: Vec<Frame>,
    /// Time of arrival of each event.
    at: Vec<Instant>,
}

#[test]
fn an_event_received_50_ms_before_a_kill_is_persisted_and_a_lost_one_is_announced() {
    let _turn = crate::exclusive();
    let is_long = std::env::var_os("AUTOPLAY_RELAY_LONG").is_some();
    let seed = std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("AUTOPLAY_RELAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (connector, data) = (Connector::new(), DataDir::new());
    let mut history = History::default();
    for run in 0..if is_long { 100 } else { 8 } {
        let mut relay = data.relay(&connector);
        let mut link = if run == 0 { connector.stream() } else { relay.reconnect(&connector) };
        let is_over = AtomicBool::new(false);
        let seen_by_all = [const { AtomicUsize::new(0) }; 3];
        let time = Duration::from_millis(random.u64(60..700));
        let (killed_at, seen) = thread::scope(|scope| {
            let readers: Vec<_> = seen_by_all
                .iter()
                .map(|count| {
                    let mut subscriber = relay.subscribe();
                    scope.spawn(move || follow(&mut subscriber, count))
                })
                .collect();
            let (is_over, seen_by_all, sent) = (&is_over, &seen_by_all, &mut history.sent);
            let sender = scope.spawn(move || {
                // Never far ahead of the readers, so that the events they receive last were sent
                // just before the kill.
                let begin = *sent;
                while !is_over.load(Ordering::SeqCst) {
                    let slowest =
                        seen_by_all.iter().map(|count| count.load(Ordering::SeqCst)).min().unwrap();
                    thread::sleep(Duration::from_micros(200));
                    if *sent - begin > slowest + 64 {
                        continue;
                    }
                    let payload = event_of(SESSIONS[*sent % SESSIONS.len()], *sent);
                    if !link.try_event(payload) {
                        return;
                    }
                    *sent += 1;
                }
            });
            thread::sleep(time);
            let killed_at = Instant::now();
            relay.process.kill();
            is_over.store(true, Ordering::SeqCst);
            sender.join().unwrap();
            let seen: Vec<Seen> =
                readers.into_iter().map(|reader| reader.join().unwrap()).collect();
            (killed_at, seen)
        });
        let relay = data.relay(&connector);
        let seen = seen.into_iter().max_by_key(|seen| seen.frames.len()).unwrap();
        // Held until the relay has ended: a relay whose connection is dropped connects again, and
        // that connection would be taken for the next run's.
        let _link =
            history.check(&relay, &connector, &seen, killed_at, &format!("seed {seed}, run {run}"));
        relay.stop();
    }
    let relay = data.relay(&connector);
    assert!(
        everything(&relay, "0").starts_with(&history.kept),
        "seed {seed}: persisted entries do not change"
    );
}

/// Reads until the stream breaks off.
fn follow(subscriber: &mut Subscriber, count: &AtomicUsize) -> Seen {
    let mut seen = Seen { frames: Vec::new(), at: Vec::new() };
    while let Some(frame) = subscriber.try_frame() {
        if frame.event.is_none() {
            seen.frames.push(frame);
            seen.at.push(Instant::now());
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
    seen
}

/// All runs of the relay so far.
#[derive(Default)]
struct History {
    sent: usize,
    /// The event of each id seen so far.
    names: HashMap<String, usize>,
    /// The persisted entries, as first read back.
    kept: Vec<Frame>,
}

impl History {
    /// Checks the log of the next run against the events that a client had received.
    fn check(
        &mut self,
        relay: &Relay,
        connector: &Connector,
        seen: &Seen,
        killed_at: Instant,
        run: &str,
    ) -> Link {
        for frame in &seen.frames {
            self.name(frame, run);
        }
        let kept = everything(relay, self.kept.last().map_or("0", Frame::id));
        let of_this_life: Vec<usize> = kept.iter().filter_map(|it| self.name(it, run)).collect();
        // In order, without a hole and without a duplicate, from the first received event on.
        let begin = seen.frames.first().map_or(self.sent, |frame| number(&frame.data));
        assert!(
            of_this_life.iter().copied().eq(begin..begin + of_this_life.len()),
            "{run}: {of_this_life:?}"
        );
        let must_be_kept =
            seen.at.iter().filter(|at| killed_at.duration_since(**at) >= Duration::from_millis(50));
        let (must_be_kept, is_kept) = (must_be_kept.count(), of_this_life.len());
        assert!(is_kept >= must_be_kept, "{run}: {is_kept} of {must_be_kept} are persisted");
        // A client whose last event was lost gets an unknown id gap; a client whose last event was
        // persisted does not.
        let link = relay.reconnect(connector);
        for frame in seen.frames.iter().skip(is_kept.saturating_sub(2)).take(6) {
            let is_known = number(&frame.data) < begin + is_kept;
            let mut resumed = relay.resume(frame.id());
            if is_known {
                let next = kept.iter().skip_while(|it| it.id != frame.id).nth(1);
                match next {
                    Some(next) => assert_eq!(resumed.item(), *next, "{run}"),
                    None => {
                        assert_eq!(resumed.gap().json()["reason"], "upstream_reconnect", "{run}");
                    }
                }
            } else {
                let notice = resumed.gap().json();
                assert_eq!(
                    (&notice["reason"], &notice["after"]),
                    (&"unknown_id".into(), &frame.id().into()),
                    "{run}"
                );
                // What follows the end of the epoch, and nothing that the client has seen.
                assert_eq!(resumed.gap().json()["reason"], "upstream_reconnect", "{run}");
            }
        }
        let lost = seen.frames.len().saturating_sub(is_kept);
        eprintln!(
            "{run}: {} seen, {must_be_kept} due, {is_kept} kept, {lost} lost",
            seen.frames.len()
        );
        self.sent = self.sent.max(begin + is_kept);
        self.kept.extend(kept);
        link
    }

    /// Records the event of this id. Returns the number of the event, or `None` for a gap.
    fn name(&mut self, frame: &Frame, run: &str) -> Option<usize> {
        let number = match &frame.event {
            None => number(&frame.data),
            Some(_) => usize::MAX,
        };
        let known = *self.names.entry(frame.id().to_owned()).or_insert(number);
        assert_eq!(known, number, "{run}: {} has been given twice", frame.id());
        (number != usize::MAX).then_some(number)
    }
}

/// Returns all entries after an id, up to the newest before the connector reconnects.
fn everything(relay: &Relay, id: &str) -> Vec<Frame> {
    let newest =
        relay.status()["log"]["prod_abc"]["newest"].as_str().unwrap_or_default().to_owned();
    let mut all = relay.resume(id);
    let mut frames: Vec<Frame> = Vec::new();
    while frames.last().and_then(|frame| frame.id.as_deref()).unwrap_or_default() != newest {
        let mut frame = all.item();
        if frame.event.is_some() {
            frame.data.clear(); // the id after a gap is not known at first
        }
        frames.push(frame);
    }
    frames
}

const SESSIONS: [&str; 3] = ["a", "b", "c"];
