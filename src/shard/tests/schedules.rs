//! Random schedules of fan-out, subscriptions and a shard against a model: every subscriber
//! receives precisely what its scope admits.

use proptest::prelude::*;

use super::harness::{Expectation, FanoutShardHarness};
use crate::{
    event::{GapReason, Kind, Only, Scope, SessionId, StartPosition, UserId},
    fanout::FanoutHarness,
    subscription::{FanoutReader, scope},
};

/// One step of a random schedule.
#[derive(Clone, Debug)]
enum FanoutStep {
    Append { session: usize, kind: usize },
    Gap,
    Dispatch,
    Subscribe { sessions: Vec<usize>, kinds: Vec<usize>, back: Option<u64> },
    Read { reader: usize, max_items: usize },
    Join(usize),
    DeliverQueued(Vec<usize>),
}

fn step() -> impl Strategy<Value = FanoutStep> {
    let few = |max_items| proptest::collection::vec(0_usize..max_items, 0..3);
    prop_oneof![
        8 => (0_usize..5, 0_usize..3)
            .prop_map(|(session, kind)| FanoutStep::Append { session, kind }),
        1 => Just(FanoutStep::Gap),
        4 => Just(FanoutStep::Dispatch),
        2 => (few(5), few(3), proptest::option::of(0_u64..40))
            .prop_map(|(sessions, kinds, back)| FanoutStep::Subscribe { sessions, kinds, back }),
        2 => (0_usize..8).prop_map(FanoutStep::Join),
        4 => few(8).prop_map(FanoutStep::DeliverQueued),
        6 => (0_usize..8, 1_usize..40)
            .prop_map(|(reader, max_items)| FanoutStep::Read { reader, max_items }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// delivered + announced = sent. Each entry that the scope admits and the reader did not
    /// receive lies in a range that a gap announces; order is kept, no entry comes twice, and no
    /// entry that the scope hides is delivered. Holds for subscribers on a shard as for others.
    #[test]
    fn a_resume_seam_has_no_hole_and_no_duplicate(
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let mut harness = FanoutHarness::new(24);
        let mut entries: Vec<Option<(usize, usize)>> = Vec::new(); // none is a gap
        let mut readers: Vec<Expectation> = Vec::new();
        let mut shard = FanoutShardHarness::new(&harness.fanout);
        for step in steps {
            match step {
                FanoutStep::Append { session, kind } => {
                    harness.append(SESSIONS[session], KINDS[kind]);
                    entries.push(Some((session, kind)));
                }
                FanoutStep::Gap => {
                    harness.fanout.log().append_gap(GapReason::UpstreamReconnect);
                    entries.push(None);
                }
                FanoutStep::Dispatch => harness.dispatch(),
                FanoutStep::Subscribe { sessions: of, kinds: only, back } => {
                    let of: Vec<_> =
                        of.into_iter().filter(|of| *of > 0).map(|of| FILTERS[of]).collect();
                    let only: Vec<_> = only.into_iter().map(|only| KINDS[only]).collect();
                    let scope = scope(&of, &only);
                    let (start, after) = match back {
                        Some(back) => {
                            let sequence = (entries.len() as u64).saturating_sub(back);
                            let id = harness.fanout.log().id_at(sequence).unwrap();
                            (StartPosition::After(id), sequence)
                        }
                        None => (StartPosition::Now, harness.position),
                    };
                    let reader = harness.subscribe(scope.clone(), &start);
                    readers.push(Expectation { reader, scope, after });
                }
                FanoutStep::Read { reader, max_items } => {
                    if let Some(expectation) = readers.get_mut(reader) {
                        shard.read(&mut expectation.reader, max_items);
                    }
                }
                FanoutStep::Join(number) => {
                    if let Some(expectation) = readers.get_mut(number) {
                        shard.join(number, &mut expectation.reader);
                    }
                }
                FanoutStep::DeliverQueued(stuck) => shard.deliver_queued(&mut readers, &stuck),
            }
        }
        harness.dispatch_all();
        shard.deliver_queued(&mut readers, &[]);
        for Expectation { mut reader, scope, after } in readers {
            // the first read reaches the end of the log
            (0..2).for_each(|_| shard.read(&mut reader, 1000));
            check_coverage(&reader, &scope, after, &entries)?;
        }
    }
}

/// Checks that a reader has received each entry that its scope admits, or a notice of its loss.
fn check_coverage(
    reader: &FanoutReader,
    scope: &Scope,
    after: u64,
    entries: &[Option<(usize, usize)>],
) -> Result<(), TestCaseError> {
    let mut covered = after;
    for item in &reader.seen {
        let (from, to, announced) = match item {
            Ok(sequence) => (*sequence, *sequence, false),
            Err(gap) if gap.reason == GapReason::Evicted => (covered + 1, gap.position, true),
            Err(gap) => (gap.position, gap.position, false),
        };
        prop_assert!(from > covered, "in order, none twice");
        prop_assert!(
            announced || (covered + 1..from).all(|hidden| !admits(scope, entries, hidden))
        );
        prop_assert!(announced || admits(scope, entries, to));
        covered = to;
    }
    let rest = covered + 1..=entries.len() as u64;
    prop_assert!(rest.into_iter().all(|hidden| !admits(scope, entries, hidden)), "to the end");
    prop_assert!(reader.subscription.has_passed(entries.len() as u64));
    Ok(())
}

fn admits(scope: &Scope, entries: &[Option<(usize, usize)>], at: u64) -> bool {
    let Some((session, kind)) = entries[at as usize - 1] else {
        return true;
    };
    let (session, user) = SESSIONS[session].split_once('/').unwrap_or((SESSIONS[session], ""));
    let session = match &scope.sessions {
        Only::Everything => true,
        Only::These(wanted) => {
            SessionId::new(session).is_ok_and(|session| wanted.contains(&session))
        }
    };
    let user = match &scope.users {
        Only::Everything => true,
        Only::These(wanted) => UserId::new(user).is_ok_and(|user| wanted.contains(&user)),
    };
    session && user && scope.kinds.admits(&Kind::new(KINDS[kind]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// With any order of appends, dispatches and reads, the reader receives what the scope of the
    /// moment admits, in order, once; on a shard as elsewhere.
    #[test]
    fn a_scope_that_changes_loses_and_repeats_nothing(
        steps in prop::collection::vec((0_u8..7, 0_usize..4), 1..80),
        is_on_shard in any::<bool>(),
    ) {
        let scopes =
            [scope(&["a"], &[]), scope(&["a", "b"], &[]), scope(&["/u"], &["k"]), scope(&[], &[])];
        let kinds = [("a", "k"), ("b/u", "k"), ("a/u", "x"), ("c/v", "x")];
        let mut harness = FanoutHarness::new(1000);
        let reader = harness.subscribe(scopes[0].clone(), &StartPosition::Now);
        let mut readers = [Expectation { reader, scope: scopes[0].clone(), after: 0 }];
        let mut shard = FanoutShardHarness::new(&harness.fanout);
        if is_on_shard {
            shard.join(0, &mut readers[0].reader);
        }
        let (mut appended, mut current, mut expected, mut from) = (Vec::new(), 0, Vec::new(), 0);
        let due = |appended: &[(&str, &str)], scope: &Scope, from: u64| -> Vec<u64> {
            let positions = (1_u64..).zip(appended).filter(|(position, _)| *position > from);
            let admits = |names: &str, kind: &str| {
                let (session, user) = names.split_once('/').unwrap_or((names, ""));
                let user = matches!(&scope.users, Only::Everything)
                    || UserId::new(user).is_ok_and(|user| scope.users.admits(&user));
                let session = matches!(&scope.sessions, Only::Everything)
                    || scope.sessions.admits(&SessionId::new(session).unwrap());
                session && user && scope.kinds.admits(&Kind::new(kind))
            };
            positions
                .filter(|(_, (session, kind))| admits(session, kind))
                .map(|(position, _)| position)
                .collect()
        };
        for (step, which) in steps {
            match step {
                0 | 1 => {
                    appended.push(kinds[which]);
                    harness.append(kinds[which].0, kinds[which].1);
                }
                2 => harness.dispatch(),
                3 => shard.read(&mut readers[0].reader, which),
                4 => shard.deliver_queued(&mut readers, &[]),
                5 => shard.deliver_queued(&mut readers, &[0]),
                _ => {
                    let reader = &mut readers[0].reader;
                    // Entries that the old scope had still to deliver are judged by the new one.
                    let returned_through = reader.subscription.returned_through();
                    let given = due(&appended, &scopes[current], from)
                        .into_iter()
                        .filter(|position| *position <= returned_through);
                    expected.extend(given);
                    prop_assert_eq!(&reader.events(), &expected);
                    from = returned_through;
                    current = which;
                    reader.is_following = false;
                    match is_on_shard {
                        true => shard.shard_index.change_scope(
                            0,
                            &mut reader.subscription,
                            scopes[which].clone(),
                        ),
                        false => reader.subscription.change_scope(scopes[which].clone()),
                    }
                }
            }
        }
        harness.dispatch_all();
        shard.deliver_queued(&mut readers, &[]);
        let [Expectation { mut reader, .. }] = readers;
        // the first read reaches the end of the log
        (0..2).for_each(|_| shard.read(&mut reader, usize::MAX));
        expected.extend(due(&appended, &scopes[current], from));
        prop_assert_eq!(reader.events(), expected);
        drop(reader);
        prop_assert!(!harness.fanout.has_signals());
    }
}

/// Names of events: sessions, and behind a slash users.
const SESSIONS: [&str; 5] = ["", "a", "b/u", "a/v", "/u"];

/// What a subscriber asks for; behind a slash are users.
const FILTERS: [&str; 5] = ["", "a", "b", "/u", "/v"];

const KINDS: [&str; 3] = ["actions", "summary", "x"];
