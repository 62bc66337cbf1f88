//! `/api/v1/subscribers`: who is connected, and sending one away.
//!
//! In: requests. Out: pages of subscribers in the order in which they came; a word to one that it is to leave.
//!
//! May use: `event`, the subscribers.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
};
use hyper::StatusCode;
use serde::Serialize;

use super::{Admin, time};
use crate::{
    event::ProductId,
    http::{
        Relay,
        admission::{Leave, Subscriber},
        problem::Problem,
    },
};

/// One page of the subscribers.
///
/// # Errors
///
/// 400 for a limit or cursor that is none.
pub(in crate::http) async fn list(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
) -> Result<Json<List>, Problem> {
    let (after, most) = wish(&query.unwrap_or_default())?;
    // One more than asked for tells whether there is a next page.
    let mut found = admin.relay.subscribers.list(after, most + 1);
    let has_more = found.len() > most;
    found.truncate(most);
    let next = found.last().filter(|_| has_more).map(|(number, _)| number.to_string());
    let newest = newest(&admin.relay);
    let view = |(number, subscriber): &(u64, Arc<Subscriber>)| SubscriberView::new(*number, subscriber, &newest);
    Ok(Json(List { subscribers: found.iter().map(view).collect(), next }))
}

/// Sends one away. It gets what it has coming up to this moment, and may come back.
///
/// # Errors
///
/// 404 when it is not connected.
pub(in crate::http) async fn disconnect(
    State(admin): State<Arc<Admin>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let number = path.ok().and_then(|Path(id)| id.parse().ok());
    match number.is_some_and(|number| admin.relay.subscribers.dismiss(number, Leave::Kicked)) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("no such subscriber is connected")),
    }
}

/// The newest place of each product.
fn newest(relay: &Relay) -> HashMap<ProductId, u64> {
    relay.products.iter().map(|product| (product.id.clone(), product.log.newest())).collect()
}

/// The number behind which a page begins, and how many may be on it.
fn wish(query: &str) -> Result<(u64, usize), Problem> {
    let (mut after, mut most) = (0, DEFAULT_SUBSCRIBERS);
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "after" => {
                let number =
                    value.parse().map_err(|_| Problem::bad_request("after must be the next of the page before"));
                after = number?;
            }
            "limit" => {
                let number = value.parse().ok().filter(|number| (1..=MOST_SUBSCRIBERS).contains(number));
                let refusal = || Problem::bad_request(format!("limit must be a number from 1 to {MOST_SUBSCRIBERS}"));
                most = number.ok_or_else(refusal)?;
            }
            _ => {}
        }
    }
    Ok((after, most))
}

/// The answer of `/api/v1/subscribers`.
#[derive(Serialize)]
pub(in crate::http) struct List {
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
    fn new(number: u64, subscriber: &Subscriber, newest: &HashMap<ProductId, u64>) -> Self {
        let newcomer = subscriber.newcomer();
        let newest = newest.get(&newcomer.product).copied().unwrap_or_default();
        Self {
            id: number.to_string(),
            key: newcomer.key.to_string(),
            transport: newcomer.transport.as_str(),
            product_id: newcomer.product.as_str().to_owned(),
            since: time(subscriber.since()),
            address: newcomer.address.to_canonical().to_string(),
            behind: subscriber.behind(newest),
        }
    }
}

/// As many as a screen takes.
const DEFAULT_SUBSCRIBERS: usize = 100;

/// A page is in memory as a whole until it is sent.
const MOST_SUBSCRIBERS: usize = 1000;
