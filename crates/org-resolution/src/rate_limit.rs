//! Rate limits at the door: who is counted, and what an answer says about it.
//!
//! Answers carry `RateLimit-Policy` and `RateLimit` as draft-ietf-httpapi-ratelimit-headers-10 defines them:
//! `"api";q=100;w=60` and `"api";r=42;t=1`, where `t` is the time until *more* units than now are there. Several
//! layers around one another each add their own; that is one list.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use cache_core::{Decision, Quota, RateLimits, RequestContext, TenantId, UserId, key};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request};
use sha2::{Digest, Sha256};
use tenant_cache::RequestScope;
use tower::{Layer, Service};

use crate::layer::{ClientIp, take_ready};
use crate::org::OrgContext;
use crate::rejection::{Problem, RETRY_LATER, whole_seconds};
use crate::token::CachedToken;

/// `RateLimit`: how it stands.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `RateLimit-Policy`: what the limit is.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Longer keys are replaced by their digest, so that a long id with much to escape is still counted.
const MAX_KEY: usize = 256;

/// Takes the ordinary cost of a quota from each request; refuses with 429 `rate_limited` when nothing is left.
///
/// Counts by organisation, user if any, and client, as far as the layers around it have found them out: put it
/// inside of [`OrgLayer`](crate::OrgLayer), and inside of [`TokenLayer`](crate::TokenLayer) to count by user.
/// Requests without organisation are counted by client alone. While the store of a quota that fails closed is
/// away: 503 `store_unavailable`.
#[derive(Debug, Clone)]
pub struct RateLimitLayer {
    limits: Arc<dyn RateLimits>,
    quota: Arc<Quota>,
}

impl RateLimitLayer {
    /// A layer.
    #[must_use]
    pub fn new(limits: Arc<dyn RateLimits>, quota: Quota) -> Self {
        Self { limits, quota: Arc::new(quota) }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimitService<S>;

    fn layer(&self, inner: S) -> RateLimitService<S> {
        RateLimitService { layer: self.clone(), inner }
    }
}

/// The service of [`RateLimitLayer`].
#[derive(Debug, Clone)]
pub struct RateLimitService<S> {
    layer: RateLimitLayer,
    inner: S,
}

impl<S, B> Service<Request<B>> for RateLimitService<S>
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
            let RateLimitLayer { limits, quota } = layer;
            let key = key_of_request(request.extensions());
            let checked = limits.check(&quota, &key, quota.cost).await;
            let decision = checked.as_ref().ok().copied();
            let mut response = match checked {
                Ok(decision) if decision.allowed => inner.call(request).await?,
                Ok(decision) => refusal(&quota, &decision).into_response(),
                Err(error) => Problem::from(error).into_response(),
            };
            describe(response.headers_mut(), &quota, decision.as_ref());
            Ok(response)
        }
        .boxed()
    }
}

/// Whom a limit counts: tenant, user if any, client address. An IPv6 client is its /64, which is what one
/// subscriber has at least; an IPv4 address is the same when it comes mapped into IPv6.
#[must_use]
pub fn key_of(tenant: Option<&TenantId>, user: Option<&UserId>, client: Option<IpAddr>) -> String {
    let mut text = String::with_capacity(64);
    key::push_segment(&mut text, tenant.map_or("", TenantId::as_str));
    text.push(':');
    key::push_segment(&mut text, user.map_or("", UserId::as_str));
    text.push(':');
    key::push_segment(&mut text, &client.map(network).unwrap_or_default());
    if text.len() <= MAX_KEY {
        return text;
    }
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The answer to a refused request; it waits as long as the decision says, and never less than `t`.
pub fn refusal(quota: &Quota, decision: &Decision) -> Problem {
    let wait = decision.retry_after.unwrap_or(decision.reset_after).max(decision.next_after).max(RETRY_LATER);
    Problem::rate_limited(wait).with_violated_policy(&quota.name)
}

/// Says on an answer what the limit is, and how it stands when that is known.
pub fn describe(headers: &mut HeaderMap, quota: &Quota, decision: Option<&Decision>) {
    // A name that no field can hold is left out with its fields.
    let Some(name) = quoted(&quota.name) else { return };
    let window = whole_seconds(quota.per).max(1);
    append(headers, RATE_LIMIT_POLICY, format!("{name};q={};w={window}", quota.limit));
    if let Some(decision) = decision {
        let more_after = whole_seconds(decision.next_after);
        append(headers, RATE_LIMIT, format!("{name};r={};t={more_after}", decision.remaining));
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, text: String) {
    let value = HeaderValue::try_from(text).expect("a quoted string and numbers are visible ASCII");
    headers.append(name, value);
}

/// A text as a structured field's string (RFC 9651, 3.3.3): visible ASCII and blanks only.
fn quoted(text: &str) -> Option<String> {
    if !text.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) {
        return None;
    }
    Some(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn key_of_request(found: &Extensions) -> String {
    let org = found.get::<Arc<OrgContext>>().map(|org| &org.id);
    let context = RequestContext::current();
    let token = found.get::<Arc<CachedToken>>().map(|token| &token.user);
    let user = token.or_else(|| context.as_ref().and_then(|context| context.user.as_ref()));
    let peer = || found.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    let client = found.get::<ClientIp>().map(|client| client.0).or_else(peer);
    key_of(org, user, client)
}

fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{:x}/64", address.to_bits() >> 64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(tenant: &str, user: &str, client: &str) -> String {
        let (tenant, user) = (TenantId::new(tenant).ok(), UserId::new(user).ok());
        key_of(tenant.as_ref(), user.as_ref(), client.parse().ok())
    }

    /// G3, SG8: tenant, user and address tell callers apart, whatever the ids contain; an IPv6 client is its
    /// /64, and an IPv4 client is the same whether its address came mapped or not.
    #[test]
    fn callers_are_told_apart() {
        for (a, b) in [("2001:db8::1", "2001:db8::ffff:1"), ("192.0.2.1", "::ffff:192.0.2.1")] {
            assert_eq!(key("t", "", a), key("t", "", b));
        }
        let different = [
            key("t", "", "2001:db8::1"),
            key("t", "", "2001:db8:0:1::1"),
            key("t", "u", "2001:db8::1"),
            key("t:u", "", "2001:db8::1"),
            key("t", ":u", ""),
            key("t", "", ""),
            key("", "", ""),
            key("", "t", ""),
            key(&"%".repeat(128), "", ""),
            key("", &"%".repeat(128), ""),
        ];
        let unique: std::collections::HashSet<_> = different.iter().collect();
        assert_eq!(unique.len(), different.len(), "{different:?}");
        assert!(different.iter().all(|key| key.len() <= MAX_KEY));
    }

    /// G6: the fields are what the draft says, `t` until more is there; a name is quoted, or left out.
    #[test]
    fn fields_are_those_of_the_draft() {
        let decision = Decision {
            allowed: true,
            limit: 100,
            remaining: 42,
            reset_after: Duration::from_secs(35),
            next_after: Duration::from_millis(600),
            retry_after: None,
        };
        let fields = |quota: &Quota, decision: Option<&Decision>| {
            let mut headers = HeaderMap::new();
            describe(&mut headers, quota, decision);
            let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap().to_owned());
            (text(RATE_LIMIT_POLICY), text(RATE_LIMIT))
        };
        let api = (Some("\"api\";q=100;w=60".into()), Some("\"api\";r=42;t=1".into()));
        assert_eq!(fields(&Quota::api(), Some(&decision)), api);
        assert_eq!(fields(&Quota::api(), None), (api.0, None));
        let named = |name: &'static str| Quota::token_bucket(name, 1, Duration::from_millis(10));
        assert_eq!(fields(&named("a\"\\b"), None).0, Some("\"a\\\"\\\\b\";q=1;w=1".into()));
        assert_eq!(fields(&named("é"), Some(&decision)), (None, None));
    }
}
