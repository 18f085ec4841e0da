//! Cache entries sealed with the key ring: what the store holds, who can open it, and what a forger achieves.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheService, Clock, ManualClock, RequestContext, Sealer, TenantId, Ttl};
use cache_moka::MokaCacheService;
use org_resolution::KeyRing;
use tenant_cache::{Caches, RequestScope, Source, TenantCache};

const SECRET: &str = "hunter2-is-the-plain-text";
/// Where an entry's fields begin, see the layout of stored forms.
const HARD_MS: std::ops::Range<usize> = 25..33;
const KEY_1: &str = "1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_2: &str = "2:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

fn ring(keys: &[&str]) -> Arc<dyn Sealer> {
    Arc::new(KeyRing::parse(&keys.join(",")).unwrap())
}

/// An instance with an empty memory; all share the store.
struct Instance {
    cache: TenantCache<String, String>,
    loads: Arc<AtomicUsize>,
}

impl Instance {
    fn on(far: &Arc<dyn CacheService>, clock: Clock, sealer: Option<Arc<dyn Sealer>>) -> Self {
        let caches = Caches::builder().far(Arc::clone(far)).clock(clock).build().unwrap();
        let loads = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&loads);
        let mut domain = caches.domain("rows").ttl(Duration::from_secs(60)).jitter(0.0);
        if let Some(sealer) = sealer {
            domain = domain.seal(sealer);
        }
        let cache = domain
            .load(move |key: String| {
                let load = count.fetch_add(1, Ordering::SeqCst);
                let value = (!key.starts_with("no")).then(|| format!("{SECRET}:{key}:{load}"));
                async move { Ok::<_, std::io::Error>(value) }
            })
            .unwrap();
        Self { cache, loads }
    }

    async fn get(&self, tenant: &str, key: &str) -> (Option<String>, Source) {
        let context = RequestContext::new(TenantId::new(tenant).unwrap());
        let found = context.scope(self.cache.lookup(&key.to_owned())).await.unwrap();
        (found.value.map(|value| (*value).clone()), found.source)
    }

    /// Asks a key whose stored entry must be taken for damaged and replaced.
    async fn finds_damage(&self, tenant: &str, key: &str, what: &str) {
        let before = self.cache.stats().damaged;
        assert_eq!(self.get(tenant, key).await.1, Source::Origin, "{what}");
        assert!(self.cache.stats().damaged > before, "{what}: it is counted");
    }
}

struct Shared {
    hand: ManualClock,
    far: Arc<dyn CacheService>,
}

impl Shared {
    fn new() -> Self {
        let hand = ManualClock::new();
        let far = Arc::new(MokaCacheService::builder().clock(hand.clock()).build().unwrap());
        Self { hand, far }
    }

    fn instance(&self, keys: &[&str]) -> Instance {
        Instance::on(&self.far, self.hand.clock(), Some(ring(keys)))
    }

    async fn raw(&self, key: &str) -> Vec<u8> {
        self.far.get_bytes(key).await.unwrap().expect("it is stored").to_vec()
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) {
        self.far.set_bytes(key, Bytes::from(bytes), Ttl::For(Duration::from_secs(600))).await.unwrap();
    }
}

/// K6, D4: another instance opens what one sealed, and the store holds nothing readable of it.
#[tokio::test]
async fn a_sealed_entry_is_shared_and_unreadable_in_the_store() {
    let shared = Shared::new();
    let first = shared.instance(&[KEY_1]).get("acme", "k").await;
    assert_eq!(shared.instance(&[KEY_1]).get("acme", "k").await, (first.0, Source::Far));
    let raw = shared.raw("acme:rows:k").await;
    assert!(!raw.windows(7).any(|part| part == b"hunter2"), "{raw:?}");
    assert_eq!(raw[0] & 0x40, 0x40, "it says that it is sealed");
}

/// K6: rotation: the new key seals, the old one opens until it is dropped; then its entries are replaced.
#[tokio::test]
async fn keys_rotate_without_a_cold_start() {
    let shared = Shared::new();
    shared.instance(&[KEY_1]).get("acme", "old").await;
    let both = shared.instance(&[KEY_1, KEY_2]);
    assert_eq!(both.get("acme", "old").await.1, Source::Far, "the old key still opens");
    both.get("acme", "new").await;
    let new = shared.instance(&[KEY_2]);
    assert_eq!(new.get("acme", "new").await.1, Source::Far, "the new key seals");
    new.finds_damage("acme", "old", "the key is dropped").await;
    assert_eq!(shared.instance(&[KEY_2]).get("acme", "old").await.1, Source::Far, "it was replaced");
}

/// D4: an entry that somebody moved to another key or tenant does not open, even with its key tag made right.
#[tokio::test]
async fn a_moved_entry_does_not_open() {
    let shared = Shared::new();
    let victim = shared.instance(&[KEY_1]);
    for (tenant, key) in [("acme", "a"), ("acme", "b"), ("evil", "a")] {
        victim.get(tenant, key).await;
    }
    let source = shared.raw("acme:rows:a").await;
    for (tenant, key) in [("acme", "b"), ("evil", "a")] {
        let target = format!("{tenant}:rows:{key}");
        let mut forged = source.clone();
        forged[17..25].copy_from_slice(&shared.raw(&target).await[17..25]);
        shared.put(&target, forged).await;
        shared.instance(&[KEY_1]).finds_damage(tenant, key, &target).await;
    }
}

/// K6: no bit of an entry can be changed: neither its kind, its times, its groups nor its contents.
#[tokio::test]
async fn no_bit_of_an_entry_can_be_changed() {
    let shared = Shared::new();
    shared.instance(&[KEY_1]).get("acme", "k").await;
    let whole = shared.raw("acme:rows:k").await;
    for bit in 0..whole.len() * 8 {
        let mut forged = whole.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        shared.put("acme:rows:k", forged).await;
        let reader = shared.instance(&[KEY_1]);
        assert_eq!(reader.get("acme", "k").await.1, Source::Origin, "bit {bit}");
        assert_eq!(reader.loads.load(Ordering::SeqCst), 1, "bit {bit}");
    }
}

/// K6: an absence cannot be made of a value, nor a value of an absence.
#[tokio::test]
async fn an_absence_is_sealed_too() {
    let shared = Shared::new();
    for (key, kind) in [("k", 0x42), ("no", 0x41)] {
        let text = format!("acme:rows:{key}");
        shared.instance(&[KEY_1]).get("acme", key).await;
        let again = shared.instance(&[KEY_1]).get("acme", key).await;
        assert_eq!(again.1, Source::Far, "{key}");
        let mut forged = shared.raw(&text).await;
        assert_ne!(forged[0], kind);
        forged[0] = kind;
        shared.put(&text, forged).await;
        shared.instance(&[KEY_1]).finds_damage("acme", key, key).await;
    }
}

/// K6: an older blob of the same key ends when it was to end, however often it is put back, and nobody can prolong
/// it.
#[tokio::test]
async fn a_replayed_entry_ends_when_it_was_to_end() {
    let shared = Shared::new();
    shared.instance(&[KEY_1]).get("acme", "k").await;
    let old = shared.raw("acme:rows:k").await;
    shared.hand.advance(Duration::from_secs(50));
    shared.put("acme:rows:k", old.clone()).await;
    assert_eq!(shared.instance(&[KEY_1]).get("acme", "k").await.1, Source::Far, "within its life");
    shared.hand.advance(Duration::from_secs(11));
    shared.put("acme:rows:k", old.clone()).await;
    assert_eq!(shared.instance(&[KEY_1]).get("acme", "k").await.1, Source::Origin, "after its life");
    let mut prolonged = old;
    prolonged[HARD_MS].copy_from_slice(&(u64::MAX / 2).to_be_bytes());
    shared.put("acme:rows:k", prolonged).await;
    shared.instance(&[KEY_1]).finds_damage("acme", "k", "prolonged").await;
}

/// K6: a cache that seals believes nothing that is not sealed, and the other way about; either replaces it.
#[tokio::test]
async fn plain_entries_do_not_pass_for_sealed_ones() {
    let shared = Shared::new();
    Instance::on(&shared.far, shared.hand.clock(), None).get("acme", "k").await;
    shared.instance(&[KEY_1]).finds_damage("acme", "k", "plain").await;
    Instance::on(&shared.far, shared.hand.clock(), None).finds_damage("acme", "k", "sealed").await;
}

/// K6: random bytes in place of a blob are a miss and no panic; so is every cut.
#[tokio::test]
async fn truncated_entries_are_misses() {
    let shared = Shared::new();
    shared.instance(&[KEY_1]).get("acme", "k").await;
    let whole = shared.raw("acme:rows:k").await;
    for cut in 1..whole.len() {
        shared.put("acme:rows:k", whole[..cut].to_vec()).await;
        shared.instance(&[KEY_1]).finds_damage("acme", "k", &format!("cut at {cut}")).await;
    }
}

mod redis {
    use cache_redis::RedisCacheService;
    use conformance::{redis_server::RedisServer, resp::Reply};

    use super::*;

    /// K6: a real Redis holds no plain text.
    #[tokio::test]
    async fn holds_only_sealed_bytes() {
        let server = RedisServer::start();
        let far: Arc<dyn CacheService> =
            Arc::new(RedisCacheService::new(&server.url(), Duration::from_secs(60)).unwrap());
        let instance = |sealer| Instance::on(&far, Clock::system(), sealer);
        let stored = |key: &str| match server.command(&["GET", key]) {
            Reply::Bulk(bytes) => bytes,
            other => panic!("{key}: {other:?}"),
        };
        instance(None).get("plain", "k").await;
        instance(Some(ring(&[KEY_1]))).get("acme", "k").await;
        let readable = |bytes: &[u8]| bytes.windows(7).any(|part| part == b"hunter2");
        assert!(readable(&stored("plain:rows:k")), "what is not sealed is readable: the test can fail");
        assert!(!readable(&stored("acme:rows:k")));
        assert_eq!(instance(Some(ring(&[KEY_1]))).get("acme", "k").await.1, Source::Far);
    }
}

/// Caches that seal whatever their domains are.
fn sealing(shared: &Shared, namespace: &str) -> Caches {
    let caches = Caches::builder().far(Arc::clone(&shared.far)).clock(shared.hand.clock());
    caches.sealer(ring(&[KEY_1])).namespace(namespace).build().unwrap()
}

fn plain_domain(caches: &Caches) -> tenant_cache::DomainBuilder<String, String> {
    caches.domain("rows").ttl(Duration::from_secs(60)).jitter(0.0)
}

fn loading(domain: tenant_cache::DomainBuilder<String, String>) -> TenantCache<String, String> {
    domain
        .load(|key: String| async move { Ok::<_, std::io::Error>(Some(format!("{SECRET}:{key}"))) })
        .unwrap()
}

async fn source(cache: &TenantCache<String, String>) -> Source {
    let context = RequestContext::new(TenantId::new("acme").unwrap());
    context.scope(cache.lookup(&"k".to_owned())).await.unwrap().source
}

/// The sealer of the caches is that of each domain, unless the domain says by name that it seals not; and that is part of
/// its definition.
#[tokio::test]
async fn caches_seal_unless_a_domain_opts_out() {
    let shared = Shared::new();
    let caches = sealing(&shared, "");
    let sealed = loading(plain_domain(&caches));
    source(&sealed).await;
    assert_eq!(shared.raw("acme:rows:k").await[0] & 0x40, 0x40);
    let again = plain_domain(&caches).unsealed().load(|_: String| async { Ok::<_, std::io::Error>(None) });
    assert!(again.is_err(), "another definition");
    drop(sealed);
    let caches = sealing(&shared, "");
    let plain = loading(plain_domain(&caches).unsealed());
    assert_eq!(source(&plain).await, Source::Origin, "what is sealed is none of its entries");
    assert!(shared.raw("acme:rows:k").await.windows(7).any(|part| part == b"hunter2"));
}

/// An entry of another deployment on the same store, with the same keys, does not open.
#[tokio::test]
async fn an_entry_is_bound_to_its_deployment() {
    let shared = Shared::new();
    let (ours, theirs) = (sealing(&shared, "ours:"), sealing(&shared, "theirs:"));
    assert_eq!(source(&loading(plain_domain(&theirs))).await, Source::Origin);
    let stored = shared.raw("acme:rows:k").await;
    let ours_cache = loading(plain_domain(&ours));
    assert_eq!(source(&ours_cache).await, Source::Origin, "not even its groups are");
    shared.put("acme:rows:k", stored).await;
    let reader = loading(plain_domain(&sealing(&shared, "ours:")));
    assert_eq!((source(&reader).await, reader.stats().damaged), (Source::Origin, 1));
    assert_eq!(source(&loading(plain_domain(&sealing(&shared, "ours:")))).await, Source::Far);
}

/// A group cannot be given the number that a dead entry carries: neither by writing it there, nor by moving the number of
/// another group there.
#[tokio::test]
async fn a_dead_entry_is_not_revived_by_its_number() {
    let shared = Shared::new();
    let group = "gen:t:acme:rows";
    let cache = loading(plain_domain(&sealing(&shared, "")));
    source(&cache).await;
    let (entry, before) = (shared.raw("acme:rows:k").await, shared.raw(group).await);
    let context = RequestContext::new(TenantId::new("acme").unwrap());
    context.scope(cache.invalidate_all()).await.unwrap();
    let now = shared.raw(group).await;
    let all = shared.raw("gen:all").await;
    let mixed = [&before[..16], &now[16..]].concat();
    for (what, forged) in
        [("alone", before[..16].to_vec()), ("with the proof of the new one", mixed), ("of all", all)]
    {
        shared.put(group, forged).await;
        shared.put("acme:rows:k", entry.clone()).await;
        let reader = loading(plain_domain(&sealing(&shared, "")));
        assert_eq!(source(&reader).await, Source::Origin, "{what}");
    }
}
