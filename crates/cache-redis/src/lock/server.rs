//! What is asked of the server.

use std::time::Duration;

use crate::connection::RedisLink;
use crate::error::CallError;
use crate::lock::names::{Id, Names};
use crate::script;

/// How long the last fencing token is remembered after a lock was last taken. Longer than any pause of a holder
/// that one wants to be safe from while clocks may be put back; and yet keys nobody uses go away.
const FENCE_LIFE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// How long a waiter that says nothing is taken for alive. It says something twice in that time.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What the server said to one who wants the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It holds it, for so long.
    Held { fence: u64, left: Duration },
    /// Others are in front of it.
    Busy {
        /// It is the next.
        next: bool,
        /// How long the holder has left unless it renews; `None` when nobody holds it.
        left: Option<Duration>,
    },
}

/// What the server said to one who lets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Released {
    /// It held it, and does not any more.
    Now,
    /// It did not hold it any more, and nobody has taken it since.
    Before,
    /// Another has it, or had it.
    Lost,
}

/// Asks for the lock; when that is not to be had, for a place in its queue if `enter`. Twice does no harm.
pub(super) async fn acquire(
    link: &RedisLink,
    names: &Names,
    id: &Id,
    ttl: Duration,
    enter: bool,
) -> Result<Answer, CallError> {
    let keys = [&names.owner, &names.fence, &names.queue, &names.alive];
    let (ttl, patience, life) = (milliseconds(ttl), milliseconds(PATIENCE), milliseconds(FENCE_LIFE));
    let enter: &[u8] = if enter { b"1" } else { b"0" };
    let arguments = [id.text.as_bytes(), ttl.as_bytes(), patience.as_bytes(), enter, life.as_bytes()];
    let (held, number, left): (i64, i64, i64) =
        script::LOCK_ACQUIRE.with(&keys, &arguments).run(link).await?;
    let left = u64::try_from(left).ok().map(Duration::from_millis);
    Ok(match (held, left) {
        (1, left) => Answer::Held { fence: number.unsigned_abs(), left: left.unwrap_or_default() },
        (_, left) => Answer::Busy { next: number == 0, left },
    })
}

/// Prolongs the holding; `false` when it is none. Asked also while the circuit breaker is open: it has a pace
/// of its own, and much depends on it.
pub(super) async fn renew(
    link: &RedisLink,
    names: &Names,
    id: &Id,
    ttl: Duration,
) -> Result<bool, CallError> {
    let ttl = milliseconds(ttl);
    let arguments = [id.text.as_bytes(), ttl.as_bytes()];
    script::LOCK_RENEW.with(&[&names.owner], &arguments).run_as_sign_of_life(link).await
}

/// Ends the holding, and wakes who is next.
pub(super) async fn release(
    link: &RedisLink,
    names: &Names,
    id: &Id,
    fence: u64,
) -> Result<Released, CallError> {
    let keys = [&names.owner, &names.fence, &names.queue, &names.alive];
    let (fence, channels) = (fence.to_string(), wake_channels(link));
    let arguments = [id.text.as_bytes(), fence.as_bytes(), channels.as_bytes()];
    let answer: i64 = script::LOCK_RELEASE.with(&keys, &arguments).run(link).await?;
    Ok(match answer {
        1 => Released::Now,
        2 => Released::Before,
        _ => Released::Lost,
    })
}

/// Ends whatever the id has, and wakes who is next.
pub(super) async fn give_up(link: &RedisLink, names: &Names, id: &Id) -> Result<(), CallError> {
    let keys = [&names.owner, &names.queue, &names.alive];
    let channels = wake_channels(link);
    let arguments = [id.text.as_bytes(), channels.as_bytes()];
    let _: i64 = script::LOCK_GIVE_UP.with(&keys, &arguments).run(link).await?;
    Ok(())
}

fn wake_channels(link: &RedisLink) -> String {
    link.prefixed("wake:")
}

fn milliseconds(time: Duration) -> String {
    time.as_millis().to_string()
}
