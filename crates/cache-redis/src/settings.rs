//! What to connect to.

use std::fmt;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{ConnectionInfo, IntoConnectionInfo};

/// Where Redis is, and how patient to be with it.
///
/// `Debug` shows no password.
#[derive(Clone)]
pub struct RedisSettings {
    pub(crate) info: ConnectionInfo,
    shown: String,
    /// Begins every key and channel; separates deployments that share a server. Default empty.
    pub key_prefix: String,
    /// The longest a command may take. Default 500 ms.
    pub response_timeout: Duration,
    /// The longest a connection may take to be made. Default 1 s.
    pub connect_timeout: Duration,
    /// Connections for long work: scans and the like. Default 4.
    pub pool_size: usize,
}

/// How Redis is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RedisMode {
    /// One server.
    #[default]
    Standalone,
    /// A master found through Sentinel.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

impl RedisMode {
    /// Reads `standalone`, `sentinel` or `cluster`.
    ///
    /// # Errors
    /// [`SettingsError::UnknownMode`].
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        match text {
            "standalone" => Ok(Self::Standalone),
            "sentinel" => Ok(Self::Sentinel),
            "cluster" => Ok(Self::Cluster),
            _ => Err(SettingsError::UnknownMode),
        }
    }
}

/// Why settings are refused. No message repeats a URL: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Not a URL of a known form.
    #[error("REDIS_URL: expected redis://, rediss://, valkey://, valkeys://, redis+unix:// or unix://")]
    UnknownScheme,
    /// A URL of a known form with a part that does not fit.
    #[error("REDIS_URL: the host, port, database number or option in it is not understood")]
    Malformed,
    /// The mode is none.
    #[error("REDIS_MODE: expected standalone, sentinel or cluster")]
    UnknownMode,
    /// The mode is known and cannot be served yet.
    #[error("REDIS_MODE: `{0}` is not supported yet; this version serves `standalone`")]
    UnsupportedMode(&'static str),
    /// The prefix is no beginning of a key.
    #[error("REDIS_KEY_PREFIX: at most 64 bytes, no control characters, no braces")]
    KeyPrefix,
}

impl RedisSettings {
    const MAX_PREFIX_BYTES: usize = 64;

    /// Settings for a URL: `redis[s]://[user][:password@]host[:port][/db][?protocol=resp3]`,
    /// `redis+unix:///path/to/socket[?db=…&pass=…&user=…]`, and the same with `valkey` for `redis`.
    ///
    /// # Errors
    /// [`SettingsError`] that names the setting, never with the URL or its password in it.
    pub fn from_url(url: &str) -> Result<Self, SettingsError> {
        let parsed = redis::parse_redis_url(url).ok_or(SettingsError::UnknownScheme)?;
        let misread = [parsed.path(), parsed.query().unwrap_or(""), parsed.fragment().unwrap_or("")];
        // An unescaped `#`, `?` or `/` in a password ends the host within the password.
        let host = parsed.host_str().filter(|_| !misread.iter().any(|part| part.contains('@')));
        let port = parsed.port().map(|port| format!(":{port}")).unwrap_or_default();
        let shown = match host.filter(|host| !host.is_empty()) {
            Some(host) => format!("{}://{host}{port}", parsed.scheme()),
            None => format!("{}://…", parsed.scheme()),
        };
        // Errors are dropped on purpose: their text may repeat the URL.
        let info = url.into_connection_info().map_err(|_| SettingsError::Malformed)?;
        Ok(Self {
            info: info.set_tcp_settings(tcp_settings()),
            shown,
            key_prefix: String::new(),
            response_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(1),
            pool_size: 4,
        })
    }

    /// Settings for a deployment; Sentinel and Cluster are refused by name.
    ///
    /// # Errors
    /// As [`from_url`](Self::from_url), and [`SettingsError::UnsupportedMode`].
    pub fn for_mode(mode: RedisMode, url: &str) -> Result<Self, SettingsError> {
        match mode {
            RedisMode::Standalone => Self::from_url(url),
            RedisMode::Sentinel => Err(SettingsError::UnsupportedMode("sentinel")),
            RedisMode::Cluster => Err(SettingsError::UnsupportedMode("cluster")),
        }
    }

    /// Sets [`key_prefix`](Self::key_prefix).
    ///
    /// # Errors
    /// [`SettingsError::KeyPrefix`] when it is over 64 bytes or has control characters or braces.
    pub fn with_key_prefix(mut self, prefix: impl Into<String>) -> Result<Self, SettingsError> {
        let prefix = prefix.into();
        let strange = |char: char| char.is_control() || matches!(char, '{' | '}');
        if prefix.len() > Self::MAX_PREFIX_BYTES || prefix.contains(strange) {
            return Err(SettingsError::KeyPrefix);
        }
        self.key_prefix = prefix;
        Ok(self)
    }

    /// Sets [`response_timeout`](Self::response_timeout).
    #[must_use]
    pub fn with_response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit;
        self
    }

    /// Sets [`connect_timeout`](Self::connect_timeout).
    #[must_use]
    pub fn with_connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Scheme, host and port of the URL; for logs.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings")
            .field("url", &self.shown)
            .field("key_prefix", &self.key_prefix)
            .field("response_timeout", &self.response_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// The library's defaults leave Nagle on and find a dead peer after minutes.
fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(3))
        .with_retries(3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let settings = settings.set_user_timeout(Duration::from_secs(5));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C4: every documented form of URL is read.
    #[test]
    fn documented_urls_are_read() {
        for url in [
            "redis://localhost",
            "redis://127.0.0.1:6380/3",
            "redis://user:secret@[::1]:6379/0?protocol=resp3",
            "rediss://:secret@cache.example:6379",
            "valkey://localhost",
            "valkeys://localhost",
            "redis+unix:///run/redis.sock?db=2",
            "unix:///run/redis.sock",
        ] {
            assert!(RedisSettings::from_url(url).is_ok(), "{url}");
        }
    }

    /// C4, A7: what is not understood is refused by the setting's name, and no password is shown.
    #[test]
    fn refusals_name_the_setting_and_hide_the_password() {
        for (url, error) in [
            ("", SettingsError::UnknownScheme),
            ("localhost:6379", SettingsError::UnknownScheme),
            ("http://:hunter2@localhost", SettingsError::UnknownScheme),
            ("redis://:hunter2@localhost/not-a-number", SettingsError::Malformed),
        ] {
            let refused = RedisSettings::from_url(url).unwrap_err();
            assert_eq!(refused, error, "{url}");
            assert!(refused.to_string().contains("REDIS_URL") && !refused.to_string().contains("hunter2"));
        }
        for (url, shown) in [
            ("redis://ann:hunter2@localhost/1", "redis://localhost"),
            ("redis://hunter2@127.0.0.1:17379", "redis://127.0.0.1:17379"),
            ("redis://hunt#er2@localhost", "redis://…"),
            ("redis+unix:///run/redis.sock?pass=hunter2", "redis+unix://…"),
        ] {
            let settings = RedisSettings::from_url(url).unwrap();
            assert_eq!(settings.shown(), shown);
            assert!(!format!("{settings:?}").contains("hunt"), "{settings:?}");
        }
    }

    /// C4: modes that cannot be served say so.
    #[test]
    fn unsupported_modes_say_so() {
        for (mode, name) in [(RedisMode::Sentinel, "sentinel"), (RedisMode::Cluster, "cluster")] {
            let refused = RedisSettings::for_mode(mode, "redis://localhost").unwrap_err().to_string();
            assert!(refused.contains("REDIS_MODE") && refused.contains(name), "{refused}");
        }
        assert_eq!(RedisMode::parse("sharded"), Err(SettingsError::UnknownMode));
    }

    /// C8: a prefix that could change a key's slot or break a channel's name is refused.
    #[test]
    fn strange_prefixes_are_refused() {
        let with = |prefix: &str| RedisSettings::from_url("redis://h").unwrap().with_key_prefix(prefix);
        assert!(with("staging:").is_ok() && with("").is_ok());
        for prefix in ["{a}", "a\n", &"x".repeat(65)] {
            assert_eq!(with(prefix).unwrap_err(), SettingsError::KeyPrefix, "{prefix:?}");
        }
    }
}
