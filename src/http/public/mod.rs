//! TODO header

pub(crate) mod cors;
pub(crate) mod credential;
pub(crate) mod middleware;
pub(crate) mod page;
pub(crate) mod publish;
pub(crate) mod request;
pub(crate) mod sse;
pub(crate) mod ws;
