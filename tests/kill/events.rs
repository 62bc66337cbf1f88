//! `kill -9` under load: whatever was received 50 ms before it is there afterwards, and every loss
//! is announced.

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

/// What one client had seen of one life when that was ended.
struct Seen {
    frames: Vec<Frame>,
    /// When each of them had come.
    at: Vec<Instant>,
}

#[test]
fn an_event_received_50_ms_before_a_kill_is_persisted_and_a_lost_one_is_announced() {
    let _turn = crate::alone();
    let is_long = std::env::var_os("AUTOPLAY_RELAY_LONG").is_some();
    let seed = std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("AUTOPLAY_RELAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (connector, data) = (Connector::new(), DataDir::new());
    let mut history = History::default();
    for life in 0..if is_long { 100 } else { 8 } {
        let mut relay = data.relay(&connector);
        let mut link = if life == 0 { connector.stream() } else { relay.reconnect(&connector) };
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
                // As fast as is sensible: never far ahead of who reads, so that what comes is what
                // was just received.
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
            relay.process.kill_dash_nine();
            is_over.store(true, Ordering::SeqCst);
            sender.join().unwrap();
            let seen: Vec<Seen> =
                readers.into_iter().map(|reader| reader.join().unwrap()).collect();
            (killed_at, seen)
        });
        let relay = data.relay(&connector);
        let seen = seen.into_iter().max_by_key(|seen| seen.frames.len()).unwrap();
        // Held until the relay is gone: one that is let go connects again, and the next life would
        // be taken for that.
        let _link = history.check(
            &relay,
            &connector,
            &seen,
            killed_at,
            &format!("seed {seed}, life {life}"),
        );
        relay.stop();
    }
    let relay = data.relay(&connector);
    assert!(
        everything(&relay, "0").starts_with(&history.kept),
        "seed {seed}: what was kept once stays as it was"
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

/// All lives so far.
#[derive(Default)]
struct History {
    sent: usize,
    /// Which event each id that was ever seen belongs to.
    names: HashMap<String, usize>,
    /// What was kept, as it was first read back.
    kept: Vec<Frame>,
}

impl History {
    /// Holds what the next life has against what was seen of the one before.
    fn check(
        &mut self,
        relay: &Relay,
        connector: &Connector,
        seen: &Seen,
        killed_at: Instant,
        life: &str,
    ) -> Link {
        for frame in &seen.frames {
            self.name(frame, life);
        }
        let kept = everything(relay, self.kept.last().map_or("0", Frame::id));
        let of_this_life: Vec<usize> = kept.iter().filter_map(|it| self.name(it, life)).collect();
        // In order, without a hole and nothing twice: from the first one seen on.
        let begin = seen.frames.first().map_or(self.sent, |frame| number(&frame.data));
        assert!(
            of_this_life.iter().copied().eq(begin..begin + of_this_life.len()),
            "{life}: {of_this_life:?}"
        );
        let must_be_kept =
            seen.at.iter().filter(|at| killed_at.duration_since(**at) >= Duration::from_millis(50));
        let (must_be_kept, is_kept) = (must_be_kept.count(), of_this_life.len());
        assert!(is_kept >= must_be_kept, "{life}: {is_kept} of {must_be_kept} are kept");
        // A client that had an id that was not kept is told that its place is not known, one that
        // had the last kept is not.
        let link = relay.reconnect(connector);
        for frame in seen.frames.iter().skip(is_kept.saturating_sub(2)).take(6) {
            let is_known = number(&frame.data) < begin + is_kept;
            let mut resumed = relay.resume(frame.id());
            if is_known {
                let next = kept.iter().skip_while(|it| it.id != frame.id).nth(1);
                match next {
                    Some(next) => assert_eq!(resumed.item(), *next, "{life}"),
                    None => {
                        assert_eq!(resumed.gap().json()["reason"], "upstream_reconnect", "{life}");
                    }
                }
            } else {
                let notice = resumed.gap().json();
                assert_eq!(
                    (&notice["reason"], &notice["after"]),
                    (&"unknown_id".into(), &frame.id().into()),
                    "{life}"
                );
                assert_eq!(resumed.item(), *self.kept.first().unwrap_or(&kept[0]), "{life}");
            }
        }
        let lost = seen.frames.len().saturating_sub(is_kept);
        eprintln!(
            "{life}: {} seen, {must_be_kept} promised, {is_kept} kept, {lost} lost",
            seen.frames.len()
        );
        self.sent = self.sent.max(begin + is_kept);
        self.kept.extend(kept);
        link
    }

    /// Notes what this id stands for; the number of the event, if it is one.
    fn name(&mut self, frame: &Frame, life: &str) -> Option<usize> {
        let number = match &frame.event {
            None => number(&frame.data),
            Some(_) => usize::MAX,
        };
        let known = *self.names.entry(frame.id().to_owned()).or_insert(number);
        assert_eq!(known, number, "{life}: {} has been given twice", frame.id());
        (number != usize::MAX).then_some(number)
    }
}

/// Everything that is kept behind an id: to the newest, before the connector is back.
fn everything(relay: &Relay, id: &str) -> Vec<Frame> {
    let newest =
        relay.status()["log"]["prod_abc"]["newest"].as_str().unwrap_or_default().to_owned();
    let mut all = relay.resume(id);
    let mut frames: Vec<Frame> = Vec::new();
    while frames.last().and_then(|frame| frame.id.as_deref()).unwrap_or_default() != newest {
        let mut frame = all.item();
        if frame.event.is_some() {
            frame.data.clear(); // what a gap's notice says of what comes next is not known at first
        }
        frames.push(frame);
    }
    frames
}

const SESSIONS: [&str; 3] = ["a", "b", "c"];
