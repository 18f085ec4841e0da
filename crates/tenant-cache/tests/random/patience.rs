//! How long a caller waits for its call: to the end, for a number of polls, or with a pause in which it does not poll.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::domains::ms;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Patience {
    ToTheEnd,
    /// Dropped after so many polls.
    Polls(u32),
    /// Not polled for a while after so many polls, as the loser of a `select!` is; and then dropped, or not.
    Held {
        polls: u32,
        pause: Duration,
        drops: bool,
    },
    /// In a task of its own.
    InTask,
    /// In a task that is aborted after a while.
    Aborted(Duration),
}

impl Patience {
    pub(crate) fn draw(rng: &mut StdRng) -> Self {
        let polls = rng.random_range(1..6);
        match rng.random_range(0..20) {
            0..4 => Self::Polls(polls),
            4..6 => Self::Held { polls, pause: ms(rng.random_range(1..120)), drops: rng.random_bool(0.5) },
            6..8 => Self::InTask,
            8 => Self::Aborted(ms(rng.random_range(0..20))),
            _ => Self::ToTheEnd,
        }
    }

    /// How much longer than a call's own limit it may take.
    pub(crate) fn adds(self) -> Duration {
        match self {
            Self::Held { pause, .. } => pause,
            _ => Duration::ZERO,
        }
    }

    /// Waits for a call; `None` when it was given up.
    pub(crate) async fn wait<T, F>(self, mut work: Pin<Box<F>>) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        match self {
            Self::ToTheEnd => Some(work.await),
            Self::Polls(polls) => Few { work: &mut work, polls }.await,
            Self::Held { polls, pause, drops } => {
                if let Some(done) = (Few { work: &mut work, polls }).await {
                    return Some(done);
                }
                tokio::time::sleep(pause).await;
                if drops { None } else { Some(work.await) }
            }
            Self::InTask => match tokio::spawn(work).await {
                Ok(done) => Some(done),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            Self::Aborted(after) => {
                let task = tokio::spawn(work);
                tokio::time::sleep(after).await;
                task.abort();
                match task.await {
                    Ok(done) => Some(done),
                    Err(error) if error.is_cancelled() => None,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
            }
        }
    }
}

/// Polls a future a number of times.
struct Few<'a, F> {
    work: &'a mut Pin<Box<F>>,
    polls: u32,
}

impl<F: Future> Future for Few<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(done) = self.work.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        self.polls -= 1;
        if self.polls == 0 { Poll::Ready(None) } else { Poll::Pending }
    }
}
