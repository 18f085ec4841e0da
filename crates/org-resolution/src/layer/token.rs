//! The layer that asks for a valid token.

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
use secrecy::SecretString;
use tenant_cache::RequestScope;
use tower::{Layer, Service};

use crate::layer::{ClientIp, take_ready, within};
use crate::org::OrgContext;
use crate::rate_limit;
use crate::rejection::Problem;
use crate::token::{CachedToken, TokenError, TokenService};

/// Validates the bearer token of each request against its organisation.
///
/// The inner service finds an `Arc<CachedToken>` in the extensions, and the user in the [`RequestContext`].
/// No credentials: 401 `unauthorized`; bad ones: 401 `invalid_token`; those of another organisation: 403
/// `org_mismatch`.
#[derive(Debug, Clone)]
pub struct TokenLayer {
    tokens: TokenService,
    limit: Option<(Arc<dyn RateLimits>, Quota)>,
}

impl TokenLayer {
    /// A layer.
    #[must_use]
    pub fn new(tokens: TokenService) -> Self {
        Self { tokens, limit: None }
    }

    /// Counts failed tokens per organisation and client; when there were too many, answers 429 `rate_limited` to
    /// every token that this process has not validated lately, good ones too, so that nobody can go on guessing.
    ///
    /// While the limit's store is away and the quota fails closed, bad tokens get 503 `store_unavailable`, and
    /// good ones pass: who has a valid token must not depend on the store of a limit that is not theirs.
    #[must_use]
    pub fn limiting_failures(mut self, limits: Arc<dyn RateLimits>, quota: Quota) -> Self {
        self.limit = Some((limits, quota));
        self
    }

    async fn authenticate(&self, parts: &Parts) -> Result<Arc<CachedToken>, Problem> {
        let org = parts.extensions.get::<Arc<OrgContext>>().ok_or_else(Problem::org_unresolved)?;
        let token = bearer(&parts.headers)?;
        let client = parts.extensions.get::<ClientIp>().map(|client| client.0);
        let key = rate_limit::key_of(Some(&org.id), None, client);
        // What was validated here before is no guess, and costs no question to the limit's store.
        if !self.tokens.knows(&org.id, &token) {
            self.may_guess(&key).await?;
        }
        match self.tokens.validate(&org.id, &token).await {
            Ok(token) => Ok(token),
            Err(error) => {
                if matches!(error, TokenError::Invalid | TokenError::TooLong | TokenError::OrgMismatch) {
                    self.count_failure(&key).await?;
                }
                Err(error.into())
            }
        }
    }

    async fn may_guess(&self, key: &str) -> Result<(), Problem> {
        let Some((limits, quota)) = &self.limit else { return Ok(()) };
        match limits.check(quota, key, 0).await {
            Ok(decision) if decision.remaining > 0 => Ok(()),
            Ok(decision) => Err(rate_limit::refusal(quota, &decision)),
            // A failure will be refused where it is to be counted.
            Err(RateLimitError::Unavailable { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn count_failure(&self, key: &str) -> Result<(), Problem> {
        let Some((limits, quota)) = &self.limit else { return Ok(()) };
        let decision = limits.check(quota, key, 1).await?;
        if decision.allowed { Ok(()) } else { Err(rate_limit::refusal(quota, &decision)) }
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
            let token = match layer.authenticate(&parts).await {
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
