//! Payloads of the connector's stream as JSON.
//!
//! In: actions of a user. Out: the text of one payload; fields, types and their order are those of
//! the connector's contract. Times are filled in last, so that all other parts are determined
//! without a clock.
//!
//! May use: no other module.

use fastrand::Rng;
use serde::Serialize;

use super::site::FILLER_SENTENCES;

/// One payload of the stream.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum StreamPayload<'a> {
    /// A batch of actions of one session.
    Actions {
        /// Product of the actions.
        product_id: &'a str,
        /// Identity of the user.
        #[serde(flatten)]
        user: &'a UserIdentity,
        /// Number of actions.
        count: usize,
        /// Time at which the connector forwarded the batch, in Unix seconds.
        forwarded_at: f64,
        /// Actions in their order.
        actions: Vec<Action<'a>>,
        /// Time at which the previous batch of the session was forwarded, in Unix seconds. Not part
        /// of the JSON.
        #[serde(skip)]
        since: Option<f64>,
    },
    /// A text that replaces several actions.
    Summary {
        /// Product of the actions.
        product_id: &'a str,
        /// Session of the actions.
        session_id: Option<&'a str>,
        /// The text.
        summary: String,
        /// Number of actions that the text replaces.
        replaces: u64,
        /// Time at which the connector forwarded the summary, in Unix seconds.
        forwarded_at: f64,
    },
    /// The start of a product tour in one session. It has no time.
    UsertourTrigger {
        /// Product of the tour.
        product_id: &'a str,
        /// Id of the tour.
        flow_id: &'static str,
        /// Session in which the tour starts.
        session_id: &'a str,
        /// Reason to offer the tour.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// User who will see the tour.
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<&'a str>,
    },
}

/// One action of a batch.
#[derive(Serialize)]
pub(crate) struct Action<'a> {
    /// Number of the action in its session, from 0.
    pub(crate) index: u64,
    /// `pageview`, `click`, `focus`, `type`, `submit` or `blur`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// Headline of the action.
    pub(crate) title: String,
    /// Description in a sentence.
    pub(crate) description: String,
    /// Start in Unix seconds.
    pub(crate) timestamp_start: f64,
    /// End in Unix seconds, not before the start.
    pub(crate) timestamp_end: f64,
    /// Address as the browser shows it.
    pub(crate) raw_url: String,
    /// Address without its query.
    pub(crate) canonical_url: String,
    /// Identity of the user.
    #[serde(flatten)]
    pub(crate) user: &'a UserIdentity,
}

/// Known facts about a user.
#[derive(Serialize)]
pub(crate) struct UserIdentity {
    /// Id of the browser session.
    pub(crate) session_id: Option<String>,
    /// Id of the account, once the user is signed in.
    pub(crate) user_id: Option<String>,
    /// Email address of the account.
    pub(crate) email: Option<String>,
    /// Chat thread that is linked to the session; usually absent rather than null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) conversation_id: Option<String>,
}

impl StreamPayload<'_> {
    /// Pads the JSON to at least `bytes` bytes by adding sentences to its last description, summary
    /// or reason.
    ///
    /// Must be called before [`StreamPayload::set_times`]: the times count in their shortest form,
    /// so that the padding does not depend on the clock.
    pub(crate) fn pad_to(&mut self, bytes: usize, rng: &mut Rng) {
        if bytes == 0 {
            return; // saves the encoding
        }
        let missing = bytes.saturating_sub(self.encode().len());
        let first_sentence = rng.usize(..FILLER_SENTENCES.len());
        if missing > 0
            && let Some(text) = self.padding_target()
        {
            append_prose(text, missing, first_sentence);
        }
    }

    /// Fills in the times: forwarded at `now`, with the actions one after the other since the
    /// previous batch.
    pub(crate) fn set_times(&mut self, now: f64, rng: &mut Rng) {
        match self {
            StreamPayload::Actions { forwarded_at, actions, since, .. } => {
                *forwarded_at = now;
                spread_times(actions, *since, now, rng);
            }
            StreamPayload::Summary { forwarded_at, .. } => *forwarded_at = now,
            StreamPayload::UsertourTrigger { .. } => {}
        }
    }

    /// Returns the JSON text.
    pub(crate) fn encode(&self) -> String {
        serde_json::to_string(self).expect("every key is a string and no field's encoding can fail")
    }

    /// Returns the text that padding is appended to.
    fn padding_target(&mut self) -> Option<&mut String> {
        match self {
            StreamPayload::Actions { actions, .. } => {
                actions.last_mut().map(|action| &mut action.description)
            }
            StreamPayload::Summary { summary, .. } => Some(summary),
            StreamPayload::UsertourTrigger { reason, .. } => Some(reason.get_or_insert_default()),
        }
    }
}

/// Appends at least `missing` bytes of sentences; the last sentence is cut at the end of a word.
fn append_prose(text: &mut String, missing: usize, first_sentence: usize) {
    let target_len = text.len().saturating_add(missing);
    for sentence in FILLER_SENTENCES.iter().cycle().skip(first_sentence) {
        if text.len() >= target_len {
            return;
        }
        text.push(' ');
        let remaining = target_len.saturating_sub(text.len());
        let rest_of_word = sentence.get(remaining..).and_then(|rest| rest.find(' '));
        let cut = rest_of_word.map_or(sentence.len(), |length| remaining + length);
        text.push_str(sentence.get(..cut).unwrap_or(sentence));
    }
}

/// Sets the times of the actions one after the other: none before `since`, none after `now`.
fn spread_times(actions: &mut [Action<'_>], since: Option<f64>, now: f64, rng: &mut Rng) {
    let mut remaining = actions.len() as f64;
    let earliest = now - remaining * SECONDS_PER_ACTION;
    let mut at = since.unwrap_or(earliest).max(earliest).min(now);
    for action in actions {
        let share = (now - at) / remaining;
        action.timestamp_start = at;
        // `max` keeps the order if cutting to milliseconds would reverse it.
        at = floor_to_millis(at + share * (0.5 + 0.5 * rng.f64())).max(at);
        action.timestamp_end = at;
        remaining -= 1.0;
    }
}

/// Cuts a time to milliseconds, the precision that browsers report.
fn floor_to_millis(seconds: f64) -> f64 {
    (seconds * 1000.0).floor() / 1000.0
}

/// Maximum duration of one action: a click after an hour of inactivity does not last an hour.
const SECONDS_PER_ACTION: f64 = 8.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_without_reason_and_user_is_the_recorded_one() {
        let trigger = StreamPayload::UsertourTrigger {
            product_id: "prod_abc",
            flow_id: "tour_abc_789",
            session_id: "ps_abc123",
            reason: None,
            user_id: None,
        };
        assert_eq!(
            trigger.encode(),
            r#"{"type":"usertour_trigger","product_id":"prod_abc","flow_id":"tour_abc_789","session_id":"ps_abc123"}"#
        );
    }

    #[test]
    fn the_fields_of_a_batch_are_in_the_recorded_order() {
        let user = test_identity();
        let encoded = batch(&user, 1).encode();
        assert_eq!(
            encoded,
            concat!(
                r#"{"type":"actions","product_id":"prod_abc","session_id":"ps_abc123","user_id":"distinct_id_xyz","#,
                r#""email":null,"count":1,"forwarded_at":0.0,"actions":[{"index":0,"type":"click","title":"Click","#,
                r#""description":"Clicked","timestamp_start":0.0,"timestamp_end":0.0,"#,
                r#""raw_url":"https://app.example.com/a?b=c","canonical_url":"https://app.example.com/a","#,
                r#""session_id":"ps_abc123","user_id":"distinct_id_xyz","email":null}]}"#
            )
        );
    }

    #[test]
    fn padding_reaches_any_size_and_overshoots_by_less_than_a_word() {
        let user = test_identity();
        let natural = batch(&user, 2).encode().len();
        for bytes in (0..3000).chain([65_536]) {
            let mut payload = batch(&user, 2);
            payload.pad_to(bytes, &mut Rng::with_seed(bytes as u64));
            let length = payload.encode().len();
            assert!(
                length >= bytes.max(natural) && length <= bytes.max(natural) + 16,
                "{length} for {bytes}"
            );
        }
    }

    #[test]
    fn actions_follow_one_another_between_the_last_batch_and_now() {
        let user = test_identity();
        let now = 1_700_000_000.123_456_7;
        for (since, seed) in
            [(None, 1), (Some(now - 3.0), 2), (Some(now - 4000.0), 3), (Some(now), 4)]
        {
            let mut payload = batch_since(&user, 5, since);
            payload.set_times(now, &mut Rng::with_seed(seed));
            let StreamPayload::Actions { forwarded_at, actions, .. } = payload else {
                panic!("a batch stays a batch")
            };
            assert_eq!(forwarded_at, now);
            let mut at = since.unwrap_or(now - 60.0);
            for action in &actions {
                assert!(
                    at <= action.timestamp_start && action.timestamp_start <= action.timestamp_end
                );
                at = action.timestamp_end;
            }
            assert!(at <= now && now - actions[0].timestamp_start <= 5.0 * SECONDS_PER_ACTION);
        }
    }

    #[test]
    fn a_clock_set_back_puts_no_action_into_the_future() {
        let user = test_identity();
        let mut payload = batch_since(&user, 3, Some(2000.0));
        payload.set_times(1000.0, &mut Rng::with_seed(1));
        let StreamPayload::Actions { actions, .. } = payload else {
            panic!("a batch stays a batch")
        };
        assert!(actions.iter().all(|action| action.timestamp_end <= 1000.0));
    }

    fn test_identity() -> UserIdentity {
        UserIdentity {
            session_id: Some("ps_abc123".into()),
            user_id: Some("distinct_id_xyz".into()),
            email: None,
            conversation_id: None,
        }
    }

    fn batch(user: &UserIdentity, count: usize) -> StreamPayload<'_> {
        batch_since(user, count, None)
    }

    fn batch_since(user: &UserIdentity, count: usize, since: Option<f64>) -> StreamPayload<'_> {
        let action = |index| Action {
            index,
            kind: "click",
            title: "Click".into(),
            description: "Clicked".into(),
            timestamp_start: 0.0,
            timestamp_end: 0.0,
            raw_url: "https://app.example.com/a?b=c".into(),
            canonical_url: "https://app.example.com/a".into(),
            user,
        };
        let actions: Vec<_> = (0..count as u64).map(action).collect();
        StreamPayload::Actions {
            product_id: "prod_abc",
            user,
            count,
            forwarded_at: 0.0,
            actions,
            since,
        }
    }
}
