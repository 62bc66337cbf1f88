//! `/api/v1/subscribers`: lists the subscribers and disconnects one.
//!
//! In: requests. Out: pages of subscribers in the order of their admission; a disconnect reason for
//! one of them.
//!
//! May use: `admission`, `event`.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
};
use hyper::StatusCode;
use serde::Serialize;

use super::state::{AdminState, rfc3339};
use crate::{
    admission::{AdmittedSubscriber, DisconnectReason},
    event::ProductId,
    http::{Relay, problem::Problem, query},
};

/// Answers with one page of the subscribers.
///
/// # Errors
///
/// 400 for a misspelt name, and for a malformed limit or cursor.
pub(in crate::http) async fn list(
    State(admin): State<Arc<AdminState>>,
    RawQuery(query): RawQuery,
) -> Result<Json<SubscriberPageView>, Problem> {
    let (after, limit) = parse_page_query(&query.unwrap_or_default())?;
    // One more than asked for shows whether there is a next page.
    let mut found = admin.relay.subscribers.list(after, limit + 1);
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| has_more).map(|(number, _)| number.to_string());
    let newest = newest_positions(&admin.relay);
    let view = |(number, subscriber): &(u64, Arc<AdmittedSubscriber>)| {
        SubscriberView::new(*number, subscriber, &newest)
    };
    Ok(Json(SubscriberPageView { subscribers: found.iter().map(view).collect(), next }))
}

/// Disconnects one subscriber, which may come back. Over SSE it first gets what the log has for it
/// at this moment.
///
/// # Errors
///
/// 404 if it is not connected.
pub(in crate::http) async fn disconnect(
    State(admin): State<Arc<AdminState>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let number = path.ok().and_then(|Path(id)| id.parse().ok());
    match number
        .is_some_and(|number| admin.relay.subscribers.disconnect(number, DisconnectReason::Kicked))
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("no such subscriber is connected")),
    }
}

/// Returns the newest position of each product's log. Read once a page, so that the log's lock is
/// not taken for each subscriber.
fn newest_positions(relay: &Relay) -> HashMap<ProductId, u64> {
    relay
        .products
        .iter()
        .map(|product| (product.feed.id.clone(), product.feed.log.newest_position()))
        .collect()
}

/// Returns the id after which a page begins, and the number of its subscribers.
fn parse_page_query(query: &str) -> Result<(u64, usize), Problem> {
    let (mut after, mut limit) = (0, DEFAULT_SUBSCRIBERS_PER_PAGE);
    for pair in query::pairs(query, &["after", "limit"]) {
        match pair? {
            ("after", value) => {
                let number = value
                    .parse()
                    .map_err(|_| Problem::bad_request("after must be the next of the page before"));
                after = number?;
            }
            (_, value) => {
                let number = value
                    .parse()
                    .ok()
                    .filter(|number| (1..=MAX_SUBSCRIBERS_PER_PAGE).contains(number));
                let refusal = || {
                    Problem::bad_request(format!(
                        "limit must be a number from 1 to {MAX_SUBSCRIBERS_PER_PAGE}"
                    ))
                };
                limit = number.ok_or_else(refusal)?;
            }
        }
    }
    Ok((after, limit))
}

/// Answer of `/api/v1/subscribers`.
#[derive(Serialize)]
pub(in crate::http) struct SubscriberPageView {
    subscribers: Vec<SubscriberView>,
    next: Option<String>,
}

#[derive(Serialize)]
struct SubscriberView {
    id: String,
    key: String,
    transport: &'static str,
    product_id: String,
    since: String,
    address: String,
    behind: u64,
}

impl SubscriberView {
    fn new(number: u64, subscriber: &AdmittedSubscriber, newest: &HashMap<ProductId, u64>) -> Self {
        let newcomer = subscriber.request();
        let newest = newest.get(&newcomer.product).copied().unwrap_or_default();
        Self {
            id: number.to_string(),
            key: newcomer.key.to_string(),
            transport: newcomer.transport.as_str(),
            product_id: newcomer.product.as_str().to_owned(),
            since: rfc3339(subscriber.connected_at()),
            address: newcomer.address.to_string(),
            behind: subscriber.entries_behind(newest),
        }
    }
}

/// About one screen of rows.
const DEFAULT_SUBSCRIBERS_PER_PAGE: usize = 100;

/// Bound on a page, which is in memory as a whole until it is sent.
const MAX_SUBSCRIBERS_PER_PAGE: usize = 1000;
