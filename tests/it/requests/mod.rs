//! Checks of requests before they are served: names in the query, the method, the head.

mod heads;
mod methods;
mod queries;
