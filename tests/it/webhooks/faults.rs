//! Failing receivers: which attempts are retried, which deliveries are given up, and which are
//! unaffected.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use crate::common::{
    connector::{Connector, Link},
    events::{event, event_of},
    page::{Storage, publish},
    receiver::{Answer, Receiver, Request},
    relay::{Relay, Setup},
    store::DataDir,
    wait,
    webhooks::{LOOPBACK, outcomes, table},
};
use serde_json::json;

/// Starts a relay with one webhook to this receiver.
fn relay_to(receiver: &Receiver, lines: &str) -> (Connector, Relay, Link) {
    let connector = Connector::new();
    let relay =
        Setup::behind(&connector).more(&(table("hook", receiver, lines) + LOOPBACK)).start();
    let link = connector.stream();
    (connector, relay, link)
}

#[test]
fn every_status_has_its_documented_consequence() {
    // Every webhook has its own path at the receiver, which is the status of the response.
    let by_path = |request: &Request| {
        Answer::Status(request.head.path().rsplit('/').next().unwrap().parse().unwrap())
    };
    let (connector, receiver) = (Connector::new(), Receiver::new(by_path));
    let consequences: [(&[u16], &str, usize, &str); 4] = [
        (&[200, 201, 202, 204, 299], "delivered", 1, "accepted"),
        (&[400, 401, 403, 404, 405, 409, 413, 422, 451, 410], "dead", 1, "refused"),
        (&[408, 425, 429], "dead", 3, "refused"),
        (&[301, 302, 303, 307, 308, 304, 500, 501, 502, 503, 504, 599], "dead", 3, "failed"),
    ];
    let all = || consequences.iter().flat_map(|(statuses, ..)| *statuses);
    let tables: String =
        all().map(|status| table(&status.to_string(), &receiver, "max_retries = 2")).collect();
    let relay = Setup::behind(&connector).more(&(tables + LOOPBACK)).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event(0)]);
    for (statuses, state, attempts, outcome) in consequences {
        for status in statuses {
            let id = status.to_string();
            let delivery = relay.wait_for_deliveries(&id, state, 1).remove(0);
            assert_eq!(outcomes(&delivery), vec![outcome; attempts], "{status}");
            assert!(
                delivery["attempts"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|attempt| attempt["status"] == *status)
            );
            wait::until("the attempts are counted", || {
                relay.attempts(&id, outcome) == attempts as f64
            });
            let view = relay.webhook(&id);
            let (expected, dead) =
                (if *status == 410 { "disabled" } else { "active" }, u64::from(state == "dead"));
            assert_eq!(
                (&view["state"], &view["pending"], &view["dead"]),
                (&expected.into(), &0.into(), &dead.into())
            );
            let of_hook = receiver
                .requests()
                .into_iter()
                .filter(|it| it.head.path() == format!("/hooks/{id}"))
                .count();
            assert_eq!(of_hook, attempts, "{status}");
        }
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::accepting();
    let location = format!("Location: http://{}/hooks/hook\r\n", elsewhere.address);
    let receiver = Receiver::new(move |_| Answer::With(307, location.clone()));
    let (_connector, relay, mut link) = relay_to(&receiver, "max_retries = 1");
    publish(&relay, &mut link, [event(0)]);
    relay.wait_for_dead("hook", 1);
    assert_eq!((receiver.count(), elsewhere.connections()), (2, 0));
}

#[test]
fn every_connection_failure_is_an_attempt_and_the_next_one_delivers() {
    let half_a_head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n".to_vec();
    let faults = [
        (Answer::Hang, "timeout"),
        (Answer::Reset, "connect"),
        (Answer::Raw(Vec::new()), "connect"),
        (Answer::Raw(half_a_head), "connect"),
    ];
    for (answer, outcome) in faults {
        let what = format!("{answer:?}");
        let mut answers = vec![answer.clone(), answer].into_iter();
        let receiver = Receiver::new(move |_| answers.next().unwrap_or(Answer::Status(200)));
        let (_connector, relay, mut link) = relay_to(&receiver, "timeout = '400ms'");
        publish(&relay, &mut link, [event(0)]);
        let delivery = relay.wait_for_deliveries("hook", "delivered", 1).remove(0);
        assert_eq!(outcomes(&delivery), [outcome, outcome, "accepted"], "{what}");
        let durations = delivery["attempts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["duration_ms"].as_u64().unwrap());
        for duration in durations.take(if outcome == "timeout" { 2 } else { 0 }) {
            assert!(
                (400..5000).contains(&duration),
                "{what}: the deadline covers the whole attempt, {duration} ms"
            );
        }
        assert_eq!(relay.attempts("hook", outcome), 2.0, "{what}");
        assert_eq!(receiver.count(), 3, "{what}");
    }
}

#[test]
fn a_2xx_head_accepts_however_its_body_ends() {
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot a hundred".to_vec();
    let cut_chunk =
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nless".to_vec();
    let answers = [
        Answer::Raw(cut.clone()),
        Answer::Raw(cut_chunk),
        Answer::RawThenReset(cut),
        Answer::HeadThenHang,
        Answer::SlowBody,
    ];
    for answer in answers {
        let what = format!("{answer:?}");
        let receiver = Receiver::new(move |_| answer.clone());
        let (_connector, relay, mut link) = relay_to(&receiver, "timeout = '5s'");
        publish(&relay, &mut link, [event(0), event(1)]);
        let deliveries = relay.wait_for_deliveries("hook", "delivered", 2);
        for delivery in &deliveries {
            assert_eq!(outcomes(delivery), ["accepted"], "{what}");
            let duration = delivery["attempts"][0]["duration_ms"].as_u64().unwrap();
            assert!(duration < 400, "{what}: an attempt lasts until its answer's head: {duration}");
        }
        assert_eq!((receiver.count(), receiver.connections()), (2, 2), "{what}");
    }
}

#[test]
fn an_absent_or_resetting_receiver_is_retried_until_it_answers() {
    let receiver = Receiver::accepting();
    let (_connector, relay, mut link) = relay_to(&receiver, "");
    receiver.stop();
    publish(&relay, &mut link, [event(0)]);
    wait::until("two attempts", || relay.attempts("hook", "connect") >= 2.0);
    receiver.reset_connections(true);
    receiver.start();
    wait::until("a connection that is reset", || receiver.connections() > 1);
    let before = relay.attempts("hook", "connect");
    wait::until("two more attempts", || relay.attempts("hook", "connect") >= before + 2.0);
    assert_eq!(receiver.count(), 0);
    receiver.reset_connections(false);
    relay.wait_until_settled("hook");
    let delivery = relay.wait_for_deliveries("hook", "delivered", 1).remove(0);
    let outcomes = outcomes(&delivery);
    let (last, before) = outcomes.split_last().unwrap();
    assert!(
        last == "accepted" && before.iter().all(|outcome| outcome == "connect"),
        "{outcomes:?}"
    );
    assert_eq!(receiver.count(), 1);
}

#[test]
fn a_response_that_is_not_http_is_no_acceptance() {
    let mut answers = vec![Answer::Raw(b"220 mail.example.com ESMTP\r\n".to_vec())].into_iter();
    let receiver = Receiver::new(move |_| answers.next().unwrap_or(Answer::Status(200)));
    let (_connector, relay, mut link) = relay_to(&receiver, "");
    publish(&relay, &mut link, [event(0)]);
    let delivery = relay.wait_for_deliveries("hook", "delivered", 1).remove(0);
    assert_eq!(outcomes(&delivery).len(), 2, "{delivery}");
}

#[test]
fn an_endless_response_body_is_read_up_to_a_limit_and_not_decompressed() {
    let receiver = Receiver::new(|_| Answer::EndlessBody);
    let (_connector, relay, mut link) = relay_to(&receiver, "timeout = '5s'");
    publish(&relay, &mut link, [event(0)]);
    let delivery = relay.wait_for_deliveries("hook", "delivered", 1).remove(0);
    assert_eq!(outcomes(&delivery), ["accepted"]);
    let duration = delivery["attempts"][0]["duration_ms"].as_u64().unwrap();
    assert!(duration < 4000, "the attempt does not wait for the end: {duration} ms");
    // The kernel's buffers of both ends hold more than the 16 KiB that the relay reads.
    wait::holds("no more of the body is read", Duration::from_millis(200), || {
        receiver.endless_bytes() < 16 << 20
    });
    // Invalid gzip: decompressing it would fail.
    let bomb =
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot a zip".to_vec();
    receiver.set_script(move |_| Answer::Raw(bomb.clone()));
    publish(&relay, &mut link, [event(1)]);
    let newest = relay.wait_for_deliveries("hook", "delivered", 2).remove(0);
    assert_eq!(outcomes(&newest), ["accepted"]);
}

#[test]
fn a_failing_session_keeps_its_order_and_delays_no_other() {
    for storage in Storage::ALL {
        let mut tries = HashMap::<(String, usize), usize>::new();
        let receiver = Receiver::new(move |request| {
            let nth = tries.entry((request.session(), request.number())).or_default();
            *nth += 1;
            let fails = request.session() == "bad" && *nth <= 10
                || request.session() == "s1" && *nth <= request.number() % 3;
            Answer::Status(if fails { 500 } else { 200 })
        });
        let connector = Connector::new();
        let (setup, _directory) = storage.setup(&connector);
        let lines = "max_in_flight = 4\ninitial_backoff = '100ms'\nmax_backoff = '200ms'";
        let relay = setup.more(&(table("hook", &receiver, lines) + LOOPBACK)).start();
        let mut link = connector.stream();
        let sessions = ["bad", "s1", "s2", "s3"];
        publish(&relay, &mut link, (0..80).map(|n| event_of(sessions[n % 4], n)));
        let others =
            || receiver.accepted_by_session().into_iter().filter(|(name, _)| name != "bad");
        wait::until("the other sessions are delivered", || {
            others().map(|(_, numbers)| numbers.len()).sum::<usize>() == 60
        });
        let of_bad = receiver.accepted_by_session().get("bad").map_or(0, Vec::len);
        assert!(of_bad < 20, "{storage:?}: the failing session has delayed the others");
        receiver.set_script(|_| Answer::Status(200));
        receiver.wait_for_accepted(80);
        let expected: BTreeMap<_, Vec<_>> = sessions
            .iter()
            .enumerate()
            .map(|(nth, name)| ((*name).to_owned(), (nth..80).step_by(4).collect()))
            .collect();
        assert_eq!(receiver.accepted_by_session(), expected, "{storage:?}");
        // No delivery of a session is attempted before the one ahead of it is settled.
        for session in sessions {
            let tried =
                receiver.requests().into_iter().filter(|request| request.session() == session);
            let numbers: Vec<_> = tried.map(|request| request.number()).collect();
            assert!(numbers.is_sorted(), "{storage:?} {session}: {numbers:?}");
        }
    }
}

#[test]
fn a_dead_letter_releases_the_next_delivery_of_its_session() {
    let receiver =
        Receiver::new(|request| Answer::Status(if request.number() % 2 == 0 { 422 } else { 200 }));
    let (_connector, relay, mut link) = relay_to(&receiver, "");
    publish(&relay, &mut link, (0..10).map(event));
    receiver.wait_for(10);
    relay.wait_until_settled("hook");
    assert_eq!(
        receiver.requests().iter().map(|request| request.number()).collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
    relay.wait_for_dead("hook", 5);
}

#[test]
fn a_webhook_whose_receiver_hangs_delays_no_other() {
    let (connector, good, hanging) =
        (Connector::new(), Receiver::accepting(), Receiver::new(|_| Answer::Hang));
    let tables = table("hanging", &hanging, "timeout = '60s'\nmax_in_flight = 2")
        + &table("good", &good, "");
    let relay = Setup::behind(&connector).more(&(tables + LOOPBACK)).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, (0..5).map(|n| event_of(&format!("s{n}"), n)));
    hanging.wait_for(2);
    publish(&relay, &mut link, (5..200).map(|n| event_of(&format!("s{}", n % 5), n)));
    good.wait_for_accepted(200);
    relay.wait_until_settled("good");
    assert_eq!(hanging.count(), 2, "max_in_flight attempts at most");
    assert_eq!(relay.webhook("hanging")["pending"], 200);
}

#[test]
fn an_egress_refusal_is_dead_at_once_and_names_the_configuration_key() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let by_name = format!("url = 'http://localhost:{}/'", receiver.address.port());
    let mapped = format!("url = 'http://[::ffff:127.0.0.1]:{}/'", receiver.address.port());
    let tables = table("literal", &receiver, "")
        + &table("name", &receiver, &by_name)
        + &table("mapped", &receiver, &mapped);
    let relay = Setup::behind(&connector).more(&tables).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event(0)]);
    for id in ["literal", "name", "mapped"] {
        let dead_letter = relay.wait_for_deliveries(id, "dead", 1).remove(0);
        assert_eq!(outcomes(&dead_letter), ["egress_refused"], "{id}");
        assert_eq!(dead_letter["attempts"][0]["status"], json!(null));
        assert!(
            dead_letter.to_string().contains("egress.allow_networks"),
            "{id}: the error names the key: {dead_letter}"
        );
        assert_eq!(
            (relay.attempts(id, "egress_refused"), &relay.webhook(id)["state"]),
            (1.0, &"active".into())
        );
    }
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn retry_after_pauses_the_whole_endpoint() {
    let in_seconds: fn() -> String = || "2".to_owned();
    let as_date: fn() -> String =
        || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
    for (status, value) in [(429, in_seconds), (503, in_seconds), (429, as_date)] {
        let mut is_first = true;
        let receiver = Receiver::new(move |_| match std::mem::take(&mut is_first) {
            true => Answer::With(status, format!("Retry-After: {}\r\n", value())),
            false => Answer::Status(200),
        });
        let (_connector, relay, mut link) = relay_to(&receiver, "");
        publish(&relay, &mut link, [event_of("a", 0)]);
        relay.wait_for_webhook("hook", "throttled");
        let asked_at = receiver.wait_for(1)[0].at;
        publish(&relay, &mut link, [event_of("b", 1)]);
        let requests = receiver.wait_for(3);
        for request in &requests[1..] {
            let waited = request.at.duration_since(asked_at);
            // HTTP dates have whole seconds.
            assert!(waited >= Duration::from_millis(1900), "{status}: {waited:?}");
        }
        relay.wait_until_settled("hook");
        relay.wait_for_webhook("hook", "active");
        assert_eq!(receiver.accepted().len(), 2);
    }
}

#[test]
fn deliveries_in_memory_are_sent_before_the_relay_shuts_down() {
    for max in [1, 4] {
        let receiver = Receiver::new(|_| Answer::Held);
        let (_connector, mut relay, mut link) =
            relay_to(&receiver, &format!("max_in_flight = {max}"));
        publish(&relay, &mut link, (0..40).map(|number| event_of(&format!("s{number}"), number)));
        receiver.wait_for(max);
        relay.wait_for_pending("hook", 40);
        relay.process.signal("TERM");
        relay.process.log_line("leaving; a second signal ends the process at once");
        receiver.set_script(|_| Answer::Status(200));
        receiver.release();
        assert_eq!(relay.process.exit_code(), Some(0));
        assert_eq!(receiver.accepted().len(), 40, "with {max} in flight");
    }
}

#[test]
fn a_retry_after_is_kept_across_a_restart() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let receiver = Receiver::new(|_| Answer::With(503, "Retry-After: 600\r\n".to_owned()));
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK));
    let relay = setup.start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event_of("a", 0)]);
    relay.wait_for_webhook("hook", "throttled");
    relay.stop();
    drop(link);
    let relay = setup.start();
    publish(&relay, &mut relay.reconnect(&connector), [event_of("b", 1)]);
    relay.wait_for_pending("hook", 2);
    relay.wait_for_webhook("hook", "throttled");
    assert_eq!(receiver.wait_for(1).len(), 1, "no request is sent until then");
}

#[test]
fn an_attempt_in_flight_at_shutdown_is_finished() {
    let (connector, data, receiver) =
        (Connector::new(), DataDir::new(), Receiver::new(|_| Answer::Held));
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK));
    let mut relay = setup.start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event(0), event(1)]);
    receiver.wait_for(1);
    relay.process.signal("TERM");
    relay.process.log_line("leaving; a second signal ends the process at once");
    let signaled_at = Instant::now();
    receiver.release();
    assert_eq!(relay.process.exit_code(), Some(0));
    assert!(signaled_at.elapsed() < Duration::from_secs(10));
    drop((relay, link));
    let relay = setup.start();
    publish(&relay, &mut relay.reconnect(&connector), [event(2)]);
    relay.wait_until_settled("hook");
    let numbers: Vec<_> = receiver.wait_for(3).iter().map(|request| request.number()).collect();
    assert_eq!(numbers, [0, 1, 2], "the accepted delivery is not repeated");
}
