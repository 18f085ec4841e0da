//! What was changed is propagated: also when the link to Redis is cut, and when the server that made the change
//! stops or dies before it could notify the others.

use std::time::{Duration, Instant};

use conformance::proxy::Proxy;
use conformance::redis_server::RedisServer;
use http::Method;
use serde_json::json;

use crate::binary::{self, Running};
use crate::common::{ADMIN, Folder, MASTER_KEY, TestServer, eventually};

/// How long after the link's return a server may still accept what was revoked.
const BOUND: Duration = Duration::from_secs(10);

/// A server in a process of its own, whose link to Redis can be cut, and one in this process with a link of its own.
struct Pair {
    redis: RedisServer,
    link: Proxy,
    far: Running,
    near: TestServer,
    folder: Folder,
}

impl Pair {
    async fn start() -> Self {
        let redis = RedisServer::start();
        let link = Proxy::start(redis.address()).await;
        let near = TestServer::start_with(&[("REDIS_URL", &redis.url())]).await;
        let folder = Folder::new();
        let far = start(&folder, &near.folder.database_url(), &format!("redis://{}", link.address()));
        Self { redis, link, far, near, folder }
    }

    /// A token that both servers and Redis have seen, and its id.
    async fn token(&self) -> (String, String) {
        let (id, token) = self.near.token("acme", json!({ "user": "ada" })).await;
        self.near.get("/o/acme/v1/me").bearer(&token).send().await.is(200);
        eventually("the other accepts it", || async { accepts(&self.far, &token) }).await;
        (id, token)
    }

    async fn cut(&self) {
        self.link.refuse().await;
        self.link.cut().await;
    }

    /// Revokes through the server in its own process, and answers what it says.
    fn revoke(&self, id: &str) -> String {
        self.far.ask(&format!("DELETE /admin/orgs/acme/tokens/{id}"), &headers(ADMIN))
    }

    async fn is_refused(&self, token: &str) {
        let began = Instant::now();
        let refused =
            || async { self.near.get("/o/acme/v1/me").bearer(token).send().await.code() == "invalid_token" };
        while !refused().await {
            assert!(began.elapsed() < BOUND, "it is still accepted");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn start(folder: &Folder, database: &str, redis: &str) -> Running {
    Running::start(folder, &settings(database, redis))
}

/// One whose log goes to the file `log` of its folder.
fn start_logging(folder: &Folder, database: &str, redis: &str) -> Running {
    let log = std::fs::File::create(folder.0.join("log")).expect("a file");
    Running::start_logging(folder, &settings(database, redis), log.into())
}

fn settings<'a>(database: &'a str, redis: &'a str) -> [(&'static str, &'a str); 8] {
    [
        ("DATABASE_URL", database),
        ("REDIS_URL", redis),
        ("ADMIN_TOKEN", ADMIN),
        ("ORG_MASTER_KEY", MASTER_KEY),
        ("RATE_LIMIT_API", "100000/60s"),
        ("RATE_LIMIT_AUTH", "1000/60s"),
        ("SHUTDOWN_DELAY", "0s"),
        ("SHUTDOWN_TIMEOUT", "1s"),
    ]
}

fn headers(token: &str) -> String {
    format!("host: h\r\nauthorization: Bearer {token}\r\n")
}

fn refuses(server: &Running, token: &str) -> bool {
    server.ask("GET /o/acme/v1/me", &headers(token)).contains("\"invalid_token\"")
}

fn accepts(server: &Running, token: &str) -> bool {
    server.ask("GET /o/acme/v1/me", &headers(token)).starts_with("HTTP/1.1 200")
}

/// The server that revoked has no link: the others refuse the token all the same, and it is said for how long they may
/// not.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_passes_a_cut_link() {
    let pair = Pair::start().await;
    let (id, token) = pair.token().await;
    pair.cut().await;
    let answer = pair.revoke(&id);
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert!(answer.contains("cache-invalidation: pending; bound=300\r\n"), "{answer}");
    pair.is_refused(&token).await;
    pair.link.heal().await;
    pair.is_refused(&token).await;
    eventually("the one that revoked refuses it", || async { refuses(&pair.far, &token) }).await;
}

/// The server that revoked is stopped before its link returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_outlives_a_stop() {
    let mut pair = Pair::start().await;
    let (id, token) = pair.token().await;
    pair.cut().await;
    assert!(pair.revoke(&id).starts_with("HTTP/1.1 204"));
    pair.far.terminate();
    assert!(pair.far.ended(Duration::from_secs(20)).expect("it ends").success());
    pair.link.heal().await;
    pair.is_refused(&token).await;
}

/// The server that revoked dies before its link returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_outlives_a_death() {
    let mut pair = Pair::start().await;
    let (id, token) = pair.token().await;
    pair.cut().await;
    assert!(pair.revoke(&id).starts_with("HTTP/1.1 204"));
    pair.far.kill();
    pair.link.heal().await;
    pair.is_refused(&token).await;
}

/// The server dies between the commit and the notification, with the client's request unanswered.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_outlives_a_death_right_after_its_commit() {
    let mut pair = Pair::start().await;
    let (id, token) = pair.token().await;
    let org = pair.near.org("acme").await.is(200).body["id"].as_str().expect("an id").to_owned();
    pair.link.black_hole();
    let unanswered = pair.far.send(&format!("DELETE /admin/orgs/acme/tokens/{id}"), &headers(ADMIN));
    let store = pair.near.state.store();
    eventually("it is committed", || async { store.token(&org, &id).await.expect("answers").is_none() })
        .await;
    pair.far.kill();
    drop(unanswered);
    pair.is_refused(&token).await;
}

/// Nobody else is there: the next server that starts refuses it.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_outlives_all_servers() {
    let mut pair = Pair::start().await;
    let (id, token) = pair.token().await;
    // The server of this process can neither propagate nor notice anything.
    pair.near.state.finish(Duration::from_secs(5)).await;
    pair.cut().await;
    assert!(pair.revoke(&id).starts_with("HTTP/1.1 204"));
    pair.far.kill();
    let next = start(&pair.folder, &pair.near.folder.database_url(), &pair.redis.url());
    // Until then it asks the database, and would refuse it anyway.
    eventually("it trusts what Redis holds", || async {
        next.ask("GET /readyz", "host: h\r\n").contains("\"bus\":\"trusted\"")
    })
    .await;
    let began = Instant::now();
    while !refuses(&next, &token) {
        assert!(began.elapsed() < BOUND, "it is still accepted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A suspension is propagated as a revocation is.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_outlives_a_death() {
    let mut pair = Pair::start().await;
    pair.near.org("acme").await.is(200);
    pair.cut().await;
    let body = r#"{"status": "suspended"}"#;
    let length = body.len();
    let head = format!("{}content-type: application/json\r\ncontent-length: {length}\r\n", headers(ADMIN));
    let mut sent = pair.far.send("PUT /admin/orgs/acme", &head);
    std::io::Write::write_all(&mut sent, body.as_bytes()).expect("sent");
    let store = pair.near.state.store();
    eventually("it is committed", || async {
        store.org_by_slug("acme").await.expect("answers").expect("there").status == "suspended"
    })
    .await;
    pair.far.kill();
    let began = Instant::now();
    while pair.near.org("acme").await.status != 403 {
        assert!(began.elapsed() < BOUND, "it is still served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What waits is in the metrics, and is gone from them when it was propagated.
#[tokio::test]
async fn what_waits_is_measured() {
    let mut redis = RedisServer::start();
    let server = TestServer::start_with(&[("REDIS_URL", &redis.url())]).await;
    server.org("acme").await.is(200);
    redis.kill();
    let changed = server.put_org("acme", json!({ "name": "Changed" })).await;
    assert_eq!(changed.is(200).header("cache-invalidation"), "pending; bound=300");
    let shows = async |line: &str| server.get("/metrics").send().await.text.lines().any(|is| is == line);
    eventually("one change waits", || async { shows("changes_pending 1").await }).await;
    redis.restart();
    eventually("none waits", || async { shows("changes_pending 0").await }).await;
    assert!(shows("changes_oldest_seconds 0").await);
}

/// A row that cannot be read makes everything be forgotten, once, and is kept and counted.
#[tokio::test]
async fn a_row_that_cannot_be_read_is_set_aside() {
    let server = TestServer::start().await;
    for unreadable in [
        "not JSON",
        r#"{"slugs": ["acme"], "of a later version": []}"#,
        r#"{"slugs": ["no slug"]}"#,
        r#"{"tokens": ["00"]}"#,
    ] {
        server.org("acme").await.is(200);
        let name = format!("Changed by hand: {}", unreadable.len());
        let by_hand = sqlx::SqlitePool::connect(&server.folder.database_url()).await.expect("opened");
        let renamed = sqlx::query("UPDATE organizations SET name = $1 WHERE slug = 'acme'").bind(&name);
        renamed.execute(&by_hand).await.expect("changed");
        let written = sqlx::query("INSERT INTO changes (at, names) VALUES (0, $1)").bind(unreadable);
        written.execute(&by_hand).await.expect("written");
        eventually("it is forgotten", || async { server.org("acme").await.body["name"] == *name }).await;
        by_hand.close().await;
    }
    eventually("they are set aside", || async {
        let backlog = server.state.store().backlog().await.expect("answers");
        (backlog.pending, backlog.set_aside) == (0, 4)
    })
    .await;
    let counted = || async { server.get("/metrics").send().await.text.contains("changes_set_aside_total 4") };
    eventually("they are counted", counted).await;
}

/// Several servers propagate the same rows at once, and none is left.
#[tokio::test]
async fn several_servers_share_the_rows() {
    let redis = RedisServer::start();
    let first = TestServer::start_with(&[("REDIS_URL", &redis.url())]).await;
    let url = first.folder.database_url();
    let mut servers = vec![];
    for _ in 0..3 {
        let settings = [("REDIS_URL", redis.url()), ("DATABASE_URL", url.clone())];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        servers.push(TestServer::start_in(Folder::new(), &settings).await);
    }
    first.org("acme").await.is(200);
    let by_hand = sqlx::SqlitePool::connect(&url).await.expect("opened");
    let renamed = sqlx::query("UPDATE organizations SET name = 'By hand' WHERE slug = 'acme'");
    renamed.execute(&by_hand).await.expect("changed");
    for n in 0..250 {
        let names = format!(r#"{{"slugs": ["acme", "org-{n}"], "domains": ["a.example"], "ids": ["{n}"]}}"#);
        let written = sqlx::query("INSERT INTO changes (at, names) VALUES (0, $1)").bind(names);
        written.execute(&by_hand).await.expect("written");
    }
    eventually("none is left", || async {
        first.state.store().backlog().await.expect("answers").pending == 0
    })
    .await;
    eventually("it is seen", || async { first.org("acme").await.body["name"] == "By hand" }).await;
    for server in &servers {
        eventually("it is seen", || async { server.org("acme").await.body["name"] == "By hand" }).await;
    }
}

/// A change whose propagation succeeded leaves no row, of whatever kind it was.
#[tokio::test]
async fn what_was_propagated_leaves_no_row() {
    let server = TestServer::start().await;
    let left = || async { server.state.store().backlog().await.expect("answers").pending };
    server.put_org("a-new-one", json!({ "name": "New" })).await.is(201);
    assert_eq!(left().await, 0, "created");
    server.put_org("a-new-one", json!({ "status": "suspended" })).await.is(200);
    assert_eq!(left().await, 0, "changed");
    let (id, _) = server.token("a-new-one", json!({ "user": "ada" })).await;
    server.admin(Method::DELETE, &format!("/admin/orgs/a-new-one/tokens/{id}")).send().await.is(204);
    assert_eq!(left().await, 0, "revoked");
    let rename = server.admin(Method::POST, "/admin/orgs/a-new-one/rename");
    rename.json(&json!({ "slug": "another-one" })).send().await.is(200);
    assert_eq!(left().await, 0, "renamed");
    server.admin(Method::DELETE, "/admin/orgs/another-one").send().await.is(204);
    assert_eq!(left().await, 0, "removed");
}

/// An import by a command that shares no cache with a server is seen by it all the same.
#[tokio::test]
async fn an_import_without_redis_is_seen() {
    let server = TestServer::start().await;
    server.org("acme").await.is(200);
    let folder = Folder::new();
    std::fs::write(folder.0.join("orgs.json"), r#"[{"slug": "acme", "name": "Imported"}]"#).expect("written");
    let database = server.folder.database_url();
    let settings = [("DATABASE_URL", database.as_str()), ("ORG_MASTER_KEY", MASTER_KEY)];
    let imported = binary::run(&folder, &["import", "orgs.json"], &settings);
    assert!(imported.status.success(), "{}", binary::text(&imported));
    eventually("it is seen", || async { server.org("acme").await.body["name"] == "Imported" }).await;
}

/// A server that stops says how many changes it leaves.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_says_what_is_left() {
    let mut redis = RedisServer::start();
    let server = TestServer::start().await;
    let (database, folder) = (server.folder.database_url(), Folder::new());
    let mut stopped = start_logging(&folder, &database, &redis.url());
    redis.kill();
    let (id, _) = server.token("acme", json!({ "user": "ada" })).await;
    // Nobody else may propagate it.
    server.state.finish(Duration::from_secs(5)).await;
    stopped.ask(&format!("DELETE /admin/orgs/acme/tokens/{id}"), &headers(ADMIN));
    stopped.terminate();
    assert!(stopped.ended(Duration::from_secs(20)).expect("it ends").success());
    let log = std::fs::read_to_string(folder.0.join("log")).expect("a log");
    let line = log.lines().find(|line| line.contains("stopping with changes")).expect("it says so");
    // The token, and the slug and the id of its organisation.
    assert!(line.contains("changes=Some(1)") && line.contains("unannounced=3"), "{line}");
}
