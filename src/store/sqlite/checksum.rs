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

/// Payload of an event's row, as it was read, and what its sum is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SummedPayload<'a> {
    /// Key of the row.
    pub(crate) key: i64,
    /// Payload of the row.
    pub(crate) payload: &'a [u8],
    /// Sum that the row has: `row_sum(entry, payload)` when it was written.
    pub(crate) sum: i64,
}

impl SummedPayload<'_> {
    /// Returns the state of the sum before the payload's first byte.
    fn begun(&self) -> FnvHasher {
        let mut sum = FnvHasher::default();
        write_value(&mut sum, 1, &self.key.to_le_bytes());
        sum.write(&[4]);
        sum.write(&(self.payload.len() as u64).to_le_bytes());
        sum
    }

    fn has_sum(&self, sum: &FnvHasher) -> bool {
        sum.finish().cast_signed() == self.sum
    }
}

/// Returns the index of the first payload that does not fit its sum.
pub(crate) fn find_damaged_payload(rows: &[SummedPayload<'_>]) -> Option<usize> {
    let (groups, rest) = rows.as_chunks::<ROWS_AT_ONCE>();
    for (index, group) in groups.iter().enumerate() {
        let sums = sum_payloads(group);
        let fits = group.iter().zip(&sums).map(|(row, sum)| row.has_sum(sum));
        if let Some(damaged) = fits.into_iter().position(|fits| !fits) {
            return Some(index * ROWS_AT_ONCE + damaged);
        }
    }
    let damaged = rest.iter().position(|row| {
        let mut sum = row.begun();
        sum.write(row.payload);
        !row.has_sum(&sum)
    })?;
    Some(groups.len() * ROWS_AT_ONCE + damaged)
}

/// Sums several payloads side by side. Each step of a sum waits for the multiplication of the step
/// before, so the processor has room for those of other rows meanwhile.
fn sum_payloads(rows: &[SummedPayload<'_>; ROWS_AT_ONCE]) -> [FnvHasher; ROWS_AT_ONCE] {
    let common = rows.iter().map(|row| row.payload.len()).min().unwrap_or(0);
    let [a, b, c, d] = rows.map(|row| row.payload.split_at(common).0);
    let [mut sum_a, mut sum_b, mut sum_c, mut sum_d] = rows.map(|row| row.begun());
    for (((byte_a, byte_b), byte_c), byte_d) in a.iter().zip(b).zip(c).zip(d) {
        sum_a.write_u8(*byte_a);
        sum_b.write_u8(*byte_b);
        sum_c.write_u8(*byte_c);
        sum_d.write_u8(*byte_d);
    }
    let mut sums = [sum_a, sum_b, sum_c, sum_d];
    for (row, sum) in rows.iter().zip(&mut sums) {
        sum.write(row.payload.split_at(common).1);
    }
    sums
}

/// Rows whose payloads are summed side by side: a multiplication takes some four cycles, and one
/// can begin in each.
const ROWS_AT_ONCE: usize = 4;

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
        "row_sum(entry, epoch, sequence, suffix, kept_at, gap, after_or_user, kind, session)"
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

    #[test]
    fn payloads_that_are_summed_side_by_side_have_the_sums_of_their_rows() {
        let bytes: Vec<u8> = (0..=255).cycle().take(900).collect();
        let lengths = [0, 1, 7, 900, 900, 16, 5, 0, 300, 301, 2];
        let payloads: Vec<&[u8]> = lengths.iter().map(|it| &bytes[..*it]).collect();
        let connection = Connection::open_in_memory().unwrap();
        register(&connection).unwrap();
        let rows: Vec<SummedPayload<'_>> = (1..)
            .zip(&payloads)
            .map(|(key, payload)| {
                let parameters = rusqlite::params![key, payload];
                let sum =
                    connection.query_row("SELECT row_sum(?1, ?2)", parameters, |it| it.get(0));
                SummedPayload { key, payload, sum: sum.unwrap() }
            })
            .collect();
        for count in 0..=rows.len() {
            assert_eq!(find_damaged_payload(&rows[..count]), None);
            for damaged in 0..count {
                let mut changed = rows[..count].to_vec();
                // The last one, too, so that the first one counts.
                changed[count - 1].key += 1;
                changed[damaged].sum ^= 1;
                assert_eq!(find_damaged_payload(&changed), Some(damaged));
            }
        }
    }

    /// Sum that the first release of the format writes for these values.
    const STORED_SUM: i64 = 4_981_827_629_578_498_481;
}
