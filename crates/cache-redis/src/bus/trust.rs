//! When memory may be trusted: a pure state machine. It decides, the listener acts.

use std::time::Duration;

use cache_core::bus::BusHealth;
use cache_core::{FlushReason, Tick};

/// ```text
/// Connecting, Down ── the server acknowledged both subscriptions ──► flush ──► Probing
/// Probing ── echo of a beat sent at b ──► no probation: flush, Trusted until b + trust_for
///                                         else the first good beat is noted, and one sent a probation
///                                         later flushes and trusts
/// Trusted ── echo in time ──► trusted until b + trust_for
/// Trusted ── echo after trust ran out ──► flush, Probing (without probation: trusted at once)
/// any ── a number was skipped ──► flush
/// Probing, Trusted ── the connection ended ──► Connecting; trust is left to run out
/// Connecting, Down ── the attempt to connect failed ──► Down
/// ```
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub(crate) struct Machine {
    trust_for: Duration,
    probation: Duration,
    state: State,
    /// Nothing has failed yet, and nothing was trusted.
    starting: bool,
    /// Until when memory is trusted, whatever the state.
    until: Tick,
    /// The last sequence number heard on this connection.
    last: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum State {
    /// There is no subscription, and the attempt to make one has not failed.
    Connecting,
    /// There is none, and the last attempt failed.
    Down,
    Probing {
        first_good: Option<Tick>,
    },
    Trusted,
}

/// What to do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Verdict {
    pub(crate) flush: Option<FlushReason>,
    /// Only now: memory may be trusted until then.
    pub(crate) trust_until: Option<Tick>,
}

impl Machine {
    /// A machine before its first connection. `starting` unless another one was before it.
    pub(crate) fn new(trust_for: Duration, probation: Duration, starting: bool) -> Self {
        Self { trust_for, probation, state: State::Connecting, starting, until: Tick::ZERO, last: None }
    }

    pub(crate) fn health(&self, now: Tick) -> BusHealth {
        match self.state {
            State::Down => BusHealth::Down,
            State::Trusted if now < self.until => BusHealth::Trusted,
            _ if self.starting => BusHealth::Starting,
            _ => BusHealth::Recovering,
        }
    }

    /// The server has acknowledged the subscriptions. What was missed before must go, and it must go *after*
    /// the acknowledgement: a message that comes between would be lost otherwise.
    pub(crate) fn subscribed(&mut self) -> Verdict {
        self.state = State::Probing { first_good: None };
        self.last = None;
        Verdict { flush: Some(FlushReason::Resubscribed), trust_until: None }
    }

    /// The connection has ended, or could not be made.
    pub(crate) fn lost(&mut self) {
        self.starting = false;
        self.state = match self.state {
            State::Connecting | State::Down => State::Down,
            State::Probing { .. } | State::Trusted => State::Connecting,
        };
    }

    /// Trust was taken away from outside; the next echo finds that it ran out.
    pub(crate) fn revoked(&mut self) {
        self.until = Tick::ZERO;
    }

    /// A message with its number has been taken, and applied if it was understood. One that was not (a newer
    /// version's) names nobody knows what, and is as good as missed.
    pub(crate) fn message(&mut self, number: u64, understood: bool) -> Verdict {
        let expected = understood && self.last.is_none_or(|last| number == last.wrapping_add(1));
        self.last = Some(number);
        Verdict { flush: (!expected).then_some(FlushReason::Gap), trust_until: None }
    }

    /// The echo of a beat sent at `sent` has been taken from the stream, after everything before it.
    pub(crate) fn echo(&mut self, number: u64, sent: Tick, now: Tick) -> Verdict {
        let gap = self.last.is_some_and(|last| number != last);
        self.last = Some(number);
        let mut verdict = Verdict { flush: gap.then_some(FlushReason::Gap), trust_until: None };
        match self.state {
            State::Connecting | State::Down => return verdict,
            State::Trusted if now < self.until => {}
            State::Trusted => {
                verdict.flush = Some(FlushReason::TrustReturned);
                if !self.probation.is_zero() {
                    self.state = State::Probing { first_good: Some(sent) };
                    return verdict;
                }
            }
            State::Probing { first_good: None } if !self.probation.is_zero() => {
                self.state = State::Probing { first_good: Some(sent) };
                return verdict;
            }
            State::Probing { first_good: Some(first) } => {
                if sent.since(first) < self.probation {
                    return verdict;
                }
                verdict.flush = Some(FlushReason::TrustReturned);
            }
            // Of the messages since the subscription began none has a number to compare with: one that is
            // missing among them would not be seen.
            State::Probing { first_good: None } => {
                verdict.flush = verdict.flush.or(Some(FlushReason::TrustReturned));
            }
        }
        self.state = State::Trusted;
        self.starting = false;
        self.until = self.until.max(sent + self.trust_for);
        verdict.trust_until = Some(self.until);
        verdict
    }
}

#[cfg(test)]
mod exploration;

#[cfg(test)]
mod tests {
    use super::*;

    const TRUST_FOR: Duration = Duration::from_secs(3);

    fn at(millis: u64) -> Tick {
        Tick::ZERO + Duration::from_millis(millis)
    }

    fn listening(probation: Duration) -> Machine {
        let mut machine = Machine::new(TRUST_FOR, probation, true);
        assert_eq!(machine.subscribed().flush, Some(FlushReason::Resubscribed));
        machine
    }

    /// P2: trust counts from when the beat was sent, not from when its echo came.
    #[test]
    fn trust_counts_from_the_sending() {
        let mut machine = listening(Duration::ZERO);
        let verdict = machine.echo(0, at(1_000), at(1_900));
        let trusted = Verdict { flush: Some(FlushReason::TrustReturned), trust_until: Some(at(4_000)) };
        assert_eq!(verdict, trusted, "memory is emptied before the first trust, too");
        assert_eq!(machine.health(at(3_999)), BusHealth::Trusted);
        assert_eq!(machine.health(at(4_000)), BusHealth::Recovering);
    }

    /// I3: when trust has run out, memory is emptied before it is trusted again.
    #[test]
    fn returning_trust_empties_memory_first() {
        let mut machine = listening(Duration::ZERO);
        machine.echo(0, at(0), at(1));
        assert_eq!(machine.echo(0, at(2_000), at(2_001)).flush, None);
        let verdict = machine.echo(0, at(4_900), at(5_000));
        assert_eq!(verdict.flush, Some(FlushReason::TrustReturned));
        assert_eq!(verdict.trust_until, Some(at(7_900)));
    }

    /// I4: a skipped number empties memory, wherever it is noticed; a foreign message has none.
    #[test]
    fn a_skipped_number_empties_memory() {
        let mut machine = listening(Duration::ZERO);
        assert_eq!(machine.message(5, true).flush, None, "the first number heard is where counting begins");
        assert_eq!(machine.message(6, true).flush, None);
        assert_eq!(machine.message(8, true).flush, Some(FlushReason::Gap));
        assert_eq!(machine.echo(8, at(0), at(1)).flush, Some(FlushReason::TrustReturned), "no gap");
        assert_eq!(
            machine.echo(9, at(0), at(1)).flush,
            Some(FlushReason::Gap),
            "a beat shows a lost message"
        );
        assert_eq!(machine.message(3, true).flush, Some(FlushReason::Gap), "a server that lost its count");
    }

    /// SD11: a counted message that is not understood is as good as missed.
    #[test]
    fn what_is_not_understood_empties_memory() {
        let mut machine = listening(Duration::ZERO);
        assert_eq!(machine.message(5, true).flush, None);
        assert_eq!(machine.message(6, false).flush, Some(FlushReason::Gap));
        assert_eq!(machine.message(7, true).flush, None, "its number counts");
    }

    /// I3: a new connection starts from nothing; trust of the old one runs out by itself.
    #[test]
    fn a_lost_connection_is_not_trusted_again_without_an_echo() {
        let mut machine = listening(Duration::ZERO);
        machine.echo(4, at(0), at(1));
        machine.lost();
        assert_eq!(machine.health(at(2)), BusHealth::Recovering);
        assert_eq!(machine.echo(4, at(1_000), at(1_001)).trust_until, None);
        assert_eq!(machine.subscribed().flush, Some(FlushReason::Resubscribed));
        assert_eq!(machine.message(9, true).flush, None, "numbers of the new connection begin anew");
        assert_eq!(machine.echo(9, at(2_000), at(2_001)).trust_until, Some(at(5_000)));
    }

    /// COHERENCE 3.3: with probation one good beat is not enough, and memory is emptied before trust.
    #[test]
    fn probation_wants_two_good_beats_apart() {
        let mut machine = listening(Duration::from_secs(1));
        assert_eq!(machine.echo(0, at(0), at(1)).trust_until, None);
        assert_eq!(machine.echo(0, at(900), at(901)).trust_until, None);
        let verdict = machine.echo(0, at(1_000), at(1_001));
        let trusted = Verdict { flush: Some(FlushReason::TrustReturned), trust_until: Some(at(4_000)) };
        assert_eq!(verdict, trusted);
        assert_eq!(machine.echo(0, at(5_000), at(5_001)).trust_until, None, "it ran out: probation again");
    }

    /// The beginning lasts until something is trusted or fails, and does not come back; an attempt that fails is told
    /// apart from a connection that ended.
    #[test]
    fn health_tells_beginning_loss_and_failure_apart() {
        let mut machine = listening(Duration::ZERO);
        assert_eq!(machine.health(at(0)), BusHealth::Starting);
        machine.echo(0, at(0), at(1));
        assert_eq!(machine.health(at(2)), BusHealth::Trusted);
        machine.lost();
        assert_eq!(machine.health(at(2)), BusHealth::Recovering);
        machine.lost();
        assert_eq!(machine.health(at(2)), BusHealth::Down);
        machine.subscribed();
        assert_eq!(machine.health(at(2)), BusHealth::Recovering);

        let mut never = Machine::new(TRUST_FOR, Duration::ZERO, true);
        assert_eq!(never.health(at(0)), BusHealth::Starting);
        never.lost();
        assert_eq!(never.health(at(0)), BusHealth::Down);
        never.subscribed();
        assert_eq!(never.health(at(0)), BusHealth::Recovering, "something has failed already");
        let again = Machine::new(TRUST_FOR, Duration::ZERO, false);
        assert_eq!(again.health(at(0)), BusHealth::Recovering);
    }

    /// P6: trust that was taken away returns only after memory was emptied.
    #[test]
    fn revoked_trust_returns_through_a_flush() {
        let mut machine = listening(Duration::ZERO);
        machine.echo(0, at(0), at(1));
        machine.revoked();
        assert_eq!(machine.health(at(2)), BusHealth::Recovering);
        assert_eq!(machine.echo(0, at(1_000), at(1_001)).flush, Some(FlushReason::TrustReturned));
    }
}
