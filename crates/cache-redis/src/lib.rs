//! # The Redis backend
//!
//! One door to Redis, built once and shared by cache, bus, locks, limits and presence.
//!
//! | you look for | module |
//! |---|---|
//! | what to connect to | [`settings`]: [`RedisSettings`] |
//! | the connections, their deadlines and their breaker | [`connection`]: [`RedisLink`], `hot`, [`policy`] |
//! | the cache | [`cache`]: [`RedisCacheService`] |
//! | invalidations to and from other instances, and how far memory may be trusted | [`bus`]: [`RedisBus`] |
//! | locks across instances | [`lock`]: [`RedisLocks`] |
//! | rate limits across instances | [`rate_limit`]: [`RedisRateLimits`] |
//! | presence across instances | [`presence`]: [`RedisPresence`] |
//! | locks, limits and presence as one object | [`concurrency`]: [`RedisConcurrencyService`] |
//! | how errors of Redis are told apart | [`error`] |
//! | keys on the server, escaping | `keyspace` · scripts: `script` and `lua/` · walking all keys: `scan` |
//!
//! Nothing outside of this crate names the `redis` crate.

pub mod bus;
pub mod cache;
pub mod concurrency;
pub mod connection;
pub mod error;
mod hot;
mod keyspace;
pub mod lock;
pub mod policy;
pub mod presence;
pub mod rate_limit;
mod scan;
mod script;
pub mod settings;

pub use bus::{BusPolicy, RedisBus};
pub use cache::{RedisCacheOptions, RedisCacheService};
pub use concurrency::RedisConcurrencyService;
pub use connection::RedisLink;
pub use error::CallError;
pub use lock::RedisLocks;
pub use presence::RedisPresence;
pub use rate_limit::RedisRateLimits;
pub use settings::{RedisSettings, SettingsError};
