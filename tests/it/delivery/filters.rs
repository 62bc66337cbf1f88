//! Filters of a thousand values: what they cost the client that sends them, and no other.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{
    STREAM,
    connector::Connector,
    events::{event, event_like},
    page::{PAGES, Page},
    relay::Setup,
};

#[test]
fn filters_that_hide_all_that_is_kept_delay_no_other_subscriber() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).start();
    let mut link = connector.stream();
    let kept = 20_000;
    let kept_events: String = (0..kept)
        .map(|n| format!("data: {}\n\n", event_like("x", &(n % 999).to_string(), n)))
        .collect();
    link.send(kept_events);
    relay.wait_for_events(kept);
    let filter: String = (0..999).map(|n| format!("&session_id={n}")).collect();
    let query = format!("?last_event_id=0&type=z{filter}");
    let (mut over_sse, is_over) = (relay.subscribe(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let paging = || {
            let mut pages = 0;
            while !is_over.load(Ordering::SeqCst) {
                let page = Page::read(&relay.get(&format!("{PAGES}{query}"), &[]));
                assert!(page.events.is_empty() && page.gap.is_none());
                pages += 1;
            }
            pages
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(paging)).collect();
        // Each event is awaited before the next is sent, while pages and streams go through all
        // that is kept again and again.
        for n in 0..100 {
            let hidden = relay.subscribe_to(&format!("{STREAM}{query}"));
            link.event(event(n));
            assert_eq!(over_sse.numbers(1), [n]);
            drop(hidden);
        }
        is_over.store(true, Ordering::SeqCst);
        let pages: Vec<usize> = clients.into_iter().map(|it| it.join().unwrap()).collect();
        assert!(pages.iter().all(|count| *count > 0), "{pages:?}");
    });
    // A filter that hides all but one of the kept events still finds that one.
    let mut last = relay.subscribe_to(&format!("{STREAM}?last_event_id=0&type=z{filter}"));
    link.event(event_like("z", "7", kept));
    assert_eq!(last.numbers(1), [kept]);
}
