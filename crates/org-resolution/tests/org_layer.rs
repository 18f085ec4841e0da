//! Requests through [`OrgLayer`]: who is found, who is refused, and what the handler sees.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::get as on_get;
use axum::{Extension, Router};
use cache_core::{Quota, RateLimits, RequestContext};
use concurrency::LocalConcurrencyService;
use http::HeaderName;
use org_resolution::layer::{ClientIp, OrgService, Resolution};
use org_resolution::source::OrgClaim;
use org_resolution::{Org, OrgContext, OrgLayer, ResolvedBy, SourceConfig, Strategy};
use support::{Directory, call, fleet, get, org, problem, resolver, text, with_status};
use tenant_cache::RequestScope;
use tower::{Layer, service_fn};

fn routes() -> Router {
    Router::new()
        .route(
            "/who",
            on_get(|org: Org, Extension(resolution): Extension<Resolution>| async move {
                format!("{} by {:?}", org.slug, resolution.by)
            }),
        )
        .route("/maybe", on_get(|org: Option<Org>| async move { org.map_or("-".into(), |o| o.name.clone()) }))
        .route("/tenant", on_get(tenant))
        .route(
            "/status",
            on_get(|found: Extension<Resolution>| async move {
                found.cache_status().to_str().unwrap().to_owned()
            }),
        )
        .route("/healthz/deep", on_get(tenant))
        .route("/query", on_get(|request: Request| async move { request.uri().to_string() }))
}

async fn tenant() -> String {
    let context = RequestContext::current();
    context.map_or("-".into(), |c| format!("{} {:?} {:?}", c.tenant, c.client_ip, c.request_id))
}

fn config() -> SourceConfig {
    let strategies = vec![
        Strategy::host("example.com"),
        Strategy::CustomDomain,
        Strategy::Path,
        Strategy::Header(HeaderName::from_static("x-org-slug")),
        Strategy::Claim,
    ];
    SourceConfig::new(strategies).trusting("10.0.0.0/8".parse().unwrap()).exempting("/healthz")
}

fn app(config: SourceConfig, directory: &Arc<Directory>) -> OrgService<Router> {
    OrgLayer::new(config, resolver(&fleet().here, directory)).layer(routes())
}

fn acme_and_globex() -> Arc<Directory> {
    let globex = OrgContext { custom_domain: Some("shop.globex.test".into()), ..org("globex") };
    Directory::with([org("acme"), globex])
}

fn at(host: &str, path: &str) -> Request {
    get(path, "192.0.2.1", &[("host", host)])
}

async fn answer(app: &OrgService<Router>, request: Request) -> String {
    let response = call(app, request).await;
    assert!(response.status().is_success(), "{}", response.status());
    text(response).await
}

/// K1: each strategy finds its organisation, and which one won is recorded.
#[tokio::test]
async fn each_strategy_finds_its_organisation() {
    let app = app(config(), &acme_and_globex());
    assert_eq!(answer(&app, at("ACME.example.com:8080", "/who")).await, "acme by Host");
    assert_eq!(answer(&app, at("shop.globex.test.", "/who")).await, "globex by CustomDomain");
    assert_eq!(answer(&app, at("example.com", "/o/acme/who")).await, "acme by Path");
    let proxied = get("/who", "10.0.0.1", &[("x-org-slug", "globex")]);
    assert_eq!(answer(&app, proxied).await, "globex by Header");
    let mut claimed = at("example.com", "/who");
    claimed.extensions_mut().insert(OrgClaim(org("globex").id));
    assert_eq!(answer(&app, claimed).await, "globex by Claim");
}

/// K1, K2: a host nobody has is no name; the base domain and what is under it are never looked up as somebody's
/// own, also when a row claims them.
#[tokio::test]
async fn a_host_of_nobody_leaves_it_to_the_next_strategy() {
    let thief = OrgContext { custom_domain: Some("example.com".into()), ..org("thief") };
    let directory = Directory::with([org("acme"), thief]);
    let app = app(config(), &directory);
    assert_eq!(answer(&app, at("nobody.test", "/o/acme/who")).await, "acme by Path");
    assert_eq!(problem(call(&app, at("nobody.test", "/who")).await).await, (404, "org_unresolved".into()));
    assert_eq!(problem(call(&app, at("example.com", "/who")).await).await, (404, "org_unresolved".into()));
    assert_eq!(
        problem(call(&app, at("www.example.com", "/who")).await).await,
        (404, "org_unresolved".into())
    );
    assert_eq!(directory.gate.calls(), 2, "the path's slug and the unknown host, once");
}

/// K4: every reason has its status and code, and an unknown status fails closed.
#[tokio::test]
async fn every_refusal_has_its_code() {
    let rows =
        [with_status("asleep", "suspended"), with_status("gone", "deleted"), with_status("odd", "frozen")];
    let app = app(config(), &Directory::with(rows));
    for (host, path, status, code) in [
        ("nobody.example.com", "/who", 404, "org_not_found"),
        ("gone.example.com", "/who", 404, "org_not_found"),
        ("asleep.example.com", "/who", 403, "org_suspended"),
        ("odd.example.com", "/who", 403, "org_suspended"),
        ("a_b.example.com", "/who", 404, "invalid_slug"),
        ("a.b.example.com", "/who", 404, "invalid_slug"),
        ("example.com", "/o/a_b/who", 400, "invalid_slug"),
        ("example.com", "/who", 404, "org_unresolved"),
    ] {
        let refused = problem(call(&app, at(host, path)).await).await;
        assert_eq!(refused, (status, code.to_owned()), "{host}{path}");
    }
}

/// K4: with the database away what is unknown is 503 with `Retry-After` and nothing of the inside, what is
/// cached goes on, and the failure is not remembered.
#[tokio::test]
async fn a_database_away_is_503_for_what_is_not_cached() {
    let directory = acme_and_globex();
    let app = app(config(), &directory);
    assert_eq!(answer(&app, at("acme.example.com", "/who")).await, "acme by Host");
    directory.gate.set_broken(true);
    assert_eq!(answer(&app, at("acme.example.com", "/who")).await, "acme by Host");
    let refused = call(&app, at("globex.example.com", "/who")).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(problem(refused).await, (503, "store_unavailable".into()));
    directory.gate.set_broken(false);
    assert_eq!(answer(&app, at("globex.example.com", "/who")).await, "globex by Host");
}

/// K4: a database that hangs is given up after its time.
#[tokio::test(start_paused = true)]
async fn a_database_that_hangs_is_given_up() {
    let directory = acme_and_globex();
    directory.gate.close();
    let app = app(config(), &directory);
    let asked = tokio::time::Instant::now();
    let refused = call(&app, at("acme.example.com", "/who")).await;
    assert_eq!(problem(refused).await, (503, "store_unavailable".into()));
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
}

/// Names that nobody has are limited per client before they are looked up; names in use are answered all the same, and
/// other clients are not concerned.
#[tokio::test]
async fn invented_names_are_limited_before_the_look_up() {
    let (fleet, directory) = (fleet(), acme_and_globex());
    let limits: Arc<dyn RateLimits> = Arc::new(LocalConcurrencyService::default());
    let quota = Quota::token_bucket("names", 3, Duration::from_secs(3_600));
    let layer = OrgLayer::new(config(), resolver(&fleet.here, &directory));
    let app = layer.limiting_unknown_names(limits, quota).layer(routes());
    assert_eq!(answer(&app, at("acme.example.com", "/who")).await, "acme by Host");
    for request in
        [at("n1.example.com", "/who"), at("shop.nobody.test", "/who"), at("example.com", "/o/n2/who")]
    {
        assert_eq!(call(&app, request).await.status(), 404);
    }
    let asked = directory.gate.calls();
    for request in
        [at("n3.example.com", "/who"), at("shop.other.test", "/who"), at("example.com", "/o/n4/who")]
    {
        let refused = call(&app, request).await;
        assert!(refused.headers().contains_key("retry-after"));
        assert_eq!(problem(refused).await, (429, "rate_limited".into()));
    }
    assert_eq!(directory.gate.calls(), asked, "nothing was looked up");
    // Also when memory has forgotten it.
    fleet.hand.advance(Duration::from_secs(3_600));
    assert_eq!(answer(&app, at("acme.example.com", "/who")).await, "acme by Host");
    let elsewhere = get("/who", "192.0.2.2", &[("host", "n3.example.com")]);
    assert_eq!(problem(call(&app, elsewhere).await).await, (404, "org_not_found".into()));
    let claimed = |slug| {
        let mut request = at("example.com", "/who");
        request.extensions_mut().insert(OrgClaim(org(slug).id));
        request
    };
    assert_eq!(answer(&app, claimed("globex")).await, "globex by Claim", "a verified claim invents nothing");
}

/// K1: the path form is routed by what is left of it, with its query.
#[tokio::test]
async fn the_path_form_is_routed_by_what_is_left() {
    let app = app(config(), &acme_and_globex());
    assert_eq!(answer(&app, at("example.com", "/o/acme/query?a=%20b&c")).await, "/query?a=%20b&c");
    assert_eq!(call(&app, at("example.com", "/o/acme/nothing")).await.status(), 404);
}

/// D1: the rest of the request runs as a request of the tenant, with the client counted from the right and the
/// request's id; and nothing is left of it outside.
#[tokio::test]
async fn the_request_runs_as_its_tenant() {
    let app = app(config(), &acme_and_globex());
    let proxied = get(
        "/tenant",
        "10.0.0.1",
        &[("host", "acme.example.com"), ("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("x-request-id", "r-1")],
    );
    assert_eq!(answer(&app, proxied).await, "id-acme Some(203.0.113.9) Some(\"r-1\")");
    assert!(RequestContext::current().is_none());
}

/// D1: a service that looks around in `call`, before it has a future, is already in the request.
#[tokio::test]
async fn the_tenant_is_there_from_the_first_line() {
    let inner = service_fn(|_: Request| {
        let seen = RequestContext::current().map(|context| context.tenant.to_string());
        async move { Ok::<Response<Body>, std::convert::Infallible>(seen.unwrap_or_default().into_response()) }
    });
    let app = OrgLayer::new(config(), resolver(&fleet().here, &acme_and_globex())).layer(inner);
    assert_eq!(text(call(&app, at("acme.example.com", "/")).await).await, "id-acme");
}

/// D4, SG8: requests of many tenants at the same time each see their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_at_the_same_time_do_not_mix() {
    let app = app(config(), &acme_and_globex());
    let requests = (0..200).map(|n| {
        let (app, slug) = (app.clone(), if n % 2 == 0 { "acme" } else { "globex" });
        tokio::spawn(async move {
            let seen = answer(&app, at(&format!("{slug}.example.com"), "/tenant")).await;
            assert!(seen.starts_with(&format!("id-{slug} ")), "{seen}");
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap();
    }
}

/// K1: exempt paths need no organisation and get none, also when the request names one.
#[tokio::test]
async fn exempt_paths_belong_to_nobody() {
    let directory = acme_and_globex();
    let app = app(config(), &directory);
    assert_eq!(answer(&app, at("acme.example.com", "/healthz/deep")).await, "-");
    assert_eq!(call(&app, at("example.com", "/healthzz")).await.status(), 404);
    assert_eq!(directory.gate.calls(), 0);
}

/// A path that belongs to nobody is nobody's behind an organisation's prefix either: whoever guards such paths by their
/// beginning must not be passed by a longer spelling. The organisation is not even looked up.
#[tokio::test]
async fn an_exempt_path_behind_a_prefix_is_nowhere() {
    let directory = acme_and_globex();
    let app = app(config().exempting("/query"), &directory);
    for path in ["/o/acme/healthz/deep", "/o/acme/query", "/o/acme/query?a=b", "/o/nobody/query"] {
        let refused = problem(call(&app, at("example.com", path)).await).await;
        assert_eq!(refused, (404, "not_found".into()), "{path}");
    }
    assert_eq!(directory.gate.calls(), 0);
    assert_eq!(answer(&app, at("example.com", "/query")).await, "/query");
    assert_eq!(answer(&app, at("example.com", "/o/acme/who")).await, "acme by Path");
}

/// K5: the extractors answer from what the layer found and never from a header: required or optional.
#[tokio::test]
async fn extractors_do_not_believe_headers() {
    let app = app(config().optional(), &acme_and_globex());
    let forged = [("host", "example.com"), ("x-org-slug", "acme"), ("x-org-id", "id-acme")];
    assert_eq!(answer(&app, get("/maybe", "192.0.2.1", &forged)).await, "-");
    let refused = call(&app, get("/who", "192.0.2.1", &forged)).await;
    assert_eq!(problem(refused).await, (404, "org_unresolved".into()));
    assert_eq!(answer(&app, at("acme.example.com", "/maybe")).await, "ACME");
    let bare = Router::new().route("/", on_get(|org: Org| async move { org.name.clone() }));
    let refused = call(&bare, get("/", "192.0.2.1", &forged)).await;
    assert_eq!(problem(refused).await, (404, "org_unresolved".into()));
}

/// L2: an answer can say which tier knew the organisation.
#[tokio::test]
async fn the_tier_that_knew_is_told() {
    let (fleet, directory) = (fleet(), acme_and_globex());
    let app = |caches| OrgLayer::new(config(), resolver(caches, &directory)).layer(routes());
    let (here, there) = (app(&fleet.here), app(&fleet.there));
    let status =
        |app: OrgService<Router>| async move { answer(&app, at("acme.example.com", "/status")).await };
    assert_eq!(status(here.clone()).await, "origin; fwd=miss");
    assert_eq!(status(here).await, "near; hit");
    assert_eq!(status(there).await, "far; hit");
}

/// K1: without a peer's address no proxy can be trusted.
#[tokio::test]
async fn without_a_peer_nobody_is_trusted() {
    let app = app(config(), &acme_and_globex());
    let request = Request::builder().uri("/who").header("x-org-slug", "acme").body(Body::empty()).unwrap();
    assert!(request.extensions().get::<ClientIp>().is_none());
    assert_eq!(problem(call(&app, request).await).await, (404, "org_unresolved".into()));
}

/// K1: one tenant for everything.
#[tokio::test]
async fn a_single_tenant_is_always_found() {
    let app = app(SourceConfig::new(vec![Strategy::Static("acme".parse().unwrap())]), &acme_and_globex());
    assert_eq!(answer(&app, at("whatever.test", "/who")).await, format!("acme by {:?}", ResolvedBy::Static));
}
