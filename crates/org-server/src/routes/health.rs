//! Is it alive, is it ready, and what has it counted.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use serde::Serialize;

use crate::state::AppState;

/// Alive: the process answers. Asks nothing else, so that a database that is away restarts no server.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// How the server and what it stands on are.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// `ready`; `degraded`: answers, but Redis is away, or what other instances change is not heard; `unavailable`;
    /// `stopping`.
    pub status: &'static str,
    /// Memory.
    pub l1: bool,
    /// Redis; `null` without.
    pub l2: Option<bool>,
    /// The database.
    pub database: bool,
    /// Whether what other instances change is heard: `trusted`; `starting`: not proven yet; `recovering`: not any more,
    /// being proven again; `down`: nobody listens.
    pub bus: &'static str,
    /// How far locks, limits and presence reach: `process`; `fleet`: all instances that share the Redis; `own`.
    pub coordination: &'static str,
    /// How long each took to answer.
    pub latency_ms: Latencies,
}

/// Answer times in milliseconds; `null` without an answer.
#[derive(Debug, Serialize)]
pub struct Latencies {
    /// Memory.
    pub l1: Option<f64>,
    /// Redis.
    pub l2: Option<f64>,
    /// The database.
    pub database: Option<f64>,
}

/// Ready: 200, also while Redis is away or the bus is not heard; 503 while the database is away or the server is about to stop.
pub async fn readyz(State(state): State<AppState>) -> Response {
    let (health, database) = tokio::join!(state.app().health(), state.store().ping());
    let database = database.inspect_err(|error| tracing::warn!(%error, "not ready")).ok();
    let (status, word) = match (state.is_stopping(), database.is_some()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        (_, false) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        _ if health.is_degraded() => (StatusCode::OK, "degraded"),
        _ => (StatusCode::OK, "ready"),
    };
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
    let readiness = Readiness {
        status: word,
        l1: health.l1.up,
        l2: health.l2.as_ref().map(|l2| l2.up),
        database: database.is_some(),
        bus: health.bus.as_str(),
        coordination: health.coordination.as_str(),
        latency_ms: Latencies {
            l1: health.l1.latency.map(ms),
            l2: health.l2.and_then(|l2| l2.latency).map(ms),
            database: database.map(ms),
        },
    };
    (status, [(CACHE_CONTROL, "no-store")], Json(readiness)).into_response()
}

/// The metrics in the text form of Prometheus.
pub async fn metrics(State(state): State<AppState>) -> Response {
    let text = state.metrics().render();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
