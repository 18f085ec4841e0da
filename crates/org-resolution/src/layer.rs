//! The tower layers.
//!
//! [`OrgLayer`] takes `/o/{slug}` off the path, so it must stand *around* the router, where routing has not
//! happened yet: `OrgLayer::new(…).layer(router)`, not `router.layer(OrgLayer::new(…))`. [`TokenLayer`] stands
//! inside of it, around the routes that need a token.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use cache_core::{Quota, RateLimits, RequestContext};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderValue, Request};
use secrecy::SecretString;
use tenant_cache::{RequestScope, Source};
use tower::{Layer, Service};

use crate::org::OrgContext;
use crate::rejection::{Problem, RETRY_LATER};
use crate::resolver::{OrgResolver, Resolved};
use crate::source::{Named, ResolvedBy, SourceConfig, Verdict};
use crate::token::{CachedToken, TokenError, TokenService};

/// The longest `X-Request-Id` that is taken over, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// The client's address, after trusted proxies were taken into account; an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientIp(pub IpAddr);

/// How the organisation of a request was found; an extension of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolution {
    /// What named it.
    pub by: ResolvedBy,
    /// Which tier knew it.
    pub source: Source,
}

impl Resolution {
    /// The answer's `Cache-Status` (RFC 9211): `near; hit`, `far; hit` or `origin; fwd=miss`.
    #[must_use]
    pub fn cache_status(&self) -> HeaderValue {
        HeaderValue::from_static(match self.source {
            Source::Near => "near; hit",
            Source::Far => "far; hit",
            _ => "origin; fwd=miss",
        })
    }
}

/// Finds the organisation of each request, and runs the rest of it as a request of that tenant.
///
/// The inner service finds `Arc<OrgContext>`, [`ResolvedBy`], [`Resolution`] and [`ClientIp`] in the
/// extensions, and the [`RequestContext`] in its task, until it has answered (not while the answer's body is
/// streamed). Refusals are [`Problem`]s.
#[derive(Debug, Clone)]
pub struct OrgLayer {
    config: Arc<SourceConfig>,
    resolver: OrgResolver,
}

impl OrgLayer {
    /// A layer.
    #[must_use]
    pub fn new(config: SourceConfig, resolver: OrgResolver) -> Self {
        Self { config: Arc::new(config), resolver }
    }

    /// The organisation of a request, if it has one or needs one.
    async fn resolve(&self, parts: &mut Parts) -> Result<Option<Resolved>, Problem> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
        if let Some(peer) = peer {
            let client = self.config.trusted_proxies.client_ip(peer, &parts.headers);
            parts.extensions.insert(ClientIp(client));
        }
        if self.config.is_exempt(parts.uri.path()) {
            return Ok(None);
        }
        let (named, by, left) = match self.config.look(parts, peer) {
            Verdict::Named(named, by, left) => (named, by, left),
            Verdict::Refused(problem) => return Err(problem),
            Verdict::Silent if self.config.required => return Err(Problem::org_unresolved()),
            Verdict::Silent => return Ok(None),
        };
        let resolved = match &named {
            Named::Slug(slug) => self.resolver.by_slug(slug).await,
            Named::Id(id) => self.resolver.by_id(id).await,
            Named::Domain(domain) => self.resolver.by_domain(domain).await,
        }?;
        if let Some(left) = left {
            parts.uri = left;
        }
        parts.extensions.insert(by);
        parts.extensions.insert(Resolution { by, source: resolved.source });
        parts.extensions.insert(Arc::clone(&resolved.org));
        Ok(Some(resolved))
    }
}

impl<S> Layer<S> for OrgLayer {
    type Service = OrgService<S>;

    fn layer(&self, inner: S) -> OrgService<S> {
        OrgService { layer: self.clone(), inner }
    }
}

/// The service of [`OrgLayer`].
#[derive(Debug, Clone)]
pub struct OrgService<S> {
    layer: OrgLayer,
    inner: S,
}

impl<S, B> Service<Request<B>> for OrgService<S>
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
            let resolved = match layer.resolve(&mut parts).await {
                Ok(resolved) => resolved,
                Err(problem) => return Ok(problem.into_response()),
            };
            let context = resolved.map(|resolved| context(&parts, &resolved.org));
            let call = inner.call(Request::from_parts(parts, body));
            match context {
                Some(context) => context.scope(call).await,
                None => call.await,
            }
        }
        .boxed()
    }
}

fn context(parts: &Parts, org: &OrgContext) -> RequestContext {
    let mut context = RequestContext::new(org.id.clone());
    if let Some(ClientIp(ip)) = parts.extensions.get() {
        context = context.with_client_ip(*ip);
    }
    let id = parts.headers.get("x-request-id").and_then(|id| id.to_str().ok());
    match id.filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID) {
        Some(id) => context.with_request_id(id),
        None => context,
    }
}

/// The service that was polled ready goes into the call, its clone waits for the next.
fn take_ready<S: Clone>(service: &mut S) -> S {
    let clone = service.clone();
    std::mem::replace(service, clone)
}

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

    /// Counts failed tokens per organisation and client, and answers 429 `rate_limited` when there were too
    /// many, to good tokens too.
    #[must_use]
    pub fn limiting_failures(mut self, limits: Arc<dyn RateLimits>, quota: Quota) -> Self {
        self.limit = Some((limits, quota));
        self
    }

    async fn authenticate(&self, parts: &Parts) -> Result<Arc<CachedToken>, Problem> {
        let org = parts.extensions.get::<Arc<OrgContext>>().ok_or_else(Problem::org_unresolved)?;
        let token = bearer(parts)?;
        let key = failure_key(org, parts.extensions.get());
        self.count(&key, 0).await?;
        match self.tokens.validate(&org.id, &token).await {
            Ok(token) => Ok(token),
            Err(error) => {
                if matches!(error, TokenError::Invalid | TokenError::TooLong | TokenError::OrgMismatch) {
                    self.count(&key, 1).await?;
                }
                Err(error.into())
            }
        }
    }

    /// Takes `cost` failures; an error when none are left.
    async fn count(&self, key: &str, cost: u32) -> Result<(), Problem> {
        let Some((limits, quota)) = &self.limit else { return Ok(()) };
        let decision = limits.check(quota, key, cost).await?;
        if decision.allowed && (cost > 0 || decision.remaining > 0) {
            return Ok(());
        }
        Err(Problem::rate_limited(decision.retry_after.unwrap_or(decision.reset_after).max(RETRY_LATER)))
    }
}

/// The key under which failures of one client at one organisation are counted; IPv6 by /64, which is what one
/// client has.
fn failure_key(org: &OrgContext, client: Option<&ClientIp>) -> String {
    let client = match client {
        None => "-".to_owned(),
        Some(ClientIp(IpAddr::V4(ip))) => ip.to_string(),
        Some(ClientIp(IpAddr::V6(ip))) => format!("{:x}/64", ip.to_bits() >> 64),
    };
    format!("{}/{client}", org.id)
}

fn bearer(parts: &Parts) -> Result<SecretString, Problem> {
    let mut values = parts.headers.get_all(AUTHORIZATION).iter();
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
            let call = inner.call(Request::from_parts(parts, body));
            match context {
                Some(context) => context.scope(call).await,
                None => call.await,
            }
        }
        .boxed()
    }
}
