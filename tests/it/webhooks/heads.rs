//! Heads over HTTP/1.1: the spelling of the relay's own, and unusual ones of receivers and
//! connectors.

use crate::common::{
    connector::Connector,
    events::event,
    page::publish,
    receiver::{Answer, Receiver},
    relay::Setup,
    webhooks::{LOOPBACK, outcomes, table},
};

#[test]
fn names_are_spelled_as_the_contract_has_them() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let relay = Setup::behind(&connector).more(&(table("hook", &receiver, "") + LOOPBACK)).start();
    let mut link = connector.stream();
    let spelled = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(
        spelled(&link.request.spelled),
        "Accept Authorization Cache-Control Host User-Agent"
    );
    publish(&relay, &mut link, [event(0), event(1)]);
    for request in receiver.wait_for_accepted(2) {
        assert_eq!(
            spelled(&request.head.spelled),
            "Authorization Content-Length Content-Type Host User-Agent X-Connector-Signature \
             webhook-id webhook-signature webhook-timestamp"
        );
    }
}

#[test]
fn a_relay_asks_a_relay_with_the_names_of_the_standard() {
    let connector = Connector::new();
    let _relay = Setup::behind(&connector).start();
    let link = connector.accept_leaf();
    for name in ["Last-Event-ID", "Autoplay-Relay"] {
        assert!(link.request.spelled.iter().any(|spelled| spelled == name), "{:?}", link.request);
    }
}

#[test]
fn unusual_heads_of_receivers_and_connectors_are_understood() {
    let many: String = (0..500).map(|number| format!("X-{number}: {number}\r\n")).collect();
    for head in
        ["Server: a\r\n folded\r\n\tvalue\r\n", "Server : a\r\n", "no header at all\r\n", &many]
    {
        let what: String = head.chars().take(20).collect();
        let answer = format!("HTTP/1.1 200 OK\r\n{head}Content-Length : 0\r\n\r\n").into_bytes();
        let receiver = Receiver::new(move |_| Answer::Raw(answer.clone()));
        let connector = Connector::new();
        let setup = Setup::behind(&connector);
        let relay = setup.more(&(table("hook", &receiver, "") + LOOPBACK)).start();
        let mut link = connector.accept();
        link.send(format!("HTTP/1.1 200 OK\r\n{head}Content-Type :\r\n text/event-stream\r\n\r\n"));
        publish(&relay, &mut link, [event(0)]);
        let delivery = relay.wait_for_deliveries("hook", "delivered", 1).remove(0);
        assert_eq!(outcomes(&delivery), ["accepted"], "{what}");
    }
}
