//! Pages: the log for those who ask every now and then.

mod limits;
mod reading;
