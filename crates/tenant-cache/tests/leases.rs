//! The protocol of lease, fill and invalidation in its plainest form, under every order of its steps: two readers and
//! two writers of one instance, a far tier, a memory, and leases that end by themselves (COHERENCE 1.5, 2.1).
//!
//! The same search with one rule left out must find an old value where none may be; so it is known to look at what
//! counts. That the code keeps to the rules is what `steps` and the models in `src/interleavings` are for.

use std::collections::HashSet;

/// How often a lease may end before its load does.
const EXPIRIES: u8 = 1;

/// The rule that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// One token for all loads of a process.
    ATokenPerLoad,
    /// A fill stores whatever stands there.
    TheComparison,
    /// A fill stores where nothing stands (`SET NX`), and there is no marker to compare with.
    TheMarker,
    /// Memory takes every answer.
    TheTicket,
    /// The ticket is taken after the far tier has answered.
    TheTicketBeforeTheQuestion,
    /// The own memory is cleared before the far tier, and not after it.
    TheOrderOfRemoval,
    /// The far tier is cleared before the commit only.
    TheCommitFirst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Far {
    Nothing,
    Value(u8),
    Marker(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reader {
    Idle,
    Ticketed { ticket: u8 },
    Missed { ticket: u8 },
    Leased { ticket: u8 },
    Loaded { ticket: u8, value: u8 },
    Answered { ticket: u8, value: u8 },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Writer {
    /// The next of its steps.
    at: usize,
    /// What it committed.
    version: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    origin: u8,
    far: Far,
    near: Option<u8>,
    epoch: u8,
    readers: [Reader; 2],
    writers: [Writer; 2],
    expiries: u8,
    /// The newest version whose invalidation was acknowledged.
    acknowledged: u8,
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Commit,
    RemoveFar,
    RemoveNear,
    Acknowledge,
}

impl Without {
    /// The steps of a writer.
    fn writing(self) -> [Act; 4] {
        match self {
            Self::TheOrderOfRemoval => [Act::Commit, Act::RemoveNear, Act::RemoveFar, Act::Acknowledge],
            Self::TheCommitFirst => [Act::RemoveFar, Act::RemoveNear, Act::Commit, Act::Acknowledge],
            _ => [Act::Commit, Act::RemoveFar, Act::RemoveNear, Act::Acknowledge],
        }
    }

    fn token(self, reader: usize) -> u8 {
        if self == Self::ATokenPerLoad { 0 } else { reader as u8 }
    }
}

impl World {
    const START: Self = Self {
        origin: 0,
        far: Far::Nothing,
        near: None,
        epoch: 0,
        readers: [Reader::Idle; 2],
        writers: [Writer { at: 0, version: 0 }; 2],
        expiries: 0,
        acknowledged: 0,
    };

    /// Every world that one step leads to.
    fn next(&self, without: Without) -> Vec<Self> {
        let mut next = Vec::new();
        for reader in 0..self.readers.len() {
            next.extend(self.read(reader, without));
        }
        for writer in 0..self.writers.len() {
            next.extend(self.write(writer, without));
        }
        if matches!(self.far, Far::Marker(_)) && self.expiries < EXPIRIES {
            next.push(Self { far: Far::Nothing, expiries: self.expiries + 1, ..*self });
        }
        next
    }

    fn read(&self, number: usize, without: Without) -> Option<Self> {
        let mut world = *self;
        let token = without.token(number);
        world.readers[number] = match self.readers[number] {
            Reader::Idle => Reader::Ticketed { ticket: self.epoch },
            Reader::Ticketed { ticket } => {
                let ticket = if without == Without::TheTicketBeforeTheQuestion { u8::MAX } else { ticket };
                match self.far {
                    Far::Value(value) => Reader::Answered { ticket, value },
                    _ => Reader::Missed { ticket },
                }
            }
            Reader::Missed { ticket } => match self.far {
                Far::Value(value) => Reader::Answered { ticket, value },
                Far::Marker(_) => Reader::Done,
                Far::Nothing => {
                    if without != Without::TheMarker {
                        world.far = Far::Marker(token);
                    }
                    Reader::Leased { ticket }
                }
            },
            Reader::Leased { ticket } => Reader::Loaded { ticket, value: self.origin },
            Reader::Loaded { ticket, value } => {
                let stands = match without {
                    Without::TheComparison => true,
                    Without::TheMarker => self.far == Far::Nothing,
                    _ => self.far == Far::Marker(token),
                };
                if stands {
                    world.far = Far::Value(value);
                }
                if stands { Reader::Answered { ticket, value } } else { Reader::Done }
            }
            // The ticket is taken now, and memory looked at a step later.
            Reader::Answered { ticket: u8::MAX, value } => Reader::Answered { ticket: self.epoch, value },
            Reader::Answered { ticket, value } => {
                if ticket == self.epoch || without == Without::TheTicket {
                    world.near = Some(value);
                }
                Reader::Done
            }
            Reader::Done => return None,
        };
        Some(world)
    }

    fn write(&self, number: usize, without: Without) -> Option<Self> {
        let mut world = *self;
        let act = *without.writing().get(self.writers[number].at)?;
        world.writers[number].at += 1;
        match act {
            Act::Commit => {
                world.origin += 1;
                world.writers[number].version = world.origin;
            }
            Act::RemoveFar => world.far = Far::Nothing,
            Act::RemoveNear => {
                world.epoch += 1;
                world.near = None;
            }
            Act::Acknowledge => {
                world.acknowledged = self.acknowledged.max(self.writers[number].version);
            }
        }
        Some(world)
    }

    /// Whether a tier holds what an acknowledged invalidation was about (P1, P3).
    fn holds_something_old(&self) -> bool {
        let old = |value: u8| value < self.acknowledged;
        self.near.is_some_and(old) || matches!(self.far, Far::Value(value) if old(value))
    }
}

/// Looks at every world; says how many there are, or the first that holds something old.
fn explore(without: Without) -> Result<usize, World> {
    let mut seen = HashSet::from([World::START]);
    let mut open = vec![World::START];
    while let Some(world) = open.pop() {
        for next in world.next(without) {
            if next.holds_something_old() {
                return Err(next);
            }
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    Ok(seen.len())
}

/// SE1, SE8, SE9, P1, P3: in no order of steps does any tier hold an old value after its invalidation returned.
#[test]
fn no_order_of_steps_leaves_an_old_value() {
    let worlds = explore(Without::Nothing).expect("nothing old anywhere");
    assert!(worlds > 10_000, "the search went somewhere: {worlds}");
}

/// STYLE 19, COHERENCE 9.3: each rule is needed, and the search finds out.
#[test]
fn every_rule_is_needed() {
    for without in [
        Without::ATokenPerLoad,
        Without::TheComparison,
        Without::TheMarker,
        Without::TheTicket,
        Without::TheTicketBeforeTheQuestion,
        Without::TheOrderOfRemoval,
        Without::TheCommitFirst,
    ] {
        assert!(explore(without).is_err(), "without {without:?} nothing old was found");
    }
}
