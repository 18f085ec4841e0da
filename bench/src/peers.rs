//! Peers that need more than a line to be set up.

use std::sync::Arc;

use anyhow::Result;
use hitbox::policy::PolicyConfig;
use hitbox_fn::{Cache, CacheableResponse, cached};
use hitbox_moka::MokaBackend;
use multi_tier_cache::{CacheManager, CacheStrategy, L1Cache, L2Cache, MokaCacheConfig};
use serde::{Deserialize, Serialize};

use crate::setup::{ENTRIES, HOUR, Row};

/// `multi-tier-cache`: moka before Redis.
pub struct Tiers(CacheManager);

impl Tiers {
    pub async fn new(redis: &str) -> Result<Self> {
        let memory = MokaCacheConfig { max_capacity: 2 * ENTRIES as u64, ..MokaCacheConfig::default() };
        let (l1, l2) = (L1Cache::new(memory)?, L2Cache::with_url(redis).await?);
        Ok(Self(CacheManager::new(Arc::new(l1), Arc::new(l2)).await?))
    }

    pub async fn get(&self, key: &str) -> Row {
        let strategy = CacheStrategy::Custom(HOUR);
        self.0.get_or_compute_typed(key, strategy, || async { Ok(Row::of(key)) }).await.expect("it is made")
    }
}

/// `hitbox` as its documentation shows it: a cached function, before it memory (moka).
pub struct Hitbox(Cache<MokaBackend>);

/// It caches no `Arc`.
#[derive(Clone, Serialize, Deserialize, CacheableResponse)]
pub struct Answer {
    row: Row,
}

#[cached]
async fn row_of(key: String) -> Answer {
    Answer { row: Row::of(&key) }
}

impl Hitbox {
    pub fn new() -> Self {
        let backend = MokaBackend::builder().max_entries(2 * ENTRIES as u64).build();
        let policy = PolicyConfig::builder().ttl(HOUR).build();
        Self(Cache::builder().backend(backend).policy(policy).build())
    }

    pub async fn get(&self, key: &str) -> Row {
        row_of(key.to_owned()).cache(&self.0).await.row
    }
}
