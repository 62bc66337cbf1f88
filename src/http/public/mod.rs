//! The routes of the public listener: streams, WebSockets, pages and publishing.
//!
//! `request` reads a filter and a resume position, `credential` and `cors` judge the caller,
//! `middleware` wraps every answer, and each transport has a folder of its own.
//!
//! May use: no other module.

pub(crate) mod cors;
pub(crate) mod credential;
pub(crate) mod middleware;
pub(crate) mod page;
pub(crate) mod publish;
pub(crate) mod request;
pub(crate) mod sse;
pub(crate) mod ws;
