//! One direction of one connection: bytes are read as they come, up to a bound, and written as the gate allows.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{Gate, Way};

const CHUNK: usize = 8 << 10;
/// Together 256 KiB for each direction; beyond that the sender's own buffers fill.
const CHUNKS: usize = 32;

/// What came at once, and when; empty at the end of the stream.
struct Chunk {
    bytes: Vec<u8>,
    came: Instant,
}

/// The gate as one connection sees it.
pub(super) struct Stage<'a> {
    gate: watch::Receiver<Gate>,
    passed: &'a AtomicU64,
    /// Bytes since the gate was set; for [`Gate::CutAfter`].
    spent: usize,
    /// For [`Gate::Drip`].
    last: Option<Instant>,
}

enum Step {
    /// So many bytes may be written now.
    Write(usize),
    /// Not now; ask again after so long, or when the gate changes.
    Wait(Option<Duration>),
    Cut,
}

/// Passes bytes on until the end of the stream has passed too.
///
/// # Errors
/// When either socket fails, or the gate cuts.
pub(super) async fn pump(from: &TcpStream, to: &TcpStream, stage: Stage<'_>) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    tokio::try_join!(read(from, sender), write(receiver, to, stage)).map(|_| ())
}

async fn read(from: &TcpStream, chunks: mpsc::Sender<Chunk>) -> io::Result<()> {
    loop {
        let Ok(place) = chunks.reserve().await else { return Ok(()) };
        from.readable().await?;
        let mut bytes = vec![0; CHUNK];
        match from.try_read(&mut bytes) {
            Ok(length) => {
                bytes.truncate(length);
                place.send(Chunk { bytes, came: Instant::now() });
                if length == 0 {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn write(mut chunks: mpsc::Receiver<Chunk>, to: &TcpStream, mut stage: Stage<'_>) -> io::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        let mut rest = chunk.bytes.as_slice();
        loop {
            to.writable().await?;
            match stage.offer(to, rest, chunk.came)? {
                Step::Write(_) if chunk.bytes.is_empty() => return Ok(()),
                Step::Write(written) => rest = &rest[written..],
                Step::Wait(limit) => stage.wait(limit).await?,
                Step::Cut => return Err(io::ErrorKind::ConnectionReset.into()),
            }
            if rest.is_empty() && !chunk.bytes.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

impl<'a> Stage<'a> {
    pub(super) fn of(way: &'a Way) -> Self {
        Self { gate: way.gate.subscribe(), passed: &way.passed, spent: 0, last: None }
    }

    /// Writes what the gate lets through now. The gate is locked meanwhile: once it is set, nothing passes by
    /// its former state.
    fn offer(&mut self, to: &TcpStream, bytes: &[u8], came: Instant) -> io::Result<Step> {
        if self.gate.has_changed().unwrap_or(false) {
            (self.spent, self.last) = (0, None);
        }
        let gate = self.gate.borrow_and_update();
        let step = decide(*gate, Instant::now(), came, self.spent, self.last);
        let Step::Write(most) = step else { return Ok(step) };
        if bytes.is_empty() {
            SockRef::from(to).shutdown(Shutdown::Write)?;
            return Ok(step);
        }
        match to.try_write(&bytes[..most.min(bytes.len())]) {
            Ok(written) => {
                self.spent += written;
                self.last = Some(Instant::now());
                self.passed.fetch_add(written as u64, Ordering::Relaxed);
                Ok(Step::Write(written))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Step::Write(0)),
            Err(error) => Err(error),
        }
    }

    async fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let later = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.gate.changed() => {
                changed.map_err(io::Error::other)?;
                (self.spent, self.last) = (0, None);
            }
            () = later => {}
        }
        Ok(())
    }
}

fn decide(gate: Gate, now: Instant, came: Instant, spent: usize, last: Option<Instant>) -> Step {
    let until = |due: Instant, most: usize| match due.checked_duration_since(now) {
        Some(rest) if !rest.is_zero() => Step::Wait(Some(rest)),
        _ => Step::Write(most),
    };
    match gate {
        Gate::Pass => Step::Write(usize::MAX),
        Gate::Hold => Step::Wait(None),
        Gate::Delay(delay) => until(came + delay, usize::MAX),
        Gate::Drip { bytes, every } => until(last.map_or(now, |last| last + every), bytes.max(1)),
        Gate::CutAfter(most) if spent >= most => Step::Cut,
        Gate::CutAfter(most) => Step::Write(most - spent),
    }
}

/// Whoever drops it from now on resets it.
pub(super) fn reset_on_drop(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Takes [`reset_on_drop`] back.
pub(super) fn close_gently(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}
