//! Pages: the log for clients that poll.

mod limits;
mod reading;
