//! One webhook's task.
