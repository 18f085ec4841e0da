//! Whether what callers get is right.

use std::error::Error;
use std::sync::Arc;

use cache_core::{CacheError, LoadError};

use crate::call::{Call, Op};
use crate::domains::{DOMAINS, Rows};
use crate::entry::{Caller, Row};
use crate::origin::Floor;
use crate::patience::Patience;
use crate::world::{Phase, World};

/// A read by a loader, as part of its own load.
pub(crate) async fn read(
    world: Arc<World>,
    instance: usize,
    caller: Caller,
    domain: usize,
    key: u32,
) -> Result<(), CacheError> {
    let op = match key % 3 {
        0 => Op::GetMany,
        1 => Op::Fresh,
        _ => Op::Get,
    };
    let call = Call { op, instance, domain, caller, key, commits: false, patience: Patience::ToTheEnd };
    let cache = world.instance(instance).domains[domain].clone();
    let step = world.record.begin(call);
    let done = Ended { world: Arc::clone(&world), step };
    world.record.count("nested reads", 1);
    let read = Check { world: &world, step, call }.read(&cache).await;
    drop(done);
    read
}

/// Takes a call off the list of those in flight, also when it is dropped.
pub(crate) struct Ended {
    pub(crate) world: Arc<World>,
    pub(crate) step: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.world.record.end(self.step);
    }
}

/// The check of one call.
#[derive(Clone, Copy)]
pub(crate) struct Check<'a> {
    pub(crate) world: &'a World,
    pub(crate) step: u64,
    pub(crate) call: Call,
}

impl Check<'_> {
    pub(crate) fn violate(&self, what: &str) {
        self.world.record.violate_call(self.step, self.call, what);
    }

    fn note(&self, what: String) {
        self.world.record.note(self.step, self.call, what);
    }

    /// Reads in the call's way, as whoever runs; checks what comes.
    pub(crate) async fn read(&self, cache: &Rows) -> Result<(), CacheError> {
        let Call { op, caller, domain, key, .. } = self.call;
        let floor = |key| self.world.origin.floor(caller.entry(domain, key));
        let own = floor(key);
        match op {
            Op::GetMany => {
                let keys = self.call.several();
                let floors = keys.map(floor);
                let rows = self.answered(cache.get_many(&keys).await)?;
                if rows.len() != keys.len() {
                    self.violate(&format!("{} answers", rows.len()));
                }
                for (floor, row) in floors.into_iter().zip(rows) {
                    self.right(floor, row.as_deref());
                }
            }
            Op::Fresh => self.right(own, self.answered(cache.fresh(&key).await)?.as_deref()),
            Op::Refresh => {
                // It loads: what was committed is seen, acknowledged or not.
                let own = self.world.origin.committed(&[own.entry])[0];
                self.right(own, self.answered(cache.refresh(&key).await)?.as_deref());
            }
            Op::Lookup => {
                let found = self.answered(cache.lookup(&key).await)?;
                self.right(own, found.value.as_deref());
                if found.stale {
                    self.world.record.count("stale answers", 1);
                }
                let fallback = found.value.as_deref().is_some_and(|row| row.fallback);
                if fallback != (found.source == tenant_cache::Source::Fallback) {
                    self.violate(&format!("from {:?}: {:?}", found.source, found.value));
                }
            }
            Op::Peek => {
                if let Some(row) = self.answered(cache.peek(&key))? {
                    self.right(own, Some(&row));
                    if row.fallback {
                        self.violate("the fallback's answer is cached");
                    }
                }
            }
            _ => self.right(own, self.answered(cache.get(&key).await)?.as_deref()),
        }
        Ok(())
    }

    fn right(&self, floor: Floor, row: Option<&Row>) {
        self.world.record.count("reads", 1);
        if row.is_some_and(|row| row.fallback) {
            self.world.record.count("fallbacks", 1);
        }
        match self.world.origin.wrong(floor, row) {
            Some(wrong) => self.violate(&wrong),
            None => self.note(format!("{:?}", row.map(|row| row.version))),
        }
    }

    /// A far tier that fails is no error of a read; what its functions do is, if they may.
    pub(crate) fn answered<T>(&self, answer: Result<T, CacheError>) -> Result<T, CacheError> {
        answer.inspect_err(|error| {
            self.world.record.count("failed reads", 1);
            self.note(error.to_string());
            let (spec, phase) = (&DOMAINS[self.call.domain], self.world.phase());
            let may_be = match error {
                CacheError::Load(LoadError::TimedOut { .. }) => {
                    // At rest only because the machine is busy.
                    let limited = spec.hard_timeout.is_some() || spec.times_out;
                    limited && (phase != Phase::Calm || self.world.real)
                }
                CacheError::Load(
                    LoadError::Failed { .. } | LoadError::Panicked { .. } | LoadError::Reentrant { .. },
                ) => phase != Phase::Calm,
                _ => false,
            };
            if !may_be || was_shut_down(error) {
                self.violate(&format!("fails: {error}"));
            }
        })
    }

    /// What the far tier says to a change is passed on.
    pub(crate) fn written<T>(&self, done: Result<T, CacheError>) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(error) => {
                self.world.record.count("failed writes", 1);
                self.note(error.to_string());
                if !matches!(error, CacheError::Backend(_)) || self.world.phase() == Phase::Calm {
                    self.violate(&format!("fails: {error}"));
                }
                None
            }
        }
    }
}

/// Whether an error is due to a shutdown, of which there was none.
fn was_shut_down(error: &CacheError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let shut = |load: &LoadError| matches!(load, LoadError::ShutDown { .. });
        let cache = error.downcast_ref::<CacheError>();
        if error.downcast_ref::<LoadError>().is_some_and(shut)
            || matches!(cache, Some(CacheError::Load(load)) if shut(load))
        {
            return true;
        }
        next = error.source();
    }
    false
}
