//! TODO header

pub(crate) mod client;
pub(crate) mod egress_guard;
pub(crate) mod idle_timeout;
pub(crate) mod networks;
