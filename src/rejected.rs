//! Last rejected frames of each product, for the admin API.
//!
//! In: each frame as it is skipped. Out: the newest frames, with the beginning of their payload. In
//! memory only. The erasure of a session removes the excerpts of all the product's frames.
//!
//! May use: `envelope`, `event`.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use dashmap::DashMap;

use crate::{envelope::Rejection, event::ProductId};

/// Last rejected frames of every product.
#[derive(Debug, Default)]
pub(crate) struct RejectedFrames {
    by_product: DashMap<ProductId, VecDeque<Arc<RejectedFrame>>>,
}

/// A frame that was skipped.
#[derive(Debug, PartialEq)]
pub(crate) struct RejectedFrame {
    /// Product whose upstream sent the frame.
    pub(crate) product: ProductId,
    /// Reason for which the frame was skipped.
    pub(crate) reason: Rejection,
    /// Time at which the frame was skipped.
    pub(crate) at: SystemTime,
    /// The payload, unless the frame was skipped before all of it had arrived.
    pub(crate) content: Option<RejectedPayload>,
}

/// Kept part of a frame's payload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RejectedPayload {
    /// Length of the payload.
    pub(crate) bytes: usize,
    /// Beginning of the payload, as far as it is UTF-8; [`None`] once a session of the product has
    /// been erased.
    pub(crate) excerpt: Option<Box<str>>,
}

impl RejectedFrames {
    /// Keeps a frame that was skipped just now. `payload` is [`None`] if the frame was not read as
    /// a whole.
    pub(crate) fn record(&self, product: &ProductId, reason: Rejection, payload: Option<&[u8]>) {
        let content = payload.map(|payload| RejectedPayload {
            bytes: payload.len(),
            excerpt: Some(excerpt(payload)),
        });
        let frame =
            RejectedFrame { product: product.clone(), reason, at: SystemTime::now(), content };
        let mut frames = self.by_product.entry(product.clone()).or_default();
        if frames.len() >= MAX_REJECTED_FRAMES {
            frames.pop_front();
        }
        frames.push_back(Arc::new(frame));
    }

    /// Returns all frames that are kept, newest first.
    pub(crate) fn list(&self) -> Vec<Arc<RejectedFrame>> {
        let mut frames: Vec<_> = self
            .by_product
            .iter()
            .flat_map(|frames| frames.iter().rev().cloned().collect::<Vec<_>>())
            .collect();
        // A stable sort: frames with the same time keep the order of their arrival, newest first.
        frames.sort_by_key(|frame| std::cmp::Reverse(frame.at));
        frames
    }

    /// Removes the excerpts of a product's frames. Which session a frame belongs to is unknown,
    /// because it could not be parsed.
    pub(crate) fn erase(&self, product: &ProductId) {
        let Some(mut frames) = self.by_product.get_mut(product) else { return };
        for frame in frames.iter_mut() {
            let content =
                frame.content.as_ref().map(|content| RejectedPayload { excerpt: None, ..*content });
            *frame = Arc::new(RejectedFrame { product: product.clone(), content, ..**frame });
        }
    }
}

/// Returns the beginning of a payload. A character that the cut would break is left out.
fn excerpt(payload: &[u8]) -> Box<str> {
    let is_inside =
        |at: usize| payload.get(at).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    let max_end = MAX_EXCERPT_BYTES.min(payload.len());
    // A UTF-8 character has four bytes at most: after four bytes that continue one, the payload is
    // not UTF-8.
    let end =
        (max_end.saturating_sub(3)..=max_end).rev().find(|at| !is_inside(*at)).unwrap_or(max_end);
    String::from_utf8_lossy(payload.get(..end).unwrap_or_default()).into()
}

/// Maximum frames that are kept of each product: enough to see the fault. With excerpts of 512
/// bytes, which may triple as replacement characters, this is about 200 KiB at most.
const MAX_REJECTED_FRAMES: usize = 100;

/// Maximum length of an excerpt, enough to recognise a payload by its first fields.
const MAX_EXCERPT_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn product(name: &str) -> ProductId {
        ProductId::new(name).unwrap()
    }

    #[test]
    fn the_newest_hundred_of_each_product_are_kept_newest_first() {
        let rejected = RejectedFrames::default();
        for n in 0..150 {
            rejected.record(&product("a"), Rejection::NoType, Some(format!("{n}").as_bytes()));
            rejected.record(&product("b"), Rejection::TooLarge, None);
        }
        let (of_a, of_b): (Vec<_>, Vec<_>) =
            rejected.list().into_iter().partition(|frame| frame.product == product("a"));
        assert_eq!((of_a.len(), of_b.len()), (100, 100));
        let excerpts = of_a
            .iter()
            .map(|frame| frame.content.as_ref().unwrap().excerpt.as_deref().unwrap().to_owned());
        assert!(excerpts.eq((50..150).rev().map(|n| n.to_string())));
        assert!(rejected.list().is_sorted_by(|newer, older| newer.at >= older.at));
        assert_eq!((of_b[0].reason, &of_b[0].content), (Rejection::TooLarge, &None));
    }

    #[test]
    fn an_excerpt_is_bounded_and_breaks_no_character() {
        assert_eq!(&*excerpt(b""), "");
        assert_eq!(&*excerpt(b"\xffa\0"), "\u{fffd}a\0");
        assert_eq!(&*excerpt("é".as_bytes()), "é");
        assert_eq!(&*excerpt(&[b'x'; 513]), "x".repeat(512));
        for shift in 0..4 {
            let text = "x".repeat(shift) + &"𝄞".repeat(200);
            let excerpt = excerpt(text.as_bytes());
            assert!(text.starts_with(&*excerpt) && (509..=512).contains(&excerpt.len()), "{shift}");
        }
        // Bytes that are not text are cut at the bound too.
        assert_eq!(excerpt(&[0x80; 1000]).chars().count(), 512);
    }

    #[test]
    fn an_erasure_leaves_reason_time_and_length() {
        let rejected = RejectedFrames::default();
        for name in ["a", "b"] {
            rejected.record(&product(name), Rejection::NoType, Some(b"{}"));
            rejected.record(&product(name), Rejection::TooLarge, None);
        }
        rejected.erase(&product("a"));
        rejected.erase(&product("unknown"));
        for frame in rejected.list() {
            let excerpt = (frame.product == product("b")).then(|| "{}".into());
            let content = (frame.reason == Rejection::NoType)
                .then_some(RejectedPayload { bytes: 2, excerpt });
            assert_eq!(frame.content, content, "{frame:?}");
        }
    }
}
