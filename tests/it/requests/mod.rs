//! What a request says before it is served: names in its query, its method, its head.

mod heads;
mod methods;
mod queries;
