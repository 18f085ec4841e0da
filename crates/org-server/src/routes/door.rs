//! What every request passes: how long it may take, and what is counted of it.

use std::net::SocketAddr;
use std::time::Instant;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use metrics::{counter, gauge, histogram};

use crate::state::AppState;
use org_resolution::TrustedProxies;
use org_resolution::layer::ClientIp;
use org_resolution::rejection::{Problem, RETRY_LATER};

/// Lets so many requests in at once. One too many is told at once: queueing it would only make all of them late.
pub async fn in_place(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let Ok(_place) = state.places().try_acquire() else {
        counter!("http_requests_turned_away_total").increment(1);
        return Problem::unavailable("Too many requests are being answered.", RETRY_LATER).into_response();
    };
    next.run(request).await
}

/// Gives a request up after its time.
pub async fn in_time(State(state): State<AppState>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(state.request_timeout(), next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            tracing::warn!("a request was given up after its time");
            Problem::unavailable("The request took too long.", RETRY_LATER).into_response()
        }
    }
}

/// Names the client of a request that belongs to no organisation: the peer, or whom trusted proxies say it is.
pub async fn from_client(
    State(proxies): State<TrustedProxies>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
        let client = proxies.client_ip(peer.ip(), request.headers());
        request.extensions_mut().insert(ClientIp(client));
    }
    next.run(request).await
}

/// Says on every answer that nobody on the way may keep it, as it could not be made to forget, and that it is of the
/// type that it says.
pub async fn unkept(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The pattern of the route that answered; travels with the answer to where it is counted.
#[derive(Clone)]
struct Route(MatchedPath);

/// Writes down on the answer which route it was.
pub async fn named(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned().map(Route);
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(route);
    }
    response
}

/// Counts requests by route (its pattern, not its path: the number of series is bounded), method and status.
pub async fn counted(request: Request, next: Next) -> Response {
    let method = known_method(request.method());
    let (started, _in_flight) = (Instant::now(), InFlight::enter());
    let response = next.run(request).await;
    let route = response.extensions().get::<Route>().map(|route| route.0.as_str().to_owned());
    let route = route.unwrap_or_else(|| "none".to_owned());
    let status = response.status().as_u16().to_string();
    counter!("http_requests_total", "route" => route.clone(), "method" => method, "status" => status)
        .increment(1);
    histogram!("http_request_duration_seconds", "route" => route).record(started.elapsed().as_secs_f64());
    response
}

/// What no route answers.
pub async fn not_found() -> Problem {
    Problem::not_found("resource")
}

/// A route that does not know the method.
pub async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This route does not know the method.")
}

/// Counts down also when the request is dropped.
struct InFlight;

impl InFlight {
    fn enter() -> Self {
        gauge!("http_requests_in_flight").increment(1.0);
        Self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        gauge!("http_requests_in_flight").decrement(1.0);
    }
}

/// Methods are the client's to invent.
fn known_method(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "POST" => "POST",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
