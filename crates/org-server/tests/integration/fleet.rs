//! Two servers on one database and one real Redis: a change through one is seen by the other, also after
//! Redis was away.

use std::time::{Duration, Instant};

use cache_core::LockOptions;
use conformance::redis_server::RedisServer;
use conformance::resp::Reply;
use http::Method;
use serde_json::json;

use crate::binary;
use crate::common::{Answer, Folder, MASTER_KEY, TestServer, eventually};

/// Two servers, and what they share.
struct Fleet {
    redis: RedisServer,
    one: TestServer,
    two: TestServer,
}

impl Fleet {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(more: &[(&str, &str)]) -> Self {
        let (redis, folder) = (RedisServer::start(), Folder::new());
        let (url, database) = (redis.url(), folder.database_url());
        let shared = [&[("REDIS_URL", url.as_str()), ("DATABASE_URL", database.as_str())], more].concat();
        let one = TestServer::start_in(folder, &shared).await;
        let two = TestServer::start_in(Folder::new(), &shared).await;
        let fleet = Self { redis, one, two };
        fleet.is_ready().await;
        fleet
    }

    fn servers(&self) -> [&TestServer; 2] {
        [&self.one, &self.two]
    }

    /// Both serve from memory: Redis is there, and its bus is trusted.
    async fn is_ready(&self) {
        for server in self.servers() {
            eventually("the server is ready", || async {
                let ready = server.get("/readyz").send().await;
                ready.body["status"] == "ready" && ready.body["bus"] == "trusted"
            })
            .await;
        }
    }

    /// Both answer this organisation from memory.
    async fn is_warm(&self, slug: &str) {
        for server in self.servers() {
            eventually("memory answers", || async {
                server.org(slug).await.is(200).header("cache-status") == "near; hit"
            })
            .await;
        }
    }
}

/// L3, E11: a change through one server is seen by the other at once, though the other had it in memory.
#[tokio::test]
async fn a_change_through_one_is_seen_by_the_other() {
    let fleet = Fleet::start().await;
    fleet.is_warm("acme").await;
    fleet.one.put_org("acme", json!({ "name": "Acme Renamed" })).await.is(200);
    assert_eq!(fleet.one.org("acme").await.body["name"], "Acme Renamed", "one's own write at once");
    let told = Instant::now();
    eventually("the other sees it", || async { fleet.two.org("acme").await.body["name"] == "Acme Renamed" })
        .await;
    // Far below the life of an entry in memory, which is what it would take without the message.
    assert!(told.elapsed() < Duration::from_secs(3), "{:?}", told.elapsed());

    fleet.is_warm("acme").await;
    fleet.two.put_org("acme", json!({ "status": "suspended" })).await.is(200);
    eventually("the suspension is seen", || async { fleet.one.org("acme").await.status == 403 }).await;
}

/// L3: what one server loaded the other takes from Redis.
#[tokio::test]
async fn what_one_loaded_the_other_takes_from_redis() {
    let fleet = Fleet::start().await;
    assert_eq!(fleet.one.org("globex").await.is(200).header("cache-status"), "origin; fwd=miss");
    assert_eq!(fleet.two.org("globex").await.is(200).header("cache-status"), "far; hit");
    let ready = fleet.one.get("/readyz").send().await;
    assert_eq!(ready.is(200).body["l2"], true);
}

/// K7: a token that is revoked through one server is refused by the other, though it had been validated there.
#[tokio::test]
async fn a_token_revoked_through_one_is_refused_by_the_other() {
    let fleet = Fleet::start().await;
    let (id, token) = fleet.one.token("acme", json!({ "user": "ada" })).await;
    let me = || fleet.two.get("/o/acme/v1/me").bearer(&token);
    me().send().await.is(200);
    me().send().await.is(200);
    fleet.one.admin(Method::DELETE, &format!("/admin/orgs/acme/tokens/{id}")).send().await.is(204);
    eventually("the other refuses it", || async { me().send().await.code() == "invalid_token" }).await;
}

/// K6: Redis holds sealed secrets only.
#[tokio::test]
async fn redis_holds_sealed_secrets_only() {
    let fleet = Fleet::start().await;
    let body = json!({ "secrets": { "webhook_key": "hunter2-hunter2" } });
    fleet.one.put_org("acme", body).await.is(200);
    fleet.one.org("acme").await.is(200);
    let Reply::Bulk(held) = fleet.redis.command(&["GET", "org:acme"]) else { panic!("the entry is there") };
    let held = String::from_utf8_lossy(&held);
    assert!(!held.contains("webhook_key") && !held.contains("hunter2"), "{held}");
}

/// L2, I2: an operator's word reaches every server.
#[tokio::test]
async fn an_operator_makes_every_server_forget() {
    let fleet = Fleet::start().await;
    fleet.is_warm("acme").await;
    let forget = json!({ "key": "org:acme" });
    fleet.one.admin(Method::POST, "/admin/cache/invalidate").json(&forget).send().await.is(200);
    eventually("the other has forgotten", || async {
        let report = fleet.two.admin(Method::GET, "/admin/cache").send().await;
        report.body["domains"]["org"]["evicted_invalidated"].as_u64() > Some(0)
    })
    .await;
}

/// L1, L3: what the commands change and invalidate is seen by running servers.
#[tokio::test]
async fn commands_reach_running_servers() {
    let fleet = Fleet::start().await;
    fleet.is_warm("acme").await;
    let folder = Folder::new();
    let (url, database) = (fleet.redis.url(), fleet.one.folder.database_url());
    let settings = [("REDIS_URL", url.as_str()), ("DATABASE_URL", &database), ("ORG_MASTER_KEY", MASTER_KEY)];
    let file = r#"[{"slug": "acme", "name": "Acme Imported"}]"#;
    std::fs::write(folder.0.join("orgs.json"), file).expect("written");
    let imported = binary::run(&folder, &["import", "orgs.json"], &settings);
    assert!(imported.status.success(), "{}", binary::text(&imported));
    for server in fleet.servers() {
        eventually("the import is seen", || async {
            server.org("acme").await.body["name"] == "Acme Imported"
        })
        .await;
    }

    fleet.is_warm("acme").await;
    let invalidated = binary::run(&folder, &["invalidate", "org:acme"], &settings);
    assert!(invalidated.status.success(), "{}", binary::text(&invalidated));
    let status = fleet.one.org("acme").await;
    assert_ne!(status.header("cache-status"), "far; hit", "the far tier has forgotten, too");
}

/// L3, J2: killing Redis degrades and a restart recovers, without a restart of the servers; a change made
/// meanwhile is stored, and seen by the other within the staleness bound.
#[tokio::test]
async fn killing_redis_degrades_and_a_restart_recovers() {
    let mut fleet = Fleet::start().await;
    fleet.is_warm("acme").await;
    fleet.redis.kill();
    for server in fleet.servers() {
        eventually("the server says that it is degraded", || async {
            let ready = server.get("/readyz").send().await;
            ready.is(200).body["status"] == "degraded" && ready.body["l2"] == false
        })
        .await;
        server.org("acme").await.is(200);
        server.org("kestrel-nobody").await.is_problem(404, "org_not_found");
    }
    let changed = fleet.one.put_org("acme", json!({ "name": "Changed In The Dark" })).await;
    assert_eq!(changed.is(200).header("cache-invalidation"), "pending; bound=300");
    assert_eq!(fleet.one.org("acme").await.body["name"], "Changed In The Dark");
    eventually("the other sees it without Redis", || async {
        fleet.two.org("acme").await.body["name"] == "Changed In The Dark"
    })
    .await;

    fleet.redis.restart();
    fleet.is_ready().await;
    fleet.is_warm("acme").await;
    for server in fleet.servers() {
        assert_eq!(server.org("acme").await.body["name"], "Changed In The Dark");
    }
    fleet.two.put_org("acme", json!({ "name": "Changed In The Light" })).await.is(200);
    eventually("the other sees it through Redis", || async {
        fleet.one.org("acme").await.body["name"] == "Changed In The Light"
    })
    .await;
}

/// A bus that is not heard is told apart from Redis being away, and a bus that lost trust from one that is down.
#[tokio::test]
async fn readiness_tells_a_bus_that_is_not_heard() {
    let fleet = Fleet::start().await;
    let says = async |bus: &str, status: &str| {
        let ready = fleet.one.get("/readyz").send().await;
        ready.is(200).body["l2"] == true && ready.body["bus"] == bus && ready.body["status"] == status
    };
    fleet.redis.command(&["ACL", "SETUSER", "default", "-incr"]);
    fleet.one.put_org("acme", json!({ "name": "Not Announced" })).await.is(200);
    eventually("lost trust", || says("recovering", "degraded")).await;
    fleet.redis.command(&["ACL", "SETUSER", "default", "+incr"]);
    fleet.is_ready().await;
    fleet.redis.command(&["ACL", "SETUSER", "default", "resetchannels"]);
    fleet.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    eventually("no subscription", || says("down", "degraded")).await;
    let report = fleet.one.admin(Method::GET, "/admin/cache").send().await;
    assert_eq!(report.is(200).body["bus"]["health"], "down");
    fleet.redis.command(&["ACL", "SETUSER", "default", "allchannels"]);
    fleet.is_ready().await;
}

/// F1, F5: a lock that one server holds no other gets, and the next holder's token is higher; `/readyz` says how far
/// that reaches.
#[tokio::test]
async fn a_lock_reaches_every_server() {
    let fleet = Fleet::start().await;
    for server in fleet.servers() {
        assert_eq!(server.get("/readyz").send().await.body["coordination"], "fleet");
    }
    let (one, two) = (fleet.one.state.app().locks(), fleet.two.state.app().locks());
    let options = LockOptions::default();
    let held = one.acquire("job", &options).await.expect("the lock");
    assert!(two.try_acquire("job", &options).await.expect("asked").is_none());
    let fence = held.fence();
    held.release().await.expect("released");
    let held = two.try_acquire("job", &options).await.expect("asked").expect("it is free");
    assert!(held.fence() > fence);
    held.release().await.expect("released");
}

/// G1, G4, G6, L3: a limit is one limit, whichever server is asked; who is over it is so everywhere. Without Redis each
/// server counts for itself, and a log-in that is to be limited is refused.
#[tokio::test]
async fn a_limit_holds_on_every_server() {
    let limits = [("RATE_LIMIT_API", "4/3600s"), ("RATE_LIMIT_AUTH", "2/3600s")];
    let mut fleet = Fleet::start_with(&limits).await;
    let ask = async |server: &TestServer| server.org("acme").await;
    for (server, left) in [(&fleet.one, 3), (&fleet.two, 2), (&fleet.two, 1), (&fleet.one, 0)] {
        let answer = ask(server).await;
        assert!(answer.is(200).header("ratelimit").starts_with(&format!("\"api\";r={left};")), "{answer:?}");
    }
    for server in fleet.servers() {
        let refused = ask(server).await;
        refused.is_problem(429, "rate_limited");
        let wait: u32 = refused.header("retry-after").parse().expect("seconds");
        assert!((800..=900).contains(&wait), "one in a quarter of an hour: {wait}");
        assert_eq!(refused.body["violated-policies"], json!(["api"]));
    }
    let guess = async |server: &TestServer| server.get("/o/acme/v1/me").bearer("a-guess").send().await;
    guess(&fleet.one).await.is_problem(401, "invalid_token");
    guess(&fleet.two).await.is_problem(401, "invalid_token");
    guess(&fleet.one).await.is_problem(429, "rate_limited");

    fleet.redis.kill();
    by_client(&fleet.one, "192.0.2.7").await.is(200);
    let elsewhere = fleet.one.get("/o/acme/v1/me").bearer("a-guess").from("192.0.2.7").send().await;
    elsewhere.is_problem(503, "store_unavailable");
    let metrics = fleet.one.get("/metrics").send().await.text;
    for line in [
        r#"rate_limit_store_failures_total{name="api",outcome="local"}"#,
        r#"rate_limit_store_failures_total{name="auth",outcome="closed"}"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

/// The organisation, asked for by another client.
async fn by_client(server: &TestServer, client: &str) -> Answer {
    server.get("/v1/org").host("acme.localhost").from(client).send().await
}

/// H1, L3, L4: who is connected through one server is seen through the other, and is released when that one stops.
#[tokio::test]
async fn presence_reaches_every_server() {
    let fleet = Fleet::start().await;
    let (_, token) = fleet.one.token("acme", json!({ "user": "ada" })).await;
    let ask = async |server: &TestServer, method: Method, path: &str| {
        server.ask(method, &format!("/o/acme/v1/presence{path}")).bearer(&token).send().await
    };
    ask(&fleet.one, Method::PUT, "/tab").await.is(201);
    ask(&fleet.two, Method::PUT, "/tab").await.is(200);
    ask(&fleet.one, Method::PUT, "/phone").await.is(201);
    ask(&fleet.one, Method::DELETE, "/phone").await.is(204);
    ask(&fleet.two, Method::PUT, "/phone").await.is(201);
    assert_eq!(ask(&fleet.one, Method::GET, "").await.body["count"], 2);

    fleet.one.state.finish(Duration::from_secs(5)).await;
    let left = ask(&fleet.two, Method::GET, "").await;
    assert_eq!(left.is(200).body["members"][0]["connection"], "phone");
    // It beat through both lately, and joins again at its next beat.
    assert_eq!(left.body["count"], 1);
    ask(&fleet.two, Method::PUT, "/tab").await.is(201);
}

/// H1: without Redis who is connected cannot be told, and that is said; with it again clients join by themselves.
#[tokio::test]
async fn without_redis_presence_cannot_be_told() {
    let mut fleet = Fleet::start().await;
    let (_, token) = fleet.one.token("acme", json!({ "user": "ada" })).await;
    let put = || fleet.one.ask(Method::PUT, "/o/acme/v1/presence/tab").bearer(&token);
    put().send().await.is(201);
    let list = || fleet.two.get("/o/acme/v1/presence").bearer(&token);
    assert_eq!(list().send().await.body["count"], 1);
    fleet.redis.kill();
    for answer in [put().send().await, list().send().await] {
        answer.is_problem(503, "store_unavailable");
        assert!(!answer.header("retry-after").is_empty());
    }
    fleet.redis.restart();
    fleet.is_ready().await;
    eventually("the client has joined again", || async {
        put().send().await;
        list().send().await.body["count"] == 1
    })
    .await;
}
