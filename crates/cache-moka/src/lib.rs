//! # The in-process cache backend, on mini-moka
//!
//! [`MokaCacheService`] keeps serialised values in this process's memory, bounded, with a life per entry.
//!
//! | you look for | module |
//! |---|---|
//! | the service and its builder | [`cache`] |
//! | what it has done | [`stats`] |
//!
//! mini-moka decides what is kept and what makes way (TinyLFU). What it does not have is added here: a life
//! per entry, removal by prefix, counts by cause, and leases, which must not be evicted and live apart.

pub mod cache;
mod entry;
mod lease;
pub mod policy;
pub mod stats;

pub use cache::{MokaCacheBuilder, MokaCacheService};
pub use policy::{Capacity, MokaPolicy};
pub use stats::MokaStats;
