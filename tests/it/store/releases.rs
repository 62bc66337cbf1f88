//! Stores that an earlier release has written.

use std::fs;

use rusqlite::Connection;

use crate::common::{
    PRODUCT, connector::Connector, events::event_of, relay::Relay, store::DataDir,
    subscriber::Subscriber, wait,
};

#[test]
fn a_store_of_every_release_is_served_from_and_written_to_at_once() {
    for (version, bytes) in (1..).zip(RELEASED) {
        let (connector, data) = (Connector::new(), DataDir::new());
        fs::create_dir(data.path()).unwrap();
        fs::write(data.database(), bytes).unwrap();
        let relay = data.relay(&connector);
        let mut link = connector.stream();
        let mut all = relay.resume("7-34");
        assert_eq!(all.numbers(6), [35, 36, 37, 38, 39, 40], "version {version}");
        let of_a = |relay: &Relay| {
            let path = format!("/stream/{PRODUCT}?session_id=a");
            let mut resumed = Subscriber::open(relay.public, &path, &[("Last-Event-ID", "7-33")]);
            assert_eq!(resumed.numbers(4), [34, 36, 38, 40], "version {version}");
            assert_eq!(resumed.gap().json()["reason"], "upstream_reconnect");
            resumed
        };
        of_a(&relay);
        assert_eq!(all.gap().json()["after"], "7-40");
        for number in 41..=60 {
            link.event(event_of("a", number));
        }
        assert!(all.numbers(20).into_iter().eq(41..=60));
        relay.wait_until_persisted(59);
        wait::until("the former index is gone, and all users are read", || {
            let file = Connection::open(data.database()).unwrap();
            let former = "SELECT count(*) FROM sqlite_schema \
                          WHERE name IN ('by_session', 'unread_users')";
            file.query_row(former, [], |row| row.get(0)) == Ok(0)
        });
        assert!(of_a(&relay).numbers(20).into_iter().eq(41..=60));
        let lines = relay.process.stderr.so_far();
        let finding = lines.iter().find(|line| line.contains("damaged") || line.contains("gone"));
        assert_eq!(finding, None, "version {version}");
        relay.stop();
        let relay = data.relay(&connector);
        assert!(of_a(&relay).numbers(20).into_iter().eq(41..=60), "by the new index");
        let file = Connection::open(data.database()).unwrap();
        let schema = |name: &str| file.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        assert_eq!(schema("user_version"), Ok(4));
        assert_eq!(data.set_aside().len(), 0);
    }
}

/// Files of the former versions of the schema, each written by the relay of that time: 40 positions
/// of ids 7-1 to 7-40, the even ones of session `a`.
const RELEASED: [&[u8]; 3] = [
    include_bytes!("../../data/store/schema-1.db"),
    include_bytes!("../../data/store/schema-2.db"),
    include_bytes!("../../data/store/schema-3.db"),
];
