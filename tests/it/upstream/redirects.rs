//! Redirects of the upstream: how far the relay follows them, and where it sends the token.

use crate::common::{
    PRODUCT,
    connector::{Connector, STREAM_HEAD},
    relay::{Relay, TOKEN},
};

#[test]
fn a_redirect_to_the_same_origin_carries_the_token() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    for location in ["/elsewhere?x=1".to_owned(), format!("http://{}/absolute", connector.address)]
    {
        connector.accept().refuse("307 Temporary Redirect", &format!("Location: {location}\r\n"));
        let mut link = connector.accept();
        assert!(location.ends_with(link.request.path()), "{:?}", link.request);
        assert_eq!(link.request.field("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
        link.send(STREAM_HEAD);
        relay.wait_for_upstream("connected");
        link.end();
    }
}

#[test]
fn a_redirect_to_another_origin_goes_without_the_token() {
    let (connector, other) = (Connector::new(), Connector::new());
    let relay = Relay::behind(&connector);
    connector.accept().refuse("302 Found", &format!("Location: {}\r\n", other.url("moved")));
    let mut link = other.accept();
    assert_eq!((link.request.path(), link.request.field("authorization")), ("/stream/moved", None));
    link.send(STREAM_HEAD);
    relay.wait_for_upstream("connected");
    link.end();

    let by_name = format!("Location: http://localhost:{}/named\r\n", connector.address.port());
    connector.accept().refuse("308 Permanent Redirect", &by_name);
    let back = format!("Location: http://{}/back\r\n", connector.address);
    let link = connector.accept();
    assert_eq!((link.request.path(), link.request.field("authorization")), ("/named", None));
    link.refuse("301 Moved Permanently", &back);
    let link = connector.accept();
    assert_eq!(link.request.path(), "/back");
    assert!(link.request.field("host").is_some_and(|host| host == connector.address.to_string()));
}

#[test]
fn endless_and_invalid_redirects_are_failures() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    connector.accept().refuse("302 Found", "");
    connector.accept().refuse("302 Found", "Location: ftp://example.com/\r\n");
    relay.wait_for_metric("autoplay_relay_upstream_connects_total", &outcome("failed"), 2.0);
    for n in 0..20 {
        connector.accept().refuse("302 Found", &format!("Location: /{n}\r\n"));
        if relay.metrics().value("autoplay_relay_upstream_connects_total", &outcome("failed"))
            == Some(3.0)
        {
            return;
        }
    }
    panic!("twenty redirects were followed");
}

fn outcome(outcome: &str) -> [(&'static str, &str); 2] {
    [("product_id", PRODUCT), ("outcome", outcome)]
}
