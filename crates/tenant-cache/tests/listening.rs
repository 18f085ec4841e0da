//! The bus outlives those who use it: handlers that panic, runtimes that end, users who may not listen. Every test is
//! in a module `redis`, for it needs one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod redis {
    use std::fmt;
    use std::str::FromStr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use cache_core::bus::BusHealth;
    use cache_core::{Clock, InvalidationBus, Scope};
    use cache_redis::{BusPolicy, RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
    use conformance::redis_server::RedisServer;
    use conformance::wait::eventually;
    use tenant_cache::{Caches, Found, Source, TenantCache};
    use tokio::runtime::Runtime;

    use crate::support::{Origin, of, plain, versions, versions_with};

    const TRUST_FOR: Duration = Duration::from_millis(600);

    /// The bus and the caches of one process.
    struct Instance {
        bus: Arc<RedisBus>,
        caches: Caches,
    }

    impl Instance {
        fn on(server: &RedisServer) -> Self {
            Self::at(&server.url(), Clock::system())
        }

        fn at(url: &str, clock: Clock) -> Self {
            let settings = RedisSettings::from_url(url).unwrap();
            let policy =
                BusPolicy::default().with_heartbeat(Duration::from_millis(100)).with_trust_for(TRUST_FOR);
            let bus = RedisBus::with_clock(RedisLink::lazy(settings).unwrap(), policy, clock.clone());
            let far = Arc::new(RedisCacheService::on(bus.clone(), RedisCacheOptions::default()));
            let caches = Caches::builder().far(far).clock(clock).build().unwrap();
            Self { bus, caches }
        }

        async fn trusted(&self) {
            eventually("trust", async || self.bus.state().health == BusHealth::Trusted).await;
        }
    }

    fn key(name: &str) -> String {
        name.to_owned()
    }

    async fn lookup(cache: &TenantCache<String, u64>, name: &str) -> Found<u64> {
        of("acme", cache.lookup(&key(name))).await.unwrap()
    }

    async fn get(cache: &TenantCache<String, u64>, name: &str) -> (Option<u64>, Source) {
        let found = lookup(cache, name).await;
        (plain(found.value), found.source)
    }

    /// A handler that panics at a message of another instance ends nothing: the change is seen, others hear of it and
    /// of later ones, memory stays trusted on the same subscription.
    #[tokio::test]
    async fn a_panicking_on_change_handler_ends_nothing() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let (here, there) = (Instance::on(&server), Instance::on(&server));
        let (ours, theirs) = (versions(&here.caches, &origin), versions(&there.caches, &origin));
        here.trusted().await;
        there.trusted().await;
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let _handlers = of("acme", async {
            let panic = || panic!("a handler that panics, as the test wants it");
            let count = move || {
                counted.fetch_add(1, Ordering::SeqCst);
            };
            [theirs.on_change(&key("k"), panic).unwrap(), theirs.on_change(&key("other"), count).unwrap()]
        })
        .await;
        for version in 1..4 {
            origin.commit("k", version);
            of("acme", ours.invalidate(&key("k"))).await.unwrap();
            eventually("the new version", async || get(&theirs, "k").await.0 == Some(version)).await;
            let heard = calls.load(Ordering::SeqCst);
            of("acme", ours.invalidate(&key("other"))).await.unwrap();
            eventually("the other handler", async || calls.load(Ordering::SeqCst) > heard).await;
        }
        there.trusted().await;
        eventually("memory", async || get(&theirs, "k").await.1 == Source::Near).await;
        let state = there.bus.state();
        assert_eq!((state.panics, state.reconnects), (3, 0));
    }

    /// A key whose text cannot be read without a panic.
    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct Brittle(String);

    impl fmt::Display for Brittle {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl FromStr for Brittle {
        type Err = std::convert::Infallible;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            assert!(text != "brittle", "a key that panics, as the test wants it");
            Ok(Self(text.to_owned()))
        }
    }

    /// A key type that panics at a text of another instance costs its process its memory, once, and nothing else.
    #[tokio::test]
    async fn a_key_type_that_panics_ends_nothing() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let (here, there) = (Instance::on(&server), Instance::on(&server));
        let rows = origin.clone();
        let cache: TenantCache<Brittle, u64> = there
            .caches
            .domain("brittle")
            .scope(Scope::Tenant)
            .load(move |key: Brittle| {
                let rows = rows.clone();
                async move { rows.load(&key.0).await }
            })
            .unwrap();
        there.trusted().await;
        let read = async |name: &str| {
            plain(of("acme", cache.get(&Brittle(name.to_owned()))).await.unwrap()).unwrap()
        };
        for version in 1..4 {
            for name in ["brittle", "sound"] {
                origin.commit(name, version);
                let text = format!("acme:brittle:{name}");
                here.caches.invalidate_keys(&[&text]).await.unwrap();
            }
            for name in ["brittle", "sound"] {
                eventually("the new version", async || read(name).await == version).await;
            }
        }
        there.trusted().await;
        assert_eq!((there.bus.state().panics, there.bus.state().reconnects), (3, 0));
    }

    /// The runtime on which a cache was made is dropped, and the cache is used on another one, by nothing but lookups:
    /// memory is trusted again, and what others change is heard.
    #[test]
    fn two_runtimes() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let others = Runtime::new().unwrap();
        let first = Runtime::new().unwrap();
        let (there, theirs) = others.block_on(async {
            let there = Instance::on(&server);
            let theirs = versions(&there.caches, &origin);
            (there, theirs)
        });
        origin.commit("k", 1);
        let (trust, ours) = first.block_on(async {
            let here = Instance::on(&server);
            let ours = versions(&here.caches, &origin);
            here.trusted().await;
            eventually("memory", async || get(&ours, "k").await == (Some(1), Source::Near)).await;
            (here.bus.trust(), ours)
        });
        drop(first);
        Runtime::new().unwrap().block_on(async {
            let trusted = || trust.near(Clock::system().now());
            eventually("the end of trust", async || !trusted()).await;
            eventually("trust, by lookups alone", async || {
                get(&ours, "k").await;
                trusted()
            })
            .await;
            eventually("memory", async || get(&ours, "k").await == (Some(1), Source::Near)).await;
            origin.commit("k", 2);
            let change = others.spawn(async move { of("acme", theirs.invalidate(&key("k"))).await });
            change.await.unwrap().unwrap();
            eventually("the change", async || get(&ours, "k").await.0 == Some(2)).await;
        });
        drop(there);
    }

    /// A group invalidation that failed, and was to be repeated on a runtime that is gone, is repeated on the next.
    #[test]
    fn a_failed_group_is_repeated_on_another_runtime() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let first = Runtime::new().unwrap();
        let (here, ours) = first.block_on(async {
            let here = Instance::on(&server);
            let ours = versions(&here.caches, &origin);
            here.trusted().await;
            server.command(&["ACL", "SETUSER", "default", "-set"]);
            of("acme", ours.invalidate_all()).await.unwrap_err();
            (here, ours)
        });
        drop(first);
        server.command(&["ACL", "SETUSER", "default", "+set"]);
        assert_eq!(here.caches.pending(), 1);
        Runtime::new().unwrap().block_on(async {
            get(&ours, "k").await;
            eventually("the repetition", async || here.caches.pending() == 0).await;
        });
    }

    /// An instance that may not subscribe, and whose wall clock is hours off, agrees with the others on when an entry
    /// is dead: what it stores lives as long as it should at the others, and what they store at it.
    #[tokio::test]
    async fn skewed_and_not_allowed_to_listen() {
        const HOUR_MS: i64 = 3_600_000;
        for ahead_ms in [2 * HOUR_MS, -2 * HOUR_MS] {
            let (server, origin) = (RedisServer::start(), Origin::open());
            server.command(&["ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "resetchannels"]);
            let deaf = format!("redis://deaf:pw@{}", server.address());
            let (here, there) = (Instance::at(&deaf, Clock::skewed(ahead_ms)), Instance::on(&server));
            there.trusted().await;
            eventually("the refusal", async || here.bus.state().health == BusHealth::Down).await;
            let [ours, theirs] = [&here, &there].map(|instance| {
                versions_with(&instance.caches, &origin, |domain| {
                    domain.ttl(Duration::from_secs(1)).stale_if_error(Duration::from_secs(60))
                })
            });
            for (writer, reader) in [(&ours, &theirs), (&theirs, &ours)] {
                let rounds = AtomicUsize::new(0);
                eventually("an entry that is alive on arrival", async || {
                    let name = format!("{} {}", origin.loads(), rounds.fetch_add(1, Ordering::SeqCst));
                    origin.commit(&name, 1);
                    get(writer, &name).await.1 == Source::Origin && get(reader, &name).await.1 == Source::Far
                })
                .await;
                let name = format!("ends {}", origin.loads());
                origin.commit(&name, 1);
                assert_eq!(get(writer, &name).await.0, Some(1));
                let stored = Instant::now();
                origin.commit(&name, 2);
                eventually("the end of the entry", async || {
                    let began = stored.elapsed();
                    let ended = get(reader, &name).await.0 == Some(2);
                    assert!(ended || began < Duration::from_millis(2_500), "served after {began:?}");
                    ended
                })
                .await;
            }
        }
    }
}
