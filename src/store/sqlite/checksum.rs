//! Checksums of rows: the SQL function `row_sum`, and the columns that each table puts under it.
//!
//! SQLite finds damage to its own structures, and none within a value. Every row that is served,
//! sent, or decides what is, therefore carries a sum over all its columns, its key included: a row
//! under the key of another one does not fit either.
//!
//! The sum is 64-bit FNV-1a. Each of its steps is a bijection of the state, so a change of one byte
//! always changes the sum, and any other change goes unseen once in 2^64. It is no defence against
//! an attacker who can write to the file.
//!
//! May use: no other module.

use std::hash::Hasher;

use fnv::FnvHasher;
use rusqlite::{
    Connection,
    functions::{Context, FunctionFlags},
    types::ValueRef,
};

/// Makes `row_sum` known to a connection.
///
/// # Errors
///
/// When SQLite refuses it.
pub(super) fn register(connection: &Connection) -> rusqlite::Result<()> {
    // Direct: a schema of another author must not call it.
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("row_sum", ANY_NUMBER, flags, |values| Ok(row_sum(values)))
}

/// Returns the sum over some values. Type and length are part of it, so that no two lists of values
/// are the same bytes.
fn row_sum(values: &Context<'_>) -> i64 {
    let mut sum = FnvHasher::default();
    for index in 0..values.len() {
        match values.get_raw(index) {
            ValueRef::Null => sum.write(&[0]),
            ValueRef::Integer(value) => write_value(&mut sum, 1, &value.to_le_bytes()),
            ValueRef::Real(value) => write_value(&mut sum, 2, &value.to_le_bytes()),
            ValueRef::Text(bytes) => write_value(&mut sum, 3, bytes),
            ValueRef::Blob(bytes) => write_value(&mut sum, 4, bytes),
        }
    }
    sum.finish().cast_signed()
}

fn write_value(sum: &mut FnvHasher, kind: u8, bytes: &[u8]) {
    sum.write(&[kind]);
    sum.write(&(bytes.len() as u64).to_le_bytes());
    sum.write(bytes);
}

/// SQLite's number of arguments of a function that takes any.
const ANY_NUMBER: i32 = -1;

/// Sum of an entry without its payload: a scan checks it without reading the payload.
macro_rules! entry_sum {
    () => {
        "row_sum(entry, epoch, sequence, suffix, kept_at, gap, after, kind, session)"
    };
}

/// Sum of a dead letter without its payload, as a given SQL expression for `died_at` and for
/// `requeued` makes it. The number is no part of it: webhook and position name the row.
macro_rules! dead_letter_sum {
    ($died_at:literal, $requeued:literal) => {
        concat!(
            "row_sum(webhook, place, epoch, sequence, suffix, kind, session, created_at, ",
            $died_at,
            ", reason, ",
            $requeued,
            ", attempts)"
        )
    };
    () => {
        dead_letter_sum!("died_at", "requeued")
    };
}

/// Condition that a dead letter is whole and has a body.
macro_rules! dead_letter_is_whole {
    () => {
        concat!(
            "head_sum IS ",
            dead_letter_sum!(),
            " AND payload_sum IS row_sum(webhook, place, payload) AND octet_length(payload) > 0"
        )
    };
}

pub(crate) use entry_sum;
pub(super) use {dead_letter_is_whole, dead_letter_sum};

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(values: &str) -> i64 {
        let connection = Connection::open_in_memory().unwrap();
        register(&connection).unwrap();
        connection.query_row(&format!("SELECT row_sum({values})"), [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_change_of_any_byte_changes_the_sum() {
        let row: Vec<u8> = (0..=255).cycle().take(600).collect();
        let hex = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect::<String>();
        let whole = sum_of(&format!("1, x'{}'", hex(&row)));
        assert_eq!(sum_of(&format!("1, x'{}'", hex(&row))), whole);
        for (position, flip) in (0..600).zip((1..=255).cycle()) {
            let mut damaged = row.clone();
            damaged[position] ^= flip;
            assert_ne!(sum_of(&format!("1, x'{}'", hex(&damaged))), whole, "{position}");
        }
        assert_ne!(sum_of(&format!("2, x'{}'", hex(&row))), whole, "another key");
    }

    #[test]
    fn values_of_another_type_or_in_other_columns_have_another_sum() {
        let lists = [
            "NULL",
            "0",
            "''",
            "x''",
            "'0'",
            "0.0",
            "NULL, NULL",
            "'ab', 'c'",
            "'a', 'bc'",
            "x'61'",
        ];
        let sums: std::collections::BTreeSet<i64> = lists.iter().map(|it| sum_of(it)).collect();
        assert_eq!(sums.len(), lists.len());
    }

    #[test]
    fn the_sum_of_a_row_stays_what_files_hold() {
        assert_eq!(sum_of("1, NULL, 'a', x'62'"), STORED_SUM);
    }

    /// Sum that the first release of the format writes for these values.
    const STORED_SUM: i64 = 4_981_827_629_578_498_481;
}
