//! The cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::cache::{ClaimKind, DEFAULT_MAX_VALUE_BYTES, DEFAULT_TTL};
use cache_core::key::validate;
use cache_core::{CacheError, CacheService, Claim, InvalidationBus, LeaseToken, Lookup, Stamp, Ttl};
use redis::{Cmd, cmd};

use crate::bus::RedisBus;
use crate::connection::RedisLink;
use crate::error::CallError;
use crate::keyspace::{self, BATCH, Expected};
use crate::script;
use crate::settings::RedisSettings;

/// The options of a [`RedisCacheService`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisCacheOptions {
    /// Life of an entry stored with [`Ttl::Default`]. Default 300 s.
    pub default_ttl: Duration,
    /// The largest value, in bytes. Default 8 MiB.
    pub max_value_bytes: usize,
}

impl Default for RedisCacheOptions {
    fn default() -> Self {
        Self { default_ttl: DEFAULT_TTL, max_value_bytes: DEFAULT_MAX_VALUE_BYTES }
    }
}

impl RedisCacheOptions {
    /// Sets [`default_ttl`](Self::default_ttl).
    #[must_use]
    pub fn with_default_ttl(mut self, ttl: Duration) -> Self {
        self.default_ttl = ttl;
        self
    }

    /// Sets [`max_value_bytes`](Self::max_value_bytes).
    #[must_use]
    pub fn with_max_value_bytes(mut self, bytes: usize) -> Self {
        self.max_value_bytes = bytes;
        self
    }
}

/// A [`CacheService`] in Redis, shared by all instances that use the same server and key prefix.
///
/// A hit is one `GET` on the shared connection. Every write carries an expiry. Every invalidation is announced
/// in the same atomic step, also when nobody in this process listens. Removing by prefix leaves what locks, rate
/// limits and presence keep on the same server, and the bus's count, whatever the prefix: those are no entries.
#[derive(Debug)]
pub struct RedisCacheService {
    link: RedisLink,
    bus: Arc<RedisBus>,
    options: RedisCacheOptions,
    /// The server is older than 7.0 and knows no `SET NX GET`.
    old_server: AtomicBool,
}

impl RedisCacheService {
    /// A service on connections of its own. When locks, limits or presence use the same Redis, build one
    /// [`RedisLink`] and use [`on`](Self::on).
    ///
    /// # Errors
    /// [`CacheError::Configuration`] for a URL that is not understood; its text shows no password. An absent
    /// server is no error: the service connects when it is used.
    pub fn new(redis_url: &str, default_ttl: Duration) -> Result<Self, CacheError> {
        let refused =
            |error: crate::SettingsError| CacheError::configuration("Redis cache", error.to_string());
        let settings = RedisSettings::from_url(redis_url).map_err(refused)?;
        let bus = RedisBus::on(RedisLink::lazy(settings).map_err(refused)?);
        Ok(Self::on(bus, RedisCacheOptions::default().with_default_ttl(default_ttl)))
    }

    /// A service on a link that others share, announcing on the link's bus.
    #[must_use]
    pub fn on(bus: Arc<RedisBus>, options: RedisCacheOptions) -> Self {
        Self { link: bus.link().clone(), bus, options, old_server: AtomicBool::new(false) }
    }

    /// The shared connections, for services of your own.
    #[must_use]
    pub fn redis(&self) -> &RedisLink {
        &self.link
    }

    fn check_size(&self, value: &Bytes) -> Result<(), CacheError> {
        let (size, limit) = (value.len(), self.options.max_value_bytes);
        if size > limit { Err(CacheError::ValueTooLarge { size, limit }) } else { Ok(()) }
    }

    fn life(&self, ttl: Ttl) -> Option<u64> {
        // At most ten years, so it fits.
        ttl.resolve(self.options.default_ttl).map(|life| life.as_millis() as u64)
    }

    /// The command that stores a value, or removes what is there when it has no life.
    fn storing(&self, key: &str, value: Bytes, life: Option<u64>) -> Cmd {
        let key = self.link.key(key);
        let Some(px) = life else {
            let mut command = cmd("UNLINK");
            command.arg(key);
            return command;
        };
        let mut command = cmd("SET");
        command.arg(key).arg(&keyspace::stored(value)[..]).arg("PX").arg(px);
        command
    }

    async fn set_or_get(&self, key: &str, token: &LeaseToken, px: u64) -> Result<Option<Vec<u8>>, CallError> {
        let (key, marker) = (self.link.key(key), keyspace::marker(token));
        if !self.old_server.load(Ordering::Relaxed) {
            let mut command = cmd("SET");
            command.arg(key).arg(&marker[..]).arg("NX").arg("GET").arg("PX").arg(px);
            match self.link.call("get_or_lease", &command).await {
                Err(CallError::Backend(error)) if error.detail == "ERR" => {
                    // A syntax error; if it was something else, the script says so again.
                    self.old_server.store(true, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        script::LEASE.with(&[key], &[&marker, px.to_string().as_bytes()]).run(&self.link).await
    }
}

#[async_trait]
impl CacheService for RedisCacheService {
    #[tracing::instrument(level = "trace", skip_all)]
    async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        validate(key)?;
        let mut command = cmd("GET");
        command.arg(self.link.key(key));
        let stored: Option<Vec<u8>> = self.link.call("get", &command).await?;
        Ok(stored.and_then(keyspace::value))
    }

    #[tracing::instrument(level = "trace", skip_all, fields(keys = keys.len()))]
    async fn get_many_bytes(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, CacheError> {
        keys.iter().try_for_each(|key| validate(key))?;
        let mut found = Vec::with_capacity(keys.len());
        for batch in keys.chunks(BATCH) {
            let mut command = cmd("MGET");
            for key in batch {
                command.arg(self.link.key(key));
            }
            let stored: Vec<Option<Vec<u8>>> = self.link.call("get_many", &command).await?;
            found.extend(stored.into_iter().map(|stored| stored.and_then(keyspace::value)));
        }
        Ok(found)
    }

    #[tracing::instrument(level = "trace", skip_all)]
    async fn set_bytes(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(), CacheError> {
        validate(key)?;
        self.check_size(&value)?;
        Ok(self.link.call("set", &self.storing(key, value, self.life(ttl))).await?)
    }

    #[tracing::instrument(level = "trace", skip_all, fields(keys = entries.len()))]
    async fn set_many_bytes(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Result<(), CacheError> {
        for (key, value) in entries {
            validate(key)?;
            self.check_size(value)?;
        }
        let life = self.life(ttl);
        for batch in entries.chunks(BATCH) {
            let mut pipeline = redis::pipe();
            for (key, value) in batch {
                pipeline.add_command(self.storing(key, value.clone(), life)).ignore();
            }
            let () = self.link.call("set_many", &pipeline).await?;
        }
        Ok(())
    }

    async fn invalidate(&self, key: &str) -> Result<(), CacheError> {
        self.invalidate_many(&[key]).await
    }

    #[tracing::instrument(level = "trace", skip_all, fields(keys = keys.len()))]
    async fn invalidate_many(&self, keys: &[&str]) -> Result<(), CacheError> {
        keys.iter().try_for_each(|key| validate(key))?;
        if keys.is_empty() {
            return Ok(());
        }
        let keys = keys.iter().map(|key| Arc::from(*key)).collect();
        self.bus.remove_keys(keys).await
    }

    /// `SCAN` on a pooled connection, `UNLINK` in batches, and one announcement at the end: about half a
    /// second for a million keys.
    #[tracing::instrument(level = "debug", skip_all)]
    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        validate(prefix)?;
        self.bus.remove_prefix(prefix).await
    }

    #[tracing::instrument(level = "trace", skip_all)]
    async fn get_or_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        validate(key)?;
        let held = self.set_or_get(key, &token, milliseconds(lease_for)).await?;
        Ok(lookup(held, token))
    }

    #[tracing::instrument(level = "trace", skip_all)]
    async fn lease_over(
        &self,
        key: &str,
        observed: &Stamp,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Lookup, CacheError> {
        validate(key)?;
        let (seen, marker) = (Expected::stamp(observed), keyspace::marker(&token));
        let px = milliseconds(lease_for).to_string();
        let arguments = [&seen.bytes[..], flag(seen.whole), &marker, px.as_bytes()];
        let key = self.link.key(key);
        let held: Option<Vec<u8>> = script::LEASE_OVER.with(&[key], &arguments).run(&self.link).await?;
        Ok(lookup(held, token))
    }

    #[tracing::instrument(level = "trace", skip_all)]
    async fn take_lease(
        &self,
        key: &str,
        token: LeaseToken,
        lease_for: Duration,
    ) -> Result<Claim, CacheError> {
        validate(key)?;
        let mut command = cmd("SET");
        command.arg(self.link.key(key)).arg(&keyspace::marker(&token)[..]);
        command.arg("PX").arg(milliseconds(lease_for));
        let () = self.link.call("take_lease", &command).await?;
        Ok(Claim::lease(token))
    }

    #[tracing::instrument(level = "trace", skip_all)]
    async fn fill(&self, key: &str, claim: &Claim, value: Bytes, ttl: Ttl) -> Result<bool, CacheError> {
        validate(key)?;
        self.check_size(&value)?;
        let (expected, stored) = (expected(claim), keyspace::stored(value));
        let px = self.life(ttl).unwrap_or(0).to_string();
        let arguments = [&expected.bytes[..], flag(expected.whole), &stored, px.as_bytes()];
        Ok(script::FILL.with(&[self.link.key(key)], &arguments).run(&self.link).await?)
    }

    #[tracing::instrument(level = "trace", skip_all)]
    async fn renew(&self, key: &str, claim: &Claim, lease_for: Duration) -> Result<bool, CacheError> {
        validate(key)?;
        let expected = expected(claim);
        let px = match claim.kind() {
            ClaimKind::Lease(_) => milliseconds(lease_for).to_string(),
            ClaimKind::Stamp(_) => "0".to_owned(),
        };
        let arguments = [&expected.bytes[..], flag(expected.whole), px.as_bytes()];
        Ok(script::RENEW.with(&[self.link.key(key)], &arguments).run(&self.link).await?)
    }

    #[tracing::instrument(level = "trace", skip_all)]
    async fn release(&self, key: &str, claim: &Claim) -> Result<(), CacheError> {
        validate(key)?;
        if let ClaimKind::Lease(token) = claim.kind() {
            let marker = keyspace::marker(token);
            let _: u64 = script::RELEASE.with(&[self.link.key(key)], &[&marker]).run(&self.link).await?;
        }
        Ok(())
    }

    async fn health(&self) -> Result<Duration, CacheError> {
        Ok(self.link.ping().await?)
    }

    fn bus(&self) -> Option<Arc<dyn InvalidationBus>> {
        Some(self.bus.clone())
    }
}

fn lookup(held: Option<Vec<u8>>, token: LeaseToken) -> Lookup {
    match held {
        None => Lookup::Granted(Claim::lease(token)),
        // A call that is repeated, by the link or by the caller, meets its own marker.
        Some(held) if held == keyspace::marker(&token) => Lookup::Granted(Claim::lease(token)),
        Some(held) => keyspace::value(held).map_or(Lookup::Busy, Lookup::Hit),
    }
}

fn expected(claim: &Claim) -> Expected {
    match claim.kind() {
        ClaimKind::Lease(token) => Expected::marker(token),
        ClaimKind::Stamp(stamp) => Expected::stamp(stamp),
    }
}

fn flag(whole: bool) -> &'static [u8] {
    if whole { b"1" } else { b"0" }
}

/// At least one: Redis refuses an expiry of zero.
fn milliseconds(life: Duration) -> u64 {
    Ttl::For(life).resolve(life).map_or(1, |life| life.as_millis() as u64)
}
