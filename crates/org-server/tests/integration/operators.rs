//! The routes of operators: where they are answered, and what every answer says.

use http::Method;

use crate::common::{ADMIN, TestServer};

/// What operators ask for is answered on their own listener, and nowhere on the public one, whatever the spelling and
/// whoever asks; whether the process is alive is answered on both.
#[tokio::test]
async fn operator_routes_are_not_public() {
    let server = TestServer::start().await;
    for path in ["/metrics", "/readyz", "/admin/orgs", "/admin/cache", "/admin"] {
        for prefix in ["", "/o/acme", "/o/acme/o/acme", "/o/nobody", "/"] {
            for host in ["acme.localhost", "127.0.0.1:8080"] {
                let path = format!("{prefix}{path}");
                let asked = server.public(Method::GET, &path).host(host).bearer(ADMIN).send().await;
                assert_eq!(asked.is(404).header("content-type"), "application/problem+json", "{path}");
            }
        }
    }
    for path in ["/metrics", "/readyz", "/admin/orgs", "/healthz"] {
        server.operators(Method::GET, path).bearer(ADMIN).send().await.is(200);
        server.operators(Method::GET, &format!("/o/acme{path}")).bearer(ADMIN).send().await.is(404);
    }
    server.operators(Method::GET, "/v1/org").host("acme.localhost").send().await.is_problem(404, "not_found");
    server.public(Method::GET, "/healthz").send().await.is(200);
    server.public(Method::GET, "/o/acme/healthz").send().await.is_problem(404, "not_found");
    server.public(Method::POST, "/healthz").send().await.is_problem(405, "method_not_allowed");
}

/// No answer is kept by anybody on the way, and none is taken for another type than it says.
#[tokio::test]
async fn no_answer_is_kept_or_sniffed() {
    let server = TestServer::start().await;
    let (_, token) = server.token("acme", serde_json::json!({ "user": "ada" })).await;
    for answer in [
        server.org("acme").await,
        server.org("nobody").await,
        server.get("/healthz").send().await,
        server.get("/o/acme/v1/me").bearer(&token).send().await,
        server.get("/o/acme/v1/me").send().await,
        server.admin(Method::GET, "/admin/orgs").send().await,
        server.operators(Method::GET, "/admin/orgs").send().await,
        server.operators(Method::GET, "/readyz").send().await,
        server.operators(Method::GET, "/nowhere").send().await,
    ] {
        assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{answer:?}");
    }
}
