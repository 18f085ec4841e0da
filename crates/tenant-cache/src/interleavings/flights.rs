//! Shared loads against removals, and against their own ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use cache_core::Tick;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use shuttle::future::block_on;
use shuttle::thread;

use super::{Instance, NEW, OLD, under_many_schedules};
use crate::answer::{Found, Source};
use crate::flight::{Boarding, Flight, Flights, Landing};
use crate::near::Ticket;
use crate::sync::AtomicU64;

/// An instance with its flights, and how many loads there were.
struct Airport {
    instance: Arc<Instance>,
    flights: Arc<Flights<u32, u64>>,
    loads: Arc<AtomicU64>,
}

impl Airport {
    fn new() -> Arc<Self> {
        let (instance, flights) = (Instance::new(), Arc::new(Flights::new()));
        Arc::new(Self { instance, flights, loads: Arc::new(AtomicU64::new(0)) })
    }

    /// The course of a flight: unless memory knows by now, ask and remember.
    fn course(&self, ticket: Ticket) -> BoxFuture<'static, Landing<u64>> {
        let (instance, loads) = (Arc::clone(&self.instance), Arc::clone(&self.loads));
        async move {
            let (value, source) = match instance.read() {
                Some(value) => (value, Source::Near),
                None => {
                    loads.fetch_add(1, SeqCst);
                    let value = instance.ask();
                    shuttle::future::yield_now().await;
                    instance.remember(value, &ticket);
                    (value, Source::Origin)
                }
            };
            Ok(Found { value: Some(Arc::new(value)), source, stale: false })
        }
        .boxed()
    }

    fn board(&self) -> Flight<u64> {
        let (near, ticket) = (&self.instance.cache.inner.near, self.instance.ticket());
        let stands = |ticket: &Ticket| near.stands(ticket);
        let boarding = Boarding { now: Tick::ZERO, join_within: Duration::from_secs(1), stands: &stands };
        let course = || self.course(ticket.clone());
        self.flights.board(self.instance.query().to_key(), ticket.clone(), &boarding, course).0
    }

    /// A lookup, as `TenantCache` does it.
    fn look_up(&self) -> u64 {
        match self.instance.read() {
            Some(value) => value,
            None => landed(block_on(self.board())),
        }
    }

    fn remove(&self) {
        self.instance.cache.inner.near.remove(&self.instance.query());
    }

    fn loads(&self) -> u64 {
        self.loads.load(SeqCst)
    }
}

fn landed(landing: Landing<u64>) -> u64 {
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
        let ending = thread::spawn(move || landed(block_on(old)));
        airport.instance.commit(NEW);
        airport.remove();
        let new = airport.board();
        // Somebody else comes while the old flight ends and the new one has not begun to move.
        let other = {
            let airport = Arc::clone(&airport);
            thread::spawn(move || landed(block_on(airport.board())))
        };
        let mine = landed(block_on(new));
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
