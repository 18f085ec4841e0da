//! Rate limits on a real Redis: the scripts' arithmetic, what they keep, and faults. Every test is in a module
//! `redis`, for it needs one.

mod redis {
    use std::time::{Duration, Instant};

    use cache_core::gcra::{self, micros};
    use cache_core::{Algorithm, BackendErrorKind, Decision, Quota, RateLimitError, RateLimits};
    use cache_redis::{RedisLink, RedisRateLimits, RedisSettings};
    use conformance::proxy::{Direction, Gate, Proxy};
    use conformance::rate_limit::vectors::{self, Step, Vector};
    use conformance::redis_server::RedisServer;
    use conformance::resp::{Connection, Reply};
    use conformance::wait::{eventually, until};

    const BUCKET: &str = include_str!("../src/lua/limit_bucket.lua");
    const WINDOW: &str = include_str!("../src/lua/limit_window.lua");
    const HOUR: Duration = Duration::from_secs(3_600);

    fn limits(url: &str) -> RedisRateLimits {
        RedisRateLimits::on(RedisLink::lazy(RedisSettings::from_url(url).expect("a URL")).expect("a link"))
    }

    fn text(server: &RedisServer, key: &str) -> Option<String> {
        server.command(&["GET", key]).text()
    }

    /// A script that is told the time, and whose keys outlive it: a vector's time is not the server's.
    fn timeless(script: &str, argument: usize) -> String {
        let given = format!("local now = tonumber(ARGV[{argument}])");
        let clock = "local time = redis.call('TIME')\nlocal now = time[1] * 1000000 + time[2]";
        assert_eq!(script.matches(clock).count(), 1, "the server's clock is read once");
        assert_eq!(script.matches("'PX', math.ceil(").count(), 1, "what is kept has an expiry");
        script.replace(clock, &given).replace("'PX', math.ceil(", "'PX', 600000 + math.ceil(")
    }

    fn load(server: &mut Connection, script: &str) -> String {
        let loaded = server.call(&["SCRIPT", "LOAD", script]).expect("an answer");
        loaded.text().expect("a digest")
    }

    fn numbers(reply: &Reply) -> Vec<u64> {
        let number = |item: &Reply| match item {
            Reply::Integer(number) => u64::try_from(*number).expect("not negative"),
            other => panic!("{other:?} is no number"),
        };
        reply.items().iter().map(number).collect()
    }

    /// What a script answers at a time, as the decision that follows from it.
    fn ask(server: &mut Connection, digests: &[String; 2], quota: &Quota, step: &Step) -> Decision {
        let (at, per) = (step.at.to_string(), micros(quota.per).to_string());
        let (cost, limit) = (step.cost.to_string(), quota.limit.to_string());
        match quota.algorithm {
            Algorithm::FixedWindow => {
                let call = ["EVALSHA", &digests[1], "1", "k", &cost, &limit, &per, &at];
                let answer = numbers(&server.call(&call).expect("an answer"));
                let taken = u32::try_from(answer[1]).expect("units");
                gcra::window(quota, answer[0] == 1, taken, answer[2])
            }
            _ => {
                let price = gcra::price(quota, step.cost).to_string();
                let call = ["EVALSHA", &digests[0], "1", "k", &price, &per, &at];
                let answer = numbers(&server.call(&call).expect("an answer"));
                gcra::bucket(quota, step.cost, answer[0] == 1, answer[1])
            }
        }
    }

    /// G1: the scripts answer what the arithmetic in Rust answers, to the microsecond: in every example written
    /// by hand, and in 18 000 drawn at random, clocks that are put back and the largest quotas included.
    #[test]
    fn the_scripts_answer_every_vector() {
        let server = RedisServer::start();
        let mut connection = server.connect();
        let digests =
            [load(&mut connection, &timeless(BUCKET, 3)), load(&mut connection, &timeless(WINDOW, 4))];
        for Vector { quota, steps } in vectors::written().into_iter().chain(vectors::drawn(42, 1_500)) {
            connection.call(&["DEL", "k"]).expect("an answer");
            for (n, step) in steps.iter().enumerate() {
                let decision = ask(&mut connection, &digests, &quota, step);
                assert_eq!(decision, step.expected, "{quota:?}, step {n}: {step:?}");
            }
        }
    }

    /// G3: every key has an expiry, which is when the count has ended, and a refusal does not prolong it.
    #[tokio::test]
    async fn every_key_ends_with_its_count() {
        let server = RedisServer::start();
        let limits = limits(&server.url());
        let (bucket, window) = (Quota::token_bucket("b", 10, HOUR), Quota::fixed_window("w", 10, HOUR));
        for (quota, key) in [(&bucket, "limit:bucket:b:k"), (&window, "limit:window:w:k")] {
            let left = || match server.command(&["PTTL", key]) {
                Reply::Integer(left) => Duration::from_millis(u64::try_from(left).expect("an expiry")),
                other => panic!("{other:?}"),
            };
            limits.check(quota, "k", 2).await.expect("a decision");
            tokio::time::sleep(Duration::from_millis(50)).await;
            let decision = limits.check(quota, "k", 1).await.expect("a decision");
            let (reset, ends) = (decision.reset_after, left());
            assert!(ends <= reset + Duration::from_millis(1), "{key}: {ends:?}, {reset:?}");
            assert!(ends + Duration::from_secs(20) > reset, "{key}: {ends:?}, {reset:?}");
            assert!(!limits.check(quota, "k", 10).await.expect("a decision").allowed);
            assert!(left() <= ends, "{key}");
            assert!(limits.check(quota, "other", 0).await.expect("a decision").allowed);
        }
        assert_eq!(server.command(&["DBSIZE"]), Reply::Integer(2), "asking and refusing keep nothing");
    }

    /// G3: ten thousand keys leave nothing behind.
    #[tokio::test]
    async fn ten_thousand_keys_leave_nothing_behind() {
        let server = RedisServer::start();
        let limits = limits(&server.url());
        let quotas = [
            Quota::token_bucket("b", 1, Duration::from_millis(200)),
            Quota::fixed_window("w", 1, Duration::from_millis(200)),
        ];
        for chunk in 0..100 {
            let checks = (0..100).map(|n| (&quotas[n % 2], format!("{chunk}/{n}"))).map(|(quota, key)| {
                let limits = limits.clone();
                async move { limits.check(quota, &key, 1).await.expect("a decision").allowed }
            });
            assert!(futures_util::future::join_all(checks).await.into_iter().all(|allowed| allowed));
        }
        until("the end of all", || server.command(&["DBSIZE"]) == Reply::Integer(0)).await;
    }

    /// G3: a check is one command and one round trip, also of a key that is there.
    #[tokio::test]
    async fn a_check_is_one_round_trip() {
        let server = RedisServer::start();
        let limits = limits(&server.url());
        let calls = |command: &str| -> u64 {
            let line = server.info("commandstats", &format!("cmdstat_{command}")).unwrap_or_default();
            let calls = line.split(',').find_map(|part| part.strip_prefix("calls="));
            calls.map_or(0, |calls| calls.parse().expect("a number"))
        };
        for quota in [Quota::api(), Quota::auth()] {
            limits.check(&quota, "k", 1).await.expect("a decision");
            let (before, whole) = (calls("evalsha"), calls("eval"));
            for _ in 0..20 {
                limits.check(&quota, "k", 1).await.expect("a decision");
            }
            assert_eq!((calls("evalsha") - before, calls("eval") - whole), (20, 0));
        }
    }

    /// G1: who has used up a limit whose time is then shortened waits for the new time once, and not for the old one.
    #[tokio::test]
    async fn a_shortened_time_is_waited_for_once() {
        let server = RedisServer::start();
        let limits = limits(&server.url());
        let short = Duration::from_millis(300);
        for (long, short) in [
            (Quota::token_bucket("b", 5, HOUR), Quota::token_bucket("b", 5, short)),
            (Quota::fixed_window("w", 5, HOUR), Quota::fixed_window("w", 5, short)),
        ] {
            assert!(limits.check(&long, "k", 5).await.expect("a decision").allowed);
            let refused = limits.check(&short, "k", 1).await.expect("a decision");
            tokio::time::sleep(refused.retry_after.expect("a wait")).await;
            assert!(limits.check(&short, "k", 1).await.expect("a decision").allowed, "{short:?}");
        }
    }

    /// C8, D2: keys have the deployment's prefix, and names with colons do not run into each other.
    #[tokio::test]
    async fn keys_are_named_for_one_deployment_and_quota() {
        let server = RedisServer::start();
        let settings = RedisSettings::from_url(&server.url()).expect("a URL");
        let settings = settings.with_key_prefix("staging:").expect("a prefix");
        let limits = RedisRateLimits::on(RedisLink::lazy(settings).expect("a link"));
        for (quota, key) in [("a:b", "c"), ("a", "b:c")] {
            let quota = Quota::token_bucket(quota, 1, HOUR);
            assert!(limits.check(&quota, key, 1).await.expect("a decision").allowed);
        }
        for key in ["staging:limit:bucket:a%3Ab:c", "staging:limit:bucket:a:b:c"] {
            assert!(text(&server, key).is_some(), "{key}");
        }
    }

    /// G3: a check whose answer is lost is not sent again: it would take its units twice.
    #[tokio::test]
    async fn a_lost_answer_is_not_charged_twice() {
        let server = RedisServer::start();
        let proxy = Proxy::start(server.address()).await;
        let limits = limits(&format!("redis://{}", proxy.address()));
        let quota = Quota::fixed_window("w", 100, HOUR);
        for taken in 1..5 {
            limits.check(&quota, "k", 0).await.expect("a connection");
            proxy.set(Direction::ToClient, Gate::Hold);
            let asking = tokio::spawn({
                let (limits, quota) = (limits.clone(), quota.clone());
                async move { limits.check(&quota, "k", 1).await }
            });
            let counted = |taken: u32| {
                text(&server, "limit:window:w:k").is_some_and(|kept| kept.starts_with(&format!("{taken} ")))
            };
            until("the count", || counted(taken)).await;
            proxy.cut().await;
            // A second attempt would find everything well.
            proxy.set(Direction::ToClient, Gate::Pass);
            let error = asking.await.expect("no panic").expect_err("the answer is lost");
            assert!(matches!(error, RateLimitError::Unavailable { .. }), "{error:?}");
            assert!(counted(taken), "one check was sent");
        }
    }

    /// SH6, G4: without Redis every check is a typed error that says when to come back, by the deadline; with it
    /// again, counting goes on.
    #[tokio::test]
    async fn without_redis_a_check_is_a_typed_error() {
        let mut server = RedisServer::start();
        let limits = limits(&server.url());
        limits.check(&Quota::api(), "k", 1).await.expect("a decision");
        server.kill();
        for quota in [Quota::api(), Quota::auth()] {
            for _ in 0..8 {
                let began = Instant::now();
                let error = limits.check(&quota, "k", 1).await.expect_err("nobody counts");
                let RateLimitError::Unavailable { retry_after, source } = error else {
                    panic!("{error:?} is not what it is");
                };
                assert_eq!(retry_after, Duration::from_secs(1));
                let kinds = [BackendErrorKind::Unavailable, BackendErrorKind::CircuitOpen];
                assert!(kinds.contains(&source.kind), "{source:?}");
                assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
            }
        }
        server.restart();
        eventually("Redis", async || limits.check(&Quota::api(), "k", 1).await.is_ok()).await;
    }

    /// G3: a server that forgot the scripts is told them again, and nothing is counted twice.
    #[tokio::test]
    async fn a_forgotten_script_is_told_again() {
        let server = RedisServer::start();
        let limits = limits(&server.url());
        for quota in [Quota::token_bucket("b", 10, HOUR), Quota::fixed_window("w", 10, HOUR)] {
            for left in [9, 8, 7] {
                server.command(&["SCRIPT", "FLUSH"]);
                let decision = limits.check(&quota, "k", 1).await.expect("a decision");
                assert_eq!(decision.remaining, left);
            }
        }
    }

    /// A7: something else under the key is said as what it is, and is not touched.
    #[tokio::test]
    async fn something_else_under_the_key_is_a_typed_error() {
        let server = RedisServer::start();
        let limits = limits(&server.url());
        let (bucket, window) = ("limit:bucket:api:k", "limit:window:auth:k");
        let strange: [&[&str]; 10] = [
            &["SET", bucket, "another program's"],
            &["SET", bucket, "-1"],
            &["SET", bucket, "1e300"],
            &["SET", bucket, "nan"],
            &["SET", bucket, "99999999999999999"],
            &["RPUSH", bucket, "1"],
            &["SET", window, "5"],
            &["SET", window, "5 inf"],
            &["SET", window, "99999999999 999999999999999999999"],
            &["HSET", window, "f", "v"],
        ];
        for command in strange {
            server.command(command);
            let key = command[1];
            let before = server.command(&["DUMP", key]);
            let quota = if key == bucket { Quota::api() } else { Quota::auth() };
            let error = limits.check(&quota, "k", 1).await.expect_err("no count");
            let typed = matches!(&error, RateLimitError::Unavailable { source, .. }
                if source.kind == BackendErrorKind::WrongType);
            assert!(typed, "{command:?}: {error:?}");
            assert_eq!(server.command(&["DUMP", key]), before, "{command:?}");
            server.command(&["DEL", key]);
            assert!(limits.check(&quota, "k", 1).await.expect("a decision").allowed);
            server.command(&["DEL", key]);
        }
    }

    /// SC11: a full server is said as what it is, and nothing is counted.
    #[tokio::test]
    async fn a_full_server_counts_nothing() {
        let server = RedisServer::start();
        let limits = limits(&server.url());
        server.command(&["CONFIG", "SET", "maxmemory", "1"]);
        for quota in [Quota::api(), Quota::auth()] {
            let error = limits.check(&quota, "k", 1).await.expect_err("there is no room");
            let typed = matches!(&error, RateLimitError::Unavailable { source, .. }
                if source.kind == BackendErrorKind::OutOfMemory);
            assert!(typed, "{error:?}");
        }
        server.command(&["CONFIG", "SET", "maxmemory", "0"]);
        assert_eq!(server.command(&["DBSIZE"]), Reply::Integer(0));
        assert_eq!(limits.check(&Quota::auth(), "k", 1).await.expect("a decision").remaining, 4);
    }
}
