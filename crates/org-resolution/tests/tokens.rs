//! Tokens: what is kept of them and for how long, revocation, and requests through [`TokenLayer`].

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use axum::routing::get as on_get;
use cache_core::prelude::*;
use cache_core::{BackendError, BackendErrorKind, Decision, LockError, Quota, RateLimitError};
use concurrency::LocalConcurrencyService;
use org_resolution::layer::{AT_ONCE_WHEN_FAILING, OrgService};
use org_resolution::token::{MAX_TOKEN_BYTES, TokenDigest, refresh_once};
use org_resolution::{
    OrgLayer, SourceConfig, Strategy, Token, TokenError, TokenLayer, TokenPolicy, TokenService,
};
use secrecy::{ExposeSecret, SecretString};
use support::{Directory, Fleet, Validator, call, fleet, get, org, org_id, problem, resolver, text, tokens};
use tenant_cache::RequestScope;
use tower::Layer;

const TOKEN: &str = "s3cr3t-bearer-of-ann";

fn secret(text: &str) -> SecretString {
    SecretString::from(text)
}

/// A validator that knows [`TOKEN`] of Ann at acme, valid for an hour.
fn ann(fleet: &Fleet) -> Arc<Validator> {
    let validator = Arc::new(Validator::default());
    validator.issue(TOKEN, "id-acme", "ann", fleet.hand.clock().unix_ms() + 3_600_000);
    validator
}

/// K7: an entry stands under the full digest, and the token is in neither key nor value.
#[tokio::test]
async fn the_token_is_in_no_key_and_no_value() {
    let fleet = fleet();
    let service = tokens(&fleet, &fleet.here, &ann(&fleet));
    let found = service.validate(&org("acme"), &secret(TOKEN)).await.unwrap();
    assert_eq!(found.user.as_str(), "ann");
    let key = format!("token:{}", TokenDigest::of(&org_id("id-acme"), "", &secret(TOKEN)));
    let stored = fleet.far.get_bytes(&key).await.unwrap().expect("cached under its digest");
    assert!(!key.contains("s3cr3t") && !String::from_utf8_lossy(&stored).contains("s3cr3t"));
    assert!(!format!("{service:?}").contains("s3cr3t"));
}

/// K7: it is asked for once while it is cached, on every instance, and again after the cap.
#[tokio::test]
async fn a_token_is_validated_once_per_cap() {
    let fleet = fleet();
    let validator = ann(&fleet);
    let (here, there) = (tokens(&fleet, &fleet.here, &validator), tokens(&fleet, &fleet.there, &validator));
    for service in [&here, &there, &here] {
        service.validate(&org("acme"), &secret(TOKEN)).await.unwrap();
    }
    assert_eq!(validator.gate.calls(), 1);
    fleet.hand.advance(Duration::from_secs(301));
    here.validate(&org("acme"), &secret(TOKEN)).await.unwrap();
    assert_eq!(validator.gate.calls(), 2);
}

/// K7: the end is checked on every hit: an entry that is still cached does not make an ended token valid.
#[tokio::test]
async fn an_ended_token_is_refused_also_from_the_cache() {
    let fleet = fleet();
    let validator = Arc::new(Validator::default());
    validator.issue(TOKEN, "id-acme", "ann", fleet.hand.clock().unix_ms() + 60_000);
    // A service whose clock runs while that of the caches stands: its entries never end by themselves.
    let late = cache_core::ManualClock::new();
    let service =
        TokenService::new(&fleet.here, validator.clone(), TokenPolicy::default(), late.clock()).unwrap();
    service.validate(&org("acme"), &secret(TOKEN)).await.unwrap();
    assert!(service.knows(&org("acme"), &secret(TOKEN)));
    late.advance(Duration::from_secs(61));
    let refused = service.validate(&org("acme"), &secret(TOKEN)).await.unwrap_err();
    assert!(matches!(refused, TokenError::Invalid), "{refused}");
    assert!(!service.knows(&org("acme"), &secret(TOKEN)));
    assert_eq!(validator.gate.calls(), 1, "it was a hit");
}

/// K7, SE1: a validation that began before the revocation leaves nothing behind, anywhere, and nobody who comes
/// afterwards joins it.
#[tokio::test]
async fn revocation_wins_over_a_validation_in_flight() {
    let fleet = fleet();
    let validator = ann(&fleet);
    let (here, there) = (tokens(&fleet, &fleet.here, &validator), tokens(&fleet, &fleet.there, &validator));
    validator.gate.close();
    let validate = |service: &TokenService| {
        let service = service.clone();
        tokio::spawn(async move { service.validate(&org("acme"), &secret(TOKEN)).await })
    };
    let slow = validate(&there);
    validator.gate.holds(1).await;
    validator.revoke(TOKEN);
    here.revoke(&TokenDigest::of(&org_id("id-acme"), "", &secret(TOKEN))).await.unwrap();
    let later = validate(&there);
    validator.gate.holds(2).await;
    validator.gate.open();
    assert!(slow.await.unwrap().is_ok(), "its caller asked before the revocation");
    for refused in [later.await.unwrap(), validate(&here).await.unwrap(), validate(&there).await.unwrap()] {
        assert!(matches!(refused, Err(TokenError::Invalid)), "{refused:?}");
    }
}

/// K7: a validator that fails is no verdict, and is not remembered; a bad token is, in this process only.
#[tokio::test]
async fn a_failing_validator_is_not_remembered() {
    let fleet = fleet();
    let validator = ann(&fleet);
    let service = tokens(&fleet, &fleet.here, &validator);
    validator.gate.set_broken(true);
    let failed = service.validate(&org("acme"), &secret(TOKEN)).await.unwrap_err();
    assert!(matches!(failed, TokenError::Cache(_)), "{failed:?}");
    assert!(!format!("{failed} {failed:?}").contains("s3cr3t"));
    validator.gate.set_broken(false);
    service.validate(&org("acme"), &secret(TOKEN)).await.unwrap();
    assert_eq!(validator.gate.calls(), 2);
    for _ in 0..2 {
        service.validate(&org("acme"), &secret("guess")).await.unwrap_err();
    }
    assert_eq!(validator.gate.calls(), 3);
    let key = format!("token:{}", TokenDigest::of(&org_id("id-acme"), "", &secret("guess")));
    assert_eq!(fleet.far.get_bytes(&key).await.unwrap(), None);
}

/// K7: a token beyond the limit is refused without being looked at; one at the limit is looked at.
#[tokio::test]
async fn a_huge_token_is_refused_unseen() {
    let fleet = fleet();
    let validator = ann(&fleet);
    let service = tokens(&fleet, &fleet.here, &validator);
    let refused = service.validate(&org("acme"), &secret(&"x".repeat(MAX_TOKEN_BYTES + 1))).await;
    assert!(matches!(refused, Err(TokenError::TooLong)));
    assert_eq!(validator.gate.calls(), 0);
    let refused = service.validate(&org("acme"), &secret(&"x".repeat(MAX_TOKEN_BYTES))).await;
    assert!(matches!(refused, Err(TokenError::Invalid)));
    assert_eq!(validator.gate.calls(), 1);
}

/// K7: a cap beyond an hour, or none, is refused when the service is made.
#[tokio::test]
async fn the_cap_has_a_cap() {
    let fleet = fleet();
    for cap in [Duration::ZERO, TokenPolicy::MAX_CAP + Duration::from_secs(1)] {
        let policy = TokenPolicy::default().with_cap(cap);
        let made = TokenService::new(&fleet.here, ann(&fleet), policy, fleet.hand.clock());
        assert!(matches!(made, Err(CacheError::Configuration { .. })), "{cap:?}");
    }
}

/// K8: many who find the token stale refresh it once, and all get the new one.
#[tokio::test]
async fn a_crowd_refreshes_once() {
    let (locks, refreshes) = (LocalConcurrencyService::default(), AtomicUsize::new(0));
    let current = std::sync::Mutex::new(None);
    let one = || {
        refresh_once::<_, LockError>(&locks, "session-of-ann", async || Ok(*current.lock().unwrap()), async {
            tokio::task::yield_now().await;
            let fresh = refreshes.fetch_add(1, Ordering::SeqCst) + 1;
            *current.lock().unwrap() = Some(fresh);
            Ok(fresh)
        })
    };
    let all = futures_util::future::join_all((0..50).map(|_| one())).await;
    assert!(all.into_iter().all(|got| got.unwrap() == 1));
    assert_eq!((refreshes.load(Ordering::SeqCst), locks.kept()), (1, 0));
}

/// K8: a refresh that fails is the next caller's turn, and one that is dropped leaves no lock.
#[tokio::test]
async fn a_failed_or_dropped_refresh_leaves_no_lock() {
    let locks = LocalConcurrencyService::default();
    let stale = async || Ok::<Option<u32>, LockError>(None);
    let failing = refresh_once(&locks, "s", stale, async { Err(LockError::Lost) }).await;
    assert!(failing.is_err());
    let hanging = refresh_once(&locks, "s", stale, std::future::pending::<Result<u32, LockError>>());
    assert!(tokio::time::timeout(Duration::from_millis(20), hanging).await.is_err());
    assert_eq!(refresh_once(&locks, "s", stale, async { Ok(7) }).await.unwrap(), 7);
}

fn app(
    fleet: &Fleet,
    validator: &Arc<Validator>,
    layer: impl Fn(TokenLayer) -> TokenLayer,
) -> OrgService<Router> {
    let directory = Directory::with([org("acme"), org("globex")]);
    let guarded = layer(TokenLayer::new(tokens(fleet, &fleet.here, validator)));
    let me = on_get(|token: Token| async move {
        let user = RequestContext::current().and_then(|context| context.user.clone());
        format!("{} {:?}", token.user, user.map(|user| user.to_string()))
    });
    let routes = Router::new().route("/me", me.layer(guarded));
    let config = SourceConfig::new(vec![Strategy::host("example.com")]);
    OrgLayer::new(config, resolver(&fleet.here, &directory)).layer(routes)
}

fn me(host: &str, authorization: &str) -> Request {
    get("/me", "192.0.2.1", &[("host", host), ("authorization", authorization)])
}

/// K9: no credentials, bad ones, and those of another organisation each have their answer.
#[tokio::test]
async fn every_credential_has_its_answer() {
    let fleet = fleet();
    let app = app(&fleet, &ann(&fleet), |layer| layer);
    let good = call(&app, me("acme.example.com", &format!("bearer {TOKEN}"))).await;
    assert_eq!(text(good).await, "ann Some(\"ann\")");

    let bare = get("/me", "192.0.2.1", &[("host", "acme.example.com")]);
    for none in [bare, me("acme.example.com", "Basic YTpi"), me("acme.example.com", TOKEN)] {
        let refused = call(&app, none).await;
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        assert_eq!(problem(refused).await, (401, "unauthorized".into()));
    }
    let huge = format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES + 1));
    let mut twice = me("acme.example.com", &format!("Bearer {TOKEN}"));
    twice.headers_mut().append("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    let bad = [
        me("acme.example.com", "Bearer guess"),
        me("acme.example.com", "Bearer  "),
        me("acme.example.com", &huge),
    ];
    for bad in bad.into_iter().chain([twice]) {
        let refused = call(&app, bad).await;
        assert_eq!(refused.headers()["www-authenticate"], "Bearer error=\"invalid_token\"");
        assert_eq!(problem(refused).await, (401, "invalid_token".into()));
    }
    let elsewhere = call(&app, me("globex.example.com", &format!("Bearer {TOKEN}"))).await;
    assert_eq!(problem(elsewhere).await, (403, "org_mismatch".into()));
}

/// K7: with the validator away a token is neither good nor bad: 503, and nothing of the inside.
#[tokio::test]
async fn a_validator_away_is_503() {
    let fleet = fleet();
    let validator = ann(&fleet);
    validator.gate.set_broken(true);
    let refused =
        call(&app(&fleet, &validator, |layer| layer), me("acme.example.com", &format!("Bearer {TOKEN}")))
            .await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(problem(refused).await, (503, "store_unavailable".into()));
}

/// Failures are counted per organisation and client, and too many of them are answered with 429; a valid token passes
/// all the same, also one that was never seen here, and other clients and organisations are not concerned.
#[tokio::test]
async fn guessing_is_limited_and_a_valid_token_always_passes() {
    let fleet = fleet();
    let validator = ann(&fleet);
    validator.issue("late", "id-acme", "bob", u64::MAX);
    let limits: Arc<dyn RateLimits> = Arc::new(LocalConcurrencyService::default());
    let app = app(&fleet, &validator, |layer| layer.limiting_failures(limits.clone(), Quota::auth()));
    assert!(call(&app, me("acme.example.com", &format!("Bearer {TOKEN}"))).await.status().is_success());
    for guess in 0..5 {
        let refused = call(&app, me("acme.example.com", &format!("Bearer guess-{guess}"))).await;
        assert_eq!(problem(refused).await.0, 401, "{guess}");
    }
    let refused = call(&app, me("acme.example.com", "Bearer guess-5")).await;
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 800);
    assert_eq!(problem(refused).await, (429, "rate_limited".into()));
    for token in ["late", TOKEN] {
        let good = call(&app, me("acme.example.com", &format!("Bearer {token}"))).await;
        assert!(good.status().is_success(), "{token}: {}", good.status());
    }
    // Also when memory has forgotten it.
    fleet.hand.advance(Duration::from_secs(60));
    let good = call(&app, me("acme.example.com", "Bearer late")).await;
    assert!(good.status().is_success(), "{}", good.status());
    let elsewhere = call(&app, me("globex.example.com", "Bearer guess-6")).await;
    assert_eq!(problem(elsewhere).await.0, 401);
}

/// Of clients that failed too often few tokens are validated at the same time; those of others do not wait for them.
#[tokio::test]
async fn validations_for_the_failing_are_few_at_a_time() {
    let fleet = fleet();
    let validator = ann(&fleet);
    validator.issue("late", "id-acme", "bob", u64::MAX);
    let limits: Arc<dyn RateLimits> = Arc::new(LocalConcurrencyService::default());
    let app = app(&fleet, &validator, |layer| layer.limiting_failures(limits.clone(), Quota::auth()));
    for guess in 0..5 {
        call(&app, me("acme.example.com", &format!("Bearer guess-{guess}"))).await;
    }
    let before = validator.gate.calls();
    validator.gate.close();
    let guess = |n: usize| {
        let app = app.clone();
        tokio::spawn(
            async move { call(&app, me("acme.example.com", &format!("Bearer more-{n}"))).await.status() },
        )
    };
    let mut guesses: Vec<_> = (0..40).map(guess).collect();
    validator.gate.holds(AT_ONCE_WHEN_FAILING).await;
    let other = [("host", "acme.example.com"), ("authorization", "Bearer late")];
    let other = tokio::spawn({
        let app = app.clone();
        async move { call(&app, get("/me", "192.0.2.2", &other)).await.status() }
    });
    validator.gate.holds(AT_ONCE_WHEN_FAILING + 1).await;
    assert_eq!(validator.gate.calls() - before, AT_ONCE_WHEN_FAILING + 1);
    validator.gate.open();
    assert_eq!(other.await.unwrap(), 200);
    for guess in guesses.drain(..) {
        assert_eq!(guess.await.unwrap(), 429);
    }
}

/// What cannot be a token is refused without a look-up, and counts as a failure.
#[tokio::test]
async fn what_cannot_be_a_token_costs_no_look_up() {
    let fleet = fleet();
    let validator = ann(&fleet);
    let plausible = |token: &SecretString| token.expose_secret().starts_with("s3cr3t");
    let service = tokens(&fleet, &fleet.here, &validator).refusing_unless(plausible);
    let refused = service.validate(&org("acme"), &secret("guess")).await;
    assert!(matches!(refused, Err(TokenError::Invalid)), "{refused:?}");
    assert_eq!(validator.gate.calls(), 0);
    let key = format!("token:{}", TokenDigest::of(&org_id("id-acme"), "", &secret("guess")));
    assert_eq!(fleet.far.get_bytes(&key).await.unwrap(), None);
    service.validate(&org("acme"), &secret(TOKEN)).await.unwrap();
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

/// G4: with the store of a closed limit away bad tokens get 503, and good ones pass.
#[tokio::test]
async fn a_closed_limit_that_is_away_refuses_bad_tokens_only() {
    let fleet = fleet();
    let app = app(&fleet, &ann(&fleet), |layer| layer.limiting_failures(Arc::new(Away), Quota::auth()));
    let refused = call(&app, me("acme.example.com", "Bearer guess")).await;
    assert_eq!(refused.headers()["retry-after"], "2");
    assert_eq!(problem(refused).await, (503, "store_unavailable".into()));
    assert!(call(&app, me("acme.example.com", &format!("Bearer {TOKEN}"))).await.status().is_success());
}

/// K7, M3: whatever becomes of a request, no log line and no span repeats its token or the full digest.
#[tokio::test]
async fn no_log_repeats_a_token() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let (fleet, bearer) = (fleet(), format!("Bearer {TOKEN}"));
    let validator = ann(&fleet);
    let app = app(&fleet, &validator, |layer| layer.limiting_failures(Arc::new(Away), Quota::auth()));
    validator.gate.set_broken(true);
    assert_eq!(call(&app, me("acme.example.com", &bearer)).await.status(), 503);
    validator.gate.set_broken(false);
    assert_eq!(call(&app, me("acme.example.com", &bearer)).await.status(), 200);
    // A mismatch is a failure that cannot be counted.
    assert_eq!(call(&app, me("globex.example.com", &bearer)).await.status(), 503);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("a token could not be validated"), "the log is read at all: {text}");
    let digest = TokenDigest::of(&org_id("id-acme"), "", &secret(TOKEN)).to_string();
    assert!(!text.contains("s3cr3t") && !text.contains(&digest), "{text}");
}

/// A log that is kept.
#[derive(Debug, Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics while writing").extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// K7: a digest is shown in part only: in full it would link a log to the cache.
#[test]
fn a_digest_is_shown_in_part() {
    let digest = TokenDigest::of(&org_id("a"), "", &secret(TOKEN));
    assert!(!format!("{digest:?}").contains(&digest.to_string()));
}

/// What an application lets its cache domains begin with is not for tokens: none is served stale, and none is refreshed
/// without the caller who has it.
#[tokio::test]
async fn defaults_of_the_application_are_not_for_tokens() {
    let fleet = fleet();
    let validator = ann(&fleet);
    let mut lax = tenant_cache::Policy::default();
    lax.stale_if_error = Duration::from_secs(24 * 60 * 60);
    lax.stale_while_revalidate = Duration::from_secs(24 * 60 * 60);
    lax.refresh_ahead = Some(0.1);
    let far: Arc<dyn CacheService> = fleet.far.clone();
    let caches = tenant_cache::Caches::builder().far(far).clock(fleet.hand.clock()).defaults(lax);
    let service = tokens(&fleet, &caches.build().unwrap(), &validator);
    for _ in 0..4 {
        service.validate(&org("acme"), &secret(TOKEN)).await.unwrap();
        fleet.hand.advance(Duration::from_secs(50));
        tokio::task::yield_now().await;
    }
    validator.gate.set_broken(true);
    fleet.hand.advance(Duration::from_secs(301));
    let failed = service.validate(&org("acme"), &secret(TOKEN)).await.unwrap_err();
    assert!(!matches!(failed, TokenError::Invalid), "{failed}");
}

/// A token without a scope that the routes ask for is told which one, and that it is not the token's validity.
#[tokio::test]
async fn scopes_are_required_at_the_door() {
    let fleet = fleet();
    let validator = ann(&fleet);
    let ask = || me("acme.example.com", &format!("Bearer {TOKEN}"));
    let reading = app(&fleet, &validator, |layer| layer.requiring(["read"]));
    assert!(call(&reading, ask()).await.status().is_success());
    let fleet = support::fleet();
    let writing = app(&fleet, &ann(&fleet), |layer| layer.requiring(["read", "write"]));
    let refused = call(&writing, ask()).await;
    let challenge = "Bearer error=\"insufficient_scope\", scope=\"read write\"";
    assert_eq!(refused.headers()["www-authenticate"], challenge);
    assert_eq!(problem(refused).await, (403, "insufficient_scope".into()));
    let guess = call(&writing, me("acme.example.com", "Bearer guess")).await;
    assert_eq!(problem(guess).await, (401, "invalid_token".into()));
}
