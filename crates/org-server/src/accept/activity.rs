//! The phases of a connection, and the deadline of each.
//!
//! ```text
//! open ─► head ─► answering ─► idle ─┐
//!           ▲      (stalled)         │ first byte
//!           └────────────────────────┘
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::accept::ConnectionPolicy;

/// The phase of one connection. Shared by its socket, its requests, and the table of places.
#[derive(Debug)]
pub struct Activity {
    state: Mutex<State>,
    displaced: Notify,
    policy: ConnectionPolicy,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Since when the client takes nothing of what is to be sent; `None` while it does.
    stalled: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A head is awaited or being read, since the connection opened or since its first byte.
    Head(Instant),
    /// A request is with the service, or its answer is being sent.
    Answering,
    /// Between two requests.
    Idle(Instant),
    /// Its place was given to another connection: nothing new begins here.
    Displaced,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The client closed it, it failed, or the server was told to stop.
    ByItself,
    /// A head took too long.
    Head,
    /// No request came.
    Idle,
    /// The client did not read.
    Stalled,
    /// A newcomer has its place.
    Displaced,
}

impl Ended {
    /// The word of the metric; `None` for an ordinary end.
    pub(super) fn as_str(self) -> Option<&'static str> {
        match self {
            Self::ByItself => None,
            Self::Head => Some("head"),
            Self::Idle => Some("idle"),
            Self::Stalled => Some("stalled"),
            Self::Displaced => Some("displaced"),
        }
    }
}

impl Activity {
    pub(super) fn new(policy: ConnectionPolicy) -> Arc<Self> {
        let state = State { phase: Phase::Head(Instant::now()), stalled: None };
        Arc::new(Self { state: Mutex::new(state), displaced: Notify::new(), policy })
    }

    /// Since when the connection waits for its client; `None` while a request is being answered.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        match self.state.lock().phase {
            Phase::Head(since) | Phase::Idle(since) => Some(since),
            Phase::Answering | Phase::Displaced => None,
        }
    }

    /// Takes the place away unless a request is being answered: from then on none begins.
    pub(super) fn displace(&self) -> bool {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Head(_) | Phase::Idle(_)) {
            return false;
        }
        state.phase = Phase::Displaced;
        self.displaced.notify_one();
        true
    }

    /// Completes when a deadline was missed or the place was taken. The phases are looked at whenever this is polled.
    pub(super) async fn missed_deadline(&self) -> Ended {
        let mut displaced = std::pin::pin!(self.displaced.notified());
        let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        std::future::poll_fn(|context| {
            if displaced.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ended::Displaced);
            }
            let Some((at, cause)) = self.deadline() else { return Poll::Pending };
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            ready!(sleep.as_mut().poll(context));
            Poll::Ready(cause)
        })
        .await
    }

    /// The nearest deadline of the present phase.
    fn deadline(&self) -> Option<(Instant, Ended)> {
        let state = self.state.lock();
        let waits = match state.phase {
            Phase::Head(since) => Some((since + self.policy.head_timeout, Ended::Head)),
            Phase::Idle(since) => Some((since + self.policy.idle_timeout, Ended::Idle)),
            Phase::Answering | Phase::Displaced => None,
        };
        let stalled = state.stalled.map(|since| (since + self.policy.write_timeout, Ended::Stalled));
        waits.into_iter().chain(stalled).min_by_key(|(at, _)| *at)
    }

    /// Bytes came: between two requests they begin a head. Later ones do not prolong it.
    fn received(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Idle(_)) {
            state.phase = Phase::Head(Instant::now());
        }
    }

    /// Whether the socket took what was to be sent.
    fn sent(&self, progress: bool) {
        let mut state = self.state.lock();
        match progress {
            true => state.stalled = None,
            false => _ = state.stalled.get_or_insert_with(Instant::now),
        }
    }
}

/// A request being answered; the connection is idle again when this is dropped.
#[derive(Debug)]
pub(super) struct Answering(Arc<Activity>);

impl Answering {
    /// `None` when the place is another connection's already.
    pub(super) fn begin(activity: &Arc<Activity>) -> Option<Self> {
        let mut state = activity.state.lock();
        if state.phase == Phase::Displaced {
            return None;
        }
        state.phase = Phase::Answering;
        Some(Self(Arc::clone(activity)))
    }

    /// The body of the answer: the request ends when the last of it was taken by the connection.
    pub(super) fn until_sent(self, body: Body) -> Sending {
        Sending { body, _answering: self }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.state.lock().phase = Phase::Idle(Instant::now());
    }
}

/// The body of an answer, with the request it belongs to.
#[derive(Debug)]
pub(super) struct Sending {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that tells the connection's activity what goes through it.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.sent(written.is_ready());
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.received();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
