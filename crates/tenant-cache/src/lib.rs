//! # The typed, tenant-scoped two-level read-through cache
//!
//! Memory in front of a shared store in front of your loader; every entry belongs to the tenant of the running
//! request; an invalidation reaches every instance and cannot be undone by a slow reader; a key is loaded once
//! at a time in the whole fleet.
//!
//! | you look for | module |
//! |---|---|
//! | the cache you call | [`TenantCache`] |
//! | the caches of a process, and how they are joined to others | [`Caches`], [`CachesBuilder`] |
//! | how a cache is defined, with all options | [`DomainBuilder`], [`Policy`] |
//! | whose request is running | [`RequestScope`], [`ambient`] |
//! | what can be a key | [`CacheKey`] |
//! | hearing of changes | [`TenantCache::changes`], [`TenantCache::on_change`], [`Change`] |
//! | one value, computed once per life | [`memo()`], [`Memo`] |
//! | what a cache has done | [`Stats`] |
//!
//! Inside, in the order in which a lookup meets them: `near` (memory, tickets) → `lookup` (who waits for whom, and how
//! long) with `single_flight` (one load for all) and `load_stack` (no circles) → `fetch` (the miss path) → `far` (leases) with `frame` and `wrap` (what is stored) and `generation` (groups) →
//! `load` (the loader); `coherence` is what messages of other instances do here, `pending` what is repeated.

pub mod ambient;
mod answer;
mod background;
mod backlog;
mod batch;
mod builder;
mod bulk;
mod cache;
mod changes;
mod coherence;
mod definition;
mod far;
mod fetch;
mod frame;
mod generation;
mod hooks;
mod inner;
#[cfg(test)]
mod interleavings;
mod key;
mod labels;
mod lease;
mod life;
mod load;
mod load_stack;
mod loaded;
mod local_bus;
mod lookup;
pub mod memo;
mod near;
mod number;
mod once_warning;
mod pending;
mod policy;
mod refresh;
mod registry;
mod shared_load;
mod single_flight;
mod stats;
mod store;
mod sync;
mod tag_numbers;
mod tags;
mod tasks;
mod wrap;

pub use ambient::RequestScope;
pub use answer::{Found, MAX_TAGS, Source};
pub use builder::DomainBuilder;
pub use cache::TenantCache;
pub use changes::{Change, HandlerGuard};
pub use key::CacheKey;
pub use labels::TenantLabels;
pub use load::Retry;
pub use loaded::{LoadRequest, Loaded};
pub use memo::{Memo, memo};
pub use policy::{Mode, NegativeTier, Policy};
pub use registry::{Caches, CachesBuilder};
pub use stats::Stats;
