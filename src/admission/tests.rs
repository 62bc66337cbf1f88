//! Rules that change while subscribers are connected.

use super::*;
use crate::{
    auth::{CredentialProof, ListenerKey},
    client_address::ClientAddress,
    config::{AllowAnonymous, Config, Environment},
    fanout::SubscriberSignal,
    metrics::Transport,
};

fn request(proof: Arc<CredentialProof>) -> AdmissionRequest {
    AdmissionRequest {
        product: ProductId::new("p").unwrap(),
        transport: Transport::Sse,
        key: "a".into(),
        holder: CredentialHolder::Key("a".into()),
        proof,
        address: ClientAddress::new([192, 0, 2, 1].into()),
        listener: SubscriberSignal::default(),
        forced_close: None,
    }
}

fn subscribers(max: usize, access: &Arc<Access>) -> Arc<Subscribers> {
    Subscribers::new(
        AdmissionLimits::at_most(max),
        Arc::clone(access),
        Arc::new(Metrics::new().unwrap()),
    )
}

#[test]
fn a_subscriber_admitted_by_rules_that_have_gone_is_disconnected() {
    let (old, new) = (ListenerKey::new(Some("one")), ListenerKey::new(Some("two")));
    let subscribers = subscribers(10, &Arc::new(old.to_access()));
    let early = subscribers.admit(request(old.proof())).unwrap();
    assert_eq!(early.disconnect_reason(), None);
    subscribers.set_access(&Arc::new(new.to_access()));
    assert_eq!(early.disconnect_reason(), Some(DisconnectReason::Revoked));
    let late = subscribers.admit(request(old.proof())).unwrap(); // authorized by the old key
    assert_eq!(late.disconnect_reason(), Some(DisconnectReason::Revoked));
    assert_eq!(subscribers.admit(request(new.proof())).unwrap().disconnect_reason(), None);
}

#[test]
fn a_limit_that_comes_later_counts_existing_subscribers_and_disconnects_none_of_them() {
    let key = ListenerKey::new(None);
    let subscribers = subscribers(10, &Arc::new(key.to_access()));
    let admit = || {
        subscribers.admit(request(key.proof())).map(|permit| (permit.disconnect_reason(), permit))
    };
    let permits: Vec<_> = (0..3).map(|_| admit().unwrap()).collect();
    let set_limits = |lines: &str| {
        let text = format!("[server]\n{lines}");
        let config =
            Config::parse(&text, "f", &Environment::default(), AllowAnonymous::OnLoopback).unwrap();
        subscribers.set_limits(AdmissionLimits::new(&config.server));
    };
    for (lines, reason) in [
        ("max_subscribers = 3", ShedReason::MaxSubscribers),
        ("max_subscribers_per_ip = 3", ShedReason::PerIp),
        ("max_subscribers_per_key = 2", ShedReason::PerKey),
    ] {
        set_limits(lines);
        assert_eq!(admit().err(), Some(reason));
    }
    assert!(permits.iter().all(|(_, permit)| permit.disconnect_reason().is_none()));
    drop(permits);
    set_limits("max_subscribers = 1\nmax_subscribers_per_ip = 1\nmax_subscribers_per_key = 1");
    let again = admit().unwrap();
    assert!(admit().is_err());
    drop(again);
    assert!(admit().is_ok(), "what was given back is there again");
}
