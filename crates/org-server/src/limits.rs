//! Rate limits at the door: who is counted, and what an answer says about it.

use std::net::IpAddr;

use axum::response::Response;
use cache_core::{Decision, Quota, RateLimitError, RateLimits, key};
use http::{HeaderName, HeaderValue};

use org_resolution::rejection::whole_seconds;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Whom a limit counts: tenant, user if any, client address. An IPv6 client is its /64, which is what one
/// subscriber has at least.
#[must_use]
pub fn key_of(tenant: &str, user: Option<&str>, client: Option<IpAddr>) -> String {
    let mut text = String::with_capacity(64);
    key::push_segment(&mut text, tenant);
    text.push(':');
    key::push_segment(&mut text, user.unwrap_or_default());
    text.push(':');
    key::push_segment(&mut text, &client.map(network).unwrap_or_default());
    text
}

/// Takes the ordinary cost of a quota. A refusal is in the decision.
///
/// # Errors
/// As [`RateLimits::check`].
///
/// # Cancel safety
/// A dropped check may have taken its units.
pub async fn check(limits: &dyn RateLimits, quota: &Quota, key: &str) -> Result<Decision, RateLimitError> {
    limits.check(quota, key, quota.cost).await
}

/// Says on an answer how the limit stands, in the fields of draft-ietf-httpapi-ratelimit-headers-10.
pub fn describe(response: &mut Response, quota: &Quota, decision: &Decision) {
    let (name, window) = (&quota.name, quota.per.as_secs());
    let policy = format!("\"{name}\";q={};w={window}", decision.limit);
    let state = format!("\"{name}\";r={};t={}", decision.remaining, whole_seconds(decision.reset_after));
    for (field, text) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, state)] {
        // A quota's name may hold what no field can; then the field is left out.
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers_mut().insert(field, value);
        }
    }
}

fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G3: tenant, user and address tell callers apart; an IPv6 client is its /64, and an IPv4 client is the
    /// same whether its address came mapped or not.
    #[test]
    fn callers_are_told_apart() {
        let ip = |text: &str| Some(text.parse().expect("an address"));
        let same = [("2001:db8::1", "2001:db8::ffff:1"), ("192.0.2.1", "::ffff:192.0.2.1")];
        for (a, b) in same {
            assert_eq!(key_of("t", None, ip(a)), key_of("t", None, ip(b)));
        }
        let different = [
            key_of("t", None, ip("2001:db8::1")),
            key_of("t", None, ip("2001:db8:0:1::1")),
            key_of("t", Some("u"), ip("2001:db8::1")),
            key_of("t:u", None, ip("2001:db8::1")),
            key_of("t", Some(":u"), None),
            key_of("t", None, None),
        ];
        let unique: std::collections::HashSet<_> = different.iter().collect();
        assert_eq!(unique.len(), different.len(), "{different:?}");
    }
}
