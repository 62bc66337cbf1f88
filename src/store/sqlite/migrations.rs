//! The scripts that make the schema of the store's file.
//!
//! ```text
//! products      number, id                 one row per product, with counters
//! entries       entry = number << 40 | place, id, kept_at, …, head_sum, payload_sum, payload
//! session_index session, entry             the entries of each session, see `name_index`
//! user_index    user, entry                the entries of each user
//! indexed_through product, position        up to here both indices have the product's entries
//!               entry                      index, of gaps
//! spans         product, place, id         id of this position; the positions behind count on from it
//! empty_epochs  product, epoch, place      reserved behind this position; no entry of it was persisted
//! missing       product, first, last       holes: positions that were never persisted
//! erased        product, first, last       positions without a row because their events were erased
//! webhooks      number, id, product, position, …      one row per webhook, with counters of dead letters
//! owed          webhook, place, id, attempts, …       owed although the webhook has passed the position
//! dead_letters  number, webhook, place, …, payload    given up, numbered in that order; `requeued` if
//!                                                     marked for redelivery
//! state         is_open, needs_scrub, …    one row; `syncs` makes each commit that must reach the disk
//!                                          change a page
//! log           view of all entries, for people
//! ```
//!
//! A column `place` holds a position: columns keep the names of the first release of the format.
//! Triggers maintain the counters of dead letters for every statement. `bytes` of a
//! dead letter is its share of the file, which `log.dead_letter_bytes` bounds: whole pages for a
//! large one, an even share of a page for a small one.
//!
//! `after_or_user` of a gap is the id before it. Of an event it is the user, empty for none, and
//! null in a row of a version before 4: there the payload alone tells.
//!
//! May use: no other module.

use super::checksum::dead_letter_sum;

/// Migrations of the schema: the n-th script turns version n - 1 into version n. A script that was
/// released never changes.
pub(crate) const MIGRATIONS: &[&str] = &[VERSION_1, VERSION_2, VERSION_3, VERSION_4];

/// `payload` is the last column, so that a scan of the others does not follow a long row into its
/// overflow pages. Every SQLite index holds the row's key, so `by_session` is ordered by `entry`
/// within a session. `gaps` includes the reason only to be a covering index.
///
/// The webhooks' rows are indexed by session, too, so that erasing a session is no scan of all
/// rows. Dead letters are listed by number, redelivered by position, and named by their event's id.
const VERSION_1: &str = "
CREATE TABLE products (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    newest INTEGER NOT NULL,
    evicted_through INTEGER NOT NULL,
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    highest_epoch INTEGER NOT NULL
) STRICT;
CREATE TABLE entries (
    entry INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    kept_at INTEGER NOT NULL,
    gap TEXT,
    after TEXT,
    kind TEXT,
    session TEXT,
    payload BLOB
) STRICT;
CREATE INDEX by_session ON entries (session) WHERE session IS NOT NULL;
CREATE INDEX gaps ON entries (entry, gap) WHERE gap IS NOT NULL;
CREATE TABLE spans (
    product INTEGER NOT NULL,
    place INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    PRIMARY KEY (product, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE missing (
    product INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (product, first)
) STRICT, WITHOUT ROWID;
CREATE TABLE webhooks (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    product INTEGER NOT NULL,
    scope TEXT NOT NULL,
    definition TEXT NOT NULL,
    position INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    requeued INTEGER NOT NULL,
    dead_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE owed (
    webhook INTEGER NOT NULL,
    place INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    kind TEXT NOT NULL,
    session TEXT,
    created_at INTEGER NOT NULL,
    next_attempt_at INTEGER,
    attempts TEXT NOT NULL,
    PRIMARY KEY (webhook, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX owed_by_session ON owed (session) WHERE session IS NOT NULL;
CREATE TABLE dead_letters (
    number INTEGER PRIMARY KEY,
    webhook INTEGER NOT NULL,
    place INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    kind TEXT NOT NULL,
    session TEXT,
    created_at INTEGER NOT NULL,
    died_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    requeued INTEGER NOT NULL,
    attempts TEXT NOT NULL,
    payload BLOB NOT NULL,
    size INTEGER AS (
        octet_length(payload) + octet_length(attempts) + octet_length(kind) + 2 * ifnull(octet_length(session), 0) + 192
    ) VIRTUAL,
    bytes INTEGER AS (iif(size > 8192, (size + 8191) / 8192 * 8192, 8192 / (8192 / size))) VIRTUAL
) STRICT;
CREATE UNIQUE INDEX dead_by_place ON dead_letters (webhook, place);
CREATE INDEX dead_by_state ON dead_letters (webhook, requeued, place);
CREATE INDEX dead_by_number ON dead_letters (webhook, requeued);
CREATE INDEX dead_by_sequence ON dead_letters (webhook, sequence);
CREATE INDEX dead_by_session ON dead_letters (session) WHERE session IS NOT NULL;
CREATE TRIGGER one_more_is_dead AFTER INSERT ON dead_letters BEGIN
    UPDATE webhooks
    SET dead = dead + 1 - new.requeued, requeued = requeued + new.requeued, dead_bytes = dead_bytes + new.bytes
    WHERE number = new.webhook;
END;
CREATE TRIGGER one_less_is_dead AFTER DELETE ON dead_letters BEGIN
    UPDATE webhooks
    SET dead = dead - 1 + old.requeued, requeued = requeued - old.requeued, dead_bytes = dead_bytes - old.bytes
    WHERE number = old.webhook;
END;
CREATE TRIGGER one_is_requeued AFTER UPDATE OF requeued ON dead_letters BEGIN
    UPDATE webhooks
    SET dead = dead + old.requeued - new.requeued, requeued = requeued - old.requeued + new.requeued
    WHERE number = new.webhook;
END;
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    is_open INTEGER NOT NULL,
    synced_at INTEGER NOT NULL,
    syncs INTEGER NOT NULL,
    needs_scrub INTEGER NOT NULL
) STRICT;
INSERT INTO state VALUES (1, 0, 0, 0, 0);
CREATE VIEW log (product, id, time, type, session, gap, payload) AS
SELECT
    products.id,
    format('%u-%u', epoch, sequence) || iif(suffix = 0, '', '.' || suffix),
    strftime('%Y-%m-%dT%H:%M:%fZ', kept_at / 1000.0, 'unixepoch'),
    kind,
    session,
    gap,
    CAST(payload AS TEXT)
FROM products CROSS JOIN entries ON entry BETWEEN number << 40 AND (number << 40) + 1099511627775;
";

/// Checksums of rows, see `checksum`, the epochs of which no entry was kept, and the positions that
/// were erased: in a file of version 1 that is every position without a row. SQLite adds a column
/// only behind the others, where a scan would follow each long row to it, so both tables with
/// payloads are written anew: once, within `log.retention_bytes`.
const VERSION_2: &str = concat!(
    "
DROP VIEW log;
ALTER TABLE entries RENAME TO former_entries;
CREATE TABLE entries (
    entry INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    kept_at INTEGER NOT NULL,
    gap TEXT,
    after TEXT,
    kind TEXT,
    session TEXT,
    head_sum INTEGER NOT NULL,
    payload_sum INTEGER NOT NULL,
    payload BLOB
) STRICT;
INSERT INTO entries
SELECT entry, epoch, sequence, suffix, kept_at, gap, after, kind, session,
    row_sum(entry, epoch, sequence, suffix, kept_at, gap, after, kind, session), row_sum(entry, payload), payload
FROM former_entries ORDER BY entry;
DROP TABLE former_entries;
CREATE INDEX by_session ON entries (session) WHERE session IS NOT NULL;
CREATE INDEX gaps ON entries (entry, gap) WHERE gap IS NOT NULL;
CREATE VIEW log (product, id, time, type, session, gap, payload) AS
SELECT
    products.id,
    format('%u-%u', epoch, sequence) || iif(suffix = 0, '', '.' || suffix),
    strftime('%Y-%m-%dT%H:%M:%fZ', kept_at / 1000.0, 'unixepoch'),
    kind,
    session,
    gap,
    CAST(payload AS TEXT)
FROM products CROSS JOIN entries ON entry BETWEEN number << 40 AND (number << 40) + 1099511627775;
ALTER TABLE dead_letters RENAME TO former_dead_letters;
CREATE TABLE dead_letters (
    number INTEGER PRIMARY KEY,
    webhook INTEGER NOT NULL,
    place INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    suffix INTEGER NOT NULL,
    kind TEXT NOT NULL,
    session TEXT,
    created_at INTEGER NOT NULL,
    died_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    requeued INTEGER NOT NULL,
    attempts TEXT NOT NULL,
    head_sum INTEGER NOT NULL,
    payload_sum INTEGER NOT NULL,
    payload BLOB NOT NULL,
    size INTEGER AS (
        octet_length(payload) + octet_length(attempts) + octet_length(kind) + 2 * ifnull(octet_length(session), 0) + 192
    ) VIRTUAL,
    bytes INTEGER AS (iif(size > 8192, (size + 8191) / 8192 * 8192, 8192 / (8192 / size))) VIRTUAL
) STRICT;
INSERT INTO dead_letters
SELECT number, webhook, place, epoch, sequence, suffix, kind, session, created_at, died_at, reason, requeued,
    attempts, ",
    dead_letter_sum!(),
    ", row_sum(webhook, place, payload), payload
FROM former_dead_letters ORDER BY number;
DROP TABLE former_dead_letters;
CREATE UNIQUE INDEX dead_by_place ON dead_letters (webhook, place);
CREATE INDEX dead_by_state ON dead_letters (webhook, requeued, place);
CREATE INDEX dead_by_number ON dead_letters (webhook, requeued);
CREATE INDEX dead_by_sequence ON dead_letters (webhook, sequence);
CREATE INDEX dead_by_session ON dead_letters (session) WHERE session IS NOT NULL;
CREATE TRIGGER one_more_is_dead AFTER INSERT ON dead_letters BEGIN
    UPDATE webhooks
    SET dead = dead + 1 - new.requeued, requeued = requeued + new.requeued, dead_bytes = dead_bytes + new.bytes
    WHERE number = new.webhook;
END;
CREATE TRIGGER one_less_is_dead AFTER DELETE ON dead_letters BEGIN
    UPDATE webhooks
    SET dead = dead - 1 + old.requeued, requeued = requeued - old.requeued, dead_bytes = dead_bytes - old.bytes
    WHERE number = old.webhook;
END;
CREATE TRIGGER one_is_requeued AFTER UPDATE OF requeued ON dead_letters BEGIN
    UPDATE webhooks
    SET dead = dead + old.requeued - new.requeued, requeued = requeued - old.requeued + new.requeued
    WHERE number = new.webhook;
END;
ALTER TABLE owed ADD COLUMN key_sum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE owed ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE owed SET
    key_sum = row_sum(webhook, place),
    sum = row_sum(webhook, place, epoch, sequence, suffix, kind, session, created_at, next_attempt_at, attempts);
ALTER TABLE products ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE products SET sum = row_sum(number, id, newest, evicted_through, events, bytes, highest_epoch);
ALTER TABLE spans ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE spans SET sum = row_sum(product, place, epoch, sequence, suffix);
ALTER TABLE missing ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE missing SET sum = row_sum(product, first, last);
ALTER TABLE webhooks ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE webhooks SET sum = row_sum(id, product, scope, definition, position);
CREATE TABLE empty_epochs (
    product INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    place INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    PRIMARY KEY (product, epoch)
) STRICT, WITHOUT ROWID;
CREATE TABLE erased (
    product INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    PRIMARY KEY (product, first)
) STRICT, WITHOUT ROWID;
WITH RECURSIVE positions (product, place, newest) AS (
    SELECT number, evicted_through + 1, newest FROM products WHERE newest > evicted_through
    UNION ALL
    SELECT product, place + 1, newest FROM positions WHERE place < newest
)
INSERT INTO erased
SELECT product, place, place, row_sum(product, place, place) FROM positions
WHERE NOT EXISTS (SELECT 1 FROM entries WHERE entry = product << 40 | place)
AND NOT EXISTS (
    SELECT 1 FROM missing WHERE missing.product = positions.product AND place BETWEEN first AND last
);
"
);

/// The index by session becomes a table, see `session_index`. The rows and the former index stay
/// as they are: the writer copies that index later, in small steps.
const VERSION_3: &str = "
CREATE TABLE session_index (
    session TEXT NOT NULL,
    entry INTEGER NOT NULL,
    PRIMARY KEY (session, entry)
) STRICT, WITHOUT ROWID;
CREATE TABLE indexed_through (
    product INTEGER PRIMARY KEY,
    position INTEGER NOT NULL,
    sum INTEGER NOT NULL
) STRICT;
INSERT INTO indexed_through SELECT number, newest, row_sum(number, newest) FROM products;
";

/// Users. A row's user has the column in which a gap has the id before it: a further column would
/// stand behind the payload, where a scan would follow each long row to it. Rows that are there
/// already stay as they are. The writer reads their users from their payloads later, in small
/// steps: `unread_users` holds how far it has come, and is dropped at the end.
const VERSION_4: &str = "
ALTER TABLE entries RENAME COLUMN after TO after_or_user;
CREATE TABLE user_index (
    user TEXT NOT NULL,
    entry INTEGER NOT NULL,
    PRIMARY KEY (user, entry)
) STRICT, WITHOUT ROWID;
CREATE TABLE unread_users (through INTEGER NOT NULL) STRICT;
INSERT INTO unread_users VALUES (0);
";
