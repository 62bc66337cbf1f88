//! Rules that change while subscribers are connected.

use super::*;
use crate::{
    auth::SoleKey,
    config::{AllowAnonymous, Config, Environment},
};

fn newcomer(proof: Arc<Proof>) -> Newcomer {
    Newcomer {
        product: ProductId::new("p").unwrap(),
        transport: Transport::Sse,
        key: "a".into(),
        holder: Holder::Key("a".into()),
        proof,
        address: [192, 0, 2, 1].into(),
        listener: Arc::default(),
        cut: None,
    }
}

fn subscribers(most: usize, access: &Arc<Access>) -> Arc<Subscribers> {
    Subscribers::new(Limits::at_most(most), Arc::clone(access), Arc::new(Metrics::new().unwrap()))
}

#[test]
fn who_takes_a_seat_by_rules_that_have_gone_is_told_to_leave() {
    let (old, new) = (SoleKey::new(Some("one")), SoleKey::new(Some("two")));
    let subscribers = subscribers(10, &Arc::new(old.access()));
    let early = subscribers.admit(newcomer(old.proof())).unwrap();
    assert_eq!(early.dismissed(), None);
    subscribers.judge_by(&Arc::new(new.access()));
    assert_eq!(early.dismissed(), Some(Leave::Revoked));
    let late = subscribers.admit(newcomer(old.proof())).unwrap(); // it was let in before
    assert_eq!(late.dismissed(), Some(Leave::Revoked));
    assert_eq!(subscribers.admit(newcomer(new.proof())).unwrap().dismissed(), None);
}

#[test]
fn a_limit_that_comes_later_counts_those_who_are_there_and_sends_nobody_away() {
    let key = SoleKey::new(None);
    let subscribers = subscribers(10, &Arc::new(key.access()));
    let admit = || subscribers.admit(newcomer(key.proof())).map(|seat| (seat.dismissed(), seat));
    let seats: Vec<_> = (0..3).map(|_| admit().unwrap()).collect();
    let limit = |lines: &str| {
        let text = format!("[server]\n{lines}");
        let config = Config::parse(&text, "f", &Environment::default(), AllowAnonymous::OnLoopback).unwrap();
        subscribers.limit(Limits::new(&config.server));
    };
    for (lines, reason) in [
        ("max_subscribers = 3", ShedReason::MaxSubscribers),
        ("max_subscribers_per_ip = 3", ShedReason::PerIp),
        ("max_subscribers_per_key = 2", ShedReason::PerKey),
    ] {
        limit(lines);
        assert_eq!(admit().err(), Some(reason));
    }
    assert!(seats.iter().all(|(_, seat)| seat.dismissed().is_none()));
    drop(seats);
    limit("max_subscribers = 1\nmax_subscribers_per_ip = 1\nmax_subscribers_per_key = 1");
    let again = admit().unwrap();
    assert!(admit().is_err());
    drop(again);
    assert!(admit().is_ok(), "what was given back is there again");
}
