//! The accept loop: every connection has a place and deadlines.
//!
//! `axum::serve` has neither: hyper's own deadline for heads needs a timer that it does not set, and covers the idle
//! time between two requests as well, so that one number would have to serve both.
//!
//! | you look for | module |
//! |---|---|
//! | accepting, serving one connection, the graceful end | here |
//! | the phases of a connection and their deadlines | [`activity`] |
//! | the number of connections, and whose place a newcomer takes | [`places`] |

pub mod activity;
pub mod places;

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics::counter;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::accept::activity::{Answering, Ended, Watched};
use crate::accept::places::{Place, Places};

/// Pause after a failed `accept`: descriptors come back when connections end, not by asking again.
const AFTER_A_FAILURE: Duration = Duration::from_millis(10);

/// Bounds on the connections of a listener: plain data with reasoned defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionPolicy {
    /// The longest a request's head may take, from its first byte or from the opening of the connection. Default 10 s.
    pub head_timeout: Duration,
    /// The longest a connection stays open between two requests. Default 75 s: above the 60 s for which load balancers
    /// keep theirs, so that they close first and lose no request.
    pub idle_timeout: Duration,
    /// The longest an answer may make no progress because its client does not read. Default 10 s.
    pub write_timeout: Duration,
    /// Connections at the same time. Default 10 000, or what the limit of open files leaves.
    pub connections: usize,
    /// Connections of one client address at the same time; those of trusted proxies are not counted. Default 256.
    pub per_client: usize,
    /// Bytes of a request's head, and of the read buffer. Default 64 KiB.
    pub head_bytes: usize,
    /// Fields of a request's head. Default 64.
    pub head_fields: usize,
}

impl ConnectionPolicy {
    /// Connections of one client unless told otherwise: several browsers behind one address, and far from all places.
    pub const PER_CLIENT: usize = 256;
}

impl Default for ConnectionPolicy {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(10),
            connections: places::default_connections(),
            per_client: Self::PER_CLIENT,
            head_bytes: 64 * 1024,
            head_fields: 64,
        }
    }
}

/// Serves the connections of a listener until `stop` completes. Then it accepts none, closes those that wait for a
/// request, and ends when the answers in flight are sent.
///
/// # Cancel safety
/// Dropping the future closes the listener; connections that are open go on by themselves.
pub async fn serve(listener: TcpListener, app: Router, places: Arc<Places>, stop: impl Future<Output = ()>) {
    let (open, closing) = (TaskTracker::new(), CancellationToken::new());
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Without a place the socket is closed by being dropped.
                if let Some(place) = places.take(peer.ip()) {
                    open.spawn(converse(stream, peer, app.clone(), place, closing.clone()));
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                places.failed_to_accept(&error);
                tokio::time::sleep(AFTER_A_FAILURE).await;
            }
        }
    }
    drop(listener);
    closing.cancel();
    open.close();
    open.wait().await;
}

/// Errors that belong to the connection that was about to be accepted, and not to the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

/// Serves one connection to its end or to its first missed deadline.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    app: Router,
    place: Place,
    closing: CancellationToken,
) {
    // Answers are written whole; what is small must not wait for the acknowledgement of what was before.
    let _ = stream.set_nodelay(true);
    let activity = Arc::clone(place.activity());
    let policy = place.policy();
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
    let asked = Arc::clone(&activity);
    let service = service_fn(move |request| answer(request, peer, app.clone(), Answering::begin(&asked)));
    let mut http = http1::Builder::new();
    http.max_buf_size(policy.head_bytes).max_headers(policy.head_fields).header_read_timeout(None);
    let mut connection = pin!(http.serve_connection(io, service));
    let mut closing = pin!(closing.cancelled());
    let mut deadline = pin!(activity.missed_deadline());
    let mut told = false;
    let ended = std::future::poll_fn(|context| {
        if !told && closing.as_mut().poll(context).is_ready() {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ended::ByItself);
        }
        // After the connection, in whose poll every phase begins: no change of phase needs to wake this task.
        deadline.as_mut().poll(context)
    })
    .await;
    if let Some(cause) = ended.as_str() {
        counter!("http_connections_closed_total", "cause" => cause).increment(1);
        tracing::debug!(%peer, cause, "a connection was closed");
    }
}

/// Answers one request; an error closes the connection, whose place was given to another one.
async fn answer(
    mut request: Request<Incoming>,
    peer: SocketAddr,
    app: Router,
    answering: Option<Answering>,
) -> io::Result<Response<Body>> {
    let answering = answering.ok_or(ErrorKind::ConnectionAborted)?;
    request.extensions_mut().insert(ConnectInfo(peer));
    let answered: Result<_, Infallible> = app.oneshot(request.map(Body::new)).await;
    let Ok(response) = answered;
    Ok(response.map(|body| Body::new(answering.until_sent(body))))
}
