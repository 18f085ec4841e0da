//! Every route, and every error code it answers, on the real router over a real database.

use crate::common::{ADMIN, Holder, TestServer};
use http::Method;
use serde_json::{Value, json};

/// L2, M1: alive, ready, counted.
#[tokio::test]
async fn health_and_metrics_answer() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/healthz").send().await.is(200).text, "ok\n");
    let ready = server.get("/readyz").send().await;
    assert_eq!(ready.is(200).body["status"], "ready");
    assert_eq!((&ready.body["l1"], &ready.body["l2"]), (&json!(true), &Value::Null));
    assert_eq!(ready.body["database"], true);
    assert_eq!(ready.body["coordination"], "process");
    server.org("acme").await.is(200);
    let metrics = server.get("/metrics").send().await;
    for part in [
        "http_requests_total{route=\"/v1/org\",method=\"GET\",status=\"200\"}",
        "cache_misses_total{name=\"org\"}",
        "http_request_duration_seconds_bucket{route=\"/v1/org\",le=\"0.001\"}",
        "le=\"0.01\"",
        "le=\"0.1\"",
        "le=\"1\"",
    ] {
        assert!(metrics.is(200).text.contains(part), "{part} in {}", metrics.text);
    }
}

/// L2, K1: the organisation is found by host, by path and by a trusted proxy's header, and says which tier
/// knew it.
#[tokio::test]
async fn an_org_is_found_by_host_path_and_trusted_header() {
    let server = TestServer::start_with(&[("TRUSTED_PROXIES", "10.0.0.0/8")]).await;
    let first = server.org("acme").await;
    assert_eq!(first.is(200).body["slug"], "acme");
    assert_eq!(first.header("cache-status"), "origin; fwd=miss");
    let keys: Vec<&String> = first.body.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["id", "name", "plan", "settings", "slug", "status"]);

    let by_path = server.get("/o/acme/v1/org").send().await;
    assert_eq!(by_path.is(200).header("cache-status"), "near; hit");
    assert_eq!(by_path.body, first.body);
    assert_eq!(server.get("/v1/org").host("ACME.localhost.:8080").send().await.is(200).body, first.body);

    let by_header = || server.get("/v1/org").host("127.0.0.1:8080").header("x-org-slug", "globex");
    assert_eq!(by_header().from("10.1.2.3").send().await.is(200).body["slug"], "globex");
    by_header().from("192.0.2.1").send().await.is_problem(404, "org_unresolved");
}

/// L2: when memory has forgotten, the shared tier answers.
#[tokio::test]
async fn the_far_tier_answers_what_memory_forgot() {
    let server = TestServer::start_with(&[("CACHE_NEAR_TTL", "20ms")]).await;
    server.org("acme").await.is(200);
    crate::common::eventually("the far tier has answered", || async {
        server.org("acme").await.header("cache-status") == "far; hit"
    })
    .await;
}

/// K2, K4: what names no organisation, none that exists, or one that may not be used.
#[tokio::test]
async fn each_refusal_of_an_org_has_its_code() {
    let server = TestServer::start().await;
    server.get("/v1/org").send().await.is_problem(404, "org_unresolved");
    for host in ["127.0.0.1:8080", "localhost", "localhost:8080", "www.localhost", "example.org"] {
        server.get("/v1/org").host(host).send().await.is_problem(404, "org_unresolved");
    }
    server.org("nobody").await.is_problem(404, "org_not_found");
    server.org("-nobody").await.is_problem(404, "invalid_slug");
    server.get("/o/-nobody/v1/org").send().await.is_problem(400, "invalid_slug");
    server.org("initech").await.is_problem(403, "org_suspended");
    let wrong = server.ask(Method::POST, "/o/acme/v1/org").send().await;
    wrong.is_problem(405, "method_not_allowed");
    server.get("/o/acme/v1/nothing").send().await.is_problem(404, "not_found");
    server.get("/o/acme/").send().await.is_problem(404, "not_found");
}

/// K4: with the database away: what is cached is answered, what is not is 503 with `Retry-After`.
#[tokio::test]
async fn the_database_away_is_503_for_what_is_not_cached() {
    let server = TestServer::start().await;
    server.org("acme").await.is(200);
    server.state.store().close().await;
    server.org("acme").await.is(200);
    let away = server.org("globex").await;
    away.is_problem(503, "store_unavailable");
    assert!(!away.header("retry-after").is_empty());
    let list = server.admin(Method::GET, "/admin/orgs").send().await;
    list.is_problem(503, "store_unavailable");
    let ready = server.get("/readyz").send().await;
    assert_eq!(
        (&ready.is(503).body["status"], &ready.body["database"]),
        (&json!("unavailable"), &json!(false))
    );
    server.get("/healthz").send().await.is(200);
}

/// L2: who may use the admin routes.
#[tokio::test]
async fn admin_routes_need_the_admin_token() {
    let server = TestServer::start().await;
    for (method, path) in [
        (Method::GET, "/admin/orgs"),
        (Method::PUT, "/admin/orgs/acme"),
        (Method::DELETE, "/admin/orgs/acme"),
        (Method::POST, "/admin/orgs/acme/rename"),
        (Method::POST, "/admin/orgs/acme/tokens"),
        (Method::DELETE, "/admin/orgs/acme/tokens/1"),
        (Method::GET, "/admin/cache"),
        (Method::POST, "/admin/cache/invalidate"),
        (Method::GET, "/admin/nothing"),
    ] {
        let none = server.ask(method.clone(), path).send().await;
        none.is_problem(401, "unauthorized");
        assert_eq!(none.header("www-authenticate"), "Bearer", "{path}");
        let wrong = server.ask(method, path).bearer("not-the-admin-token").send().await;
        wrong.is_problem(401, "invalid_token");
        assert_eq!(wrong.header("www-authenticate"), "Bearer error=\"invalid_token\"", "{path}");
    }
    server.org("acme").await.is(200);
    server.admin(Method::GET, "/admin/nothing").send().await.is_problem(404, "not_found");
}

/// L2, K3: create, change, and what a reader sees at once, also when it had been told that there is none.
#[tokio::test]
async fn an_org_is_created_and_changed_and_seen_at_once() {
    let server = TestServer::start().await;
    server.org("newco").await.is_problem(404, "org_not_found");
    let body = json!({ "name": "New Co", "plan": "pro", "settings": { "locale": "de-DE" } });
    let created = server.put_org("newco", body).await;
    assert_eq!(created.is(201).body["plan"], "pro");
    assert_eq!(created.header("cache-invalidation"), "");
    assert_eq!(server.org("newco").await.is(200).body["name"], "New Co");

    let changed = server.put_org("newco", json!({ "name": "Newer Co" })).await;
    assert_eq!(changed.is(200).body["id"], created.body["id"]);
    let seen = server.org("newco").await;
    assert_eq!((&seen.body["name"], &seen.body["plan"]), (&json!("Newer Co"), &json!("pro")));
    assert_eq!(seen.body["settings"]["locale"], "de-DE", "what the body leaves out stays");

    server.put_org("newco", json!({ "status": "suspended" })).await.is(200);
    server.org("newco").await.is_problem(403, "org_suspended");
}

/// L2: each refusal of a change has its code, and changes nothing.
#[tokio::test]
async fn each_refusal_of_a_change_has_its_code() {
    let server = TestServer::start().await;
    let put = |body: &'static str| server.admin(Method::PUT, "/admin/orgs/acme").raw(body);
    put("{").send().await.is_problem(400, "invalid_body");
    put("[]").send().await.is_problem(422, "invalid_body");
    put(r#"{"nmae": "x"}"#).send().await.is_problem(422, "invalid_body");
    let broken = put(r#"{"name": "", "plan": "gold", "status": "gone"}"#).send().await;
    broken.is_problem(422, "invalid_body");
    assert_eq!(broken.body["problems"].as_array().expect("a list").len(), 3, "{broken:?}");
    let no_type = server.ask(Method::PUT, "/admin/orgs/acme").bearer(ADMIN).send().await;
    no_type.is_problem(415, "invalid_body");
    let huge = format!(r#"{{"name": "{}"}}"#, "x".repeat(600 * 1024));
    server.admin(Method::PUT, "/admin/orgs/acme").raw(huge).send().await.is_problem(413, "invalid_body");
    server.put_org("a_b", json!({ "name": "x" })).await.is_problem(400, "invalid_slug");
    server.put_org("www", json!({ "name": "x" })).await.is_problem(422, "slug_reserved");
    server.put_org("nameless", json!({ "plan": "pro" })).await.is_problem(422, "invalid_body");
    let domain = json!({ "name": "x", "custom_domain": "orgs.example.org" });
    server.put_org("first", domain.clone()).await.is(201);
    server.put_org("second", domain).await.is_problem(409, "conflict");
    assert_eq!(server.org("acme").await.is(200).body["name"], "Acme Corporation");
}

/// L2, K3: after a rename the new name answers and the old one does not, whatever readers had been told.
#[tokio::test]
async fn a_rename_is_seen_under_both_names() {
    let server = TestServer::start().await;
    let before = server.org("acme").await;
    server.org("acme-inc").await.is_problem(404, "org_not_found");
    let rename = |slug: &str, to: &str| {
        let path = format!("/admin/orgs/{slug}/rename");
        server.admin(Method::POST, &path).json(&json!({ "slug": to }))
    };
    assert_eq!(rename("acme", "acme-inc").send().await.is(200).body["slug"], "acme-inc");
    assert_eq!(server.org("acme-inc").await.is(200).body["id"], before.body["id"]);
    server.org("acme").await.is_problem(404, "org_not_found");
    rename("acme-inc", "globex").send().await.is_problem(409, "slug_taken");
    rename("acme-inc", "admin").send().await.is_problem(422, "slug_reserved");
    rename("acme-inc", "a.b").send().await.is_problem(400, "invalid_slug");
    rename("nobody", "somebody").send().await.is_problem(404, "org_not_found");
    let missing = server.admin(Method::POST, "/admin/orgs/acme-inc/rename").json(&json!({})).send().await;
    missing.is_problem(422, "invalid_body");
}

/// L2, K4: a removed organisation is gone, with its tokens; its name is free again.
#[tokio::test]
async fn a_removed_org_is_gone_with_its_tokens() {
    let server = TestServer::start().await;
    let (_, token) = server.token("acme", json!({ "user": "ada" })).await;
    server.get("/o/acme/v1/me").bearer(&token).send().await.is(200);
    let remove = || server.admin(Method::DELETE, "/admin/orgs/acme");
    assert_eq!(remove().send().await.is(204).text, "");
    server.org("acme").await.is_problem(404, "org_not_found");
    remove().send().await.is_problem(404, "org_not_found");
    server.put_org("acme", json!({ "name": "Another Acme" })).await.is(201);
    server.get("/o/acme/v1/me").bearer(&token).send().await.is_problem(401, "invalid_token");
}

/// L2: pages of organisations follow each other; operators see which secrets there are, and none of them.
#[tokio::test]
async fn pages_of_orgs_follow_each_other() {
    let server = TestServer::start().await;
    let mut seen = Vec::new();
    let mut path = "/admin/orgs?limit=90".to_owned();
    loop {
        let page = server.admin(Method::GET, &path).send().await;
        assert!(!page.is(200).text.contains("sample-"), "no secret, sealed or not");
        seen.extend(page.body["orgs"].as_array().expect("a list").iter().map(|org| org["slug"].to_string()));
        let Some(next) = page.body["next"].as_str() else { break };
        path = format!("/admin/orgs?limit=90&after={next}");
    }
    assert_eq!(seen.len(), 204);
    assert!(seen.is_sorted());
    server.admin(Method::GET, "/admin/orgs?limit=many").send().await.is_problem(400, "invalid_query");
}

/// K7, K9: a token answers whose it is, at its own organisation only, until it ends or is revoked.
#[tokio::test]
async fn tokens_work_until_they_are_revoked() {
    let server = TestServer::start().await;
    let draft = json!({ "user": "ada", "scopes": ["read", "write"], "expires_in": 600 });
    let (id, token) = server.token("acme", draft).await;
    let me = |slug: &str, token: &str| server.get(&format!("/o/{slug}/v1/me")).bearer(token);
    let answer = me("acme", &token).send().await;
    assert_eq!(answer.is(200).body["user"], "ada");
    assert_eq!((&answer.body["org"], &answer.body["scopes"]), (&json!("acme"), &json!(["read", "write"])));
    assert!(answer.body["expires_at"].as_str().expect("a time").ends_with('Z'), "{answer:?}");

    let none = server.get("/o/acme/v1/me").send().await;
    none.is_problem(401, "unauthorized");
    assert_eq!(none.header("www-authenticate"), "Bearer");
    let bad = me("acme", "ort_nonsense").send().await;
    bad.is_problem(401, "invalid_token");
    assert_eq!(bad.header("www-authenticate"), "Bearer error=\"invalid_token\"");
    me("acme", &"x".repeat(5_000)).send().await.is_problem(401, "invalid_token");
    me("globex", &token).send().await.is_problem(403, "org_mismatch");

    let revoke =
        |slug: &str, id: &str| server.admin(Method::DELETE, &format!("/admin/orgs/{slug}/tokens/{id}"));
    revoke("globex", &id).send().await.is_problem(404, "not_found");
    revoke("acme", &id).send().await.is(204);
    me("acme", &token).send().await.is_problem(401, "invalid_token");
    revoke("acme", &id).send().await.is_problem(404, "not_found");
}

/// K7: a token that has ended is refused, also when it is still cached.
#[tokio::test]
async fn an_ended_token_is_refused() {
    let server = TestServer::start().await;
    let (_, token) = server.token("acme", json!({ "user": "ada", "expires_in": 1 })).await;
    crate::common::eventually("the token has ended", || async {
        server.get("/o/acme/v1/me").bearer(&token).send().await.code() == "invalid_token"
    })
    .await;
}

/// L2: each refusal of a token draft has its code.
#[tokio::test]
async fn each_refusal_of_a_token_has_its_code() {
    let server = TestServer::start().await;
    let make = |slug: &str, body: Value| {
        server.admin(Method::POST, &format!("/admin/orgs/{slug}/tokens")).json(&body)
    };
    make("nobody", json!({ "user": "ada" })).send().await.is_problem(404, "org_not_found");
    make("acme", json!({})).send().await.is_problem(422, "invalid_body");
    for body in [
        json!({ "user": "" }),
        json!({ "user": "ada", "expires_in": 0 }),
        json!({ "user": "ada", "expires_in": 1_000_000_000_u64 }),
        json!({ "user": "ada", "scopes": ["a b"] }),
        json!({ "user": "ada", "scope": "typo" }),
    ] {
        make("acme", body).send().await.is_problem(422, "invalid_body");
    }
}

/// L2: operators make caches forget, by key, domain and prefix; what is unclear is refused.
#[tokio::test]
async fn operators_make_caches_forget() {
    let server = TestServer::start().await;
    let forget = |body: Value| server.admin(Method::POST, "/admin/cache/invalidate").json(&body);
    for body in [
        json!({ "key": "org:acme" }),
        json!({ "domain": "org", "key": "acme" }),
        json!({ "domain": "org" }),
        json!({ "prefix": "org:ac" }),
    ] {
        server.org("acme").await.is(200);
        assert_eq!(server.org("acme").await.header("cache-status"), "near; hit");
        forget(body.clone()).send().await.is(200);
        assert_eq!(server.org("acme").await.header("cache-status"), "origin; fwd=miss", "{body}");
    }
    let named = forget(json!({ "domain": "notes", "key": "a:b", "tenant": "t" })).send().await;
    assert_eq!(named.is(200).body["key"], "t:notes:a%3Ab");
    for body in [json!({ "tag": "billing" }), json!({ "tag": "billing", "tenant": "t" })] {
        forget(body).send().await.is(200);
    }
    for body in [
        json!({}),
        json!({ "tenant": "t" }),
        json!({ "key": "k", "prefix": "p" }),
        json!({ "tag": "t", "domain": "org" }),
        json!({ "tag": "" }),
        json!({ "key": "k", "tenant": "t" }),
        json!({ "prefix": "" }),
        json!({ "key": "a\nb" }),
        json!({ "domain": "No Domain" }),
        json!({ "domain": "org", "tenant": "" }),
        json!({ "keys": ["k"] }),
    ] {
        forget(body.clone()).send().await.is_problem(422, "invalid_body");
    }
    let report = server.admin(Method::GET, "/admin/cache").send().await;
    assert_eq!(report.is(200).body["backend"], "memory");
    let org = &report.body["domains"]["org"];
    assert!(org["near_hits"].as_u64() >= Some(4) && org["misses"].as_u64() >= Some(5), "{org}");
    assert!(!report.text.contains("Acme"), "metadata only");
}

/// G1, G6: each preset limits its routes, says so on every answer, and refuses with `Retry-After`.
#[tokio::test]
async fn each_preset_limits_its_routes() {
    let limits = [("RATE_LIMIT_API", "2/1h"), ("RATE_LIMIT_AUTH", "2/1h")];
    let server = TestServer::start_with(&limits).await;
    let first = server.org("acme").await;
    assert_eq!(first.is(200).header("ratelimit-policy"), "\"api\";q=2;w=3600");
    assert!(first.header("ratelimit").starts_with("\"api\";r=1;t="), "{first:?}");
    server.org("acme").await.is(200);
    let refused = server.org("acme").await;
    refused.is_problem(429, "rate_limited");
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{refused:?}");
    assert!(refused.header("ratelimit").starts_with("\"api\";r=0;t="), "{refused:?}");
    server.get("/v1/org").host("acme.localhost").from("192.0.2.9").send().await.is(200);
    server.org("globex").await.is(200);

    let wrong = || server.get("/admin/orgs").bearer("not-the-admin-token");
    wrong().send().await.is_problem(401, "invalid_token");
    wrong().send().await.is_problem(401, "invalid_token");
    wrong().send().await.is_problem(429, "rate_limited");
    // Who has the right token is refused for nobody's failures: it cannot be guessed.
    server.admin(Method::GET, "/admin/orgs").send().await.is(200);
    wrong().send().await.is_problem(429, "rate_limited");
}

/// A client behind a trusted proxy cannot get another limit than its own by what it writes in front of the proxy's word.
#[tokio::test]
async fn a_client_cannot_write_itself_another_limit() {
    let limits = [("RATE_LIMIT_API", "2/1h"), ("TRUSTED_PROXIES", "10.0.0.0/8")];
    let server = TestServer::start_with(&limits).await;
    let by = |written: &[u8]| {
        let line = [written, b", 203.0.113.9"].concat();
        let ask = server.get("/v1/org").host("acme.localhost").from("10.0.0.1");
        ask.bytes("x-forwarded-for", b"198.51.100.7").bytes("x-forwarded-for", &line)
    };
    by(b"6.6.6.1").send().await.is(200);
    by(b"\xff").send().await.is(200);
    by(b"6.6.6.2, \xff").send().await.is_problem(429, "rate_limited");
}

/// Who invents names is limited, and still reaches an organisation in use.
#[tokio::test]
async fn invented_names_are_limited() {
    let server = TestServer::start_with(&[("RATE_LIMIT_NAMES", "2/1h")]).await;
    server.org("acme").await.is(200);
    server.org("nobody-1").await.is_problem(404, "org_not_found");
    server.org("nobody-2").await.is_problem(404, "org_not_found");
    server.org("nobody-3").await.is_problem(429, "rate_limited");
    server.org("acme").await.is(200);
}

/// G1: writes of operators are limited by preset `mutation`, which costs five a write; reads are not.
#[tokio::test]
async fn writes_of_operators_are_limited() {
    let server = TestServer::start_with(&[("RATE_LIMIT_MUTATION", "10/1h")]).await;
    let write = || server.put_org("acme", json!({ "plan": "pro" }));
    assert_eq!(write().await.is(200).header("ratelimit-policy"), "\"mutation\";q=10;w=3600");
    write().await.is(200);
    write().await.is_problem(429, "rate_limited");
    server.admin(Method::GET, "/admin/orgs").send().await.is(200);
}

/// K6: the database holds sealed bytes only, the master key opens them, and no answer shows them.
#[tokio::test]
async fn secrets_are_sealed_in_the_database_and_in_no_answer() {
    use secrecy::ExposeSecret as _;
    let server = TestServer::start().await;
    let secret = "hunter2-hunter2-hunter2";
    let body = json!({ "secrets": { "webhook_key": secret, "other": "gone-soon" } });
    let written = server.put_org("acme", body).await;
    assert_eq!(written.is(200).body["secrets"], json!(["other", "webhook_key"]));
    server.put_org("acme", json!({ "secrets": { "other": null } })).await.is(200);
    let seen = server.org("acme").await;
    assert!(!written.text.contains(secret) && !seen.text.contains("secret"), "{seen:?}");

    let row = server.state.store().org_by_slug("acme").await.expect("answers").expect("there");
    assert_eq!(row.secrets.keys().collect::<Vec<_>>(), ["webhook_key"]);
    let org =
        server.state.orgs().resolver().by_slug(&"acme".parse().expect("a slug")).await.expect("there").org;
    let opened = server.state.orgs().secret(&org, "webhook_key").expect("opens").expect("there");
    assert_eq!(opened.expose_secret(), secret);
    server.state.store().close().await;
    for file in std::fs::read_dir(server.folder.0.join("data")).expect("the data folder") {
        let bytes = std::fs::read(file.expect("a file").path()).expect("readable");
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

/// K1: an organisation's own host, and when it is moved to another organisation.
#[tokio::test]
async fn a_custom_domain_names_its_org() {
    let server = TestServer::start().await;
    let at = || server.get("/v1/org").host("orgs.example.org:8080");
    at().send().await.is_problem(404, "org_unresolved");
    server.put_org("acme", json!({ "custom_domain": "orgs.example.org" })).await.is(200);
    assert_eq!(at().send().await.is(200).body["slug"], "acme");
    server.put_org("acme", json!({ "custom_domain": "" })).await.is(200);
    at().send().await.is_problem(404, "org_unresolved");
    server.put_org("globex", json!({ "custom_domain": "orgs.example.org" })).await.is(200);
    assert_eq!(at().send().await.is(200).body["slug"], "globex");
}

/// L2: one request too many is turned away at once, and the next one is let in again.
#[tokio::test]
async fn one_request_too_many_is_turned_away() {
    let server = TestServer::start_with(&[("MAX_REQUESTS", "1")]).await;
    let place = server.state.places().try_acquire().expect("free");
    let away = server.org("acme").await;
    away.is_problem(503, "store_unavailable");
    assert!(!away.header("retry-after").is_empty());
    assert_eq!(server.get("/healthz").send().await.is(200).text, "ok\n", "a busy server is alive");
    drop(place);
    server.org("acme").await.is(200);
}

/// L4: from the moment it is told to stop the server is not ready, and still answers.
#[tokio::test]
async fn a_stopping_server_is_not_ready_and_still_answers() {
    let server = TestServer::start().await;
    server.state.stop();
    assert_eq!(server.get("/readyz").send().await.is(503).body["status"], "stopping");
    server.org("acme").await.is(200);
}

/// K3, SE1: a reader who takes the old state into memory between the first invalidation and the commit does not
/// keep it: the one after the commit is what counts.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_during_a_change_is_not_kept() {
    let server = TestServer::start().await;
    server.org("acme").await.is(200);
    let published = || server.state.app().caches().bus().state().published;
    // So that the change waits between its invalidation and its commit.
    let holder = Holder::enter(&server).await;
    let before = published();
    let change = server.put_org("acme", json!({ "name": "New" }));
    let reading = async {
        crate::common::eventually("the first invalidation was published", || async {
            published() >= before + 2
        })
        .await;
        crate::common::eventually("the old state is in memory again", || async {
            let seen = server.org("acme").await;
            assert_eq!(seen.is(200).body["name"], "Acme Corporation", "not committed yet");
            seen.header("cache-status") == "near; hit"
        })
        .await;
        holder.leave().await;
    };
    let (changed, ()) = tokio::join!(change, reading);
    changed.is(200);
    assert_eq!(server.org("acme").await.is(200).body["name"], "New");
}

/// K3, L4: a change goes on to its end, caches included, also when its client was given up meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_outlives_its_client() {
    let server = TestServer::start_with(&[("REQUEST_TIMEOUT", "100ms")]).await;
    server.org("acme").await.is(200);
    let holder = Holder::enter(&server).await;
    let given_up = server.put_org("acme", json!({ "name": "New" })).await;
    given_up.is_problem(503, "store_unavailable");
    assert_eq!(server.org("acme").await.is(200).body["name"], "Acme Corporation");
    holder.leave().await;
    crate::common::eventually("the change has been made and is seen", || async {
        server.org("acme").await.body["name"] == "New"
    })
    .await;
}
