//! The server's own settings; those of the layer below it are [`app_builder::settings`].

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use app_builder::settings::{parse_duration, redacted_url};
use app_builder::{AppSettings, SettingError, SettingService, SettingServiceExt};
use org_resolution::TrustedProxies;
use org_resolution::source::ForwardingHeader;
use secrecy::{ExposeSecret, SecretString};

use crate::accept::ConnectionPolicy;
use crate::accept::places::open_files;

/// Where the database is unless told otherwise.
pub const DEFAULT_DATABASE_URL: &str = "sqlite://data/orgs.db?mode=rwc";
/// Where the server listens unless told otherwise: reachable from this machine alone.
pub const DEFAULT_BIND_ADDR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Where operators are answered unless told otherwise: reachable from this machine alone.
pub const DEFAULT_ADMIN_BIND_ADDR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);
/// The shortest admin token, in bytes: it guards everything, can be tried over the network, and must not be guessed.
pub const MIN_ADMIN_TOKEN_BYTES: usize = 16;

/// The settings of the server. `Debug` shows no secret, and is what is logged at the start.
#[derive(Clone)]
#[non_exhaustive]
pub struct ServerSettings {
    /// `BIND_ADDR`.
    pub bind_addr: SocketAddr,
    /// `ADMIN_BIND_ADDR`: where `/admin`, `/metrics` and `/readyz` are answered; `none` for nowhere. They are never
    /// answered on [`bind_addr`](Self::bind_addr), where every tenant's host leads.
    pub admin_bind_addr: Option<SocketAddr>,
    /// `DATABASE_URL`; may hold a password.
    pub database_url: SecretString,
    /// `BASE_DOMAIN`: `acme.{base_domain}` is the org `acme`.
    pub base_domain: String,
    /// `TRUSTED_PROXIES`: addresses and networks whose `X-Forwarded-For` and `X-Org-Slug` are believed. Default
    /// nobody's. `FORWARDED_HEADER`: the header that they write, `x-forwarded-for` (default) or `forwarded`.
    pub trusted_proxies: TrustedProxies,
    /// `ORG_MASTER_KEY`: 32 bytes in base64, or several as `1:…,2:…`; made at the first start when absent.
    pub master_key: Option<SecretString>,
    /// `ORG_MASTER_KEY_CURRENT`: the number of the key that seals. Default the highest; all open.
    pub master_key_current: Option<u32>,
    /// `ADMIN_TOKEN`; made at the first start when absent.
    pub admin_token: Option<SecretString>,
    /// `REQUEST_TIMEOUT`: the longest a request may take. Default 10 s.
    pub request_timeout: Duration,
    /// `MAX_REQUESTS`: how many requests are answered at once; one more gets 503. Default 4096.
    pub max_requests: usize,
    /// `HEADER_TIMEOUT`, `IDLE_TIMEOUT`, `WRITE_TIMEOUT`, `MAX_CONNECTIONS`, `MAX_CONNECTIONS_PER_CLIENT`: bounds on
    /// the connections of a listener.
    pub connections: ConnectionPolicy,
    /// `SHUTDOWN_TIMEOUT`: how long requests in flight may still take when the server is told to stop.
    /// Default 10 s.
    pub shutdown_timeout: Duration,
    /// `SHUTDOWN_DELAY`: how long the server goes on while it already says that it is not ready, so that load
    /// balancers see it. Default 1 s.
    pub shutdown_delay: Duration,
    /// Whether an empty database is given the sample organisations. Default only for the database that is used when
    /// `DATABASE_URL` names none: the sample's ids are known to everybody.
    pub sample: bool,
    /// The layer's settings.
    pub app: AppSettings,
}

impl ServerSettings {
    /// Reads and checks all settings; nothing is contacted.
    ///
    /// # Errors
    /// [`SettingError`] that names the setting and shows no secret.
    pub fn read(source: &dyn SettingService) -> Result<Self, SettingError> {
        let (bind_addr, admin_bind_addr) = read_addresses(source)?;
        let duration = |name, default| read_duration(source, name, default);
        let database_url =
            source.secret("DATABASE_URL")?.unwrap_or_else(|| SecretString::from(DEFAULT_DATABASE_URL));
        Ok(Self {
            bind_addr,
            admin_bind_addr,
            sample: database_url.expose_secret() == DEFAULT_DATABASE_URL,
            database_url,
            base_domain: read_base_domain(source)?,
            trusted_proxies: read_proxies(source)?,
            master_key: source.secret("ORG_MASTER_KEY")?,
            master_key_current: source.parsed(
                "ORG_MASTER_KEY_CURRENT",
                "the number of a key such as `2`",
                |text| text.parse().ok(),
            )?,
            admin_token: read_admin_token(source)?,
            request_timeout: duration("REQUEST_TIMEOUT", Duration::from_secs(10))?,
            max_requests: read_count(source, "MAX_REQUESTS", 4096)?,
            connections: read_connections(source)?,
            shutdown_timeout: duration("SHUTDOWN_TIMEOUT", Duration::from_secs(10))?,
            shutdown_delay: read_delay(source)?,
            app: AppSettings::read(source)?,
        })
    }

    /// Where the server keeps what it makes for itself: beside the database file, or in `data`.
    #[must_use]
    pub fn data_folder(&self) -> PathBuf {
        let url = self.database_url.expose_secret();
        let file = url.strip_prefix("sqlite:").map(|rest| rest.trim_start_matches("//"));
        let file = file.and_then(|rest| rest.split('?').next()).filter(|file| !file.contains(":memory:"));
        match file.map(Path::new).and_then(Path::parent) {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("data"),
        }
    }
}

impl fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = |secret: &Option<SecretString>| if secret.is_some() { "(given)" } else { "(generated)" };
        f.debug_struct("ServerSettings")
            .field("bind_addr", &self.bind_addr)
            .field("admin_bind_addr", &self.admin_bind_addr)
            .field("database_url", &redacted_url(self.database_url.expose_secret()))
            .field("base_domain", &self.base_domain)
            .field("trusted_proxies", &self.trusted_proxies.to_string())
            .field("master_key", &given(&self.master_key))
            .field("master_key_current", &self.master_key_current)
            .field("admin_token", &given(&self.admin_token))
            .field("request_timeout", &self.request_timeout)
            .field("max_requests", &self.max_requests)
            .field("connections", &self.connections)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .field("shutdown_delay", &self.shutdown_delay)
            .field("sample", &self.sample)
            .field("app", &self.app)
            .finish()
    }
}

fn read_addresses(source: &dyn SettingService) -> Result<(SocketAddr, Option<SocketAddr>), SettingError> {
    let bind_addr =
        source.parsed("BIND_ADDR", "an address such as `127.0.0.1:8080`", |text| text.parse().ok())?;
    let bind_addr = bind_addr.unwrap_or(DEFAULT_BIND_ADDR);
    let expected = "an address such as `127.0.0.1:8081`, or `none`";
    let admin_bind_addr = source.parsed("ADMIN_BIND_ADDR", expected, |text| match text {
        "none" => Some(None),
        text => text.parse().ok().map(Some),
    })?;
    let admin_bind_addr = admin_bind_addr.unwrap_or(Some(DEFAULT_ADMIN_BIND_ADDR));
    if admin_bind_addr == Some(bind_addr) && bind_addr.port() != 0 {
        let reason = "is BIND_ADDR: operators are answered on a listener of their own";
        return Err(SettingError::contradiction("ADMIN_BIND_ADDR", reason));
    }
    Ok((bind_addr, admin_bind_addr))
}

fn read_connections(source: &dyn SettingService) -> Result<ConnectionPolicy, SettingError> {
    let default = ConnectionPolicy::default();
    let policy = ConnectionPolicy {
        head_timeout: read_duration(source, "HEADER_TIMEOUT", default.head_timeout)?,
        idle_timeout: read_duration(source, "IDLE_TIMEOUT", default.idle_timeout)?,
        write_timeout: read_duration(source, "WRITE_TIMEOUT", default.write_timeout)?,
        connections: read_count(source, "MAX_CONNECTIONS", default.connections)?,
        per_client: read_count(source, "MAX_CONNECTIONS_PER_CLIENT", default.per_client)?,
        ..default
    };
    if let Some(files) = open_files().filter(|files| *files <= policy.connections) {
        tracing::warn!(files, "MAX_CONNECTIONS is not below the limit of open files (`ulimit -n`)");
    }
    Ok(policy)
}

fn read_duration(
    source: &dyn SettingService,
    name: &str,
    default: Duration,
) -> Result<Duration, SettingError> {
    let expected = "a time over zero such as `10s` or `500ms`";
    let read = source.parsed(name, expected, |text| parse_duration(text).filter(|time| !time.is_zero()));
    read.map(|time| time.unwrap_or(default))
}

fn read_count(source: &dyn SettingService, name: &str, default: usize) -> Result<usize, SettingError> {
    let read = source.parsed(name, "a number from 1 to 1000000", |text| {
        text.parse().ok().filter(|count| (1..=1_000_000).contains(count))
    })?;
    Ok(read.unwrap_or(default))
}

/// Zero is fine here.
fn read_delay(source: &dyn SettingService) -> Result<Duration, SettingError> {
    let read = source.parsed("SHUTDOWN_DELAY", "a time such as `5s` or `0s`", parse_duration)?;
    Ok(read.unwrap_or(Duration::from_secs(1)))
}

fn read_proxies(source: &dyn SettingService) -> Result<TrustedProxies, SettingError> {
    let expected = "addresses and networks such as `10.0.0.0/8,::1`";
    let proxies = source.parsed("TRUSTED_PROXIES", expected, |text| text.parse().ok())?;
    let header =
        source.parsed("FORWARDED_HEADER", "`x-forwarded-for` or `forwarded`", |text| match text {
            "x-forwarded-for" => Some(ForwardingHeader::XForwardedFor),
            "forwarded" => Some(ForwardingHeader::Forwarded),
            _ => None,
        })?;
    Ok(TrustedProxies::writing(proxies.unwrap_or_default(), header.unwrap_or_default()))
}

fn read_base_domain(source: &dyn SettingService) -> Result<String, SettingError> {
    let expected = "a host name such as `example.com`, without port";
    let read = source.parsed("BASE_DOMAIN", expected, |text| {
        let domain = text.trim_end_matches('.').to_ascii_lowercase();
        domain.split('.').all(crate::draft::is_label).then_some(domain)
    })?;
    Ok(read.unwrap_or_else(|| "localhost".to_owned()))
}

fn read_admin_token(source: &dyn SettingService) -> Result<Option<SecretString>, SettingError> {
    let token = source.secret("ADMIN_TOKEN")?;
    let sendable = |token: &SecretString| token.expose_secret().bytes().all(|b| b.is_ascii_graphic());
    if token.as_ref().is_some_and(|token| !sendable(token)) {
        return Err(SettingError::invalid("ADMIN_TOKEN", None, "visible ASCII characters without spaces"));
    }
    if token.as_ref().is_some_and(|token| token.expose_secret().len() < MIN_ADMIN_TOKEN_BYTES) {
        return Err(SettingError::contradiction(
            "ADMIN_TOKEN",
            "has fewer than 16 characters and can be guessed",
        ));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use app_builder::MapSettings;

    fn read(values: &[(&str, &str)]) -> Result<ServerSettings, SettingError> {
        ServerSettings::read(&MapSettings::new(values.iter().copied()))
    }

    /// L1: a fresh machine needs no settings.
    #[test]
    fn nothing_needs_to_be_set() {
        let settings = read(&[]).expect("defaults are valid");
        assert_eq!(settings.bind_addr.to_string(), "127.0.0.1:8080");
        assert_eq!(settings.admin_bind_addr, Some(DEFAULT_ADMIN_BIND_ADDR));
        assert_eq!(read(&[("ADMIN_BIND_ADDR", "none")]).expect("valid").admin_bind_addr, None);
        assert_eq!(settings.base_domain, "localhost");
        assert_eq!(settings.data_folder(), Path::new("data"));
        let elsewhere = read(&[("DATABASE_URL", "sqlite:///var/lib/orgs/o.db?mode=rwc")]).expect("valid");
        assert_eq!(elsewhere.data_folder(), Path::new("/var/lib/orgs"));
    }

    /// L1: a wrong setting is named.
    #[test]
    fn wrong_settings_are_named() {
        for (name, value) in [
            ("BIND_ADDR", "localhost"),
            ("ADMIN_BIND_ADDR", "nowhere"),
            ("ADMIN_BIND_ADDR", "127.0.0.1:8080"),
            ("BASE_DOMAIN", "http://example.com"),
            ("TRUSTED_PROXIES", "proxy.internal"),
            ("ADMIN_TOKEN", "two words in a token"),
            ("ADMIN_TOKEN", "fifteen-letters"),
            ("FORWARDED_HEADER", "via"),
            ("ORG_MASTER_KEY_CURRENT", "newest"),
            ("REQUEST_TIMEOUT", "soon"),
            ("SHUTDOWN_TIMEOUT", "0"),
            ("MAX_REQUESTS", "0"),
            ("MAX_CONNECTIONS", "0"),
            ("HEADER_TIMEOUT", "0s"),
            ("CACHE_BACKEND", "disk"),
        ] {
            assert_eq!(read(&[(name, value)]).expect_err(name).setting(), name);
        }
    }

    /// A7: what is logged at the start, and what is refused, shows no secret.
    #[test]
    fn secrets_are_not_shown() {
        let settings = read(&[
            ("DATABASE_URL", "postgres://u:hunter2@db/orgs?password=hunter2"),
            ("ADMIN_TOKEN", "hunter2-hunter2-hunter2"),
            ("ORG_MASTER_KEY", "hunter2"),
            ("REDIS_URL", "redis://:hunter2@cache"),
        ])
        .expect("valid");
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        let urls = [("DATABASE_URL", "postgres://u:hunt#er2@h"), ("REDIS_URL", "redis://:hunt#er2@cache")];
        let shown = format!("{:?}", read(&urls).expect("not looked into yet"));
        assert!(!shown.contains("hunt"), "{shown}");
        let error = read(&[("ADMIN_TOKEN", "hunter2 hunter2")]).expect_err("cannot be sent");
        assert!(!format!("{error}{error:?}").contains("hunter2"));
    }
}
