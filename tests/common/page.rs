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

/// Where pages are.
pub(crate) const PAGES: &str = "/events/prod_abc";

/// One page.
#[derive(Debug)]
pub(crate) struct Page {
    /// Id and payload of each, as a subscriber gets them.
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
    /// Asks for a page; `query` begins with `?` if there is one.
    pub(crate) fn get(relay: &Relay, query: &str) -> Self {
        Self::read(&relay.get(&format!("{PAGES}{query}"), &[]))
    }

    /// Reads an answer, whose payloads are without white space around them.
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

    /// All pages behind `from`, up to one that is empty.
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

    /// The events of all pages, among which there must be no gap.
    pub(crate) fn all_events(relay: &Relay, from: &str, query: &str) -> Vec<Frame> {
        let pages = Self::all(relay, from, query).into_iter();
        pages.flat_map(|page| page.gap.is_none().then_some(page.events).expect("no gap")).collect()
    }

    /// The numbers of its events.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        self.events.iter().map(|frame| number(&frame.data)).collect()
    }

    /// Why there is a gap before it.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.gap.as_ref().and_then(|gap| gap["reason"].as_str())
    }
}

/// Where the log is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Keeping {
    /// In memory alone.
    Memory,
    /// On disk, with so little in memory that the disk is really read.
    Disk,
}

impl Keeping {
    pub(crate) const ALL: [Self; 2] = [Self::Memory, Self::Disk];

    /// A relay that keeps its log this way.
    pub(crate) fn setup(self, connector: &Connector) -> (Setup, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let setup = Setup::behind(connector);
        match self {
            Self::Memory => (setup, directory),
            Self::Disk => (setup.log(&on_disk(&directory)), directory),
        }
    }

    /// Waits until this many events are where they are to be read from.
    pub(crate) fn expect_kept(self, relay: &Relay, events: usize) {
        let at = |tier| [("product_id", PRODUCT), ("tier", tier)];
        if self == Self::Disk {
            relay.wait_for_metric("autoplay_relay_log_events", &at("disk"), events as f64);
            relay.wait_for_metric("autoplay_relay_log_events", &at("memory"), 16.0);
        }
    }
}

/// Lines of `[log]` for a store in this directory, with the least in memory.
pub(crate) fn on_disk(directory: &TempDir) -> String {
    format!("memory_events = 16\ndata_dir = '{}'", directory.path().join("data").display())
}

/// Sends payloads, and returns them as a subscriber gets them.
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
