//! A group's number against its invalidation.

use std::sync::Arc;

use shuttle::thread;

use super::under_every_schedule;
use crate::generation::{Chain, Generation, Generations};
use crate::number::{Number, NumberForm};
use crate::sync::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

const OLD_NUMBER: u64 = 10;
const NEW_NUMBER: u64 = 20;

/// A group, and its number in the far tier.
struct Group {
    generations: Generations,
    group: Arc<Generation>,
    far: AtomicU64,
}

impl Group {
    fn new() -> Arc<Self> {
        let generations = Generations::new(NumberForm::default());
        let group = generations.domain(Some("acme"), "rows");
        Arc::new(Self { generations, group, far: AtomicU64::new(OLD_NUMBER) })
    }

    /// Asks the far tier, and remembers the answer.
    fn ask(&self) {
        let chain = Chain::of([Arc::clone(&self.group)]);
        let number = self.far.load(SeqCst);
        chain.learn(0, Number { value: number, ends_ms: u64::MAX });
    }

    /// What an invalidation does: a new number in the far tier, then the message.
    fn invalidate(&self) {
        self.far.store(NEW_NUMBER, SeqCst);
        self.group.bump();
    }
}

/// SE14, SF7: a number that was asked for before the group's invalidation is not known after it.
#[test]
fn an_old_number_is_not_known_after_the_invalidation() {
    under_every_schedule(|| {
        let group = Group::new();
        let asking = {
            let group = Arc::clone(&group);
            thread::spawn(move || group.ask())
        };
        group.invalidate();
        assert_ne!(group.group.known(), Some(OLD_NUMBER));
        asking.join().expect("asking");
        assert_ne!(group.group.known(), Some(OLD_NUMBER));
    });
}

/// I3: after memory was emptied for missed messages, an old number that was on its way is not known either.
#[test]
fn an_old_number_is_not_known_after_a_flush() {
    under_every_schedule(|| {
        let group = Group::new();
        let asking = {
            let group = Arc::clone(&group);
            thread::spawn(move || group.ask())
        };
        // The number changes, and the message is lost.
        group.far.store(NEW_NUMBER, SeqCst);
        group.generations.forget_all();
        assert_ne!(group.group.known(), Some(OLD_NUMBER));
        asking.join().expect("asking");
        assert_ne!(group.group.known(), Some(OLD_NUMBER));
    });
}

/// E9: numbers are remembered at all, else each lookup would ask.
#[test]
fn the_current_number_is_known() {
    under_every_schedule(|| {
        let group = Group::new();
        let asking = {
            let group = Arc::clone(&group);
            thread::spawn(move || group.ask())
        };
        group.invalidate();
        asking.join().expect("asking");
        group.ask();
        assert_eq!(group.group.known(), Some(NEW_NUMBER));
    });
}

/// SG9: a group that is looked for while another one is dropped is one group for all who hold it.
#[test]
fn all_who_hold_a_group_hold_the_same() {
    under_every_schedule(|| {
        let generations = Arc::new(Generations::new(NumberForm::default()));
        let other = {
            let generations = Arc::clone(&generations);
            thread::spawn(move || generations.domain(Some("acme"), "rows"))
        };
        let mine = generations.domain(Some("acme"), "rows");
        let others = other.join().expect("the other");
        assert!(Arc::ptr_eq(&mine, &others));
        drop(others);
        assert!(generations.find(mine.text()).is_some_and(|found| Arc::ptr_eq(&found, &mine)));
    });
}
