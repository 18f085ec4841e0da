//! Settings are read, checked and never shown when secret.

use std::time::Duration;

use app_builder::{
    AppSettings, Backend, EnvSettings, MapSettings, OnUnavailable, RedisMode, SettingError, SettingService,
    SettingServiceExt,
};
use secrecy::ExposeSecret;

const SECRET: &str = "hunter2";

fn read(values: &[(&str, &str)]) -> Result<AppSettings, SettingError> {
    AppSettings::read(&MapSettings::new(values.iter().copied()))
}

fn redis(values: &[(&str, &str)]) -> app_builder::RedisSettings {
    match read(values).expect("valid settings").backend {
        Backend::Redis(redis) => redis,
        other => panic!("expected Redis, got {other:?}"),
    }
}

/// J1: without any setting everything lives in this process, with the documented defaults.
#[test]
fn nothing_set_means_memory_and_defaults() {
    let settings = read(&[]).expect("nothing set is valid");
    assert!(matches!(settings.backend, Backend::Memory));
    assert_eq!(settings.default_ttl, Duration::from_secs(300));
    assert_eq!(settings.capacity, 10_000);
    assert_eq!(settings.rate_limits, app_builder::RateLimitPresets::default());
}

/// J1: `REDIS_URL` decides, `CACHE_BACKEND` overrides in both directions.
#[test]
fn redis_url_decides_and_cache_backend_overrides() {
    let url = ("REDIS_URL", "redis://localhost:6379");
    assert_eq!(redis(&[url]).on_unavailable, OnUnavailable::Degrade);
    assert!(matches!(read(&[url, ("CACHE_BACKEND", "memory")]).expect("valid").backend, Backend::Memory));
    let missing = read(&[("CACHE_BACKEND", "redis")]).expect_err("no place to connect to");
    assert_eq!(missing.setting(), "CACHE_BACKEND");
    assert!(missing.to_string().contains("REDIS_URL"), "{missing}");
}

/// C4, J1: contradictions name the setting to change.
#[test]
fn contradictions_name_the_setting() {
    let url = ("REDIS_URL", "redis://h");
    for (values, setting) in [
        (&[url, ("REDIS_MODE", "ring")][..], "REDIS_MODE"),
        (&[url, ("REDIS_ON_UNAVAILABLE", "panic")], "REDIS_ON_UNAVAILABLE"),
        (&[url, ("REDIS_MODE", "sentinel")], "REDIS_SENTINEL_MASTER"),
        (&[url, ("REDIS_MODE", "sentinel"), ("REDIS_SENTINEL_MASTER", "m")], "REDIS_NODES"),
        (&[url, ("REDIS_SENTINEL_MASTER", "m")], "REDIS_SENTINEL_MASTER"),
        (&[url, ("REDIS_NODES", "a:1,b:2")], "REDIS_NODES"),
        (&[("REDIS_NODES", "a:1,b:2")], "REDIS_NODES"),
        (&[("REDIS_MODE", "cluster"), ("REDIS_NODES", "a:1,b")], "REDIS_NODES"),
        (&[("CACHE_BACKEND", "disk")], "CACHE_BACKEND"),
        (&[("CACHE_TTL", "0")], "CACHE_TTL"),
        (&[("CACHE_TTL", "5 years")], "CACHE_TTL"),
        (&[("CACHE_CAPACITY", "-1")], "CACHE_CAPACITY"),
        (&[("RATE_LIMIT_API", "100")], "RATE_LIMIT_API"),
        (&[("RATE_LIMIT_API", "0/60s")], "RATE_LIMIT_API"),
        (&[("RATE_LIMIT_MUTATION", "4/60s")], "RATE_LIMIT_MUTATION"),
    ] {
        let error = read(values).expect_err(setting);
        assert_eq!(error.setting(), setting, "{values:?}");
        assert!(error.to_string().starts_with(setting), "{error}");
    }
}

/// C4: sentinels and cluster nodes are read in order.
#[test]
fn sentinel_and_cluster_settings_are_read() {
    let sentinel = redis(&[
        ("REDIS_MODE", "sentinel"),
        ("REDIS_NODES", "a:26379, b:26379"),
        ("REDIS_SENTINEL_MASTER", "main"),
        ("REDIS_ON_UNAVAILABLE", "fail"),
    ]);
    assert_eq!((sentinel.mode, sentinel.on_unavailable), (RedisMode::Sentinel, OnUnavailable::Fail));
    assert_eq!(sentinel.nodes, ["a:26379", "b:26379"]);
    assert_eq!(redis(&[("REDIS_MODE", "cluster"), ("REDIS_NODES", "[::1]:7000")]).nodes, ["[::1]:7000"]);
}

/// G1: a preset's limit can be raised, and keeps its name, cost and algorithm.
#[test]
fn a_preset_can_be_raised() {
    let api = read(&[("RATE_LIMIT_API", "10000/60s")]).expect("valid").rate_limits.api;
    assert_eq!((api.limit, api.per, api.name.as_ref()), (10_000, Duration::from_secs(60), "api"));
    let mutation = read(&[("RATE_LIMIT_MUTATION", "600/1m")]).expect("valid").rate_limits.mutation;
    assert_eq!((mutation.limit, mutation.per, mutation.cost), (600, Duration::from_secs(60), 5));
}

/// A7, C4: neither `Debug` nor an error ever shows a password.
#[test]
fn no_debug_and_no_error_shows_a_secret() {
    let url = ("REDIS_URL", "redis://user:hunter2@cache.internal:6379/1?password=hunter2");
    let shown = format!("{:?}", read(&[url]).expect("valid"));
    assert!(!shown.contains(SECRET) && shown.contains("cache.internal:6379"), "{shown}");
    let nodes = [("REDIS_MODE", "cluster"), ("REDIS_NODES", "redis://:hunter2@a:1")];
    for error in [
        read(&nodes).expect_err("nodes are host:port"),
        read(&[url, ("REDIS_URL_FILE", "/nowhere")]).expect_err("both set"),
        read(&[url, ("REDIS_MODE", "sentinel")]).expect_err("no master"),
    ] {
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
    }
    let map = MapSettings::new([url]);
    assert!(!format!("{map:?}").contains(SECRET));
}

/// Of a URL only its scheme, host and port are shown, and nothing at all where a password may have been taken for one
/// of them: an unescaped `#`, `?` or `/` in a password ends the host too early.
#[test]
fn of_a_url_only_the_host_is_shown() {
    use app_builder::settings::redacted_url;
    for (url, shown) in [
        ("redis://user:hunter2@cache.internal:6379/1?password=hunter2", "redis://cache.internal:6379"),
        ("redis://hunter2@cache", "redis://cache"),
        ("rediss://[2001:db8::1]:6380", "rediss://[2001:db8::1]:6380"),
        ("postgres://u:hunter2@db/orgs?password=hunter2", "postgres://db"),
        ("redis+unix:///run/hunter2.sock?pass=hunter2", "redis+unix://…"),
        ("sqlite://data/orgs.db?mode=rwc", "sqlite://…"),
        ("redis://:hunt#er2@cache", "(not shown)"),
        ("redis://:hunt?er2@cache", "(not shown)"),
        ("redis://hunt#er2@cache", "redis://…"),
        ("redis://hunt/er2@cache", "redis://…"),
        ("redis://u:6379#er2@cache", "redis://…"),
        ("postgres://u:hunt#er2@db", "(not shown)"),
        ("hunter2://u:p@h", "(not shown)"),
        ("hunter2", "(not shown)"),
        ("hunter2@cache:6379", "(not shown)"),
        ("", "(not shown)"),
    ] {
        assert_eq!(redacted_url(url), shown, "{url}");
    }
}

/// J1: a secret may stand in a file; what is wrong with the file is told by the setting's name.
#[test]
fn a_secret_may_stand_in_a_file() {
    let folder = std::env::temp_dir().join(format!("app-builder-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("temporary folder");
    let path = folder.join("redis-url");
    std::fs::write(&path, "redis://:hunter2@h:1\n").expect("written");
    let map = MapSettings::new([("REDIS_URL_FILE", path.display().to_string())]);
    let secret = map.secret("REDIS_URL").expect("readable").expect("set");
    assert_eq!(secret.expose_secret(), "redis://:hunter2@h:1");

    std::fs::write(&path, "\n").expect("written");
    for path in [path.as_path(), folder.as_path(), std::path::Path::new("/nowhere/at/all")] {
        let map = MapSettings::new([("REDIS_URL_FILE", path.display().to_string())]);
        let error = map.secret("REDIS_URL").expect_err("not usable");
        assert_eq!(error.setting(), "REDIS_URL_FILE", "{error}");
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// An empty variable counts as not set: compose files write them so.
#[test]
fn an_empty_setting_is_not_set() {
    assert!(matches!(
        read(&[("REDIS_URL", " "), ("CACHE_BACKEND", "")]).expect("valid").backend,
        Backend::Memory
    ));
    assert_eq!(EnvSettings.get("APP_BUILDER_SURELY_NOT_SET").expect("readable"), None);
}
