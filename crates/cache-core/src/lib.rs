//! # The contracts of the coherent cache layer
//!
//! What is promised, without how: no I/O, no runtime, no backend. Backends implement these traits,
//! services are written against them, and the same code runs in memory or on Redis.
//!
//! | you look for | module |
//! |---|---|
//! | a cache of bytes and its typed calls | [`cache`]: [`CacheService`], [`CacheServiceExt`] |
//! | locks with fencing tokens | [`lock`]: [`Locks`], [`LockGuard`] |
//! | rate limits | [`rate_limit`]: [`RateLimits`], [`Quota`], [`Decision`] · their arithmetic: [`gcra`] |
//! | who is connected | [`presence`]: [`Presence`] |
//! | the three above as one object | [`concurrency`]: [`ConcurrencyService`] |
//! | telling other instances what changed | [`bus`]: [`InvalidationBus`], [`Trust`] |
//! | whose data it is | [`scope`]: [`TenantId`], [`UserId`], [`Scope`] · [`context`]: [`RequestContext`] |
//! | what a key looks like | [`key`] |
//! | how long it lives | [`ttl`]: [`Ttl`] · [`clock`]: [`Clock`] |
//! | values to bytes | [`codec`]: [`Codec`], [`Json`] · `postcard` (feature `postcard`) |
//! | entries that the store cannot read | [`seal`]: [`Sealer`] |
//! | what can go wrong | [`error`]: [`CacheError`], [`BackendError`] |
//! | mocks for your tests | `mock` (feature `mock`) |
//!
//! Import [`prelude`] to get the extension traits in scope.

pub mod bus;
pub mod cache;
pub mod clock;
pub mod codec;
pub mod concurrency;
pub mod context;
pub mod error;
pub mod gcra;
pub mod key;
pub mod lock;
#[cfg(feature = "mock")]
pub mod mock;
#[cfg(feature = "postcard")]
pub mod postcard;
pub mod prelude;
pub mod presence;
pub mod rate_limit;
pub mod scope;
pub mod seal;
pub mod ttl;

pub use bus::{BusState, FlushReason, Invalidation, InvalidationBus, InvalidationSink, Subscription, Trust};
pub use cache::{CacheService, CacheServiceExt, Claim, LeaseToken, Lookup, Stamp};
pub use clock::{Clock, ManualClock, Tick};
pub use codec::{Codec, CodecError, Json};
pub use concurrency::ConcurrencyService;
pub use context::RequestContext;
pub use error::{BackendError, BackendErrorKind, CacheError, KeyError, LoadError};
pub use lock::{FencingToken, HeldLock, LockError, LockGuard, LockOptions, Locks, LocksExt};
#[cfg(feature = "postcard")]
pub use postcard::Postcard;
pub use presence::{Member, Presence, PresenceError, PresenceOptions, Present};
pub use rate_limit::{Algorithm, Decision, OnUnavailable, Quota, RateLimitError, RateLimited, RateLimits};
pub use scope::{IdError, Scope, TenantId, UserId};
pub use seal::{SealFailure, Sealer};
pub use ttl::Ttl;
