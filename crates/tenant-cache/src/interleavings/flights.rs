//! Shared loads against removals, against their own ends, and against each other.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use cache_core::{LoadError, Tick};
use shuttle::future::block_on;
use shuttle::thread;

use super::{Instance, KEY, NEW, OLD, under_many_schedules};
use crate::answer::{Found, Source};
use crate::key::NearKey;
use crate::load_stack::{Frame, LoadStack};
use crate::near::Ticket;
use crate::shared_load::Stage;
use crate::single_flight::{JoinRule, Landing, LookupResult, Part, Passenger, Question, SingleFlight};
use crate::sync::AtomicU64;

/// A lookup of a key.
struct Asked {
    key: NearKey<u32>,
    ticket: Ticket,
}

impl Question for Asked {
    type Key = NearKey<u32>;

    fn key(&self) -> &NearKey<u32> {
        &self.key
    }

    fn ticket(&self) -> &Ticket {
        &self.ticket
    }
}

/// An instance with its loads in flight, and how many loads there were.
struct Airport {
    instance: Arc<Instance>,
    flights: Arc<SingleFlight<Asked, LookupResult<u64>>>,
    loads: Arc<AtomicU64>,
}

type Seat = Passenger<Asked, LookupResult<u64>>;
type Duty = Landing<Asked, LookupResult<u64>>;

impl Airport {
    fn new() -> Arc<Self> {
        let (instance, flights) = (Instance::new(), Arc::new(SingleFlight::new()));
        Arc::new(Self { instance, flights, loads: Arc::new(AtomicU64::new(0)) })
    }

    /// Does what a load does: unless memory knows by now, asks and remembers.
    fn load(&self, seat: &Seat, duty: Duty) {
        let (value, source) = match self.instance.read() {
            Some(value) => (value, Source::Near),
            None => {
                self.loads.fetch_add(1, SeqCst);
                let value = self.instance.ask();
                thread::yield_now();
                self.instance.remember(value, &seat.flight.question.ticket);
                (value, Source::Origin)
            }
        };
        duty.land(Ok(Found { value: Some(Arc::new(value)), source, stale: false }));
    }

    /// Joins the load of a key, or has one to do.
    fn board_for(&self, key: u32) -> (Seat, Option<Duty>) {
        let (near, ticket) = (&self.instance.cache.inner.near, self.instance.ticket());
        let stands = |ticket: &Ticket| near.stands(ticket);
        let (now, join_within) = (Tick::ZERO, Duration::from_secs(1));
        let rule = JoinRule { now, join_within, in_task: false, stands: &stands };
        let key = NearKey { key, ..self.instance.query().to_key() };
        match self.flights.join_or_start(Asked { key, ticket }, &rule) {
            Part::Joined(seat, _) => (seat, None),
            Part::Started(seat, duty) => (seat, Some(duty)),
        }
    }

    fn board(&self) -> (Seat, Option<Duty>) {
        self.board_for(KEY)
    }

    /// Does the load, or waits for it; once more when it lapsed.
    fn end(&self, (mut seat, mut duty): (Seat, Option<Duty>)) -> u64 {
        loop {
            if let Some(duty) = duty.take() {
                self.load(&seat, duty);
            }
            match block_on(seat.flight.load.outcome()) {
                Some(landing) => return landed(landing),
                None => (seat, duty) = self.board(),
            }
        }
    }

    /// A lookup, as `TenantCache` does it.
    fn look_up(&self) -> u64 {
        match self.instance.read() {
            Some(value) => value,
            None => self.end(self.board()),
        }
    }

    fn remove(&self) {
        self.instance.cache.inner.near.remove(&self.instance.query());
    }

    fn loads(&self) -> u64 {
        self.loads.load(SeqCst)
    }
}

fn landed(landing: LookupResult<u64>) -> u64 {
    landing.ok().and_then(|found| found.value).map(|value| *value).expect("the row exists")
}

/// SE1, SE9: who comes after the removal gets the new row, whether a flight from before it is in the air, is
/// landing, or has landed; and so does everybody when all is over.
#[test]
fn who_comes_after_a_removal_joins_no_older_flight() {
    under_many_schedules(|| {
        let airport = Airport::new();
        let early = {
            let airport = Arc::clone(&airport);
            thread::spawn(move || airport.look_up())
        };
        airport.instance.commit(NEW);
        airport.remove();
        assert_eq!(airport.look_up(), NEW, "came after the removal");
        assert!([OLD, NEW].contains(&early.join().expect("the early one")));
        assert_eq!(airport.look_up(), NEW, "came when all was over");
    });
}

/// E4, SA1: without a removal three lookups share one load, in every order of boarding and landing.
#[test]
fn lookups_share_one_load() {
    under_many_schedules(|| {
        let airport = Airport::new();
        let others = [(); 2].map(|()| {
            let airport = Arc::clone(&airport);
            thread::spawn(move || airport.look_up())
        });
        assert_eq!(airport.look_up(), OLD);
        for other in others {
            assert_eq!(other.join().expect("another one"), OLD);
        }
        assert_eq!(airport.loads(), 1);
    });
}

/// SE10: the end of an old flight does not take the new one off the table: who comes while the new one is in the air
/// shares it.
#[test]
fn the_end_of_an_old_flight_leaves_the_new_one_shared() {
    under_many_schedules(|| {
        let airport = Airport::new();
        let old = airport.board();
        let ending = {
            let airport = Arc::clone(&airport);
            thread::spawn(move || airport.end(old))
        };
        airport.instance.commit(NEW);
        airport.remove();
        let new = airport.board();
        // Somebody else comes while the old flight ends and the new one has not begun to move.
        let other = {
            let airport = Arc::clone(&airport);
            thread::spawn(move || airport.end(airport.board()))
        };
        let mine = airport.end(new);
        assert_eq!((mine, other.join().expect("the other")), (NEW, NEW));
        ending.join().expect("the old flight");
        assert!(airport.loads() <= 2, "the old one's and one of the new ones: {}", airport.loads());
    });
}

/// SA5: whoever leaves, in whatever order, a flight that is left by all is off the table, and the next lookup begins
/// a new one.
#[test]
fn a_flight_left_by_all_is_off_the_table() {
    under_many_schedules(|| {
        let airport = Airport::new();
        let leaving = [(); 2].map(|()| {
            let airport = Arc::clone(&airport);
            thread::spawn(move || drop(airport.board()))
        });
        let staying = airport.look_up();
        assert_eq!(staying, OLD);
        for one in leaving {
            one.join().expect("one who leaves");
        }
        airport.instance.commit(NEW);
        airport.remove();
        assert_eq!(airport.look_up(), NEW);
    });
}

/// A load goes on in a task while its callers come and go: whoever stays gets its answer, and when all have left nobody
/// joins it any more, whether or not it ends.
#[test]
fn a_load_in_a_task_belongs_to_all_who_wait() {
    under_many_schedules(|| {
        let airport = Airport::new();
        let (first, duty) = airport.board();
        let duty = duty.expect("the first one starts it");
        let task = {
            let (airport, seat) = (Arc::clone(&airport), first.another().expect("it runs"));
            thread::spawn(move || {
                seat.flight.load.advance(Stage::InTask);
                airport.load(&seat, duty);
            })
        };
        let staying = {
            let airport = Arc::clone(&airport);
            thread::spawn(move || airport.look_up())
        };
        drop(first);
        assert_eq!(staying.join().expect("who stays"), OLD);
        task.join().expect("the task");
        assert_eq!(airport.loads(), 1);
    });
}

/// Two loads that ask for each other, each through a caller of its own: nobody waits for ever, and both are told that
/// they would wait for themselves, the one at once and the other by its answer.
#[test]
fn loads_that_ask_for_each_other_end() {
    under_many_schedules(|| {
        let airport = Airport::new();
        let begun = [1, 2].map(|key| airport.board_for(key));
        let asking = begun.into_iter().zip([(1, 2), (2, 1)]).map(|((seat, duty), (key, other))| {
            let airport = Arc::clone(&airport);
            let duty = duty.expect("nobody else asks for it");
            thread::spawn(move || ask_for_the_other(&airport, (seat, duty), key, other))
        });
        let asking: Vec<_> = asking.collect();
        let refused: Vec<_> = asking.into_iter().map(|asking| asking.join().expect("it ends")).collect();
        assert!(refused.contains(&true), "one of them is refused");
    });
}

/// Does a load that asks for another key; whether it was refused.
fn ask_for_the_other(airport: &Arc<Airport>, (seat, duty): (Seat, Duty), key: u32, other: u32) -> bool {
    let frame = Frame::new(seat.flight.load.node(), &"rows".into(), &key.to_string().into());
    let inside = LoadStack::default().with(vec![frame]);
    let answer = Found { value: None, source: Source::Origin, stale: false };
    let (theirs, own) = airport.board_for(other);
    let Ok(_waiting) = inside.wait_for(|| theirs.flight.load.node()) else {
        duty.land(Err(LoadError::Reentrant { domain: "rows".into() }.into()));
        return true;
    };
    match own {
        // The other's load is over.
        Some(own) => own.land(Ok(answer.clone())),
        None => drop(block_on(theirs.flight.load.outcome()).expect("it does not lapse")),
    }
    duty.land(Ok(answer));
    false
}
