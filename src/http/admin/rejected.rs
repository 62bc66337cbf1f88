//! `/api/v1/rejected`: the latest upstream frames that were rejected.
//!
//! May use: `rejected`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{AdminState, rfc3339};
use crate::rejected::RejectedFrame;

/// All that are kept, newest first.
pub(in crate::http) async fn list(State(admin): State<Arc<AdminState>>) -> Response {
    let frames = admin.rejected.list();
    Json(RejectedListView {
        rejected: frames.iter().map(|frame| RejectedView::new(frame)).collect(),
    })
    .into_response()
}

#[derive(Serialize)]
struct RejectedListView<'a> {
    rejected: Vec<RejectedView<'a>>,
}

/// A frame in an answer. `bytes` and `excerpt` are null for one that was too large: it was skipped
/// while it came.
#[derive(Serialize)]
struct RejectedView<'a> {
    product_id: &'a str,
    reason: &'static str,
    at: String,
    bytes: Option<usize>,
    excerpt: Option<&'a str>,
}

impl<'a> RejectedView<'a> {
    fn new(frame: &'a RejectedFrame) -> Self {
        let content = frame.content.as_ref();
        Self {
            product_id: frame.product.as_str(),
            reason: frame.reason.as_str(),
            at: rfc3339(frame.at),
            bytes: content.map(|content| content.bytes),
            excerpt: content.and_then(|content| content.excerpt.as_deref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{envelope::Rejection, event::ProductId, rejected::RejectedFrames};

    #[test]
    fn a_frame_is_shown_with_what_is_kept_of_it() {
        let rejected = RejectedFrames::default();
        let product = ProductId::new("p").unwrap();
        let shown = || serde_json::to_value(RejectedView::new(&rejected.list()[0])).unwrap();
        rejected.record(&product, Rejection::NotAnObject, Some(b"[\"\xff\"]"));
        let frame = shown();
        assert!(
            frame["at"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')),
            "{frame}"
        );
        let expected = serde_json::json!({ "product_id": "p", "reason": "not_an_object", "at": frame["at"], "bytes": 5,
            "excerpt": "[\"\u{fffd}\"]" });
        assert_eq!(frame, expected);
        let other = RejectedFrames::default();
        other.record(&product, Rejection::TooLarge, None);
        let frame = serde_json::to_value(RejectedView::new(&other.list()[0])).unwrap();
        assert!(frame["bytes"].is_null() && frame["excerpt"].is_null(), "{frame}");
    }
}
