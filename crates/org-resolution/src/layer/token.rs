//! The layer that asks for a valid token.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use cache_core::{Quota, RateLimitError, RateLimits, RequestContext};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, Request};
use metrics::counter;
use secrecy::SecretString;
use tenant_cache::RequestScope;
use tokio::sync::Semaphore;
use tower::{Layer, Service};

use crate::layer::{ClientIp, take_ready, within};
use crate::org::{OrgContext, OrgId};
use crate::rate_limit;
use crate::rejection::Problem;
use crate::token::{CachedToken, TokenError, TokenService};

/// Validates the bearer token of each request against its organisation.
///
/// The inner service finds an `Arc<CachedToken>` in the extensions, and the user in the [`RequestContext`].
/// No credentials: 401 `unauthorized`; bad ones: 401 `invalid_token`; those of another organisation: 403
/// `org_mismatch`; those without a [required](Self::requiring) scope: 403 `insufficient_scope`.
#[derive(Debug, Clone)]
pub struct TokenLayer {
    tokens: TokenService,
    limit: Option<Limit>,
    required: Arc<[String]>,
}

/// Tokens validated at the same time for all clients together that failed too often.
pub const AT_ONCE_WHEN_FAILING: usize = 8;

/// The limit on failures.
#[derive(Debug, Clone)]
struct Limit {
    limits: Arc<dyn RateLimits>,
    quota: Quota,
    turns: Arc<Semaphore>,
}

impl TokenLayer {
    /// A layer.
    #[must_use]
    pub fn new(tokens: TokenService) -> Self {
        Self { tokens, limit: None, required: Arc::new([]) }
    }

    /// Counts failed tokens per organisation and client; when there were too many, answers 429 `rate_limited` to further
    /// bad ones in place of 401.
    ///
    /// A valid token always passes, whatever others at the same address tried: what cannot be guessed needs no lock that
    /// somebody else can close. What guessing costs is bounded in another way: for clients over the quota
    /// [`AT_ONCE_WHEN_FAILING`] tokens are validated at a time.
    ///
    /// While the limit's store is away and the quota fails closed, bad tokens get 503 `store_unavailable`.
    #[must_use]
    pub fn limiting_failures(mut self, limits: Arc<dyn RateLimits>, quota: Quota) -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONCE_WHEN_FAILING));
        self.limit = Some(Limit { limits, quota, turns });
        self
    }

    /// Asks for tokens that have all of these scopes; others are answered 403 `insufficient_scope`, with the scopes in
    /// `WWW-Authenticate` (RFC 6750). Default none.
    #[must_use]
    pub fn requiring<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.required = scopes.into_iter().map(Into::into).collect();
        self
    }

    async fn authorized(&self, parts: &Parts) -> Result<Arc<CachedToken>, Problem> {
        let token = self.authenticate(parts).await?;
        match self.required.iter().all(|scope| token.scopes.contains(scope)) {
            true => Ok(token),
            false => Err(Problem::insufficient_scope(&self.required)),
        }
    }

    async fn authenticate(&self, parts: &Parts) -> Result<Arc<CachedToken>, Problem> {
        let org = parts.extensions.get::<Arc<OrgContext>>().ok_or_else(Problem::org_unresolved)?;
        let token = bearer(&parts.headers)?;
        let client = parts.extensions.get::<ClientIp>().map(|client| client.0);
        let Some(limit) = &self.limit else { return Ok(self.tokens.validate(org, &token).await?) };
        let key = rate_limit::key_of(Some(&org.id), None, client);
        // What was validated here before costs no question to the limit's store.
        let turns = if self.tokens.knows(org, &token) { None } else { limit.turns_of(&key).await? };
        match self.tokens.validate_in_turn(org, &token, turns).await {
            Ok(token) => Ok(token),
            Err(error) => {
                if matches!(error, TokenError::Invalid | TokenError::TooLong | TokenError::OrgMismatch) {
                    limit.count_failure(&key, &org.id, client).await?;
                }
                Err(error.into())
            }
        }
    }
}

impl Limit {
    /// The queue in which the tokens of a client are validated that failed too often.
    async fn turns_of(&self, key: &str) -> Result<Option<Arc<Semaphore>>, Problem> {
        match self.limits.check(&self.quota, key, 0).await {
            Ok(decision) => Ok((decision.remaining == 0).then(|| Arc::clone(&self.turns))),
            // A failure will be refused where it is to be counted.
            Err(RateLimitError::Unavailable { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn count_failure(&self, key: &str, org: &OrgId, client: Option<IpAddr>) -> Result<(), Problem> {
        let decision = self.limits.check(&self.quota, key, 1).await?;
        if !decision.allowed {
            return Err(rate_limit::refusal(&self.quota, &decision));
        }
        // The last one that is answered as such: once in the quota's time.
        if decision.remaining == 0 {
            counter!("token_lockouts_total").increment(1);
            tracing::warn!(%org, ?client, "too many bad tokens: further ones get 429");
        }
        Ok(())
    }
}

/// The token of the only `Authorization: Bearer …` header.
///
/// # Errors
/// `unauthorized` without one; `invalid_token` for two of them, as another reader may believe the other one, and for
/// what is no text.
pub fn bearer(headers: &HeaderMap) -> Result<SecretString, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or_else(Problem::unauthorized)?;
    if values.next().is_some() {
        return Err(Problem::invalid_token());
    }
    let text = value.to_str().map_err(|_| Problem::invalid_token())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(Problem::unauthorized)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Problem::unauthorized());
    }
    match token.trim() {
        "" => Err(Problem::invalid_token()),
        token => Ok(SecretString::from(token)),
    }
}

impl<S> Layer<S> for TokenLayer {
    type Service = TokenLayerService<S>;

    fn layer(&self, inner: S) -> TokenLayerService<S> {
        TokenLayerService { layer: self.clone(), inner }
    }
}

/// The service of [`TokenLayer`].
#[derive(Debug, Clone)]
pub struct TokenLayerService<S> {
    layer: TokenLayer,
    inner: S,
}

impl<S, B> Service<Request<B>> for TokenLayerService<S>
where
    S: Service<Request<B>, Response = Response<Body>, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (layer, mut inner) = (self.layer.clone(), take_ready(&mut self.inner));
        async move {
            let (mut parts, body) = request.into_parts();
            let token = match layer.authorized(&parts).await {
                Ok(token) => token,
                Err(problem) => return Ok(problem.into_response()),
            };
            let context = RequestContext::current()
                .map(|context| RequestContext::clone(&context).with_user(token.user.clone()));
            parts.extensions.insert(token);
            within(context, async move { inner.call(Request::from_parts(parts, body)).await }).await
        }
        .boxed()
    }
}
