//! Which settings there are, typed and checked before anything is started.
//!
//! | setting | meaning | default |
//! |---|---|---|
//! | `REDIS_URL` (`…_FILE`) | where Redis is; absent: everything in this process | none |
//! | `CACHE_BACKEND` | `memory` or `redis`, whatever `REDIS_URL` says | by `REDIS_URL` |
//! | `REDIS_ON_UNAVAILABLE` | `degrade`: start without, recover by itself · `fail`: do not start | `degrade` |
//! | `REDIS_MODE` | `standalone`, `sentinel` or `cluster` | `standalone` |
//! | `REDIS_NODES` | `host:port,…` of sentinels or cluster nodes | none |
//! | `REDIS_SENTINEL_MASTER` | the name of the master the sentinels watch | none |
//! | `REDIS_KEY_PREFIX` | separates deployments that share a server | empty |
//! | `CACHE_TTL` | life of an entry that does not say otherwise | `300s` |
//! | `CACHE_CAPACITY` | entries of the in-process backend | `10000` |
//! | `CACHE_NEAR_TTL` · `CACHE_NEAR_CAPACITY` | life and entries of a domain's near tier | `10s` · `1000` |
//! | `RATE_LIMIT_API` · `_AUTH` · `_MFA` · `_MUTATION` · `_NAMES` | `LIMIT/TIME` of a preset, e.g. `10000/60s` | the preset's |
//!
//! Times are a whole number with `ms`, `s`, `m` or `h`; a bare number is seconds.

use std::fmt;
use std::time::Duration;

use cache_core::Quota;
use secrecy::SecretString;
use url::Url;

use crate::{SettingError, SettingService, SettingServiceExt};

/// The settings of the layer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AppSettings {
    /// Where values, locks, limits, presence and messages live.
    pub backend: Backend,
    /// Life of an entry that does not say otherwise. Default 300 s.
    pub default_ttl: Duration,
    /// Entries of the in-process backend. Default 10 000.
    pub capacity: u64,
    /// Life of an entry in a domain's near tier; `None` leaves it to the domain.
    pub near_ttl: Option<Duration>,
    /// Entries of a domain's near tier; `None` leaves it to the domain.
    pub near_capacity: Option<usize>,
    /// The quotas of the rate limit presets.
    pub rate_limits: RateLimitPresets,
}

/// Where the layer keeps its state.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Backend {
    /// In this process: nothing is shared, nothing survives a restart.
    Memory,
    /// In Redis, shared by all instances.
    Redis(RedisSettings),
}

/// How Redis is reached.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedisSettings {
    /// `redis://`, `rediss://`, `redis+unix://`, `unix://` or `valkey://`. Holds the password.
    pub url: Option<SecretString>,
    /// How many servers of which kind. Default standalone.
    pub mode: RedisMode,
    /// Sentinels or cluster nodes, as `host:port`.
    pub nodes: Vec<String>,
    /// The master's name at the sentinels.
    pub sentinel_master: Option<String>,
    /// What happens when Redis is away at the start. Default [`OnUnavailable::Degrade`].
    pub on_unavailable: OnUnavailable,
    /// Put in front of every key and channel. Default empty.
    pub key_prefix: String,
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings")
            .field(
                "url",
                &self.url.as_ref().map(|url| redacted_url(secrecy::ExposeSecret::expose_secret(url))),
            )
            .field("mode", &self.mode)
            .field("nodes", &self.nodes)
            .field("sentinel_master", &self.sentinel_master)
            .field("on_unavailable", &self.on_unavailable)
            .field("key_prefix", &self.key_prefix)
            .finish()
    }
}

/// How Redis is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RedisMode {
    /// One server.
    #[default]
    Standalone,
    /// A master that sentinels watch.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

/// What happens when Redis is away at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnUnavailable {
    /// Start, warn once, recover by itself: a cache that is away must not keep a service from starting.
    #[default]
    Degrade,
    /// Do not start.
    Fail,
}

/// The quotas behind the preset names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimitPresets {
    /// Ordinary requests. Default [`Quota::api`].
    pub api: Quota,
    /// Attempts to log in. Default [`Quota::auth`].
    pub auth: Quota,
    /// Second factors. Default [`Quota::mfa`].
    pub mfa: Quota,
    /// Writes. Default [`Quota::mutation`].
    pub mutation: Quota,
    /// Names of organisations that nobody has. Default a token bucket, 100 per minute; local while the store is away.
    pub names: Quota,
}

impl RateLimitPresets {
    fn unknown_names() -> Quota {
        Quota::token_bucket("names", 100, Duration::from_secs(60))
    }
}

impl Default for RateLimitPresets {
    fn default() -> Self {
        Self {
            api: Quota::api(),
            auth: Quota::auth(),
            mfa: Quota::mfa(),
            mutation: Quota::mutation(),
            names: Self::unknown_names(),
        }
    }
}

impl AppSettings {
    /// Everything in this process, with defaults.
    #[must_use]
    pub fn in_memory() -> Self {
        Self {
            backend: Backend::Memory,
            default_ttl: Duration::from_secs(300),
            capacity: 10_000,
            near_ttl: None,
            near_capacity: None,
            rate_limits: RateLimitPresets::default(),
        }
    }

    /// Reads and checks all settings; nothing is contacted.
    ///
    /// # Errors
    /// [`SettingError`] that names the setting which is wrong, contradicts another, or cannot be read.
    pub fn read(source: &dyn SettingService) -> Result<Self, SettingError> {
        let defaults = Self::in_memory();
        Ok(Self {
            backend: read_backend(source)?,
            default_ttl: read_duration(source, "CACHE_TTL")?.unwrap_or(defaults.default_ttl),
            capacity: read_count(source, "CACHE_CAPACITY")?.unwrap_or(defaults.capacity),
            near_ttl: read_duration(source, "CACHE_NEAR_TTL")?,
            near_capacity: read_count(source, "CACHE_NEAR_CAPACITY")?,
            rate_limits: RateLimitPresets::read(source)?,
        })
    }
}

impl RateLimitPresets {
    fn read(source: &dyn SettingService) -> Result<Self, SettingError> {
        Ok(Self {
            api: read_quota(source, "RATE_LIMIT_API", Quota::api())?,
            auth: read_quota(source, "RATE_LIMIT_AUTH", Quota::auth())?,
            mfa: read_quota(source, "RATE_LIMIT_MFA", Quota::mfa())?,
            mutation: read_quota(source, "RATE_LIMIT_MUTATION", Quota::mutation())?,
            names: read_quota(source, "RATE_LIMIT_NAMES", Self::unknown_names())?,
        })
    }
}

/// Schemes of servers and files; another word may be the beginning of a secret.
const SCHEMES: [&str; 9] =
    ["redis", "rediss", "valkey", "valkeys", "redis+unix", "unix", "postgres", "postgresql", "sqlite"];

/// A URL as it may be shown: scheme, host and port. Without a known scheme nothing is shown, and without a host that is
/// one for certain the scheme alone: an unescaped `#`, `?` or `/` in a password ends the host within the password.
#[must_use]
pub fn redacted_url(url: &str) -> String {
    let parsed = Url::parse(url).ok().filter(|parsed| SCHEMES.contains(&parsed.scheme()));
    let Some(parsed) = parsed else { return "(not shown)".to_owned() };
    let scheme = parsed.scheme();
    let misread = [parsed.path(), parsed.query().unwrap_or(""), parsed.fragment().unwrap_or("")];
    let host = parsed.host_str().filter(|host| !host.is_empty() && scheme != "sqlite");
    let host = host.filter(|_| !misread.iter().any(|part| part.contains('@')));
    match (host, parsed.port()) {
        (None, _) => format!("{scheme}://…"),
        (Some(host), None) => format!("{scheme}://{host}"),
        (Some(host), Some(port)) => format!("{scheme}://{host}:{port}"),
    }
}

/// Reads a time: `500ms`, `10s`, `5m`, `1h`, or a bare number of seconds.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => None,
    }
}

fn read_backend(source: &dyn SettingService) -> Result<Backend, SettingError> {
    let chosen = source.parsed("CACHE_BACKEND", "`memory` or `redis`", |text| match text {
        "memory" => Some(false),
        "redis" => Some(true),
        _ => None,
    })?;
    let redis = read_redis(source)?;
    let reachable = redis.url.is_some() || !redis.nodes.is_empty();
    match (chosen, reachable) {
        (Some(false), _) | (None, false) => Ok(Backend::Memory),
        (Some(true), false) => Err(SettingError::contradiction(
            "CACHE_BACKEND",
            "`redis` needs REDIS_URL (or REDIS_NODES) to say where Redis is",
        )),
        (_, true) => {
            check_redis(&redis)?;
            Ok(Backend::Redis(redis))
        }
    }
}

fn read_redis(source: &dyn SettingService) -> Result<RedisSettings, SettingError> {
    let mode = source.parsed("REDIS_MODE", "`standalone`, `sentinel` or `cluster`", |text| {
        Some(match text {
            "standalone" => RedisMode::Standalone,
            "sentinel" => RedisMode::Sentinel,
            "cluster" => RedisMode::Cluster,
            _ => return None,
        })
    })?;
    let on_unavailable = source.parsed("REDIS_ON_UNAVAILABLE", "`degrade` or `fail`", |text| match text {
        "degrade" => Some(OnUnavailable::Degrade),
        "fail" => Some(OnUnavailable::Fail),
        _ => None,
    })?;
    Ok(RedisSettings {
        url: source.secret("REDIS_URL")?,
        mode: mode.unwrap_or_default(),
        nodes: read_nodes(source)?,
        sentinel_master: source.text("REDIS_SENTINEL_MASTER")?,
        on_unavailable: on_unavailable.unwrap_or_default(),
        key_prefix: source.text("REDIS_KEY_PREFIX")?.unwrap_or_default(),
    })
}

/// The nodes may carry credentials when written as URLs, so the text is not shown.
fn read_nodes(source: &dyn SettingService) -> Result<Vec<String>, SettingError> {
    let Some(text) = source.text("REDIS_NODES")? else { return Ok(Vec::new()) };
    let nodes: Vec<String> = text.split(',').map(|node| node.trim().to_owned()).collect();
    match nodes.iter().all(|node| is_host_and_port(node)) {
        true => Ok(nodes),
        false => Err(SettingError::invalid("REDIS_NODES", None, "`host:port,host:port,…`")),
    }
}

fn is_host_and_port(node: &str) -> bool {
    !node.contains(['@', '/'])
        && node.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn check_redis(redis: &RedisSettings) -> Result<(), SettingError> {
    let wrong = |name: &str, reason: &'static str| Err(SettingError::contradiction(name, reason));
    match redis.mode {
        RedisMode::Standalone if redis.url.is_none() => {
            wrong("REDIS_NODES", "is for REDIS_MODE=sentinel or cluster; a standalone server is REDIS_URL")
        }
        RedisMode::Standalone if !redis.nodes.is_empty() => {
            wrong("REDIS_NODES", "is set, but REDIS_MODE is standalone: set the mode, or leave the nodes out")
        }
        RedisMode::Sentinel if redis.sentinel_master.is_none() => {
            wrong("REDIS_SENTINEL_MASTER", "is needed by REDIS_MODE=sentinel")
        }
        RedisMode::Sentinel if redis.nodes.is_empty() => {
            wrong("REDIS_NODES", "is needed by REDIS_MODE=sentinel: the addresses of the sentinels")
        }
        RedisMode::Standalone | RedisMode::Cluster if redis.sentinel_master.is_some() => {
            wrong("REDIS_SENTINEL_MASTER", "is set, but REDIS_MODE is not sentinel")
        }
        _ => Ok(()),
    }
}

fn read_duration(source: &dyn SettingService, name: &str) -> Result<Option<Duration>, SettingError> {
    source.parsed(name, "a time over zero such as `10s`, `500ms` or `5m`", |text| {
        parse_duration(text).filter(|time| !time.is_zero())
    })
}

fn read_count<T: TryFrom<u64>>(source: &dyn SettingService, name: &str) -> Result<Option<T>, SettingError> {
    source.parsed(name, "a whole number over zero", |text| {
        text.parse::<u64>().ok().filter(|count| *count > 0).and_then(|count| T::try_from(count).ok())
    })
}

/// `LIMIT/TIME` in place of a preset's; everything else of the preset stays.
fn read_quota(source: &dyn SettingService, name: &str, preset: Quota) -> Result<Quota, SettingError> {
    let changed = source.parsed(name, "`LIMIT/TIME` such as `10000/60s`", |text| {
        let (limit, per) = text.split_once('/')?;
        Some((limit.trim().parse::<u32>().ok()?, parse_duration(per.trim())?))
    })?;
    let Some((limit, per)) = changed else { return Ok(preset) };
    let mut quota = preset;
    (quota.limit, quota.per) = (limit, per);
    match quota.validate(quota.cost) {
        Ok(()) => Ok(quota),
        Err(error) => Err(SettingError::contradiction(name, error.to_string())),
    }
}
