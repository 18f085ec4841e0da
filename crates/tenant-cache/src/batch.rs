//! Several keys at once: one far round trip for what memory does not know, one bulk load for what nobody knows.

use std::collections::HashMap;
use std::sync::Arc;

use cache_core::CacheError;
use futures_util::StreamExt;

use crate::answer::Found;
use crate::bulk::Gathering;
use crate::cache::TenantCache;
use crate::fetch::{FarRead, Fetch, Sight};
use crate::key::CacheKey;
use crate::tasks;

/// Lookups of one call that load at the same time when there is no bulk loader.
const PARALLEL_LOADS: usize = 16;

/// Keys that are asked for in one round trip, and loaded in one bulk load.
const MOST_AT_ONCE: usize = 500;

/// What a key of the call was found to be.
type Outcome<V> = Result<Found<V>, CacheError>;

/// A key that must go on, its place in the call, and what was read of it.
type Load<K, V> = (usize, Fetch<K, V>, Option<FarRead<V>>);

impl<K: CacheKey, V: Send + Sync + 'static> TenantCache<K, V> {
    /// The values of several keys, in the order asked. What memory does not know is asked of the far tier in one
    /// round trip (one per 500 keys), and what nobody knows is loaded: in one [bulk load] if the cache has one,
    /// else up to 16 at the same time. Each key has its own flight and lease, as with [`get`](Self::get).
    ///
    /// [bulk load]: crate::DomainBuilder::bulk
    ///
    /// # Errors
    /// As [`get`](Self::get); one failing key fails the call, and what was found is kept for the next. See
    /// [`lookup_many`](Self::lookup_many).
    pub async fn get_many(&self, keys: &[K]) -> Result<Vec<Option<Arc<V>>>, CacheError> {
        let found = self.lookup_many(keys).await?;
        found.into_iter().map(|found| Ok(found?.value)).collect()
    }

    /// [`get_many`](Self::get_many), with the outcome of each key: one that fails does not fail the others.
    ///
    /// # Errors
    /// Those of the scope.
    pub async fn lookup_many(&self, keys: &[K]) -> Result<Vec<Outcome<V>>, CacheError> {
        let mut outcomes: Vec<Option<Outcome<V>>> = Vec::with_capacity(keys.len());
        let mut missing: HashMap<&K, Vec<usize>> = HashMap::new();
        for (at, key) in keys.iter().enumerate() {
            let known = self.near_hit(key)?;
            if known.is_none() {
                missing.entry(key).or_default().push(at);
            }
            outcomes.push(known.map(Ok));
        }
        let missing: Vec<_> = missing.into_iter().collect();
        for chunk in missing.chunks(MOST_AT_ONCE) {
            let found = self.lookup_chunk(chunk.iter().map(|(key, _)| *key)).await?;
            for ((_, places), outcome) in chunk.iter().zip(found) {
                places.iter().for_each(|at| outcomes[*at] = Some(outcome.clone()));
            }
        }
        // Each was looked up: none is left out.
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Looks up different keys that memory does not know, in their order.
    async fn lookup_chunk(&self, keys: impl Iterator<Item = &K>) -> Result<Vec<Outcome<V>>, CacheError> {
        let mut outcomes = Vec::new();
        let mut fetches = Vec::new();
        for (at, key) in keys.enumerate() {
            match self.fetch(key) {
                Ok(fetch) => {
                    fetches.push((at, fetch));
                    outcomes.push(None);
                }
                Err(error) => outcomes.push(Some(Err(error))),
            }
        }
        let shared = &self.inner.shared;
        shared.attend(shared.trust.near(shared.clock.coarse()));
        let reads = self.read_all(&fetches).await;
        let mut loads = Vec::new();
        for ((at, fetch), read) in fetches.into_iter().zip(reads) {
            match read {
                Some((Sight::Answer(found), _)) => {
                    let result = Ok(found);
                    fetch.ticket.meter.iter().for_each(|meter| meter.landed(&result));
                    outcomes[at] = Some(self.inner.count(Some(&fetch.key.key), result, false));
                }
                read => loads.push((at, fetch, read)),
            }
        }
        for (at, outcome) in self.load_all(loads).await {
            outcomes[at] = Some(outcome);
        }
        // Each was looked up: none is left out.
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// What the far tier holds of the keys, in one round trip; nothing where it cannot be asked.
    async fn read_all(&self, fetches: &[(usize, Fetch<K, V>)]) -> Vec<Option<FarRead<V>>> {
        let none = || fetches.iter().map(|_| None).collect();
        let in_runtime = tasks::runtime(&self.inner.domain).is_ok();
        let Some(far) =
            self.inner.far.as_ref().filter(|far| far.trusted() && !fetches.is_empty() && in_runtime)
        else {
            return none();
        };
        let asked: Vec<_> = fetches.iter().map(|(_, fetch)| fetch.asked()).collect();
        match far.read_many(&asked).await {
            Ok(read) => {
                let sight = |((_, fetch), (held, numbers)): (&(usize, Fetch<K, V>), _)| {
                    Some((fetch.sight(held), numbers))
                };
                fetches.iter().zip(read).map(sight).collect()
            }
            Err(error) => {
                tracing::debug!(domain = &*self.inner.domain, %error, "several keys could not be read at once");
                none()
            }
        }
    }

    async fn load_all(&self, mut loads: Vec<Load<K, V>>) -> Vec<(usize, Outcome<V>)> {
        let mut parallel = PARALLEL_LOADS;
        if let (Some(bulk), [(_, first, _), _, ..]) = (&self.inner.loader.bulk, &loads[..]) {
            parallel = loads.len();
            let gathering = Gathering::new(Arc::clone(&self.inner), Arc::clone(bulk), &first.key);
            for (_, fetch, _) in &mut loads {
                fetch.instead = Some(gathering.seat());
            }
        }
        futures_util::stream::iter(loads)
            .map(|(at, fetch, read)| async move { (at, self.fly(fetch, read).await) })
            .buffer_unordered(parallel)
            .collect()
            .await
    }
}
