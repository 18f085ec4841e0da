//! The tower layers.
//!
//! [`OrgLayer`] takes `/o/{slug}` off the path, so it must stand *around* the router, where routing has not
//! happened yet: `OrgLayer::new(…).layer(router)`, not `router.layer(OrgLayer::new(…))`. [`TokenLayer`] stands
//! inside of it, around the routes that need a token; a [`RateLimitLayer`](crate::RateLimitLayer) inside of both
//! counts by organisation, user and client.

mod names;
mod token;

pub use token::{AT_ONCE_WHEN_FAILING, TokenLayer, TokenLayerService, bearer};

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use cache_core::{Quota, RateLimits, RequestContext};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{HeaderValue, Request, Uri};
use tenant_cache::{RequestScope, Source};
use tower::{Layer, Service};

use crate::layer::names::NameLimit;
use crate::org::OrgContext;
use crate::rejection::Problem;
use crate::resolver::{OrgResolver, Resolved};
use crate::source::{Named, ResolvedBy, SourceConfig, Verdict};

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
    names: Option<Arc<NameLimit>>,
}

impl OrgLayer {
    /// A layer.
    #[must_use]
    pub fn new(config: SourceConfig, resolver: OrgResolver) -> Self {
        Self { config: Arc::new(config), resolver, names: None }
    }

    /// Limits how many names that nobody has each client may ask for: beyond the quota 429 `rate_limited`, before
    /// anything is looked up. Names that somebody had lately are answered all the same.
    #[must_use]
    pub fn limiting_unknown_names(mut self, limits: Arc<dyn RateLimits>, quota: Quota) -> Self {
        self.names = Some(Arc::new(NameLimit::new(limits, quota)));
        self
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
        let Some(Claimed { resolved, by, left }) = self.claimed(parts, peer).await? else {
            return if self.config.required { Err(Problem::org_unresolved()) } else { Ok(None) };
        };
        if let Some(left) = left {
            parts.uri = left;
        }
        parts.extensions.insert(by);
        parts.extensions.insert(Resolution { by, source: resolved.source });
        parts.extensions.insert(Arc::clone(&resolved.org));
        Ok(Some(resolved))
    }

    /// What the first strategy with an opinion leads to. A host that is nobody's own is no opinion: whether it
    /// is one only the directory knows.
    async fn claimed(&self, parts: &Parts, peer: Option<IpAddr>) -> Result<Option<Claimed>, Problem> {
        for verdict in self.config.verdicts(parts, peer) {
            let (named, by, left) = match verdict {
                Verdict::Named(named, by, left) => (named, by, left),
                Verdict::Refused(problem) => return Err(problem),
                Verdict::Silent => continue,
            };
            // Behind a prefix a path that belongs to nobody has a second spelling, which no guard in front knows.
            if left.as_ref().is_some_and(|left| self.config.is_exempt(left.path())) {
                return Err(Problem::not_found("resource"));
            }
            let client = parts.extensions.get::<ClientIp>().map(|client| client.0);
            let resolved = self.look_up(&named, client).await?;
            if let Some(resolved) = resolved {
                return Ok(Some(Claimed { resolved, by, left }));
            }
        }
        Ok(None)
    }

    /// The organisation of this name; `None` for a host that nobody has.
    async fn look_up(&self, named: &Named, client: Option<IpAddr>) -> Result<Option<Resolved>, Problem> {
        let Some(names) = &self.names else { return self.resolve_name(named).await };
        names.may_ask(named, client).await?;
        let resolved = self.resolve_name(named).await;
        match &resolved {
            Ok(None) => names.missed(client).await,
            Err(problem) if problem.code() == "org_not_found" => names.missed(client).await,
            Ok(Some(_)) => names.found(named),
            // Suspended, or not to be told now: neither invented nor in use.
            Err(_) => {}
        }
        resolved
    }

    async fn resolve_name(&self, named: &Named) -> Result<Option<Resolved>, Problem> {
        Ok(match named {
            Named::Slug(slug) => Some(self.resolver.by_slug(slug).await?),
            Named::Id(id) => Some(self.resolver.by_id(id).await?),
            Named::Domain(domain) => self.resolver.by_domain_if_known(domain).await?,
        })
    }
}

/// The organisation a request named, and the path that is left of it.
struct Claimed {
    resolved: Resolved,
    by: ResolvedBy,
    left: Option<Uri>,
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
            within(context, async move { inner.call(Request::from_parts(parts, body)).await }).await
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
pub(crate) fn take_ready<S: Clone>(service: &mut S) -> S {
    let clone = service.clone();
    std::mem::replace(service, clone)
}

/// Runs a call as part of a request, from its first line: a service may look around before it has a future.
async fn within<F: Future>(context: Option<RequestContext>, call: F) -> F::Output {
    match context {
        Some(context) => context.scope(call).await,
        None => call.await,
    }
}
