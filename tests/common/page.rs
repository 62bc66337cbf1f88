//! Pages of the log, and a relay that keeps it in memory or on disk.

use serde::Deserialize;
use serde_json::value::RawValue;
use tempfile::TempDir;

use super::{
    PRODUCT,
    connector::{Connector, Link},
    events::number,
    http::Answer,
    relay::{Relay, Setup},
    subscriber::Frame,
};

/// Path of the pages of [`PRODUCT`].
pub(crate) const PAGES: &str = "/events/prod_abc";

/// One page.
#[derive(Debug)]
pub(crate) struct Page {
    /// Id and payload of each event, as a subscriber receives them.
    pub(crate) events: Vec<Frame>,
    pub(crate) next: String,
    pub(crate) gap: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    events: Vec<Entry<'a>>,
    next: String,
    gap: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    id: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl Page {
    /// Requests a page; `query` is empty or begins with `?`.
    pub(crate) fn get(relay: &Relay, query: &str) -> Self {
        Self::read(&relay.get(&format!("{PAGES}{query}"), &[]))
    }

    /// Parses a response. Payloads lose the white space around them.
    pub(crate) fn read(answer: &Answer) -> Self {
        assert_eq!(answer.status(), 200, "{}", String::from_utf8_lossy(&answer.body));
        let body: Body<'_> = serde_json::from_slice(&answer.body).unwrap();
        let frame = |entry: Entry<'_>| Frame {
            id: Some(entry.id),
            event: None,
            data: entry.data.get().into(),
        };
        Self {
            events: body.events.into_iter().map(frame).collect(),
            next: body.next,
            gap: body.gap,
        }
    }

    /// Returns all pages after the id `from`, up to the first empty one.
    pub(crate) fn all(relay: &Relay, from: &str, query: &str) -> Vec<Self> {
        let mut pages = Vec::new();
        let mut next = from.to_owned();
        loop {
            let page = Self::get(relay, &format!("?last_event_id={next}&{query}"));
            if page.events.is_empty() && page.gap.is_none() {
                return pages;
            }
            next.clone_from(&page.next);
            pages.push(page);
        }
    }

    /// Returns the events of all pages, and checks that no gap is among them.
    pub(crate) fn all_events(relay: &Relay, from: &str, query: &str) -> Vec<Frame> {
        let pages = Self::all(relay, from, query).into_iter();
        pages.flat_map(|page| page.gap.is_none().then_some(page.events).expect("no gap")).collect()
    }

    /// Returns the numbers of the events of this page.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        self.events.iter().map(|frame| number(&frame.data)).collect()
    }

    /// Returns the reason of the gap before this page.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.gap.as_ref().and_then(|gap| gap["reason"].as_str())
    }
}

/// Storage of a relay's log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Storage {
    /// In memory only.
    Memory,
    /// On disk, with so few events in memory that readers must read the disk.
    Disk,
}

impl Storage {
    pub(crate) const ALL: [Self; 2] = [Self::Memory, Self::Disk];

    /// Returns the setup of a relay with this storage, and the directory that it may use.
    pub(crate) fn setup(self, connector: &Connector) -> (Setup, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let setup = Setup::behind(connector);
        match self {
            Self::Memory => (setup, directory),
            Self::Disk => (setup.log(&on_disk(&directory)), directory),
        }
    }

    /// Waits until this many events can be read from this storage.
    pub(crate) fn wait_until_stored(self, relay: &Relay, events: usize) {
        let at = |tier| [("product_id", PRODUCT), ("tier", tier)];
        if self == Self::Disk {
            relay.wait_for_metric("autoplay_relay_log_events", &at("disk"), events as f64);
            relay.wait_for_metric("autoplay_relay_log_events", &at("memory"), 16.0);
        }
    }
}

/// Returns the lines of `[log]` for a store in this directory, with the smallest log in memory.
pub(crate) fn on_disk(directory: &TempDir) -> String {
    format!("memory_events = 16\ndata_dir = '{}'", directory.path().join("data").display())
}

/// Sends payloads, and returns the frames that a subscriber receives.
pub(crate) fn publish(
    relay: &Relay,
    link: &mut Link,
    payloads: impl IntoIterator<Item = String>,
) -> Vec<Frame> {
    let mut subscriber = relay.subscribe();
    let payloads = payloads.into_iter();
    payloads
        .map(|payload| {
            link.event(payload.replace('\n', "\ndata: "));
            let frame = subscriber.event();
            assert_eq!(String::from_utf8_lossy(&frame.data), payload);
            frame
        })
        .collect()
}
