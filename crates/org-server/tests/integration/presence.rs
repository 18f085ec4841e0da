//! The presence routes, on the real router.

use std::time::Duration;

use cache_core::TenantId;
use http::Method;
use serde_json::{Value, json};

use crate::common::{Answer, TestServer};

/// A user of `acme` with a token.
struct User<'a> {
    server: &'a TestServer,
    token: String,
}

impl<'a> User<'a> {
    async fn of(server: &'a TestServer, org: &str, user: &str) -> Self {
        Self { server, token: server.token(org, json!({ "user": user })).await.1 }
    }

    async fn ask(&self, method: Method, path: &str) -> Answer {
        self.server.ask(method, path).host("acme.localhost").bearer(&self.token).send().await
    }

    async fn put(&self, connection: &str) -> Answer {
        self.ask(Method::PUT, &format!("/v1/presence/{connection}")).await
    }

    async fn delete(&self, connection: &str) -> Answer {
        self.ask(Method::DELETE, &format!("/v1/presence/{connection}")).await
    }

    /// How many there are, and each as `user/connection`.
    async fn list(&self) -> (u64, Vec<String>) {
        let listed = self.ask(Method::GET, "/v1/presence").await;
        let members = listed.is(200).body["members"].as_array().expect("a list").iter();
        let text = |member: &Value, field: &str| member[field].as_str().expect("a text").to_owned();
        let names = members.map(|member| format!("{}/{}", text(member, "user"), text(member, "connection")));
        (listed.body["count"].as_u64().expect("a number"), names.collect())
    }
}

/// H1, L2: a connection joins, beats and leaves; everybody with a token of the organisation sees it.
#[tokio::test]
async fn a_connection_joins_beats_and_leaves() {
    let server = TestServer::start().await;
    let (ada, bob) = (User::of(&server, "acme", "ada").await, User::of(&server, "acme", "bob").await);
    let joined = ada.put("socket-7").await;
    assert_eq!(joined.is(201).body, json!({ "user": "ada", "connection": "socket-7", "expires_in": 120 }));
    assert_eq!(joined.header("cache-control"), "no-store");
    assert!(joined.header("ratelimit-policy").starts_with("\"api\""), "{joined:?}");
    let before = bob.ask(Method::GET, "/v1/presence").await;
    ada.put("socket-7").await.is(200);
    bob.put("phone").await.is(201);
    assert_eq!(ada.list().await, (2, vec!["ada/socket-7".into(), "bob/phone".into()]));
    let after = bob.ask(Method::GET, "/v1/presence").await;
    assert_eq!(after.header("cache-control"), "no-store");
    assert_eq!(after.body["members"][0], before.body["members"][0], "a beat keeps when it was made");
    let connected_at = after.body["members"][0]["connected_at"].as_str().expect("a text");
    assert!(connected_at.starts_with("20") && connected_at.ends_with('Z'), "{connected_at}");
    for _ in 0..2 {
        ada.delete("socket-7").await.is(204);
    }
    assert_eq!(bob.list().await, (1, vec!["bob/phone".into()]));
}

/// H1, SG8: users and organisations cannot touch or see each other's connections, whatever these are called.
#[tokio::test]
async fn nobody_touches_anothers_connection() {
    let server = TestServer::start().await;
    let (ada, bob) = (User::of(&server, "acme", "ada").await, User::of(&server, "acme", "ada:x").await);
    ada.put("x%3Ac").await.is(201);
    ada.put("c").await.is(201);
    bob.put("c").await.is(201);
    bob.delete("x:c").await.is(204);
    bob.delete("c").await.is(204);
    assert_eq!(ada.list().await, (2, vec!["ada/c".into(), "ada/x:c".into()]));
    let eve = User::of(&server, "globex", "ada").await;
    eve.put("c").await.is_problem(403, "org_mismatch");
    eve.delete("c").await.is_problem(403, "org_mismatch");
    let elsewhere = server.get("/v1/presence").host("globex.localhost").bearer(&eve.token).send().await;
    assert_eq!(elsewhere.is(200).body, json!({ "count": 0, "members": [] }));
    for method in [Method::PUT, Method::DELETE] {
        let nobody = server.ask(method, "/o/acme/v1/presence/c").send().await;
        nobody.is_problem(401, "unauthorized");
    }
    server.get("/o/acme/v1/presence").send().await.is_problem(401, "unauthorized");
    assert_eq!(ada.list().await.0, 2);
}

/// H1, A7: names are what their users like; what can be none is refused by name.
#[tokio::test]
async fn names_are_anything_that_can_be_one() {
    let server = TestServer::start().await;
    let ada = User::of(&server, "acme", "ada").await;
    for (path, name) in [
        ("a%2Fb", "a/b"),
        ("%7Btab%7D", "{tab}"),
        ("100%25", "100%"),
        ("%F0%9F%A6%80", "\u{1F980}"),
        ("..%3A", "..:"),
    ] {
        let put = ada.put(path).await;
        assert_eq!(put.is(201).body["connection"], name);
        assert_eq!(ada.list().await.1, [format!("ada/{name}")]);
        ada.delete(path).await.is(204);
    }
    for path in ["a%0Ab".to_owned(), "%FF".to_owned(), "x".repeat(513), "%3A".repeat(300)] {
        for answer in [ada.put(&path).await, ada.delete(&path).await] {
            answer.is_problem(400, "invalid_connection");
        }
    }
    ada.ask(Method::GET, "/v1/presence/c").await.is_problem(405, "method_not_allowed");
    assert_eq!(ada.list().await.0, 0);
}

/// H1: of many the first thousand are shown, and all are counted.
#[tokio::test]
async fn of_many_the_first_thousand_are_shown() {
    let server = TestServer::start().await;
    let ada = User::of(&server, "acme", "ada").await;
    for n in 0..1_005 {
        ada.put(&format!("{n:04}")).await.is(201);
    }
    let (count, shown) = ada.list().await;
    assert_eq!((count, shown.len()), (1_005, 1_000));
    assert_eq!((shown[0].as_str(), shown[999].as_str()), ("ada/0000", "ada/0999"));
}

/// L4: a server that stops releases the connections that were kept alive through it.
#[tokio::test]
async fn a_server_that_stops_releases_its_connections() {
    let server = TestServer::start().await;
    let ada = User::of(&server, "acme", "ada").await;
    for connection in ["one", "two", "three"] {
        ada.put(connection).await.is(201);
    }
    ada.delete("two").await.is(204);
    let id = server.org("acme").await.body["id"].as_str().expect("an id").to_owned();
    let (acme, presence) = (TenantId::new(id).expect("an id"), server.state.app().presence());
    assert_eq!(presence.count(&acme).await.expect("counted"), 2);
    server.state.finish(Duration::from_secs(5)).await;
    assert_eq!(presence.count(&acme).await.expect("counted"), 0);
    assert!(server.state.connections().is_empty());
}
