//! Every course that a few messages, beats, ticks, reads and failures can take, with the real state machine in the
//! middle: whatever is served from memory was current within the bound (P2).
//!
//! One key, one instance, its subscription and a server. Nothing is random: all states that can be reached are
//! looked at, once each. The same search with one protecting step left out must find a stale read; so it is known
//! that it looks at what counts.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use cache_core::{FlushReason, Tick};

use super::{Machine, Verdict};

/// The bound, in ticks.
const BOUND: u64 = 2;

/// How far the search goes.
const LAST_TICK: u64 = 5;
const CHANGES: usize = 1;
const CUTS: u8 = 1;
const LOSSES: u8 = 1;
const WAITING: usize = 2;

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// A hit looks at the entry only.
    TrustOnAHit,
    /// An answer is kept whatever came between.
    TheTicket,
    /// Memory is emptied when subscribing begins, and neither when it is acknowledged nor when trust returns.
    TheFlushAfterTheAcknowledgement,
    /// Skipped numbers are not looked at.
    TheGap,
    /// Trust counts from when the echo came.
    TheTimeOfSending,
    /// An echo overtakes the messages before it.
    TheOrder,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    now: u64,
    /// When each change was acknowledged. The current version is their number.
    changes: Vec<u64>,
    sequence: u64,
    cuts: u8,
    losses: u8,
    link: Link,
    /// Beats on their way to the server: when they were sent.
    beat: Option<u64>,
    machine: Machine,
    trusted_until: Tick,
    /// The version in memory.
    near: Option<usize>,
    /// A read whose answer is on its way: the version, and whether its ticket stands.
    read: Option<(usize, bool)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Link {
    Down,
    /// The server has it, and this side does not know yet.
    Subscribing(VecDeque<Item>),
    Up(VecDeque<Item>),
}

/// What the server puts on the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    Removal { number: u64 },
    Echo { sent: u64, number: u64 },
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Tick,
    Change,
    /// A change that the server counts and whose message is lost on an open link.
    LostChange,
    SendBeat,
    ServerTakesBeat,
    Take,
    Cut,
    Subscribe,
    Acknowledge,
    BeginRead,
    EndRead,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Tick,
        Self::Change,
        Self::LostChange,
        Self::SendBeat,
        Self::ServerTakesBeat,
        Self::Take,
        Self::Cut,
        Self::Subscribe,
        Self::Acknowledge,
        Self::BeginRead,
        Self::EndRead,
    ];
}

fn at(tick: u64) -> Tick {
    Tick::from_nanos(tick)
}

impl World {
    fn new() -> Self {
        Self {
            now: 1,
            changes: Vec::new(),
            sequence: 0,
            cuts: 0,
            losses: 0,
            link: Link::Down,
            beat: None,
            machine: Machine::new(Duration::from_nanos(BOUND), Duration::ZERO, true),
            trusted_until: Tick::ZERO,
            near: None,
            read: None,
        }
    }

    /// The world after a step; `None` where it cannot be taken.
    fn after(&self, step: Step, without: Without) -> Option<Self> {
        let mut world = self.clone();
        match step {
            Step::Tick => world.now = Some(self.now + 1).filter(|now| *now <= LAST_TICK)?,
            Step::Change => world.change(true)?,
            Step::LostChange => {
                world.losses = Some(self.losses + 1).filter(|losses| *losses <= LOSSES)?;
                world.change(false)?;
            }
            Step::SendBeat => {
                let up = matches!(self.link, Link::Up(_));
                (up && self.beat.is_none()).then_some(())?;
                world.beat = Some(self.now);
            }
            Step::ServerTakesBeat => {
                (self.waiting() < WAITING).then_some(())?;
                let (sent, number) = (world.beat.take()?, self.sequence);
                world.deliver(Item::Echo { sent, number });
            }
            Step::Take => world.take(without)?,
            Step::Cut => {
                world.cuts = Some(self.cuts + 1).filter(|cuts| *cuts <= CUTS)?;
                (self.link != Link::Down).then(|| world.machine.lost())?;
                world.link = Link::Down;
                // Its echo may still come, on the next subscription: it counts from when it was sent, so it may.
            }
            Step::Subscribe => {
                (self.link == Link::Down).then(|| world.link = Link::Subscribing(VecDeque::new()))?;
                if without == Without::TheFlushAfterTheAcknowledgement {
                    world.flush();
                }
            }
            Step::Acknowledge => {
                let Link::Subscribing(queue) = &self.link else { return None };
                world.link = Link::Up(queue.clone());
                let verdict = world.machine.subscribed();
                world.act(verdict, without);
            }
            Step::BeginRead => {
                self.read.is_none().then(|| world.read = Some((self.changes.len(), true)))?;
            }
            Step::EndRead => {
                let (version, stands) = world.read.take()?;
                let kept = stands || without == Without::TheTicket;
                if kept && at(self.now) < self.trusted_until {
                    world.near = Some(version);
                }
            }
        }
        Some(world)
    }

    fn waiting(&self) -> usize {
        match &self.link {
            Link::Down => 0,
            Link::Subscribing(queue) | Link::Up(queue) => queue.len(),
        }
    }

    fn change(&mut self, told: bool) -> Option<()> {
        (self.changes.len() < CHANGES).then_some(())?;
        self.changes.push(self.now);
        self.sequence += 1;
        if told {
            self.deliver(Item::Removal { number: self.sequence });
        }
        Some(())
    }

    fn deliver(&mut self, item: Item) {
        match &mut self.link {
            Link::Down => {}
            Link::Subscribing(queue) | Link::Up(queue) => queue.push_back(item),
        }
    }

    fn take(&mut self, without: Without) -> Option<()> {
        let Link::Up(queue) = &mut self.link else { return None };
        let echo = queue.iter().position(|item| matches!(item, Item::Echo { .. }));
        let item = match echo.filter(|_| without == Without::TheOrder) {
            Some(echo) => queue.remove(echo)?,
            None => queue.pop_front()?,
        };
        let verdict = match item {
            Item::Removal { number } => {
                self.forget();
                self.machine.message(number, true)
            }
            Item::Echo { sent, number } => {
                let sent = if without == Without::TheTimeOfSending { self.now } else { sent };
                self.machine.echo(number, at(sent), at(self.now))
            }
        };
        self.act(verdict, without);
        Some(())
    }

    fn act(&mut self, verdict: Verdict, without: Without) {
        let ignored = match verdict.flush {
            Some(FlushReason::Gap) => matches!(without, Without::TheGap | Without::TheOrder),
            Some(_) => without == Without::TheFlushAfterTheAcknowledgement,
            None => false,
        };
        if verdict.flush.is_some() && !ignored {
            self.flush();
        }
        if let Some(until) = verdict.trust_until {
            self.trusted_until = self.trusted_until.max(until);
        }
    }

    fn flush(&mut self) {
        self.forget();
    }

    fn forget(&mut self) {
        self.near = None;
        self.read = self.read.map(|(version, _)| (version, false));
    }

    /// Whether a read that starts now is served something that was changed longer ago than the bound.
    fn serves_too_old(&self, without: Without) -> bool {
        let trusted = at(self.now) < self.trusted_until || without == Without::TrustOnAHit;
        let next = self.near.and_then(|version| self.changes.get(version));
        trusted && next.is_some_and(|changed| self.now > changed + BOUND)
    }
}

/// Looks at every state; says how many there are, or the first that serves what it must not.
fn explore(without: Without) -> Result<usize, Box<World>> {
    let mut seen = HashSet::from([World::new()]);
    let mut next = vec![World::new()];
    while let Some(world) = next.pop() {
        for step in Step::ALL {
            let Some(after) = world.after(step, without) else { continue };
            if after.serves_too_old(without) {
                return Err(Box::new(after));
            }
            if !seen.contains(&after) {
                seen.insert(after.clone());
                next.push(after);
            }
        }
    }
    Ok(seen.len())
}

/// P2, I3, I4, SF1, SF2: in every course of events nothing older than the bound is served from memory.
#[test]
fn nothing_older_than_the_bound_is_ever_served() {
    let states = explore(Without::Nothing).expect("no stale read");
    assert!(states > 100_000, "the search went somewhere: {states}");
}

/// STYLE 19: each of the protecting steps is needed, and the search finds out.
#[test]
fn every_protecting_step_is_needed() {
    for without in [
        Without::TrustOnAHit,
        Without::TheTicket,
        Without::TheFlushAfterTheAcknowledgement,
        Without::TheGap,
        Without::TheTimeOfSending,
        Without::TheOrder,
    ] {
        assert!(explore(without).is_err(), "without {without:?} nothing stale was found");
    }
}
