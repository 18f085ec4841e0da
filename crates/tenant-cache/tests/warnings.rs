//! What goes wrong again and again is told once for each cache, and counted each time.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use cache_core::Scope;
use cache_moka::MokaCacheService;
use concurrency::LocalBus;
use serde::{Deserialize, Serialize};
use support::of;
use support::warned::Warned;
use tenant_cache::{Caches, TenantCache};

fn store() -> Arc<MokaCacheService> {
    Arc::new(MokaCacheService::builder().bus(Arc::new(LocalBus::new())).build().unwrap())
}

fn on(store: &Arc<MokaCacheService>) -> Caches {
    Caches::builder().far(Arc::<MokaCacheService>::clone(store)).build().unwrap()
}

/// Two versions of a program whose definitions differ in the number of tags replace each other's entries.
#[tokio::test]
async fn another_number_of_tags_is_told() {
    let (store, warned) = (store(), Warned::listen());
    let rows = |caches: &Caches, tags: usize| -> TenantCache<u32, u32> {
        let rows = caches.domain("rows").scope(Scope::Tenant);
        let rows = rows.tags(move |_| (0..tags).map(|n| format!("t{n}")).collect());
        rows.load(|key| async move { Ok::<_, std::io::Error>(Some(key)) }).unwrap()
    };
    let (old, new) = (on(&store), on(&store));
    let (old, new) = (rows(&old, 1), rows(&new, 2));
    for _ in 0..3 {
        // Past memory: what is in it is the version's own.
        for rows in [&old, &new] {
            assert_eq!(of("acme", rows.fresh(&1)).await.unwrap().as_deref(), Some(&1));
        }
    }
    assert_eq!((old.stats().loads, new.stats().loads), (3, 3), "they share nothing");
    assert!(old.stats().incompatible_entries >= 2 && new.stats().incompatible_entries >= 3);
    assert_eq!((old.stats().damaged, old.stats().far_failures), (0, 0));
    assert_eq!(warned.with(&["rows", "`tags`"]), 2, "once for each cache: {:?}", warned.all());
    assert_eq!(warned.with(&["  "]), 0, "{:?}", warned.all());
}

/// A value that is larger than the far tier accepts, or has no serialised form, is told of once and counted apart from
/// failures of the far tier.
#[tokio::test]
async fn what_cannot_be_stored_is_told() {
    #[derive(Serialize, Deserialize)]
    struct Row {
        text: String,
        #[serde(with = "unwritten")]
        unwritten: bool,
    }
    mod unwritten {
        use serde::{Deserializer, Serializer, de::Error as _, ser::Error as _};

        pub(super) fn serialize<S: Serializer>(is: &bool, to: S) -> Result<S::Ok, S::Error> {
            if *is { Err(S::Error::custom("it has no form")) } else { to.serialize_bool(false) }
        }

        pub(super) fn deserialize<'de, D: Deserializer<'de>>(_: D) -> Result<bool, D::Error> {
            Err(D::Error::custom("it is never read"))
        }
    }
    let (store, warned) = (store(), Warned::listen());
    let mut policy = tenant_cache::Policy::default();
    policy.max_value_bytes = 100;
    let rows: TenantCache<u32, Row> = on(&store)
        .domain("rows")
        .policy(policy)
        .scope(Scope::Tenant)
        .load(|key: u32| async move {
            let (text, unwritten) =
                if key.is_multiple_of(2) { ("x".repeat(200), false) } else { (String::new(), true) };
            Ok::<_, std::io::Error>(Some(Row { text, unwritten }))
        })
        .unwrap();
    for key in 0..6 {
        assert!(of("acme", rows.get(&key)).await.unwrap().is_some());
    }
    let stats = rows.stats();
    assert_eq!((stats.unstorable, stats.far_failures, stats.loads), (6, 0, 6));
    assert_eq!(warned.with(&["rows", "229 bytes"]), 1, "{:?}", warned.all());
    assert_eq!(warned.with(&["rows", "cannot encode"]), 1, "{:?}", warned.all());
    assert_eq!(warned.all().len(), 2);
}

/// A key that is read back as another one: its text keeps the case, and its reading does not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Lossy(String);

impl fmt::Display for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Lossy {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_lowercase()))
    }
}

/// A key whose text does not come back is told of, without the key; and others' invalidations reach it all the same.
#[tokio::test]
async fn a_key_that_does_not_come_back_is_told() {
    let (store, warned) = (store(), Warned::listen());
    let rows = |caches: &Caches| -> TenantCache<Lossy, u32> {
        let rows = caches.domain("rows").scope(Scope::Tenant);
        rows.load(|_| async { Ok::<_, std::io::Error>(Some(1)) }).unwrap()
    };
    let (here, there) = (on(&store), on(&store));
    let (here, there) = (rows(&here), rows(&there));
    let (kept, lost) = (Lossy("kept".to_owned()), Lossy("Secret".to_owned()));
    of("acme", async {
        here.get(&kept).await.unwrap();
        assert_eq!(here.stats().lost_keys, 0);
        here.get(&lost).await.unwrap();
        here.get(&Lossy("Other".to_owned())).await.unwrap();
        there.invalidate(&lost).await.unwrap();
        assert!(here.peek(&lost).unwrap().is_none(), "what another instance invalidates is gone");
        assert!(here.peek(&kept).unwrap().is_some());
    })
    .await;
    assert_eq!((here.stats().lost_keys, there.stats().lost_keys), (2, 0));
    assert_eq!(warned.with(&["rows", "`FromStr`"]), 1, "once for each cache: {:?}", warned.all());
    assert_eq!(warned.with(&["Secret"]), 0, "a key is never told");
    assert_eq!(warned.with(&["  "]), 0, "{:?}", warned.all());
}

/// A cache that is defined for each request, and dropped with it, remembers nothing: that is told when it is defined
/// again after it had loaded something.
#[tokio::test]
async fn a_cache_that_is_dropped_and_defined_again_is_told() {
    let (caches, warned) = (Caches::in_memory(), Warned::listen());
    let rows = || -> TenantCache<u32, u32> {
        let rows = caches.domain("rows").scope(Scope::Global);
        rows.load(|key| async move { Ok::<_, std::io::Error>(Some(key)) }).unwrap()
    };
    drop(rows());
    drop(rows());
    assert_eq!(warned.all(), [""; 0], "nothing was lost");
    for _ in 0..3 {
        let rows = rows();
        rows.get(&1).await.unwrap();
        assert_eq!(rows.stats().loads, 1, "nothing was remembered");
    }
    assert_eq!(warned.with(&["rows", "keep"]), 1, "{:?}", warned.all());
}

/// A far tier that is on no bus, and none given: what other processes invalidate is not heard of.
#[test]
fn a_far_tier_without_a_bus_is_told() {
    let warned = Warned::listen();
    let lonely = || Arc::new(MokaCacheService::builder().build().unwrap());
    let bus: Arc<dyn cache_core::InvalidationBus> = Arc::new(LocalBus::new());
    drop(on(&store()));
    drop(Caches::builder().far(lonely()).bus(bus).build().unwrap());
    drop(Caches::in_memory());
    assert_eq!(warned.all(), [""; 0]);
    drop(on(&lonely()));
    assert_eq!(warned.with(&["far tier", "bus", "near_ttl"]), 1, "{:?}", warned.all());
}
