//! Tokens of users: what a bad one costs, and that it costs nobody else.

use cache_core::UserId;
use org_resolution::OrgId;
use org_resolution::token::TokenDigest;
use org_server::store::TokenRow;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::common::TestServer;

/// A token as the server makes it, of nobody.
async fn unknown(server: &TestServer) -> String {
    let (id, token) = server.token("globex", json!({ "user": "eve" })).await;
    server.state.store().delete_token(&org_id(server, "globex").await, &id).await.expect("removed");
    token
}

async fn org_id(server: &TestServer, slug: &str) -> String {
    server.org(slug).await.is(200).body["id"].as_str().expect("an id").to_owned()
}

/// Bad tokens are limited by preset `auth`, per organisation and client; good ones behind the same address pass, whether
/// they were seen before or not.
#[tokio::test]
async fn bad_tokens_lock_no_good_one_out() {
    let server = TestServer::start_with(&[("RATE_LIMIT_AUTH", "3/1h")]).await;
    let (_, good) = server.token("acme", json!({ "user": "ada" })).await;
    let (_, never_seen) = server.token("acme", json!({ "user": "bob" })).await;
    let me = |token: &str| server.get("/o/acme/v1/me").bearer(token);
    me(&good).send().await.is(200);
    let bad = unknown(&server).await;
    for _ in 0..3 {
        me(&bad).send().await.is_problem(401, "invalid_token");
    }
    let refused = me(&bad).send().await;
    refused.is_problem(429, "rate_limited");
    assert!(!refused.header("retry-after").is_empty());
    me("ort_nonsense").send().await.is_problem(429, "rate_limited");
    me(&good).send().await.is(200);
    me(&never_seen).send().await.is(200);
    me(&bad).from("192.0.2.9").send().await.is_problem(401, "invalid_token");
    let metrics = server.get("/metrics").send().await.text;
    assert!(metrics.contains("token_lockouts_total"), "{metrics}");
}

/// A mistyped or invented token is told by its checksum: it is refused without a look-up, also while the database is
/// away.
#[tokio::test]
async fn a_mistyped_token_costs_no_look_up() {
    let server = TestServer::start().await;
    server.org("acme").await.is(200);
    let token = unknown(&server).await;
    assert!(token.starts_with("ort_") && token.bytes().skip(4).all(|b| b.is_ascii_alphanumeric()), "{token}");
    server.state.store().close().await;
    let me = |token: String| server.get("/o/acme/v1/me").bearer(&token);
    for at in [4, 20, token.len() - 1] {
        let mut mistyped = token.clone().into_bytes();
        mistyped[at] = if mistyped[at] == b'a' { b'b' } else { b'a' };
        let mistyped = String::from_utf8(mistyped).expect("text");
        me(mistyped).send().await.is_problem(401, "invalid_token");
    }
    for invented in ["a-guess", "ort_", "ort_nonsense", &token[..token.len() - 1], &format!("{token}0")] {
        me(invented.to_owned()).send().await.is_problem(401, "invalid_token");
    }
    me(token).send().await.is_problem(503, "store_unavailable");
}

/// Tokens without a checksum, as they were made before, go on to work.
#[tokio::test]
async fn tokens_of_the_old_form_work() {
    let server = TestServer::start().await;
    let org_id = org_id(&server, "acme").await;
    let text = format!("ort_{}", "Aa0-_".repeat(9)).chars().take(47).collect::<String>();
    let tenant = OrgId::new(org_id.as_str()).expect("an id");
    let row = TokenRow {
        id: "old".into(),
        org_id,
        user: UserId::new("ada").expect("an id").to_string(),
        scopes: vec![],
        digest: Sha256::digest(&text).into(),
        cache_digest: *TokenDigest::of(&tenant, "", &text.clone().into()).as_bytes(),
        expires_at: 4_000_000_000_000,
    };
    server.state.store().insert_token(&row).await.expect("stored");
    server.get("/o/acme/v1/me").bearer(&text).send().await.is(200);
}
