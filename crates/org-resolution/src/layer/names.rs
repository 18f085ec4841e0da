//! The limit on names that do not resolve.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cache_core::{Quota, RateLimitError, RateLimits};

use crate::rate_limit;
use crate::rejection::Problem;
use crate::source::Named;

/// Limits how many names that nobody has one client may ask for: each costs a look-up.
///
/// Names that existed lately are never refused: who shares an address with somebody who invents names still reaches
/// the organisations in use.
#[derive(Debug)]
pub(super) struct NameLimit {
    limits: Arc<dyn RateLimits>,
    quota: Quota,
    known: RwLock<Known>,
}

impl NameLimit {
    pub(super) fn new(limits: Arc<dyn RateLimits>, quota: Quota) -> Self {
        let known = Known { young: HashSet::new(), old: HashSet::new(), since: Instant::now() };
        Self { limits, quota, known: RwLock::new(known) }
    }

    /// Refuses a client that has invented too many names, unless this one existed lately.
    pub(super) async fn may_ask(&self, name: &Named, client: Option<IpAddr>) -> Result<(), Problem> {
        if self.is_known(name) {
            return Ok(());
        }
        match self.limits.check(&self.quota, &rate_limit::key_of(None, None, client), 0).await {
            Ok(decision) if decision.remaining == 0 => Err(rate_limit::refusal(&self.quota, &decision)),
            // A limit that cannot be asked must not take every organisation away.
            Ok(_) | Err(RateLimitError::Unavailable { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts a name that nobody has.
    pub(super) async fn missed(&self, client: Option<IpAddr>) {
        // The one after this is refused; what this one gets is its own answer.
        let _ = self.limits.check(&self.quota, &rate_limit::key_of(None, None, client), 1).await;
    }

    /// Remembers a name that somebody has.
    pub(super) fn found(&self, name: &Named) {
        let is_young = self.known.read().unwrap_or_else(PoisonError::into_inner).is_young(name);
        if !is_young && !matches!(name, Named::Id(_)) {
            self.known.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        }
    }

    fn is_known(&self, name: &Named) -> bool {
        // Whose claim was verified invents nothing.
        matches!(name, Named::Id(_))
            || self.known.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

/// Names that existed lately, in two generations: the older one is dropped as a whole.
#[derive(Debug)]
struct Known {
    young: HashSet<Named>,
    old: HashSet<Named>,
    since: Instant,
}

impl Known {
    /// A generation's longest life, and its most names.
    const LIFE: Duration = Duration::from_secs(600);
    const MAX: usize = 20_000;

    fn contains(&self, name: &Named) -> bool {
        self.young.contains(name) || self.old.contains(name)
    }

    /// Whether a name needs no new place. Those of a generation past its life do: one such name begins the next.
    fn is_young(&self, name: &Named) -> bool {
        self.since.elapsed() < Self::LIFE && self.young.contains(name)
    }

    fn insert(&mut self, name: Named) {
        if self.young.len() >= Self::MAX || self.since.elapsed() >= Self::LIFE {
            self.old = std::mem::take(&mut self.young);
            self.since = Instant::now();
        }
        self.young.insert(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(slug: &str) -> Named {
        Named::Slug(slug.parse().expect("a slug"))
    }

    /// What is remembered is bounded, and a name in use outlives the generation it began in.
    #[test]
    fn names_in_use_are_remembered_within_bounds() {
        let mut known = Known { young: HashSet::new(), old: HashSet::new(), since: Instant::now() };
        known.insert(named("acme"));
        for n in 0..3 * Known::MAX {
            known.insert(named(&format!("n{n}")));
            if n % 1_000 == 0 {
                assert!(known.contains(&named("acme")), "{n}");
                known.insert(named("acme"));
            }
        }
        assert!(known.young.len() <= Known::MAX && known.old.len() <= Known::MAX);
        assert!(!known.contains(&named("n0")));
    }
}
