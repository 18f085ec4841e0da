//! Error answers: RFC 9457 problem details with a stable `code`.

use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use cache_core::RateLimitError;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;

/// How long a client should wait before it tries again what failed because something was away.
pub const RETRY_LATER: Duration = Duration::from_secs(1);

/// An error answer. What it says is for the client; what the operator needs is logged where it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a problem is an answer"]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    problems: Vec<String>,
    retry_after: Option<Duration>,
    challenge: Option<Box<str>>,
    violated: Option<Box<str>>,
}

/// The type of a refusal by a quota, as draft-ietf-httpapi-ratelimit-headers-10 registers it.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'a str,
    status: u16,
    code: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    problems: &'a [String],
    #[serde(rename = "violated-policies", skip_serializing_if = "Option::is_none")]
    violated: Option<[&'a str; 1]>,
}

impl Problem {
    /// A problem with a sentence for the client.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            status,
            code,
            detail,
            problems: Vec::new(),
            retry_after: None,
            challenge: None,
            violated: None,
        }
    }

    /// `org_unresolved`: the request names no organisation.
    pub fn org_unresolved() -> Self {
        Self::new(StatusCode::NOT_FOUND, "org_unresolved", "This request names no organisation.")
    }

    /// `invalid_slug`: what names the organisation cannot be a name. 404 for a public host, which anybody can
    /// type; 400 where a program wrote it.
    pub fn invalid_slug(public: bool) -> Self {
        let status = if public { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
        Self::new(status, "invalid_slug", "This cannot be the name of an organisation.")
    }

    /// `org_not_found`.
    pub fn org_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "org_not_found", "There is no such organisation.")
    }

    /// `org_suspended`.
    pub fn org_suspended() -> Self {
        Self::new(StatusCode::FORBIDDEN, "org_suspended", "This organisation is not active.")
    }

    /// `org_mismatch`: the credentials belong to another organisation.
    pub fn org_mismatch() -> Self {
        Self::new(StatusCode::FORBIDDEN, "org_mismatch", "The credentials belong to another organisation.")
    }

    /// `unauthorized`: credentials are missing.
    pub fn unauthorized() -> Self {
        let detail = "This needs an `Authorization: Bearer …` header.";
        Self {
            challenge: Some("Bearer".into()),
            ..Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        }
    }

    /// `invalid_token`: credentials are there and not valid.
    pub fn invalid_token() -> Self {
        let challenge = Some("Bearer error=\"invalid_token\"".into());
        let detail = "The bearer token is not valid.";
        Self { challenge, ..Self::new(StatusCode::UNAUTHORIZED, "invalid_token", detail) }
    }

    /// `not_found`: there is nothing here.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("There is no such {what}."))
    }

    /// `insufficient_scope`: the token is valid, and lacks one of these scopes.
    pub fn insufficient_scope(required: &[String]) -> Self {
        let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", required.join(" "));
        let detail = "The bearer token lacks a scope that this needs.";
        let problem = Self::new(StatusCode::FORBIDDEN, "insufficient_scope", detail);
        Self { challenge: Some(challenge.into()), ..problem }
    }

    /// `invalid_body`: the body is understood and breaks rules; all of them are listed.
    pub fn invalid_body(problems: Vec<String>) -> Self {
        let detail = "The body breaks the rules listed in `problems`.";
        Self { problems, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", detail) }
    }

    /// `rate_limited`.
    pub fn rate_limited(retry_after: Duration) -> Self {
        let detail = "Too many requests; try again after the time in `Retry-After`.";
        let retry_after = Some(retry_after);
        Self { retry_after, ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail) }
    }

    /// Names the quota that was exceeded, for a [`rate_limited`](Self::rate_limited) answer.
    pub fn with_violated_policy(mut self, name: &str) -> Self {
        self.violated = Some(name.into());
        self
    }

    /// `store_unavailable`: something this answer needs is away for now.
    pub fn unavailable(detail: impl Into<String>, retry_after: Duration) -> Self {
        let retry_after = Some(retry_after);
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail) }
    }

    /// `internal`: a fault of ours; the cause is in the log.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The server failed.")
    }

    /// The stable name of the problem.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            kind: if self.violated.is_some() { QUOTA_EXCEEDED } else { "about:blank" },
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            problems: &self.problems,
            violated: self.violated.as_deref().map(|name| [name]),
        };
        let body = serde_json::to_vec(&body).expect("a plain structure has a JSON form");
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(retry_after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(retry_after)));
        }
        // Only a scope with control characters has none.
        if let Some(challenge) = self.challenge.and_then(|text| HeaderValue::from_str(&text).ok()) {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let invalid = |status| Self::new(status, "invalid_body", rejection.body_text());
        match &rejection {
            // What broke a rule of ours is 422, what is no JSON at all 400.
            JsonRejection::JsonDataError(_) => invalid(StatusCode::UNPROCESSABLE_ENTITY),
            JsonRejection::JsonSyntaxError(_) => invalid(StatusCode::BAD_REQUEST),
            other => invalid(other.status()),
        }
    }
}

impl From<RateLimitError> for Problem {
    fn from(error: RateLimitError) -> Self {
        match error {
            RateLimitError::Unavailable { retry_after, source } => {
                tracing::warn!(error = %source, "a rate limit that fails closed cannot be checked");
                Self::unavailable("This cannot be checked now.", retry_after)
            }
            RateLimitError::Limited(refused) => {
                Self::rate_limited(refused.decision.retry_after.unwrap_or(RETRY_LATER))
            }
            error => {
                tracing::error!(%error, "a rate limit is misconfigured");
                Self::internal()
            }
        }
    }
}

/// Rounded up: a client that comes back a moment early would be refused again.
#[must_use]
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
