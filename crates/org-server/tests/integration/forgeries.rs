//! Who can write to Redis, and has no key: what is forged there, moved or put back is served by no server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cache_core::{CacheService as _, Ttl};
use cache_redis::RedisCacheService;
use conformance::redis_server::RedisServer;
use org_resolution::OrgId;
use org_resolution::token::TokenDigest;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::common::{Folder, TestServer, eventually};

/// A Redis, the first server on it, and somebody else who can write there.
struct Scene {
    redis: RedisServer,
    author: TestServer,
    attacker: RedisCacheService,
}

impl Scene {
    async fn start() -> Self {
        let redis = RedisServer::start();
        let author = server(&redis, Folder::new(), None).await;
        let attacker = RedisCacheService::new(&redis.url(), Duration::from_secs(600)).expect("a link");
        Self { redis, author, attacker }
    }

    /// A server on the same database that has nothing in memory.
    async fn victim(&self) -> TestServer {
        server(&self.redis, Folder::new(), Some(self.author.folder.database_url())).await
    }

    async fn raw(&self, key: &str) -> Option<Bytes> {
        self.attacker.get_bytes(key).await.expect("Redis answers")
    }

    async fn set(&self, key: &str, bytes: impl Into<Bytes>) {
        self.attacker.set_bytes(key, bytes.into(), Ttl::For(Duration::from_secs(600))).await.expect("stored");
    }

    /// An entry as a server writes it that does not seal: all that it needs is readable.
    async fn forge(&self, domain: &str, key: &str, payload: &Value) {
        let key = format!("{domain}:{key}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
        let mut bytes = vec![1];
        bytes.extend([7; 16]);
        bytes.extend(xxh3_64(key.as_bytes()).to_be_bytes());
        for time in [now + 300_000, now + 300_000, now] {
            bytes.extend(time.to_be_bytes());
        }
        bytes.push(2);
        for group in ["gen:all".to_owned(), format!("gen:d:{domain}")] {
            let number = self.raw(&group).await.unwrap_or_else(|| panic!("{group} is there"));
            bytes.extend(&number[..8]);
        }
        bytes.extend(payload.to_string().bytes());
        self.set(&key, bytes).await;
    }
}

impl Scene {
    /// All entries of a kind, as they are.
    async fn entries(&self, domain: &str) -> Vec<(String, Bytes)> {
        let keys = self.redis.command(&["KEYS", &format!("{domain}:*")]);
        let conformance::resp::Reply::Array(keys) = keys else { panic!("a list of keys") };
        let mut entries = Vec::new();
        for key in keys {
            let conformance::resp::Reply::Bulk(key) = key else { panic!("{key:?}") };
            let key = String::from_utf8(key).expect("text");
            let bytes = self.raw(&key).await.expect("it is there");
            entries.push((key, bytes));
        }
        entries
    }
}

async fn server(redis: &RedisServer, folder: Folder, database: Option<String>) -> TestServer {
    let (url, own) = (redis.url(), folder.database_url());
    let database = database.unwrap_or(own);
    let server =
        TestServer::start_in(folder, &[("REDIS_URL", url.as_str()), ("DATABASE_URL", &database)]).await;
    eventually("the server is ready", || async {
        let ready = server.get("/readyz").send().await;
        ready.body["status"] == "ready" && ready.body["bus"] == "trusted"
    })
    .await;
    server
}

async fn me(server: &TestServer, org: &str, token: &str) -> u16 {
    server.get(&format!("/o/{org}/v1/me")).bearer(token).send().await.status.as_u16()
}

fn id_of(org: &Value) -> &str {
    org["id"].as_str().expect("an id")
}

/// A token that nobody issued, an organisation that is suspended, one in the place of another, and one that does not
/// exist: none is believed.
#[tokio::test]
async fn what_is_forged_in_redis_is_not_served() {
    let scene = Scene::start().await;
    let (acme, globex) = (scene.author.org("acme").await.body, scene.author.org("globex").await.body);
    scene.author.put_org("closed", json!({ "name": "Closed" })).await.is(201);
    let closed = scene.author.org("closed").await.is(200).body.clone();
    scene.author.put_org("closed", json!({ "status": "suspended" })).await.is(200);
    let (_, valid) = scene.author.token("acme", json!({ "user": "ada" })).await;
    assert_eq!(me(&scene.author, "acme", &valid).await, 200);
    // Well-formed, and unknown to the database.
    let (id, unissued) = scene.author.token("globex", json!({ "user": "eve" })).await;
    scene.author.state.store().delete_token(id_of(&globex), &id).await.expect("removed");

    let digest = TokenDigest::of(&OrgId::new(id_of(&acme)).expect("an id"), "", &unissued.clone().into());
    let row = scene.author.state.store().org_by_slug("acme").await.expect("asked").expect("it is there");
    let digest = digest.under(row.token_generation.unsigned_abs()).to_string();
    let root = json!({
        "org": acme["id"], "user": "root", "scopes": ["admin"], "expires_at": 4_000_000_000_000_u64,
    });
    scene.forge("token", &digest, &root).await;
    scene.forge("org", "closed", &closed).await;
    scene.forge("org", "globex", &acme).await;
    scene.forge("org", "no-such-org", &acme).await;

    let victim = scene.victim().await;
    assert_eq!(me(&victim, "acme", &unissued).await, 401, "a token that nobody issued");
    victim.org("closed").await.is_problem(403, "org_suspended");
    assert_eq!(victim.org("globex").await.is(200).body["id"], globex["id"], "another's place");
    victim.org("no-such-org").await.is_problem(404, "org_not_found");
    assert_eq!(me(&victim, "globex", &valid).await, 403, "a token of acme");
    assert_eq!(me(&victim, "acme", &valid).await, 200);
}

/// What servers wrote themselves is of no use in another entry's place.
#[tokio::test]
async fn what_is_moved_in_redis_is_not_served() {
    let scene = Scene::start().await;
    let globex = scene.author.org("globex").await.is(200).body["id"].clone();
    scene.author.org("acme").await.is(200);
    let mut moved = scene.raw("org:acme").await.expect("it is stored").to_vec();
    moved[17..25].copy_from_slice(&xxh3_64(b"org:globex").to_be_bytes());
    scene.set("org:globex", moved).await;
    let victim = scene.victim().await;
    assert_eq!(victim.org("globex").await.is(200).body["id"], globex);
}

/// Redis holds no name, user or scope in the clear.
#[tokio::test]
async fn entries_are_sealed_in_redis() {
    let scene = Scene::start().await;
    scene.author.put_org("acme", json!({ "name": "Acme In The Clear" })).await.is(200);
    scene.author.org("acme").await.is(200);
    let (_, token) =
        scene.author.token("acme", json!({ "user": "ada-lovelace", "scopes": ["a-scope"] })).await;
    assert_eq!(me(&scene.author, "acme", &token).await, 200);
    let entries = [scene.entries("org").await, scene.entries("token").await].concat();
    assert!(entries.len() >= 2, "an organisation and a token are there: {entries:?}");
    for (key, held) in entries {
        for word in ["In The Clear", "ada-lovelace", "a-scope"] {
            assert!(!held.windows(word.len()).any(|part| part == word.as_bytes()), "{word} under {key}");
        }
    }
}

/// What was validated before a token was revoked is refused afterwards, though it is put back as it was.
#[tokio::test]
async fn a_revoked_token_that_is_put_back_is_refused() {
    let scene = Scene::start().await;
    let (id, token) = scene.author.token("acme", json!({ "user": "ada" })).await;
    let (_, other) = scene.author.token("acme", json!({ "user": "bob" })).await;
    for token in [&token, &other] {
        assert_eq!(me(&scene.author, "acme", token).await, 200);
    }
    let entries = scene.entries("token").await;
    assert_eq!(entries.len(), 2);
    let path = format!("/admin/orgs/acme/tokens/{id}");
    scene.author.admin(http::Method::DELETE, &path).send().await.is(204);
    for server in [&scene.author, &scene.victim().await] {
        for (key, bytes) in &entries {
            scene.set(key, bytes.clone()).await;
        }
        assert_eq!(me(server, "acme", &token).await, 401);
        assert_eq!(me(server, "acme", &other).await, 200, "it was not revoked");
    }
}

/// The tokens of an organisation that was removed are those of no other one with the same id, whoever remembers them.
#[tokio::test]
async fn tokens_of_a_removed_organisation_stay_dead() {
    let scene = Scene::start().await;
    let acme = scene.author.org("acme").await.is(200).body.clone();
    let (_, token) = scene.author.token("acme", json!({ "user": "ada" })).await;
    assert_eq!(me(&scene.author, "acme", &token).await, 200);
    let entries = scene.entries("token").await;
    scene.author.admin(http::Method::DELETE, "/admin/orgs/acme").send().await.is(204);
    let backup = json!([{ "id": acme["id"], "slug": "acme", "name": "Acme" }]).to_string();
    scene.author.state.orgs().import(&backup).await.expect("imported");
    assert_eq!(scene.author.org("acme").await.is(200).body["id"], acme["id"]);
    assert_eq!(me(&scene.author, "acme", &token).await, 401, "what this server remembers");
    for (key, bytes) in entries {
        scene.set(&key, bytes).await;
    }
    assert_eq!(me(&scene.author, "acme", &token).await, 401, "put back");
}
