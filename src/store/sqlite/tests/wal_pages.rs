//! Pages that commits write to the write-ahead log: most of what the store costs.

use super::*;

/// Returns the session of an event: one of ten thousand, in no order.
fn session_of(position: u64) -> String {
    let random = position.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
    format!("session-{:012x}", random.wrapping_mul(0xBF58_476D_1CE4_E5B9) % 10_000)
}

#[test]
fn a_commit_of_a_dozen_events_of_as_many_sessions_writes_few_pages() {
    let (_directory, mut file) = file_with_product();
    let before = wal_bytes(file.path());
    for commit in 0..COMMITS {
        let positions = commit * 12 + 1..=commit * 12 + 12;
        let entries: Vec<_> =
            positions.map(|it| event(it, &session_of(it), "actions", &[b'x'; 1000])).collect();
        file.append_one(1, commit * 12 + 1, &entries, 1);
        if (commit + 1) % COMMITS_PER_SECOND == 0 {
            assert_eq!(file.index_names().ok(), Some(false), "one step has all of a second");
        }
    }
    // A page and its header in the write-ahead log.
    let pages = (wal_bytes(file.path()) - before) / (8192 + 24);
    let indexed = "SELECT count(*) FROM session_index";
    let indexed = file.connection.query_row(indexed, [], |row| row.get::<_, i64>(0)).unwrap();
    assert!(
        indexed.cast_unsigned() > (COMMITS - COMMITS_PER_SECOND) * 12,
        "the index is among the pages"
    );
    // 5.7, of which 2 have the payloads. With an index that each commit keeps, 14.4.
    assert!(pages < COMMITS * 7, "{pages} pages in {COMMITS} commits");
}

const COMMITS: u64 = 500;

/// Commits between two steps of the index: one each 6 ms.
const COMMITS_PER_SECOND: u64 = 166;
