//! The index against a list of subscribers that is searched from end to end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// One change of the index.
#[derive(Clone, Debug)]
enum ScopeStep {
    /// A subscriber comes, in place of the one with its key.
    Insert { key: usize, scope: Scope },
    /// The subscriber with this key goes, if there is one.
    Remove(usize),
    /// A subscriber goes that is not in the index: the others stay.
    RemoveAbsent(Scope),
}

fn step() -> impl Strategy<Value = ScopeStep> {
    let session = prop::sample::select(&SESSIONS[..]);
    let user = prop::sample::select(&USERS[..]);
    let kind = prop::sample::select(&KINDS[..]);
    let limits = (
        prop::collection::vec(session, 0..4),
        prop::collection::vec(user, 0..4),
        prop::collection::vec(kind, 0..3),
    );
    let scope = limits.prop_map(|(sessions, users, kinds)| {
        let sessions = sessions.into_iter().map(|text| SessionId::new(text).unwrap());
        let users = users.into_iter().map(|text| UserId::new(text).unwrap());
        let kinds = kinds.into_iter().map(Kind::new);
        Scope {
            sessions: only_or_everything(sessions.collect()),
            users: only_or_everything(users.collect()),
            kinds: only_or_everything(kinds.collect()),
        }
    });
    prop_oneof![
        3 => (0_usize..8, scope.clone()).prop_map(|(key, scope)| ScopeStep::Insert { key, scope }),
        2 => (0_usize..8).prop_map(ScopeStep::Remove),
        1 => scope.prop_map(ScopeStep::RemoveAbsent),
    ]
}

fn only_or_everything<T>(values: BTreeSet<T>) -> Only<T> {
    if values.is_empty() { Only::Everything } else { Only::These(values.into()) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn an_index_finds_the_subscribers_that_a_search_of_all_finds(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut index = ScopeIndex::default();
        let mut model: BTreeMap<usize, (Scope, usize)> = BTreeMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            let key = match &step {
                ScopeStep::Insert { key, .. } | ScopeStep::Remove(key) => *key,
                ScopeStep::RemoveAbsent(_) => ABSENT,
            };
            if let Some((scope, _)) = model.remove(&key) {
                index.remove(&scope, key);
            }
            if let ScopeStep::RemoveAbsent(scope) = &step {
                index.remove(scope, ABSENT);
            }
            if let ScopeStep::Insert { scope, .. } = step {
                index.insert(&scope, key, &number);
                model.insert(key, (scope, number));
            }
            check(&index, &model)?;
        }
        for (key, (scope, _)) in model {
            index.remove(&scope, key);
        }
        prop_assert!(index.is_empty(), "no empty bucket is left");
    }
}

/// Compares what the index visits for every event, and without an event, with the model.
fn check(
    index: &ScopeIndex<usize>,
    model: &BTreeMap<usize, (Scope, usize)>,
) -> Result<(), TestCaseError> {
    let sessions = SESSIONS.map(|text| SessionId::new(text).unwrap());
    let users = USERS.map(|text| UserId::new(text).unwrap());
    for kind in &KINDS.map(Kind::new) {
        for session in [None].into_iter().chain(sessions.iter().map(Some)) {
            for user in [None].into_iter().chain(users.iter().map(Some)) {
                let event = ScopeKey { session, user, kind };
                let mut visited = Vec::new();
                index.for_each_match(event, BucketFilter::ALL, |key, value| {
                    visited.push((key, *value));
                });
                visited.sort_unstable();
                let concerned = model
                    .iter()
                    .filter(|(_, (scope, _))| scope.includes(event))
                    .map(|(key, (_, value))| (*key, *value));
                prop_assert_eq!(visited, concerned.collect::<Vec<_>>());
            }
        }
    }
    let mut visited = BTreeSet::new();
    index.for_each(|key, _| {
        visited.insert(key);
    });
    prop_assert!(visited.iter().eq(model.keys()));
    prop_assert_eq!(index.is_empty(), model.is_empty());
    Ok(())
}

#[test]
fn a_bucket_gives_its_table_back_when_one_subscriber_is_left() {
    let session = SessionId::new("a").unwrap();
    let mut sessions = Dimension::default();
    (0..3).for_each(|key| sessions.insert(&session, key, ()));
    assert!(matches!(sessions.0[&session], Bucket::Many(_)));
    sessions.remove(&session, 0);
    sessions.remove(&session, 2);
    assert!(matches!(sessions.0[&session], Bucket::One(1, ())));
}

#[test]
fn a_subscriber_of_one_session_or_user_takes_40_bytes_of_its_shards_index_and_no_table() {
    assert!(size_of::<(SessionId, Bucket<NarrowedSubscriber<()>>)>() <= 40);
    assert!(size_of::<(UserId, Bucket<NarrowedSubscriber<()>>)>() <= 40);
    assert!(size_of::<(SessionId, Bucket<NarrowedSubscriber<std::sync::Arc<()>>>)>() <= 40);
}

/// Key of no subscriber.
const ABSENT: usize = 99;

const SESSIONS: [&str; 3] = ["a", "b", "c"];

const USERS: [&str; 2] = ["a", "u"];

const KINDS: [&str; 3] = ["actions", "summary", "x"];
