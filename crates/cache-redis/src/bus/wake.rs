//! Messages for this instance alone.

use std::fmt;
use std::sync::Arc;

use cache_core::Subscription;
use cache_core::bus::Sinks;
use parking_lot::Mutex;

type Handler = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// Who is called when a message for this instance arrives.
#[derive(Clone, Default)]
pub(super) struct Wakes(Arc<Mutex<Handlers>>);

#[derive(Default)]
struct Handlers {
    next: u64,
    handlers: Vec<(u64, Handler)>,
}

impl Wakes {
    pub(super) fn add(&self, handler: Handler) -> Subscription {
        let mut all = self.0.lock();
        let id = all.next;
        all.next += 1;
        all.handlers.push((id, handler));
        let all = Arc::downgrade(&self.0);
        Subscription::new(move || {
            if let Some(all) = all.upgrade() {
                all.lock().handlers.retain(|(other, _)| *other != id);
            }
        })
    }

    /// Outside of the lock, so that a handler may end its own subscription; and guarded as the sinks are.
    pub(super) fn call(&self, payload: &[u8], sinks: &Sinks) {
        let handlers: Vec<Handler> =
            self.0.lock().handlers.iter().map(|(_, handler)| Arc::clone(handler)).collect();
        for handler in handlers {
            drop(sinks.guard(|| handler(payload)));
        }
    }
}

impl fmt::Debug for Wakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wakes({})", self.0.lock().handlers.len())
    }
}
