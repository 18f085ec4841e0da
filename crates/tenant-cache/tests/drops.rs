//! What leaves memory is dropped when no lock is held: a `Drop` may use the cache, and may take long.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::cell::RefCell;
use std::fmt;
use std::pin::pin;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use cache_core::{ManualClock, Scope};
use futures_util::{FutureExt, StreamExt};
use support::of;
use tenant_cache::{Caches, Change, HandlerGuard, TenantCache};
use tokio::runtime::Runtime;

/// Long enough for any machine; only a deadlock takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a drop does, once it is set.
type Hook = Arc<OnceLock<Box<dyn Fn(u32) + Send + Sync>>>;

/// A value whose drop is heard.
struct Loud {
    number: u32,
    hook: Hook,
}

impl Drop for Loud {
    fn drop(&mut self) {
        if let Some(hook) = self.hook.get() {
            hook(self.number);
        }
    }
}

/// A key whose drop is heard. Its hook is everybody's, because a key is read from text.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct LoudKey(u32);

type KeyHook = Arc<dyn Fn(u32) + Send + Sync>;

static KEY_HOOK: Mutex<Option<KeyHook>> = Mutex::new(None);

impl Drop for LoudKey {
    fn drop(&mut self) {
        let hook = KEY_HOOK.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook(self.0);
        }
    }
}

impl fmt::Display for LoudKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LoudKey {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

type Loads = TenantCache<u32, Loud>;

struct Fixture {
    caches: Caches,
    cache: Loads,
    hook: Hook,
    hand: ManualClock,
}

fn fixture() -> Fixture {
    let (hook, hand) = (Hook::default(), ManualClock::new());
    let caches = Caches::builder().clock(hand.clock()).build().unwrap();
    let theirs = Arc::clone(&hook);
    let cache = caches
        .domain("loud")
        .scope(Scope::Tenant)
        .capacity(100)
        .tenant_share(0.2)
        .jitter(0.0)
        .refresh_ahead(0.5)
        .load_local(move |number: u32| {
            let value = Loud { number, hook: Arc::clone(&theirs) };
            async move { Ok::<_, std::io::Error>((number < 1_000_000).then_some(value)) }
        })
        .unwrap();
    Fixture { caches, cache, hook, hand }
}

/// Does `work` in a thread of its own; `None` when it never ends.
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, ended) = channel();
    thread::spawn(move || done.send(work()));
    ended.recv_timeout(PATIENCE).ok()
}

/// The runtime that loads run in.
static LOADING: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
});

/// Does `work` as a request of a tenant, in this thread: also where that runs a task.
fn now_of<T>(tenant: &str, work: impl Future<Output = T>) -> T {
    let _loads = LOADING.enter();
    let mut work = pin!(of(tenant, work));
    loop {
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::yield_now(),
        }
    }
}

/// Does `work` as a request of `acme`.
fn now<T>(work: impl Future<Output = T>) -> T {
    now_of("acme", work)
}

/// How an entry leaves memory.
#[derive(Debug, Clone, Copy)]
enum Way {
    Invalidate,
    Many,
    Prefix,
    Replaced,
    TurnedAbsent,
    Share,
    Capacity,
}

const WAYS: [Way; 7] =
    [Way::Invalidate, Way::Many, Way::Prefix, Way::Replaced, Way::TurnedAbsent, Way::Share, Way::Capacity];

impl Way {
    fn happen(self, Fixture { caches, cache, hook, hand }: &Fixture) {
        let loud = |number| Loud { number, hook: Arc::clone(hook) };
        match self {
            Self::Invalidate => now(cache.invalidate(&1)).unwrap(),
            Self::Many => now(cache.invalidate_many(&[1, 2, 3])).unwrap(),
            Self::Prefix => assert_eq!(now(caches.invalidate_prefix("acme:loud:")).unwrap(), 0),
            Self::Replaced => now(cache.insert(&1, loud(1))).unwrap(),
            Self::TurnedAbsent => {
                now(cache.insert(&1_000_001, loud(1))).unwrap();
                hand.advance(Duration::from_secs(301));
                assert!(now(cache.get(&1_000_001)).unwrap().is_none());
            }
            Self::Share => (10..200).for_each(|key| drop(now(cache.get(&key)).unwrap())),
            Self::Capacity => (10..200).for_each(|key| {
                let tenant = format!("t{}", key % 50);
                drop(now_of(&tenant, cache.get(&key)).unwrap());
            }),
        }
    }
}

/// What a drop does with the cache.
#[derive(Debug, Clone, Copy)]
enum Act {
    Look,
    Get,
    Invalidate,
    Prefix,
}

impl Act {
    fn happen(self, caches: &Caches, cache: &Loads, number: u32) {
        // What the act itself makes leave need not act again.
        let act = async {
            match self {
                Self::Look => (0..20).for_each(|key| drop(cache.peek(&key).unwrap())),
                // What has to be loaded is begun and left: a drop cannot wait for a task.
                Self::Get => (0..20).for_each(|key| drop(cache.get(&key).now_or_never())),
                Self::Invalidate => cache.invalidate(&number).await.unwrap(),
                Self::Prefix => assert_eq!(caches.invalidate_prefix("acme:").await.unwrap(), 0),
            }
        };
        now(act);
    }
}

thread_local! {
    static WITHIN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `act`, unless it runs in this thread already.
fn once(act: impl FnOnce()) {
    if !WITHIN.replace(true) {
        act();
        WITHIN.set(false);
    }
}

/// A drop that looks at the cache, asks it, or invalidates it, ends, however the value left.
#[test]
fn a_drop_may_use_the_cache() {
    for way in WAYS {
        for act in [Act::Look, Act::Get, Act::Invalidate, Act::Prefix] {
            let dropped = ends(move || {
                let fixture = fixture();
                (0..10).for_each(|key| drop(now(fixture.cache.get(&key)).unwrap()));
                let (caches, cache) = (fixture.caches.clone(), fixture.cache.clone());
                let heard = Arc::new(Mutex::new(0));
                let count = Arc::clone(&heard);
                let hook = move |number| {
                    *count.lock().unwrap() += 1;
                    once(|| act.happen(&caches, &cache, number));
                };
                assert!(fixture.hook.set(Box::new(hook)).is_ok());
                way.happen(&fixture);
                let heard = *heard.lock().unwrap();
                // The hook holds the cache, and the cache the hook.
                std::mem::forget(fixture);
                heard
            });
            let dropped = dropped.unwrap_or_else(|| panic!("{way:?}: a drop that does {act:?} hangs"));
            assert!(dropped > 0, "{way:?}: nothing was dropped");
        }
    }
}

/// The gate that a drop stands at.
struct Gate {
    standing: Receiver<u32>,
    open: Sender<()>,
}

/// Lets the first drop wait for the gate.
fn gate(hook: &Hook) -> Gate {
    let ((came, standing), (open, opened)) = (channel(), channel());
    let gate = Mutex::new(Some((came, opened)));
    let hold = move |number| {
        let first = gate.lock().unwrap().take();
        if let Some((came, opened)) = first {
            came.send(number).unwrap();
            // Also when the test has failed and the gate is gone.
            let _: Result<(), _> = opened.recv();
        }
    };
    assert!(hook.set(Box::new(hold)).is_ok());
    Gate { standing, open }
}

/// While a drop takes long, lookups of every other key go on: those of the same part of memory, too.
#[test]
fn a_drop_that_takes_long_holds_up_nobody() {
    for way in WAYS {
        let fixture = Arc::new(fixture());
        (0..10).for_each(|key| drop(now(fixture.cache.get(&key)).unwrap()));
        let gate = gate(&fixture.hook);
        let theirs = Arc::clone(&fixture);
        let leaving = thread::spawn(move || way.happen(&theirs));
        gate.standing.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{way:?}: nothing is dropped"));
        let theirs = Arc::clone(&fixture);
        let others = ends(move || {
            // More keys than there are locks.
            for key in 1_000..5_000 {
                now_of("other", theirs.cache.get(&key)).unwrap();
                now_of("acme", theirs.cache.get(&key)).unwrap();
            }
        });
        assert!(others.is_some(), "{way:?}: a drop that takes long holds up other lookups");
        gate.open.send(()).unwrap();
        leaving.join().unwrap();
    }
}

/// An entry that a refresh puts off leaves a copy of itself: that is not dropped under a lock either, also when the
/// new one is gone by then.
#[test]
fn what_a_refresh_replaces_is_dropped_outside() {
    let ended = ends(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = fixture();
            of("acme", fixture.cache.get(&1)).await.unwrap();
            let (caches, cache) = (fixture.caches.clone(), fixture.cache.clone());
            let hook = move |number| once(|| Act::Invalidate.happen(&caches, &cache, number));
            assert!(fixture.hook.set(Box::new(hook)).is_ok());
            fixture.hand.advance(Duration::from_secs(200));
            of("acme", fixture.cache.get(&1)).await.unwrap();
            while fixture.cache.stats().refreshes == 0 || fixture.cache.stats().loads < 2 {
                tokio::task::yield_now().await;
            }
            std::mem::forget(fixture);
        });
    });
    assert!(ended.is_some(), "the refresh hangs");
}

/// A key's drop may use the cache, too: keys leave with their entries, with the order of a tenant's share and with
/// the handlers of changes.
#[test]
fn a_keys_drop_may_use_the_cache() {
    let ended = ends(|| {
        let caches = Caches::in_memory();
        let cache: TenantCache<LoudKey, u32> = caches
            .domain("keys")
            .scope(Scope::Tenant)
            .capacity(100)
            .tenant_share(0.1)
            .load_local(|key: LoudKey| async move { Ok::<_, std::io::Error>(Some(key.0)) })
            .unwrap();
        (0..10).for_each(|key| drop(now(cache.get(&LoudKey(key))).unwrap()));
        let guard: HandlerGuard = now(async { cache.on_change(&LoudKey(1), || {}).unwrap() });
        let (theirs, registry) = (cache.clone(), caches.clone());
        let hook = move |_| {
            once(|| {
                now(async {
                    theirs.peek(&LoudKey(2)).unwrap();
                    theirs.invalidate(&LoudKey(3)).await.unwrap();
                    registry.invalidate_prefix("acme:keys:9").await.unwrap();
                });
            });
        };
        *KEY_HOOK.lock().unwrap() = Some(Arc::new(hook));
        now(cache.invalidate(&LoudKey(1))).unwrap();
        (10..400).for_each(|key| drop(now(cache.get(&LoudKey(key))).unwrap()));
        drop(guard);
        now(caches.invalidate_prefix("acme:keys:")).unwrap();
        *KEY_HOOK.lock().unwrap() = None;
    });
    assert!(ended.is_some(), "a key's drop hangs");
}

/// What a listener has not read, and is too far behind for, leaves the backlog outside of its lock, too.
#[test]
fn what_leaves_the_backlog_may_use_the_cache() {
    let ended = ends(|| {
        let caches = Caches::in_memory();
        let numbers: TenantCache<SlyKey, u32> = caches
            .domain("numbers")
            .scope(Scope::Tenant)
            .load_local(|key: SlyKey| async move { Ok::<_, std::io::Error>(Some(key.0)) })
            .unwrap();
        let mut behind = Box::pin(numbers.changes());
        let theirs = numbers.clone();
        SLY_HOOK.set(Some(Box::new(move || now(theirs.invalidate(&SlyKey(0))).unwrap())));
        (1..3_000).for_each(|key| now(numbers.invalidate(&SlyKey(key))).unwrap());
        // Else each change that is read would make another one.
        SLY_HOOK.set(None);
        let first = behind.next().now_or_never().flatten();
        let all =
            first.iter().count() + std::iter::from_fn(|| behind.next().now_or_never().flatten()).count();
        drop(behind);
        now(numbers.invalidate(&SlyKey(1))).unwrap();
        (first, all)
    });
    let (first, all) = ended.expect("the drop of a change hangs");
    assert_eq!((first, all), (Some(Change::Many { tenant: None }), 1_025));
}

thread_local! {
    static SLY_HOOK: RefCell<Option<Box<dyn Fn()>>> = const { RefCell::new(None) };
}

/// A key whose drop, in a thread with a hook, invalidates another one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct SlyKey(u32);

impl Drop for SlyKey {
    fn drop(&mut self) {
        let _: Result<(), _> = SLY_HOOK.try_with(|hook| {
            if let Some(hook) = &*hook.borrow() {
                once(hook);
            }
        });
    }
}

impl fmt::Display for SlyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SlyKey {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What a handler of changes holds is dropped outside of the handlers' lock.
#[test]
fn what_a_handler_holds_may_use_the_cache() {
    let ended = ends(|| {
        let fixture = fixture();
        let (caches, cache) = (fixture.caches.clone(), fixture.cache.clone());
        let guard = now(async {
            let held = Arc::new(Loud { number: 7, hook: Arc::clone(&fixture.hook) });
            fixture.cache.on_change(&7, move || assert_eq!(Arc::strong_count(&held), 1)).unwrap()
        });
        let hook = move |number| once(|| Act::Invalidate.happen(&caches, &cache, number));
        assert!(fixture.hook.set(Box::new(hook)).is_ok());
        drop(guard);
        std::mem::forget(fixture);
    });
    assert!(ended.is_some(), "a handler's drop hangs");
}
