//! Running a loader: retry, then time-out; a panic is an error.
//! What is done about a load that failed for good (a stale value, then the fallback) is the course of the
//! lookup's to say: see `fetch`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use cache_core::LoadError;
use cache_core::error::SharedSource;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::bulk::BulkFn;
use crate::loaded::{LoadRequest, Loaded, What};

/// How often and how patiently a failed load is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// Tries after the first. Default 2.
    pub times: usize,
    /// Pause before the second try, doubled for each further one, with jitter. Default 50 ms.
    pub min_delay: Duration,
    /// The longest pause. Default 1 s.
    pub max_delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { times: 2, min_delay: Duration::from_millis(50), max_delay: Duration::from_secs(1) }
    }
}

impl Retry {
    /// Tries again this often.
    #[must_use]
    pub fn times(times: usize) -> Self {
        Self { times, ..Self::default() }
    }

    /// Sets the pauses.
    #[must_use]
    pub fn with_delays(mut self, min: Duration, max: Duration) -> Self {
        (self.min_delay, self.max_delay) = (min, max);
        self
    }
}

/// What is done about a loader that fails or is slow; nothing by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Resilience {
    pub(crate) retry: Option<Retry>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
}

/// Asks the origin for a key.
pub(crate) type LoadFn<K, V> =
    dyn Fn(LoadRequest<K, V>) -> BoxFuture<'static, Result<Loaded<Arc<V>>, SharedSource>> + Send + Sync;

/// A loader of any type as one of [`LoadFn`].
pub(crate) fn load_fn<K, V, F, Fut, L, E>(load: F) -> Arc<LoadFn<K, V>>
where
    F: Fn(LoadRequest<K, V>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<L, E>> + Send + 'static,
    L: Into<Loaded<V>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
    V: 'static,
{
    Arc::new(move |request| {
        let loaded = load(request);
        async move {
            let loaded = loaded.await.map_err(|error| SharedSource::from(error.into()))?;
            Ok(Loaded::shared(loaded.into()))
        }
        .boxed()
    })
}

/// Answers in place of a load that failed.
pub(crate) type FallbackFn<K, V> = dyn Fn(&K, &LoadError) -> Option<V> + Send + Sync;

/// The loader of a cache.
pub(crate) struct Loader<K, V> {
    pub(crate) domain: Arc<str>,
    pub(crate) load: Arc<LoadFn<K, V>>,
    pub(crate) bulk: Option<Arc<BulkFn<K, V>>>,
    pub(crate) fallback: Option<Box<FallbackFn<K, V>>>,
    pub(crate) resilience: Resilience,
    /// Whether what it answers can carry tags of its own.
    pub(crate) may_tag: bool,
}

impl<K, V> std::fmt::Debug for Loader<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("domain", &self.domain)
            .field("resilience", &self.resilience)
            .finish_non_exhaustive()
    }
}

impl<K: Clone, V> Loader<K, V> {
    /// Loads one key, with the cache's own loader or with `instead`.
    pub(crate) async fn run(
        &self,
        instead: Option<&LoadFn<K, V>>,
        request: LoadRequest<K, V>,
    ) -> Result<Loaded<Arc<V>>, LoadError> {
        let load = instead.unwrap_or(&*self.load);
        let tries = || self.attempt(load, request.clone());
        let tried = async {
            match self.resilience.retry {
                None => tries().await,
                Some(retry) => tries.retry(backoff(retry)).when(worth_retrying).await,
            }
        };
        self.within(self.resilience.timeout, tried).await
    }

    /// What the fallback says in place of a load that failed.
    pub(crate) fn fall_back(&self, key: &K, error: &LoadError) -> Option<V> {
        self.fallback.as_ref().and_then(|fallback| fallback(key, error))
    }

    async fn attempt(
        &self,
        load: &LoadFn<K, V>,
        request: LoadRequest<K, V>,
    ) -> Result<Loaded<Arc<V>>, LoadError> {
        let stale = request.stale.is_some();
        // The call itself may panic as well as the future it returns.
        let work = async { load(request).await };
        let guarded = async {
            match AssertUnwindSafe(work).catch_unwind().await {
                Ok(Ok(Loaded { what: What::NotModified, .. })) if !stale => {
                    let source = SharedSource::from(Box::<dyn std::error::Error + Send + Sync>::from(
                        "the loader answered \"not modified\" and was given nothing to modify",
                    ));
                    Err(LoadError::Failed { domain: Arc::clone(&self.domain), source })
                }
                Ok(Ok(loaded)) => Ok(loaded),
                Ok(Err(source)) => Err(LoadError::Failed { domain: Arc::clone(&self.domain), source }),
                Err(_) => Err(LoadError::Panicked { domain: Arc::clone(&self.domain) }),
            }
        };
        self.within(self.resilience.attempt_timeout, guarded).await
    }

    async fn within<T>(
        &self,
        limit: Option<Duration>,
        work: impl Future<Output = Result<T, LoadError>>,
    ) -> Result<T, LoadError> {
        let Some(after) = limit else { return work.await };
        match tokio::time::timeout(after, work).await {
            Ok(result) => result,
            Err(_) => Err(LoadError::TimedOut { domain: Arc::clone(&self.domain), after }),
        }
    }
}

fn backoff(retry: Retry) -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_jitter()
        .with_max_times(retry.times)
        .with_min_delay(retry.min_delay)
        .with_max_delay(retry.max_delay)
}

/// A panic is a bug and a re-entrant load a mistake: neither gets better by trying again.
fn worth_retrying(error: &LoadError) -> bool {
    matches!(error, LoadError::Failed { .. } | LoadError::TimedOut { .. })
}
