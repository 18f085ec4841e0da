//! Loaders that ask for what waits for them: each is told so, and nothing freezes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::error::Error;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use cache_core::{CacheError, LoadError, Scope};
use cache_moka::MokaCacheService;
use tenant_cache::ambient::carry;
use tenant_cache::{Caches, DomainBuilder, LoadRequest, Loaded, Memo, TenantCache, memo};
use tokio::sync::Barrier;

type Rows = TenantCache<u32, u32>;

/// Longer than any wait inside; a runtime that is frozen does not end by itself.
const FROZEN: Duration = Duration::from_secs(20);

/// Runs work on a runtime of its own, and fails when that does not come back.
fn on_a_runtime<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let (done, came_back) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        let ended = runtime.block_on(work);
        let _ = done.send(ended);
    });
    came_back.recv_timeout(FROZEN).expect("the runtime is frozen")
}

/// In memory alone, and on a far tier.
fn tiers() -> [Caches; 2] {
    let far = Arc::new(MokaCacheService::builder().build().unwrap());
    [Caches::in_memory(), Caches::builder().far(far).build().unwrap()]
}

/// Whether an error is, or is due to, a load that would wait for itself.
fn is_reentrant(error: &CacheError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let here = error.downcast_ref::<LoadError>();
        let cache = error.downcast_ref::<CacheError>();
        if matches!(here, Some(LoadError::Reentrant { .. }))
            || matches!(cache, Some(CacheError::Load(LoadError::Reentrant { .. })))
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// How a loader asks for a key.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ask {
    Get,
    GetMany,
    Fresh,
    Refresh,
    /// From a task of its own, which takes the context along.
    FromATask,
}

impl Ask {
    const ALL: [Self; 5] = [Self::Get, Self::GetMany, Self::Fresh, Self::Refresh, Self::FromATask];

    async fn of(self, cache: &Rows, key: u32) -> Result<Option<Arc<u32>>, CacheError> {
        match self {
            Self::Get => cache.get(&key).await,
            Self::GetMany => Ok(cache.get_many(&[key, key + 1_000]).await?[0].clone()),
            Self::Fresh => cache.fresh(&key).await,
            Self::Refresh => cache.refresh(&key).await,
            Self::FromATask => {
                let cache = cache.clone();
                tokio::spawn(carry(async move { cache.get(&key).await })).await.unwrap()
            }
        }
    }
}

/// Domains whose loaders ask each for key 1 of the next one, once all of them are loading.
fn ring(
    caches: &Caches,
    length: usize,
    ask: Ask,
    options: impl Fn(DomainBuilder<u32, u32>) -> DomainBuilder<u32, u32>,
) -> Vec<Rows> {
    let all: Arc<OnceLock<Vec<Rows>>> = Arc::default();
    let loading = Arc::new(Barrier::new(length));
    let domain = |at: usize| {
        let (all, loading) = (Arc::clone(&all), Arc::clone(&loading));
        let name = format!("ring-{at}");
        options(caches.domain(&name).scope(Scope::Global)).load(move |key: u32| {
            let (all, loading) = (Arc::clone(&all), Arc::clone(&loading));
            async move {
                if key == 1 {
                    loading.wait().await;
                    let rows = all.get().unwrap();
                    ask.of(&rows[(at + 1) % rows.len()], 1).await?;
                }
                Ok::<_, CacheError>(Some(key))
            }
        })
    };
    let rows: Vec<Rows> = (0..length).map(|at| domain(at).unwrap()).collect();
    all.set(rows.clone()).unwrap();
    rows
}

/// Each member of the ring is asked for at the same time, by a caller of its own; a ticker shows that the runtime lives.
async fn ask_all(rows: &[Rows]) -> Vec<Result<Option<Arc<u32>>, CacheError>> {
    let asking: Vec<_> =
        rows.iter().cloned().map(|rows| tokio::spawn(async move { rows.get(&1).await })).collect();
    let mut ended = Vec::new();
    for asking in asking {
        ended.push(tokio::time::timeout(FROZEN / 2, asking).await.expect("a caller waits for ever").unwrap());
    }
    ended
}

#[test]
fn loaders_that_ask_for_each_other_are_told_so() {
    for length in [2, 3] {
        for ask in [Ask::Get, Ask::GetMany, Ask::FromATask] {
            for limit in [None, Some(FROZEN)] {
                for caches in tiers() {
                    let ended = on_a_runtime(async move {
                        let rows = ring(&caches, length, ask, |domain| match limit {
                            Some(limit) => domain.hard_timeout(limit),
                            None => domain,
                        });
                        ask_all(&rows).await
                    });
                    let what = format!("{length} domains, {ask:?}, limit {limit:?}");
                    for ended in &ended {
                        let error = ended.as_ref().expect_err(&what);
                        assert!(
                            matches!(error, CacheError::Load(LoadError::Reentrant { .. })),
                            "{what}: every member is told: {error:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Loads of a circle that go past what is in flight end all the same: each asks for a key that is being loaded above it.
#[test]
fn loaders_that_ask_past_each_other_are_told_so() {
    for ask in Ask::ALL {
        for caches in tiers() {
            let ended = on_a_runtime(async move {
                let rows = ring(&caches, 1, ask, |domain| domain);
                rows[0].get(&1).await
            });
            let error = ended.expect_err("a loader that asks for itself");
            assert!(is_reentrant(&error), "{ask:?}: {error:?}");
        }
    }
}

#[test]
fn a_loader_that_refreshes_itself_is_told_so() {
    for caches in tiers() {
        let ended = on_a_runtime(async move {
            let rows = ring(&caches, 1, Ask::Refresh, |domain| domain);
            rows[0].refresh(&1).await
        });
        assert!(is_reentrant(&ended.expect_err("a loader that refreshes itself")));
    }
}

/// A circle in the data: an organisation that is its own grandparent.
#[test]
fn a_circle_in_the_data_is_told() {
    let ended = on_a_runtime(async {
        let own: Arc<OnceLock<Rows>> = Arc::default();
        let asking = Arc::clone(&own);
        let orgs: Rows = Caches::in_memory()
            .domain("orgs")
            .scope(Scope::Global)
            .load(move |id: u32| {
                let own = Arc::clone(&asking);
                async move {
                    let parent = (id + 1) % 3;
                    Ok::<_, CacheError>(own.get().unwrap().get(&parent).await?.map(|above| *above + 1))
                }
            })
            .unwrap();
        own.set(orgs.clone()).unwrap();
        orgs.get(&0).await
    });
    assert!(is_reentrant(&ended.expect_err("no end")));
}

/// The lookups of a bulk load are those of each of its keys.
#[test]
fn a_bulk_load_that_asks_for_its_own_keys_is_told_so() {
    for caches in tiers() {
        let ended = on_a_runtime(async move {
            let own: Arc<OnceLock<Rows>> = Arc::default();
            let asking = Arc::clone(&own);
            let rows: Rows = caches
                .domain("rows")
                .scope(Scope::Global)
                .bulk(move |keys: Vec<u32>| {
                    let own = Arc::clone(&asking);
                    async move {
                        own.get().unwrap().get(&2).await?;
                        Ok::<_, CacheError>(keys.into_iter().map(|key| (key, key)).collect())
                    }
                })
                .load(|key: u32| async move { Ok::<_, CacheError>(Some(key)) })
                .unwrap();
            own.set(rows.clone()).unwrap();
            rows.get_many(&[1, 2, 3]).await
        });
        assert!(is_reentrant(&ended.expect_err("it asks for itself")));
    }
}

/// A memo is part of the circles, too.
#[test]
fn a_memo_and_a_cache_that_ask_for_each_other_are_told_so() {
    let ended = on_a_runtime(async {
        let table: Arc<OnceLock<Memo<u32>>> = Arc::default();
        let asking = Arc::clone(&table);
        let rows: Rows = Caches::in_memory()
            .domain("rows")
            .scope(Scope::Global)
            .load(move |key: u32| {
                let table = Arc::clone(&asking);
                async move { Ok::<_, LoadError>(Some(key + *table.get().unwrap().get().await?)) }
            })
            .unwrap();
        let own = rows.clone();
        let made = memo("table", Duration::from_secs(60), move || {
            let own = own.clone();
            async move { Ok::<_, CacheError>(own.get(&1).await?.map_or(0, |value| *value)) }
        });
        table.set(made).unwrap();
        rows.get(&1).await
    });
    assert!(is_reentrant(&ended.expect_err("no end")));
}

/// Who waits for a circle from outside is told what became of it; and so is nobody after.
#[test]
fn a_circle_leaves_nothing_behind() {
    let found = on_a_runtime(async {
        let caches = Caches::in_memory();
        let rows = ring(&caches, 2, Ask::Get, |domain| domain);
        ask_all(&rows).await;
        let other: Rows = caches
            .domain("other")
            .scope(Scope::Global)
            .load_with(|request: LoadRequest<u32, u32>| async move {
                Ok::<_, CacheError>(Loaded::value(request.key))
            })
            .unwrap();
        (other.get(&1).await.unwrap(), rows[0].get(&2).await.unwrap())
    });
    assert_eq!(found, (Some(Arc::new(1)), Some(Arc::new(2))));
}
