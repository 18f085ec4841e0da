//! # The in-process cache backend, on mini-moka
//!
//! [`MokaCacheService`] keeps serialised values in this process's memory, bounded, with a life per entry.
//!
//! | you look for | module |
//! |---|---|
//! | the service | [`cache`] |
//! | assembling one | [`builder`] |
//! | its options and their defaults | [`policy`] |
//! | what it has done | [`stats`] |
//! | values, leases, and the lock under which a key changes | `store` |
//! | one value, and why it ended | `entry` |
//! | who may fill a key | `lease` |
//! | giving back the memory of what expired | `expiry` |
//!
//! mini-moka decides what is kept and what makes way (TinyLFU). What it does not have is added here: a life
//! per entry, removal by prefix, counts by cause, and leases, which must not be evicted and live apart.

pub mod builder;
pub mod cache;
mod entry;
mod expiry;
mod lease;
pub mod policy;
pub mod stats;
mod store;

pub use builder::MokaCacheBuilder;
pub use cache::MokaCacheService;
pub use policy::{Capacity, MokaPolicy};
pub use stats::MokaStats;
