//! The indices by session and by user behind their rows: crashes, erasures, retention and replays
//! at any time between two of their steps; damage to them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::store::reader::StoreReader;

/// Reads a session's events behind `after` in small chunks, and returns their positions.
pub(super) fn replay(path: &Path, name: &str, after: u64, indices: Indices) -> Vec<u64> {
    replay_of(path, &of_session(name), after, indices)
}

/// Reads the events of a session or a user, and returns their positions.
pub(super) fn replay_of(
    path: &Path,
    visitor: &VisitorId,
    after: u64,
    indices: Indices,
) -> Vec<u64> {
    let scope = match visitor.clone() {
        VisitorId::Session(session) => {
            Scope { sessions: Only::These([session].into()), ..Scope::EVERYTHING }
        }
        VisitorId::User(user) => Scope { users: Only::These([user].into()), ..Scope::EVERYTHING },
    };
    let reader = StoreReader::open(path).unwrap();
    let newest = "SELECT newest, evicted_through, id FROM products WHERE number = 1";
    let (newest, evicted, id): (i64, i64, String) = Connection::open(path)
        .unwrap()
        .query_row(newest, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap();
    let (newest, evicted) = (newest.cast_unsigned(), evicted.cast_unsigned());
    let mut request = ReadRequest {
        product: product(&id),
        product_number: 1,
        after: after.max(evicted),
        through: newest,
        scope,
        limits: ReadLimits { entries: 3, bytes: usize::MAX },
    };
    let mut positions = Vec::new();
    while request.after < request.through {
        let chunk = reader.fetch(&request, indices).unwrap();
        assert!(chunk.through > request.after && chunk.damaged.is_none(), "{visitor:?}: {chunk:?}");
        positions.extend(chunk.entries.iter().filter_map(|entry| match entry {
            Entry::Event(event) => Some(event.position()),
            Entry::Gap(_) => None,
            Entry::Erased => panic!("read as an entry"),
        }));
        request.after = chunk.through;
    }
    positions
}

/// Appends events of these sessions behind the newest; what stands behind a slash is the user.
fn append_of(file: &mut StoreFile, sessions: &[&str], now: u64) {
    let newest = file.find_or_add_product(&product("p")).unwrap().newest;
    let entries: Vec<_> = (newest + 1..)
        .zip(sessions)
        .map(|(position, of)| event(position, of, "k", format!("<{of}>").as_bytes()))
        .collect();
    file.append_one(1, newest + 1, &entries, now);
}

fn index_all(file: &mut StoreFile) {
    while file.index_names().unwrap() {}
}

/// Ends the process without closing the file, and opens it as the next one does.
fn crash_and_reopen(file: StoreFile) -> StoreFile {
    let path = file.path().to_owned();
    file.abandon();
    StoreFile::open(&path).unwrap()
}

/// Returns the positions and sessions that the index has.
pub(super) fn indexed(file: &StoreFile) -> Vec<(u64, String)> {
    let mut rows =
        file.connection.prepare("SELECT entry, session FROM session_index ORDER BY entry").unwrap();
    let rows =
        rows.query_map([], |row| Ok((schema::position_of(row.get(0)?), row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Returns the positions and users that the index has.
pub(super) fn indexed_users(file: &StoreFile) -> Vec<(u64, String)> {
    let mut rows =
        file.connection.prepare("SELECT entry, user FROM user_index ORDER BY entry").unwrap();
    let rows =
        rows.query_map([], |row| Ok((schema::position_of(row.get(0)?), row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

pub(super) fn of_user(name: &str) -> VisitorId {
    VisitorId::User(UserId::new(name).unwrap())
}

#[test]
fn a_process_that_ends_between_rows_and_index_leaves_a_tail_that_is_read_and_indexed_later() {
    let (_directory, mut file) = file_with_product();
    append_of(&mut file, &["a", "b", "a"], 1);
    index_all(&mut file);
    append_of(&mut file, &["a", "b", "a", "b"], 1);
    let mut file = crash_and_reopen(file);
    assert!(file.look_for_unindexed_rows().unwrap());
    assert_eq!(indexed(&file).len(), 3);
    assert_eq!(replay(file.path(), "a", 0, Indices::Trusted), [1, 3, 4, 6]);
    index_all(&mut file);
    assert!(!file.look_for_unindexed_rows().unwrap());
    let mut file = crash_and_reopen(file);
    assert_eq!(indexed(&file).len(), 7);
    assert_eq!(replay(file.path(), "a", 0, Indices::Trusted), [1, 3, 4, 6]);
    append_of(&mut file, &["a"], 1);
    assert_eq!(replay(file.path(), "a", 3, Indices::Trusted), [4, 6, 8]);
}

#[test]
fn a_session_is_erased_on_both_sides_of_the_seam_and_leaves_no_byte_of_its_name() {
    for indices in [Indices::Trusted, Indices::Unchecked] {
        let (_directory, mut file) = file_with_product();
        append_of(&mut file, &["victim", "b", "victim"], 1);
        index_all(&mut file);
        append_of(&mut file, &["victim", "b", "victim"], 1);
        assert_eq!(file.erase(1, &of_session("victim"), 0, indices).unwrap().events, 4);
        file.assert_counters_fit("p");
        assert!(replay(file.path(), "victim", 0, Indices::Unchecked).is_empty());
        index_all(&mut file);
        assert_eq!(indexed(&file), [(2, "b".to_owned()), (5, "b".to_owned())]);
        file.scrub().unwrap();
        let everything = bytes_of(file.path()).into_iter().flatten();
        let found = everything.map(|bytes| bytes.windows(6).filter(|it| it == b"victim").count());
        assert_eq!(found.sum::<usize>(), 0, "{indices:?}");
    }
}

#[test]
fn a_user_is_erased_on_both_sides_of_the_seam_and_leaves_no_byte_of_its_name() {
    for indices in [Indices::Trusted, Indices::Unchecked] {
        let (_directory, mut file) = file_with_product();
        append_of(&mut file, &["a/victim", "b/u", "/victim"], 1);
        index_all(&mut file);
        append_of(&mut file, &["c/victim", "a/u", "/victim", "b"], 1);
        let traces = file.traces_of(1, &UserId::new("victim").unwrap(), indices).unwrap();
        let sessions: Vec<_> = traces.sessions.iter().map(|it| it.as_str()).collect();
        assert_eq!((sessions, traces.positions), (vec!["a", "c"], [3, 6].into()));
        assert_eq!(file.erase(1, &of_user("victim"), 0, indices).unwrap().events, 4);
        file.assert_counters_fit("p");
        assert!(replay_of(file.path(), &of_user("victim"), 0, Indices::Unchecked).is_empty());
        assert_eq!(
            replay(file.path(), "a", 0, Indices::Unchecked),
            [5],
            "its sessions have others'"
        );
        index_all(&mut file);
        let named = |names: [(u64, &str); 3]| names.map(|(at, name)| (at, name.to_owned()));
        assert_eq!(indexed(&file), named([(2, "b"), (5, "a"), (7, "b")]));
        assert_eq!(indexed_users(&file), named([(2, "u"), (5, "u"), (0, "")])[..2]);
        file.scrub().unwrap();
        let everything = bytes_of(file.path()).into_iter().flatten();
        let found = everything.map(|bytes| bytes.windows(6).filter(|it| it == b"victim").count());
        assert_eq!(found.sum::<usize>(), 0, "{indices:?}");
    }
}

#[test]
fn retention_finds_a_user_index_without_a_row() {
    let (_directory, mut file) = file_with_product();
    append_of(&mut file, &["a/u", "b/v"], 1);
    append_of(&mut file, &["a/u", "b/v"], 5);
    index_all(&mut file);
    assert_eq!(file.retire(2, u64::MAX, 9).unwrap().unwrap().evicted_through, 2);
    assert_eq!(indexed_users(&file), [(3, "u".to_owned()), (4, "v".to_owned())]);
    file.connection.execute("DELETE FROM user_index WHERE user = 'u'", []).unwrap();
    let error = file.retire(10, u64::MAX, 11).unwrap_err();
    assert!(error.is_of_index(), "{error:?}");
    let reader = StoreReader::open(file.path()).unwrap();
    assert!(matches!(reader.check_indices(0), Err(FileError::Damaged { .. })), "the check, too");
    file.repair().unwrap();
    assert_eq!(reader.check_indices(0).unwrap(), None);
    assert_eq!(file.retire(10, u64::MAX, 11).unwrap().unwrap().evicted_through, 4);
    assert_eq!(indexed_users(&file), [], "no name stays behind");
}

#[test]
fn an_erasure_by_the_index_takes_a_row_with_it_whose_session_has_changed_on_the_disk() {
    let (_directory, mut file) = file_with_product();
    append_of(&mut file, &["a", "b", "a"], 1);
    index_all(&mut file);
    let change = "UPDATE entries SET session = 'x' WHERE entry & 0xFF = 3";
    assert_eq!(file.connection.execute(change, []), Ok(1));
    assert_eq!(file.erase(1, &of_session("a"), 0, Indices::Trusted).unwrap().events, 2);
    let left = "SELECT group_concat(entry & 0xFF) FROM entries";
    assert_eq!(file.connection.query_row(left, [], |row| row.get(0)), Ok("2".to_owned()));
}

#[test]
fn an_index_that_names_a_row_of_another_session_erases_none_of_that() {
    let (_directory, mut file) = file_with_product();
    append_of(&mut file, &["a", "b"], 1);
    index_all(&mut file);
    file.connection.execute("UPDATE session_index SET session = 'a'", []).unwrap();
    assert_eq!(file.erase(1, &of_session("a"), 0, Indices::Trusted).unwrap().events, 1);
    let left = "SELECT group_concat(session) FROM entries";
    assert_eq!(file.connection.query_row(left, [], |row| row.get(0)), Ok("b".to_owned()));
}

#[test]
fn retention_deletes_from_rows_and_index_and_finds_an_index_without_one_of_them() {
    let (_directory, mut file) = file_with_product();
    append_of(&mut file, &["a", "b"], 1);
    append_of(&mut file, &["a", "b"], 5);
    index_all(&mut file);
    append_of(&mut file, &["a", "b"], 5);
    append_of(&mut file, &["a", "b"], 9);
    assert_eq!(file.retire(2, u64::MAX, 9).unwrap().unwrap().evicted_through, 2);
    assert_eq!(indexed(&file), [(3, "a".to_owned()), (4, "b".to_owned())]);
    assert_eq!(file.retire(6, u64::MAX, 9).unwrap().unwrap().evicted_through, 6, "in the tail");
    assert_eq!(indexed(&file), []);
    assert_eq!(replay(file.path(), "a", 0, Indices::Trusted), [7]);
    index_all(&mut file);
    assert_eq!(replay(file.path(), "a", 0, Indices::Trusted), [7]);
    let change = "UPDATE entries SET session = 'x' WHERE entry & 0xFF = 8";
    assert_eq!(file.connection.execute(change, []), Ok(1));
    let error = file.retire(10, u64::MAX, 11).unwrap_err();
    assert!(error.is_of_index(), "{error:?}");
    file.repair().unwrap();
    assert_eq!(file.retire(10, u64::MAX, 11).unwrap().unwrap().evicted_through, 8);
    assert_eq!(indexed(&file), [], "no name stays behind");
}

#[test]
fn a_damaged_extent_of_the_index_is_found_by_every_use_and_made_anew() {
    for change in ["position = position + 1", "position = position - 1", "sum = 0"] {
        let (_directory, mut file) = file_with_product();
        append_of(&mut file, &["a", "b", "a"], 1);
        index_all(&mut file);
        append_of(&mut file, &["b", "a", "b"], 1);
        let update = format!("UPDATE indexed_through SET {change}");
        assert_eq!(file.connection.execute(&update, []), Ok(1));
        let reader = StoreReader::open(file.path()).unwrap();
        let request = ReadRequest {
            product: product("p"),
            product_number: 1,
            after: 0,
            through: 6,
            scope: Scope { sessions: Only::These([session("a")].into()), ..Scope::EVERYTHING },
            limits: ReadLimits { entries: 9, bytes: usize::MAX },
        };
        for error in [
            reader.fetch(&request, Indices::Trusted).map(drop).unwrap_err(),
            reader.check_indices(0).map(drop).unwrap_err(),
            file.index_names().map(drop).unwrap_err(),
            file.erase(1, &of_session("a"), 0, Indices::Trusted).map(drop).unwrap_err(),
            file.retire(9, u64::MAX, 9).map(drop).unwrap_err(),
        ] {
            assert!(matches!(error, FileError::Damaged { .. }), "{change}: {error:?}");
        }
        assert!(file.index_names().unwrap_err().is_of_index(), "repaired, not set aside");
        assert_eq!(reader.fetch(&request, Indices::Unchecked).unwrap().entries.len(), 3);
        file.repair().unwrap();
        assert_eq!(replay(file.path(), "a", 0, Indices::Trusted), [1, 3, 5]);
        assert_eq!(reader.check_indices(0).unwrap(), None);
    }
}

#[test]
fn an_index_whose_extent_is_gone_is_filled_again() {
    let (_directory, mut file) = file_with_product();
    append_of(&mut file, &["a", "b", "a"], 1);
    index_all(&mut file);
    file.connection.execute("DELETE FROM indexed_through", []).unwrap();
    assert_eq!(replay(file.path(), "a", 0, Indices::Trusted), [1, 3]);
    index_all(&mut file);
    assert_eq!(indexed(&file).len(), 3);
    assert_eq!(replay(file.path(), "a", 0, Indices::Trusted), [1, 3]);
}

#[test]
fn a_step_has_a_bound_and_the_oldest_rows_of_every_product_get_their_turn() {
    let (_directory, mut file) = file_with_product();
    assert_eq!(file.find_or_add_product(&product("q")).unwrap().product_number, 2);
    let rows = INDEX_STEP_ROWS + 10;
    let entries: Vec<_> = (1..=rows).map(|it| event(it, "s", "k", b"x")).collect();
    for number in [1, 2] {
        file.append_one(number, 1, &entries, 1);
    }
    let mut steps = 0;
    while file.index_names().unwrap() {
        steps += 1;
        assert_eq!(indexed(&file).len() as u64, steps * INDEX_STEP_ROWS);
    }
    assert_eq!((steps, indexed(&file).len() as u64), (2, 2 * rows));
}

/// Step of the model test.
#[derive(Clone, Debug)]
enum IndexStep {
    Append(Vec<usize>),
    Index,
    Erase(usize, Indices),
    Retire(u64),
    Crash,
    Repair,
}

fn any_step() -> impl Strategy<Value = IndexStep> {
    let indices = prop_oneof![Just(Indices::Trusted), Just(Indices::Unchecked)];
    prop_oneof![
        4 => proptest::collection::vec(0..NAMES.len(), 1..8).prop_map(IndexStep::Append),
        3 => Just(IndexStep::Index),
        1 => (0..5_usize, indices).prop_map(|(of, indices)| IndexStep::Erase(of, indices)),
        1 => (1..4_u64).prop_map(IndexStep::Retire),
        1 => Just(IndexStep::Crash),
        1 => Just(IndexStep::Repair),
    ]
}

/// Names of sessions, and behind a slash of users; an empty one is none.
const NAMES: [&str; 8] = ["a", "b/u", "c/v", "", "/u", "a/v", "b/a", "a/u"];

/// Returns the sessions and users that the model looks at. A session and a user have one name.
fn visitors() -> [VisitorId; 5] {
    ["a", "b"]
        .map(of_session)
        .into_iter()
        .chain(["u", "v", "a"].map(of_user))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

fn belongs_to(names: &str, visitor: &VisitorId) -> bool {
    let (session, user) = names.split_once('/').unwrap_or((names, ""));
    match visitor {
        VisitorId::Session(_) => session == visitor.as_str(),
        VisitorId::User(_) => user == visitor.as_str(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whenever_the_indices_are_behind_every_session_and_user_is_replayed_once_and_in_order(
        steps in proptest::collection::vec(any_step(), 1..25),
        after in 0..30_u64,
    ) {
        let (_directory, mut file) = file_with_product();
        // Sessions by position. The time is the number of the step.
        let mut rows: BTreeMap<u64, (&str, u64)> = BTreeMap::new();
        let mut newest = 0;
        for (now, step) in (1..).zip(steps) {
            match step {
                IndexStep::Append(of) => {
                    let names: Vec<_> = of.iter().map(|it| NAMES[*it]).collect();
                    append_of(&mut file, &names, now);
                    for name in names {
                        newest += 1;
                        rows.insert(newest, (name, now));
                    }
                }
                IndexStep::Index => index_all(&mut file),
                IndexStep::Erase(of, indices) => {
                    let visitor = &visitors()[of];
                    let erased = file.erase(1, visitor, 0, indices).unwrap();
                    let before = rows.len();
                    rows.retain(|_, (names, _)| !belongs_to(names, visitor));
                    prop_assert_eq!(erased.events as usize, before - rows.len());
                }
                IndexStep::Retire(back) => {
                    let oldest = now.saturating_sub(back);
                    while file.retire(oldest, u64::MAX, now).unwrap().is_some() {}
                    rows.retain(|_, (_, kept_at)| *kept_at >= oldest);
                }
                IndexStep::Crash => file = crash_and_reopen(file),
                IndexStep::Repair => drop(file.repair().unwrap()),
            }
            for visitor in &visitors() {
                let expected: Vec<_> = rows.iter()
                    .filter(|(position, (names, _))| belongs_to(names, visitor) && **position > after)
                    .map(|(position, _)| *position)
                    .collect();
                for indices in [Indices::Trusted, Indices::Unchecked] {
                    prop_assert_eq!(&replay_of(file.path(), visitor, after, indices), &expected);
                }
            }
            for (position, name) in indexed(&file) {
                prop_assert!(rows.get(&position).is_some_and(|(of, _)| belongs_to(of, &of_session(&name))));
            }
            for (position, name) in indexed_users(&file) {
                prop_assert!(rows.get(&position).is_some_and(|(of, _)| belongs_to(of, &of_user(&name))));
            }
            file.assert_counters_fit("p");
        }
        index_all(&mut file);
        let names = rows.iter().map(|(position, (names, _))| {
            (*position, names.split_once('/').unwrap_or((names, "")))
        });
        let sessions = names.clone().map(|(position, (session, _))| (position, session.to_owned()));
        let users = names.map(|(position, (_, user))| (position, user.to_owned()));
        let known = |names: &mut dyn Iterator<Item = (u64, String)>| -> Vec<_> {
            names.filter(|(_, name)| !name.is_empty()).collect()
        };
        prop_assert_eq!(indexed(&file), known(&mut { sessions }));
        prop_assert_eq!(indexed_users(&file), known(&mut { users }));
        prop_assert_eq!(StoreReader::open(file.path()).unwrap().check_indices(0).unwrap(), None);
    }
}
