//! The tallies of incidents.

use super::*;

/// Makes every log line older by `time`.
fn let_time_pass(webhooks: &mut RegisteredWebhooks, time: Duration) {
    for tally in webhooks.incidents.values_mut() {
        tally.logged_at = tally.logged_at.checked_sub(time).unwrap();
    }
}

fn unlogged(webhooks: &RegisteredWebhooks) -> Vec<(&str, DeliveryIncident, u64)> {
    webhooks
        .incidents
        .iter()
        .map(|((id, incident), tally)| (&**id, *incident, tally.deliveries))
        .collect()
}

#[test]
fn a_repeated_incident_is_logged_once_a_minute_with_its_sum() {
    let mut webhooks = RegisteredWebhooks::default();
    for _ in 0..50 {
        webhooks.record_expired(
            9,
            &[ExpiredDeliveries { id: "w".to_owned(), dead_letters: 5, damaged: 0, lost: 0 }],
        );
        webhooks.record_retired_dead_letters(&[RetiredDeadLetters {
            id: "w".to_owned(),
            dead_letters: 2,
            bound: DeadLetterBound::Bytes,
        }]);
        webhooks.log_tallies();
    }
    let all_but_the_first = [
        ("w", DeliveryIncident::Expired, 245),
        ("w", DeliveryIncident::DeadLettersRetired(DeadLetterBound::Bytes), 98),
    ];
    assert_eq!(unlogged(&webhooks), all_but_the_first);
    let_time_pass(&mut webhooks, INCIDENT_LOG_INTERVAL);
    webhooks.log_tallies();
    assert_eq!(
        unlogged(&webhooks),
        all_but_the_first.map(|(id, incident, _)| (id, incident, 0)),
        "logged"
    );
    let_time_pass(&mut webhooks, INCIDENT_LOG_INTERVAL);
    webhooks.log_tallies();
    assert_eq!(unlogged(&webhooks), [], "the next incident is logged at once again");
}
