//! The routes of operators: where they are answered, and what every answer says.

use std::sync::{Arc, Mutex};

use http::Method;
use serde_json::json;

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

/// Two credentials are none: which one counts would depend on who reads them.
#[tokio::test]
async fn two_credentials_are_refused() {
    let server = TestServer::start().await;
    for (first, second) in [(ADMIN, "not-the-admin-token"), ("not-the-admin-token", ADMIN), (ADMIN, ADMIN)] {
        let asked = server.operators(Method::GET, "/admin/orgs").bearer(first).bearer(second);
        asked.send().await.is_problem(401, "invalid_token");
    }
}

/// Every write of an operator leaves one line that says what was done, from where, and with what outcome; reads and
/// refused credentials leave none, and no line holds a secret.
#[tokio::test]
async fn every_admin_write_is_audited() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let server = TestServer::start_with(&[("TRUSTED_PROXIES", "10.0.0.0/8")]).await;
    let _logging = tracing::subscriber::set_default(subscriber);
    let write = |method, path: &str| {
        server.admin(method, path).from("10.0.0.1").header("x-forwarded-for", "203.0.113.9")
    };
    let secret = json!({ "secrets": { "k": "hunter2" } });
    write(Method::PUT, "/admin/orgs/acme").json(&secret).send().await.is(200);
    write(Method::DELETE, "/admin/orgs/nobody").send().await.is(404);
    write(Method::POST, "/admin/orgs/acme/tokens").json(&json!({ "user": "ada" })).send().await.is(201);
    write(Method::POST, "/admin/cache/invalidate").json(&json!({ "domain": "org" })).send().await.is(200);
    let long = format!("/admin/orgs/x{}", "é".repeat(300));
    write(Method::DELETE, &long).send().await.is(400);
    write(Method::GET, "/admin/orgs").send().await.is(200);
    server.operators(Method::DELETE, "/admin/orgs/acme").bearer("guess").send().await.is(401);
    let text = log.text();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(" audit: ")).collect();
    let expected = [
        ("PUT", "/admin/orgs/acme", 200),
        ("DELETE", "/admin/orgs/nobody", 404),
        ("POST", "/admin/orgs/acme/tokens", 201),
        ("POST", "/admin/cache/invalidate", 200),
        ("DELETE", &long[..255], 400),
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, (method, path, status)) in lines.iter().zip(expected) {
        for part in [
            format!("method={method} path=\"{path}\""),
            "client=203.0.113.9".into(),
            format!("outcome={status}"),
        ] {
            assert!(line.contains(&part), "{part} in {line}");
        }
    }
    assert!(!text.contains("hunter2") && !text.contains(ADMIN) && !text.contains("ort_"), "{text}");
}

/// A write whose client was given up is in the audit all the same: it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_given_up_is_audited() {
    let log = Log::default();
    let server = TestServer::start_with(&[("REQUEST_TIMEOUT", "100ms")]).await;
    let holder = crate::common::Holder::enter(&server).await;
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let logging = tracing::subscriber::set_default(subscriber);
    server.put_org("acme", json!({ "name": "New" })).await.is(503);
    drop(logging);
    holder.leave().await;
    let text = log.text();
    assert!(text.contains(" audit: ") && text.contains("outcome=\"given up"), "{text}");
}

/// A log that is kept.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panics while writing")).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics while writing").extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
