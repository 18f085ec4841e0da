//! Group invalidations that could not be written, until they are.
//!
//! Keys are repeated by the bus itself; a group's number is a value of the far tier, so it is repeated here.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use backon::BackoffBuilder;
use cache_core::Invalidation;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::registry::Shared;

/// Groups that are remembered one by one; beyond, everything is renumbered instead.
const MAX_GROUPS: usize = 1_000;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is still to be written: the number's key, and what to tell then. Each group once.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    groups: Mutex<BTreeMap<String, Invalidation>>,
    /// The task that repeats. It ends with its runtime, if not before.
    repeater: Mutex<Option<AbortHandle>>,
}

impl Pending {
    /// Remembers a group; `true` when nothing was pending before.
    pub(crate) fn add(&self, text: &str, message: &Invalidation, everything: &str) -> bool {
        let mut groups = self.groups.lock();
        let first = groups.is_empty();
        if groups.len() >= MAX_GROUPS && !groups.contains_key(text) {
            groups.clear();
            groups.insert(everything.to_owned(), Invalidation::All);
        } else {
            groups.insert(text.to_owned(), message.clone());
        }
        first
    }

    fn next(&self) -> Option<(String, Invalidation)> {
        self.groups.lock().first_key_value().map(|(text, message)| (text.clone(), message.clone()))
    }

    fn done(&self, text: &str) {
        self.groups.lock().remove(text);
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.lock().len()
    }
}

/// Repeats until nothing is pending, then ends; ends too when nobody uses the caches any more.
pub(crate) async fn repeat(shared: Weak<Shared>) {
    let pauses = || {
        backon::ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(LONGEST_PAUSE)
            .with_jitter()
            .without_max_times()
            .build()
    };
    let mut pause = pauses();
    loop {
        tokio::time::sleep(pause.next().unwrap_or(LONGEST_PAUSE)).await;
        loop {
            let Some(shared) = shared.upgrade() else { return };
            let Some((text, message)) = shared.pending.next() else { return };
            if shared.try_renumber(&text, &message).await.is_err() {
                break;
            }
            shared.pending.done(&text);
            pause = pauses();
        }
    }
}

/// Begins to repeat in the background, if there is a runtime.
pub(crate) fn begin(shared: &Arc<Shared>) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let repeater = runtime.spawn(repeat(Arc::downgrade(shared)));
        *shared.pending.repeater.lock() = Some(repeater.abort_handle());
    }
}

/// Begins to repeat again when something is pending and the task ended with its runtime; to be called by whoever uses
/// the caches.
pub(crate) fn attend(shared: &Arc<Shared>) {
    let ended = || shared.pending.repeater.lock().as_ref().is_none_or(AbortHandle::is_finished);
    if shared.pending.len() > 0 && ended() {
        begin(shared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P6: a group is repeated once however often it failed, and too many become everything.
    #[test]
    fn too_many_groups_become_everything() {
        let pending = Pending::default();
        assert!(pending.add("gen:d:a", &Invalidation::Prefix("a".into()), "gen:all"));
        for _ in 0..10 {
            assert!(!pending.add("gen:d:a", &Invalidation::Prefix("a".into()), "gen:all"));
        }
        assert_eq!(pending.len(), 1);
        for n in 0..MAX_GROUPS {
            pending.add(&format!("gen:d:{n}"), &Invalidation::Prefix("x".into()), "gen:all");
        }
        assert_eq!(pending.next(), Some(("gen:all".to_owned(), Invalidation::All)));
        assert_eq!(pending.len(), 1);
    }
}
