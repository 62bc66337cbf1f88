//! The seam between catching up and following, against a model: every subscriber sees precisely what its scope admits.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::{
    event::{Draft, Event, EventId, Gap, GapReason, Kind, Only, ProductId, SessionId},
    log::{Bounds, Numbering},
    metrics::Metrics,
};

/// A fan-out whose task the test runs by hand.
pub(super) struct Stage {
    pub(super) fanout: Arc<Fanout>,
    position: u64,
}

impl Stage {
    pub(super) fn new(ring_events: usize) -> Self {
        let product = ProductId::new("p").unwrap();
        let metrics = Metrics::new().unwrap().log(&product);
        let log = Log::new(product, Bounds { events: ring_events, bytes: u64::MAX }, metrics);
        log.numbered_by(Numbering::Own);
        Self { fanout: Arc::new(Fanout::new(Arc::new(log), 1)), position: 0 }
    }

    pub(super) fn append(&self, session: &str, kind: &str) {
        let payload = Bytes::from(format!("{session} {kind}"));
        let session = (!session.is_empty()).then(|| SessionId::new(session).unwrap());
        let draft = Draft { kind: Kind::new(kind), session, forwarded_at: None, payload, received: Instant::now() };
        self.fanout.log().append(draft);
    }

    /// What the task does for one batch.
    fn show(&mut self) {
        let tail = self.fanout.log().tail(self.position, BATCH_ENTRIES);
        let mut tail = std::pin::pin!(tail);
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready((first, entries)) = tail.as_mut().poll(&mut context) {
            self.position = self.fanout.show(self.position, first, &entries);
        }
    }

    pub(super) fn show_all(&mut self) {
        loop {
            let before = self.position;
            self.show();
            if self.position == before {
                return;
            }
        }
    }

    pub(super) fn subscribe(&self, scope: Scope, start: &Start) -> Reader {
        let bell = Arc::new(Bell::default());
        let subscription = self.fanout.subscribe(Arc::default(), scope, start);
        Reader { subscription, bell, seen: Vec::new(), is_on_lane: false, is_following: false }
    }
}

/// Counts wake-ups.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A subscriber, and what it has seen: places of events, and gap notices.
pub(super) struct Reader {
    pub(super) subscription: Subscription,
    bell: Arc<Bell>,
    seen: Vec<Result<u64, Gap>>,
    is_on_lane: bool,
    is_following: bool,
}

impl Reader {
    fn looks_into_the_log(&mut self, place: u64) {
        self.is_following = false;
        self.subscription.look_into_the_log(place);
    }

    /// Takes at most `most` items.
    fn read(&mut self, most: usize) {
        let waker = Waker::from(Arc::clone(&self.bell));
        let mut context = Context::from_waker(&waker);
        for _ in 0..most {
            match self.subscription.poll_next(&mut context) {
                Poll::Ready(Item::Event { event, .. }) => self.seen.push(Ok(event.place())),
                Poll::Ready(Item::Gap(gap)) => self.seen.push(Err(gap)),
                Poll::Pending => return,
            }
        }
    }

    fn events(&self) -> Vec<u64> {
        self.seen.iter().filter_map(|item| item.as_ref().ok().copied()).collect()
    }

    fn gaps(&self) -> Vec<&Gap> {
        self.seen.iter().filter_map(|item| item.as_ref().err()).collect()
    }

    fn wakes(&self) -> usize {
        self.bell.0.load(SeqCst)
    }
}

pub(super) fn scope(sessions: &[&str], kinds: &[&str]) -> Scope {
    let sessions: BTreeSet<_> = sessions.iter().map(|session| SessionId::new(session).unwrap()).collect();
    let kinds: BTreeSet<_> = kinds.iter().map(|kind| Kind::new(kind)).collect();
    Scope {
        sessions: if sessions.is_empty() { Only::Everything } else { Only::These(sessions) },
        kinds: if kinds.is_empty() { Only::Everything } else { Only::These(kinds) },
    }
}

#[test]
fn an_event_wakes_its_receivers_once_and_nobody_else() {
    let mut stage = Stage::new(100);
    let mut all = stage.subscribe(scope(&[], &[]), &Start::Now);
    let mut mine = stage.subscribe(scope(&["a"], &[]), &Start::Now);
    let mut of_kind = stage.subscribe(scope(&[], &["k"]), &Start::Now);
    let mut both = stage.subscribe(scope(&["a", "b"], &["k"]), &Start::Now);
    for reader in [&mut all, &mut mine, &mut of_kind, &mut both] {
        reader.read(9);
    }
    stage.append("c", "x");
    stage.append("", "x");
    stage.append("a", "x");
    stage.append("b", "k");
    stage.append("b", "k");
    stage.show_all();
    let readers = [&mut all, &mut mine, &mut of_kind, &mut both];
    assert_eq!(readers.map(|reader| reader.wakes()), [1, 1, 1, 1]);
    for reader in [&mut all, &mut mine, &mut of_kind, &mut both] {
        reader.read(9);
    }
    assert_eq!(all.events(), [1, 2, 3, 4, 5]);
    assert_eq!(mine.events(), [3]);
    assert_eq!((of_kind.events(), both.events()), (vec![4, 5], vec![4, 5]));
    stage.append("c", "x");
    stage.show_all();
    assert_eq!([mine.wakes(), of_kind.wakes(), both.wakes()], [1, 1, 1], "others' events wake nobody");
    assert_eq!(all.wakes(), 2);
}

#[test]
fn ten_thousand_listeners_to_other_sessions_are_not_even_looked_at() {
    let stage = Stage::new(100);
    let readers: Vec<_> =
        (0..10_000).map(|number| stage.subscribe(scope(&[&format!("s{number}")], &[]), &Start::Now)).collect();
    stage.append("s7", "x");
    let mut visited = 0;
    let (_, entries) = {
        let log = stage.fanout.log();
        let tail = std::pin::pin!(log.tail(0, 9));
        match tail.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(tail) => tail,
            Poll::Pending => panic!("something was appended"),
        }
    };
    let Entry::Event(event) = &entries[0] else { panic!("an event was appended") };
    let (session, kind) = (event.session(), event.kind());
    stage.fanout.audience().listeners.concerned(session, kind, Places::ALL, |_, _| visited += 1);
    assert_eq!(visited, 1);
    drop(readers);
    assert!(stage.fanout.audience().listeners.is_empty(), "who leaves leaves nothing behind");
}

#[test]
fn an_idle_session_subscriber_gets_no_gap_when_others_events_are_evicted() {
    let mut stage = Stage::new(16);
    let mut reader = stage.subscribe(scope(&["a"], &[]), &Start::Now);
    reader.read(9);
    for _ in 0..100 {
        stage.append("b", "x");
        stage.show_all();
    }
    stage.append("a", "x");
    stage.show_all();
    reader.read(9);
    assert_eq!((reader.events(), reader.gaps().len()), (vec![101], 0));
}

#[test]
fn a_subscriber_that_was_not_looking_while_its_events_were_evicted_is_told() {
    let mut stage = Stage::new(16);
    let mut reader = stage.subscribe(scope(&["a"], &[]), &Start::Now);
    reader.read(9);
    stage.append("a", "x");
    stage.show_all();
    reader.read(9);
    stage.append("b", "x");
    stage.append("a", "x"); // at 3, never read
    for _ in 0..40 {
        stage.append("b", "x");
        stage.show_all();
    }
    stage.append("a", "x");
    stage.show_all();
    reader.read(9);
    assert_eq!(reader.events(), [1, 44]);
    let gap = reader.gaps()[0];
    assert_eq!((reader.gaps().len(), gap.reason), (1, GapReason::Evicted));
    let log = stage.fanout.log();
    assert_eq!((gap.id, gap.before), (log.id(28).unwrap(), log.id(29)));
    assert_eq!(gap.after.as_deref(), Some(&*log.id(1).unwrap().to_string()), "the last id it has");
}

#[test]
fn what_was_evicted_before_the_fanout_could_look_is_announced_to_those_it_concerns() {
    let mut stage = Stage::new(16);
    let mut all = stage.subscribe(scope(&[], &[]), &Start::Now);
    let mut mine = stage.subscribe(scope(&["a"], &[]), &Start::Now);
    stage.append("b", "x");
    stage.append("a", "x");
    stage.show_all();
    all.read(9);
    mine.read(9);
    for _ in 0..20 {
        stage.append("a", "x");
        stage.append("b", "x");
    }
    stage.show_all();
    for reader in [&mut all, &mut mine] {
        reader.read(99);
        assert_eq!(reader.gaps().len(), 1);
        assert_eq!(reader.gaps()[0].before, stage.fanout.log().id(27));
    }
    assert_eq!(all.events(), [1, 2].into_iter().chain(27..=42).collect::<Vec<_>>());
    assert_eq!(mine.events().len(), 1 + 8);
}

#[test]
fn ids_that_are_not_of_this_log_are_answered_by_a_notice_and_everything_kept() {
    let mut stage = Stage::new(16);
    for _ in 0..20 {
        stage.append("a", "x");
    }
    stage.show_all();
    let log = stage.fanout.log();
    let epoch = log.id(0).unwrap().epoch;
    let foreign = EventId::new(epoch - 1, 7);
    let future = EventId::new(epoch, 21);
    for (start, after) in [
        (Start::After(foreign), Some(foreign.to_string())),
        (Start::After(future), Some(future.to_string())),
        (Start::Malformed, None),
    ] {
        let mut reader = stage.subscribe(scope(&[], &[]), &start);
        reader.read(99);
        let gap = reader.gaps()[0];
        assert_eq!((reader.gaps().len(), gap.reason), (1, GapReason::UnknownId));
        assert_eq!(gap.after.as_deref(), after.as_deref());
        assert_eq!((gap.id, gap.before), (log.id(4).unwrap(), log.id(5)));
        assert_eq!(reader.events(), (5..=20).collect::<Vec<_>>());
    }
    let mut oldest = stage.subscribe(scope(&[], &[]), &Start::Oldest);
    stage.append("a", "x"); // evicts one more before the first look
    oldest.read(99);
    assert_eq!((oldest.gaps().len(), oldest.events()), (0, (6..=21).collect()));
}

#[test]
fn a_stalled_subscriber_holds_one_handover_and_nobody_waits_for_it() {
    let mut stage = Stage::new(100_000);
    let mut stalled = stage.subscribe(scope(&[], &[]), &Start::Now);
    let mut other = stage.subscribe(scope(&[], &[]), &Start::Now);
    for round in 0..500 {
        // Appending and showing are plain calls: there is nothing in them that could wait for a subscriber.
        (0..20).for_each(|_| stage.append(&"s".repeat(1000), "x"));
        stage.show_all();
        other.read(20);
        assert_eq!(other.events().len(), (round + 1) * 20);
        stalled.read(usize::from(round == 0)); // one event, and then no more
        let held = stalled.subscription.held();
        assert!(held.0 <= 16 && held.1 <= 32 * 1024, "{held:?}");
    }
    assert_eq!(stalled.wakes(), 1, "marked once, and not again until it looks");
    stalled.read(usize::MAX);
    assert_eq!((stalled.events().len(), stalled.gaps().len()), (10_000, 0));
}

#[test]
fn the_position_moves_with_what_the_scope_hides() {
    let mut stage = Stage::new(16);
    let mut reader = stage.subscribe(scope(&["a"], &[]), &Start::Now);
    stage.append("b", "x");
    stage.append("b", "x");
    reader.read(9);
    assert_eq!(reader.subscription.move_on(), None, "not shown yet");
    stage.show_all();
    reader.read(9);
    assert_eq!(reader.subscription.move_on(), stage.fanout.log().id(2));
    assert_eq!(reader.subscription.move_on(), None, "told once");
}

#[test]
fn who_asked_for_what_is_kept_is_told_of_what_it_lost_since() {
    let mut stage = Stage::new(16);
    let mut reader = stage.subscribe(scope(&[], &[]), &Start::Oldest);
    for _ in 0..100 {
        stage.append("a", "x");
    }
    stage.show_all();
    reader.read(99);
    assert_eq!((reader.gaps().len(), reader.events()), (1, (85..=100).collect()));
    assert_eq!(reader.gaps()[0].after, None);
}

#[test]
fn a_resume_from_before_everything_names_the_id_it_came_with() {
    let mut stage = Stage::new(16);
    let before_everything = stage.fanout.log().id(0).unwrap();
    for _ in 0..20 {
        stage.append("a", "x");
    }
    stage.show_all();
    let mut reader = stage.subscribe(scope(&[], &[]), &Start::After(before_everything));
    reader.read(99);
    assert_eq!(reader.gaps()[0].after.as_deref(), Some(&*before_everything.to_string()));
}

/// Seconds until one whose id does not come is told so; none if it is still waiting after five minutes.
async fn told_after(stage: &Stage) -> Option<u32> {
    let mut reader = stage.subscribe(scope(&[], &[]), &Start::After(EventId::new(1, 1)));
    for seconds in 0..300 {
        reader.read(1);
        if !reader.seen.is_empty() {
            assert_eq!(reader.gaps()[0].reason, GapReason::UnknownId);
            return Some(seconds);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    None
}

#[tokio::test(start_paused = true)]
async fn who_is_ahead_waits_for_a_replay_and_for_a_relay_that_is_not_away_for_long() {
    let stage = Stage::new(16);
    let log = stage.fanout.log();
    assert_eq!(told_after(&stage).await, Some(0), "behind a connector nothing comes");
    log.numbered_by(Numbering::Upstream);
    assert_eq!(told_after(&stage).await, None, "as long as the relay repeats");
    log.has_recovered();
    assert_eq!(told_after(&stage).await, Some(5));
    log.upstream_is_away();
    assert!(!log.is_recovering(), "what comes afterwards is news");
    let until = told_after(&stage).await.unwrap();
    assert!((60..=66).contains(&until), "{until}");
    assert_eq!(told_after(&stage).await, Some(5), "it has been away for long");
    log.numbered_by(Numbering::Upstream);
    assert!(!log.has_caught_up() && told_after(&stage).await.is_none());
    log.upstream_is_away();
    log.numbered_by(Numbering::Own);
    assert_eq!(told_after(&stage).await, Some(0), "a connector again");
}

/// One step of a random schedule.
#[derive(Clone, Debug)]
enum Step {
    Append { session: usize, kind: usize },
    Gap,
    Show,
    Subscribe { sessions: Vec<usize>, kinds: Vec<usize>, back: Option<u64> },
    Read { reader: usize, most: usize },
    Join(usize),
    Arrive(Vec<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    let few = |most| proptest::collection::vec(0_usize..most, 0..3);
    prop_oneof![
        8 => (0_usize..5, 0_usize..3).prop_map(|(session, kind)| Step::Append { session, kind }),
        1 => Just(Step::Gap),
        4 => Just(Step::Show),
        2 => (few(5), few(3), proptest::option::of(0_u64..40))
            .prop_map(|(sessions, kinds, back)| Step::Subscribe { sessions, kinds, back }),
        2 => (0_usize..8).prop_map(Step::Join),
        4 => few(8).prop_map(Step::Arrive),
        6 => (0_usize..8, 1_usize..40).prop_map(|(reader, most)| Step::Read { reader, most }),
    ]
}

/// What a model reader expects: where it began, what it may see.
struct Expectation {
    reader: Reader,
    scope: Scope,
    after: u64,
}

/// What a lane's task does, as far as the fan-out is concerned.
struct Lane {
    followers: Followers,
    arrivals: Vec<Arc<Event>>,
}

impl Lane {
    fn new(fanout: &Arc<Fanout>) -> Self {
        Self { followers: Followers::new(fanout, 0, Waker::noop().clone()), arrivals: Vec::new() }
    }

    fn join(&mut self, number: usize, reader: &mut Reader) {
        if !reader.is_on_lane {
            reader.is_on_lane = true;
            self.followers.join(number, &mut reader.subscription);
        }
    }

    fn read(&self, reader: &mut Reader, most: usize) {
        if let Some(position) = self.followers.position().filter(|_| reader.is_on_lane) {
            reader.subscription.has_arrived(position);
        }
        reader.read(most);
        reader.is_following = reader.is_on_lane && reader.subscription.is_at_end();
    }

    /// Gives what has arrived to those who follow; `stuck` are those who cannot take anything now.
    fn arrive(&mut self, readers: &mut [Expectation], stuck: &[usize]) {
        self.arrivals.clear();
        match self.followers.take(&mut self.arrivals) {
            Arrived::Events => {}
            Arrived::Marks(_) => unreachable!("so much is not appended"),
            Arrived::Torn(place) => {
                return self.followers.everybody(|number| readers[number].reader.looks_into_the_log(place));
            }
        }
        let mut first = vec![None; readers.len()];
        let news = self.arrivals.iter().map(|event| (event.session(), event.kind()));
        self.followers.concerned(news, |at, number| {
            first[number].get_or_insert(at);
        });
        for (number, first) in first.into_iter().enumerate() {
            let (Some(first), reader) = (first, &mut readers[number].reader) else { continue };
            if !reader.is_following || stuck.contains(&number) {
                reader.looks_into_the_log(self.arrivals[first].place());
                continue;
            }
            let given = self.arrivals[first..].iter().filter(|event| reader.subscription.take(event));
            reader.seen.extend(given.map(|event| Ok(event.place())));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// delivered + announced = sent: whatever a scope admits and is not seen lies in a range that a gap announces, order
    /// is kept, nothing comes twice, and nothing that the scope hides is seen; to a lane's followers as to others.
    #[test]
    fn a_resume_seam_has_no_hole_and_no_duplicate(steps in proptest::collection::vec(step(), 1..300)) {
        let sessions = ["", "a", "b", "c", "d"];
        let kinds = ["actions", "summary", "x"];
        let mut stage = Stage::new(24);
        let mut entries: Vec<Option<(usize, usize)>> = Vec::new(); // none is a gap
        let mut readers: Vec<Expectation> = Vec::new();
        let mut lane = Lane::new(&stage.fanout);
        for step in steps {
            match step {
                Step::Append { session, kind } => {
                    stage.append(sessions[session], kinds[kind]);
                    entries.push(Some((session, kind)));
                }
                Step::Gap => {
                    stage.fanout.log().append_gap(GapReason::UpstreamReconnect);
                    entries.push(None);
                }
                Step::Show => stage.show(),
                Step::Subscribe { sessions: of, kinds: only, back } => {
                    let of: Vec<_> = of.into_iter().filter(|of| *of > 0).map(|of| sessions[of]).collect();
                    let only: Vec<_> = only.into_iter().map(|only| kinds[only]).collect();
                    let scope = scope(&of, &only);
                    let (start, after) = match back {
                        Some(back) => {
                            let sequence = (entries.len() as u64).saturating_sub(back);
                            (Start::After(stage.fanout.log().id(sequence).unwrap()), sequence)
                        }
                        None => (Start::Now, stage.position),
                    };
                    readers.push(Expectation { reader: stage.subscribe(scope.clone(), &start), scope, after });
                }
                Step::Read { reader, most } => {
                    if let Some(expectation) = readers.get_mut(reader) {
                        lane.read(&mut expectation.reader, most);
                    }
                }
                Step::Join(number) => {
                    if let Some(expectation) = readers.get_mut(number) {
                        lane.join(number, &mut expectation.reader);
                    }
                }
                Step::Arrive(stuck) => lane.arrive(&mut readers, &stuck),
            }
        }
        stage.show_all();
        lane.arrive(&mut readers, &[]);
        for Expectation { mut reader, scope, after } in readers {
            (0..2).for_each(|_| lane.read(&mut reader, 1000)); // the first time it comes to its end
            let mut covered = after;
            for item in &reader.seen {
                let (from, to, announced) = match item {
                    Ok(sequence) => (*sequence, *sequence, false),
                    Err(gap) if gap.reason == GapReason::Evicted => (covered + 1, gap.place, true),
                    Err(gap) => (gap.place, gap.place, false),
                };
                prop_assert!(from > covered, "in order, none twice");
                prop_assert!(announced || (covered + 1..from).all(|hidden| !admits(&scope, &entries, hidden, &sessions, &kinds)));
                prop_assert!(announced || admits(&scope, &entries, to, &sessions, &kinds));
                covered = to;
            }
            let rest = covered + 1..=entries.len() as u64;
            prop_assert!(rest.into_iter().all(|hidden| !admits(&scope, &entries, hidden, &sessions, &kinds)), "to the end");
            prop_assert!(reader.subscription.has_passed(entries.len() as u64));
        }
    }
}

fn admits(scope: &Scope, entries: &[Option<(usize, usize)>], at: u64, sessions: &[&str], kinds: &[&str]) -> bool {
    let Some((session, kind)) = entries[at as usize - 1] else {
        return true;
    };
    let session = match &scope.sessions {
        Only::Everything => true,
        Only::These(wanted) => SessionId::new(sessions[session]).is_ok_and(|session| wanted.contains(&session)),
    };
    session && scope.kinds.admits(&Kind::new(kinds[kind]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is appended, shown and read in between: what comes is what the filter of the moment admits, in order, once; for one
    /// that its lane tells what arrives as for others.
    #[test]
    fn a_scope_that_changes_loses_and_repeats_nothing(
        steps in prop::collection::vec((0_u8..7, 0_usize..4), 1..80),
        is_on_lane in any::<bool>(),
    ) {
        let scopes = [scope(&["a"], &[]), scope(&["a", "b"], &[]), scope(&[], &["k"]), scope(&[], &[])];
        let kinds = [("a", "k"), ("b", "k"), ("a", "x"), ("c", "x")];
        let mut stage = Stage::new(1000);
        let (reader, scope) = (stage.subscribe(scopes[0].clone(), &Start::Now), scopes[0].clone());
        let (mut readers, mut lane) = ([Expectation { reader, scope, after: 0 }], Lane::new(&stage.fanout));
        if is_on_lane {
            lane.join(0, &mut readers[0].reader);
        }
        let (mut appended, mut current, mut expected, mut from) = (Vec::new(), 0, Vec::new(), 0);
        let due = |appended: &[(&str, &str)], scope: &Scope, from: u64| -> Vec<u64> {
            let places = (1_u64..).zip(appended).filter(|(place, _)| *place > from);
            let admits = |session: &str, kind: &str| {
                let session = matches!(&scope.sessions, Only::Everything)
                    || scope.sessions.admits(&SessionId::new(session).unwrap());
                session && scope.kinds.admits(&Kind::new(kind))
            };
            places.filter(|(_, (session, kind))| admits(session, kind)).map(|(place, _)| place).collect()
        };
        for (step, which) in steps {
            match step {
                0 | 1 => {
                    appended.push(kinds[which]);
                    stage.append(kinds[which].0, kinds[which].1);
                }
                2 => stage.show(),
                3 => lane.read(&mut readers[0].reader, which),
                4 => lane.arrive(&mut readers, &[]),
                5 => lane.arrive(&mut readers, &[0]),
                _ => {
                    let reader = &mut readers[0].reader;
                    // What the old scope had still to give is judged by the new one.
                    let stands = reader.subscription.returned_through();
                    let given = due(&appended, &scopes[current], from).into_iter().filter(|place| *place <= stands);
                    expected.extend(given);
                    prop_assert_eq!(&reader.events(), &expected);
                    from = stands;
                    current = which;
                    reader.is_following = false;
                    match is_on_lane {
                        true => lane.followers.change_scope(0, &mut reader.subscription, scopes[which].clone()),
                        false => reader.subscription.change_scope(scopes[which].clone()),
                    }
                }
            }
        }
        stage.show_all();
        lane.arrive(&mut readers, &[]);
        let [Expectation { mut reader, .. }] = readers;
        (0..2).for_each(|_| lane.read(&mut reader, usize::MAX)); // the first time it comes to its end
        expected.extend(due(&appended, &scopes[current], from));
        prop_assert_eq!(reader.events(), expected);
        drop(reader);
        prop_assert!(stage.fanout.audience().listeners.is_empty());
    }
}
