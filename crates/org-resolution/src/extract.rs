//! Extractors: what the layers found, typed. Never read back from a header.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;

use crate::org::OrgContext;
use crate::rejection::Problem;
use crate::token::CachedToken;

/// The organisation of the request. Without one: `org_unresolved`; or take an `Option<Org>`.
///
/// ```
/// use org_resolution::Org;
///
/// async fn name(org: Org) -> String {
///     org.name.clone()
/// }
/// async fn greeting(org: Option<Org>) -> String {
///     org.map_or("Hello".into(), |org| format!("Hello, {}", org.name))
/// }
/// # let _: axum::Router = axum::Router::new().route("/name", axum::routing::get(name)).route("/", axum::routing::get(greeting));
/// ```
#[derive(Debug, Clone)]
pub struct Org(pub Arc<OrgContext>);

impl Deref for Org {
    type Target = OrgContext;

    fn deref(&self) -> &OrgContext {
        &self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Org {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get().cloned().map(Self).ok_or_else(Problem::org_unresolved)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Org {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get().cloned().map(Self))
    }
}

/// The validated token of the request. Without one: `unauthorized`.
#[derive(Debug, Clone)]
pub struct Token(pub Arc<CachedToken>);

impl Deref for Token {
    type Target = CachedToken;

    fn deref(&self) -> &CachedToken {
        &self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Token {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get().cloned().map(Self).ok_or_else(Problem::unauthorized)
    }
}
