//! Requests through [`RateLimitLayer`].

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::routing::get as on_get;
use cache_core::{BackendError, BackendErrorKind, Decision, ManualClock, Quota, RateLimitError, RateLimits};
use concurrency::LocalConcurrencyService;
use org_resolution::{OrgLayer, RateLimitLayer, SourceConfig, Strategy};
use support::{Directory, call, fleet, get, org, problem, resolver, text};
use tower::Layer;

fn bare(limits: impl RateLimits + 'static, quota: Quota) -> Router {
    Router::new().route("/", on_get(|| async { "ok" })).layer(RateLimitLayer::new(Arc::new(limits), quota))
}

/// G6: every answer says how it stands; over the limit it is 429 with `Retry-After`, and its time helps.
#[tokio::test]
async fn every_answer_says_how_it_stands() {
    let hand = ManualClock::new();
    let limits = LocalConcurrencyService::builder().clock(hand.clock()).build();
    let app = bare(limits, Quota::token_bucket("api", 2, Duration::from_secs(60)));
    let ask = || call(&app, get("/", "192.0.2.1", &[]));
    for remaining in [1, 0] {
        let answer = ask().await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["ratelimit-policy"], "\"api\";q=2;w=60");
        assert_eq!(answer.headers()["ratelimit"], format!("\"api\";r={remaining};t=30"));
    }
    let refused = ask().await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["ratelimit"], "\"api\";r=0;t=30");
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert_eq!(wait, 30);
    let body: serde_json::Value = serde_json::from_str(&text(refused).await).unwrap();
    assert_eq!(body["code"], "rate_limited");
    assert_eq!(body["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(body["violated-policies"], serde_json::json!(["api"]));
    hand.advance(Duration::from_secs(wait));
    assert_eq!(ask().await.status(), 200);
}

/// G1, G6: a request costs what its quota says.
#[tokio::test]
async fn a_request_costs_what_its_quota_says() {
    let app = bare(LocalConcurrencyService::default(), Quota::mutation());
    let answer = call(&app, get("/", "192.0.2.1", &[])).await;
    assert!(answer.headers()["ratelimit"].to_str().unwrap().starts_with("\"mutation\";r=95;"));
}

/// G3, SG8: one organisation's or client's use is not another's.
#[tokio::test]
async fn callers_do_not_share_a_limit() {
    let quota = Quota::token_bucket("api", 1, Duration::from_secs(60));
    let config = SourceConfig::new(vec![Strategy::host("example.com")]).optional();
    let resolver = resolver(&fleet().here, &Directory::with([org("acme"), org("globex")]));
    let app = OrgLayer::new(config, resolver).layer(bare(LocalConcurrencyService::default(), quota));
    let status = |host: &'static str, peer: &'static str| {
        let app = &app;
        async move { call(app, get("/", peer, &[("host", host)])).await.status().as_u16() }
    };
    for (host, peer) in [
        ("acme.example.com", "192.0.2.1"),
        ("acme.example.com", "192.0.2.2"),
        ("globex.example.com", "192.0.2.1"),
        ("example.com", "192.0.2.1"),
    ] {
        assert_eq!(status(host, peer).await, 200, "{host} {peer}");
        assert_eq!(status(host, peer).await, 429, "{host} {peer}");
    }
}

/// G6: limits around one another each say how they stand.
#[tokio::test]
async fn several_limits_are_one_list() {
    let inner = bare(LocalConcurrencyService::default(), Quota::api());
    let app =
        RateLimitLayer::new(Arc::new(LocalConcurrencyService::default()), Quota::mutation()).layer(inner);
    let answer = call(&app, get("/", "192.0.2.1", &[])).await;
    let policies: Vec<_> = answer.headers().get_all("ratelimit-policy").iter().collect();
    assert_eq!(policies, ["\"api\";q=100;w=60", "\"mutation\";q=100;w=60"]);
}

/// A store of limits that is away.
#[derive(Debug)]
struct Away;

#[async_trait]
impl RateLimits for Away {
    async fn check(&self, _: &Quota, _: &str, _: u32) -> Result<Decision, RateLimitError> {
        let source = BackendError::new(BackendErrorKind::Unavailable, "check", "db-7 refused");
        Err(RateLimitError::Unavailable { retry_after: Duration::from_secs(2), source })
    }
}

/// G4: a closed limit whose store is away is 503; the policy is still told, how it stands is not known.
#[tokio::test]
async fn a_closed_limit_that_is_away_is_503() {
    let refused = call(&bare(Away, Quota::auth()), get("/", "192.0.2.1", &[])).await;
    assert_eq!(refused.headers()["retry-after"], "2");
    assert_eq!(refused.headers()["ratelimit-policy"], "\"auth\";q=5;w=900");
    assert!(!refused.headers().contains_key("ratelimit"));
    assert_eq!(problem(refused).await, (503, "store_unavailable".into()));
}
