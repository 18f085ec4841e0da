//! Whose entry it is.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use cache_core::{CacheError, RequestContext, Scope};
use support::{Origin, of, plain, tenant, user, versions, versions_with};
use tenant_cache::ambient::carry;
use tenant_cache::{Caches, RequestScope, TenantCache};

fn who_asks(caches: &Caches, scope: Scope) -> TenantCache<u32, String> {
    caches
        .domain("who")
        .scope(scope)
        .load(|_: u32| async {
            let context = RequestContext::current().expect("the loader runs in the request");
            let user = context.user.as_ref().map_or("-", |user| user.as_str());
            Ok::<_, std::io::Error>(Some(format!("{}/{user}", context.tenant)))
        })
        .unwrap()
}

/// D1: without a tenant a call fails; it never falls back to a shared scope.
#[tokio::test]
async fn without_a_tenant_every_call_fails() {
    let (caches, origin) = (Caches::in_memory(), Origin::open());
    let cache = versions(&caches, &origin);
    let key = "k".to_owned();
    assert!(matches!(cache.get(&key).await, Err(CacheError::NoTenant { .. })));
    assert!(matches!(cache.fresh(&key).await, Err(CacheError::NoTenant { .. })));
    assert!(matches!(cache.refresh(&key).await, Err(CacheError::NoTenant { .. })));
    assert!(matches!(cache.insert(&key, 1).await, Err(CacheError::NoTenant { .. })));
    assert!(matches!(cache.invalidate(&key).await, Err(CacheError::NoTenant { .. })));
    assert!(matches!(cache.invalidate_all().await, Err(CacheError::NoTenant { .. })));
    assert!(matches!(cache.contains(&key).await, Err(CacheError::NoTenant { .. })));
    assert!(matches!(cache.peek(&key), Err(CacheError::NoTenant { .. })));
    assert_eq!(origin.loads(), 0);
}

/// D1: the context does not leak into spawned tasks by itself, and is carried when asked to.
#[tokio::test]
async fn a_spawned_task_carries_the_context_only_when_asked() {
    of("acme", async {
        let bare = tokio::spawn(async { RequestContext::current() }).await.unwrap();
        let carried = tokio::spawn(carry(async { RequestContext::current() })).await.unwrap();
        assert_eq!(bare, None);
        assert_eq!(carried.unwrap().tenant, tenant("acme"));
    })
    .await;
}

/// D3, D4, P5, SG5: the same key in two tenants, and for two users, is two entries.
#[tokio::test]
async fn each_scope_has_its_own_entries() {
    let acme = || RequestContext::new(tenant("acme"));
    let ann = || acme().with_user(user("ann"));
    let bob = || acme().with_user(user("bob"));
    let ask = async |cache: &TenantCache<u32, String>, context: RequestContext| {
        context.scope(async { cache.get(&1).await }).await.map(|found| found.unwrap().to_string())
    };
    let tenants = who_asks(&Caches::in_memory(), Scope::Tenant);
    assert_eq!(ask(&tenants, ann()).await.unwrap(), "acme/-", "the load is everybody's of the tenant");
    assert_eq!(ask(&tenants, bob()).await.unwrap(), "acme/-");
    assert_eq!(ask(&tenants, RequestContext::new(tenant("globex"))).await.unwrap(), "globex/-");

    let users = who_asks(&Caches::in_memory(), Scope::User);
    assert_eq!(ask(&users, ann()).await.unwrap(), "acme/ann");
    assert_eq!(ask(&users, bob()).await.unwrap(), "acme/bob");
    assert!(matches!(ask(&users, acme()).await, Err(CacheError::NoUser { .. })));

    let requests = who_asks(&Caches::in_memory(), Scope::Request);
    assert_eq!(ask(&requests, acme()).await.unwrap(), "acme/-");
    assert_eq!(ask(&requests, ann()).await.unwrap(), "acme/ann");
    assert_eq!(ask(&requests, bob()).await.unwrap(), "acme/bob");
    assert_eq!(ask(&requests, acme()).await.unwrap(), "acme/-");
}

/// SG5: hostile names never meet: separators, prefixes of each other, unicode.
#[tokio::test]
async fn hostile_names_never_meet() {
    let (caches, origin) = (Caches::in_memory(), Origin::open());
    let cache = versions(&caches, &origin);
    let names = ["a", "ab", "a:b", "a%3Ab", "a:rows:b", "org", "%6Frg", "é", "{a}", "a b", "日本"];
    for (version, name) in names.iter().enumerate() {
        origin.commit("b", version as u64);
        assert_eq!(
            plain(of(name, cache.get(&"b".to_owned())).await.unwrap()),
            Some(version as u64),
            "{name}"
        );
    }
    for (version, name) in names.iter().enumerate() {
        assert_eq!(
            plain(of(name, cache.get(&"b".to_owned())).await.unwrap()),
            Some(version as u64),
            "{name}"
        );
    }
    assert_eq!(origin.loads(), names.len());
}

/// SG5, E3: emptying one tenant's domain leaves the others', and the tenant's users go with it.
#[tokio::test]
async fn emptying_one_tenant_leaves_the_others() {
    let caches = Caches::in_memory();
    let origin = Origin::open();
    let cache = versions_with(&caches, &origin, |domain| domain.scope(Scope::Request));
    let ann = || RequestContext::new(tenant("acme")).with_user(user("ann"));
    let globex = || RequestContext::new(tenant("globex"));
    let get = async |context: RequestContext| {
        plain(context.scope(async { cache.get(&"k".to_owned()).await }).await.unwrap())
    };
    origin.commit("k", 1);
    assert_eq!((get(ann()).await, get(globex()).await), (Some(1), Some(1)));
    origin.commit("k", 2);
    of("acme", cache.invalidate_all()).await.unwrap();
    assert_eq!((get(ann()).await, get(globex()).await), (Some(2), Some(1)));
    origin.commit("k", 3);
    cache.clear().await.unwrap();
    assert_eq!((get(ann()).await, get(globex()).await), (Some(3), Some(3)));
}

/// A8: a key whose text is too long is refused before anything is asked.
#[tokio::test]
async fn a_key_that_is_too_long_is_refused() {
    let (caches, origin) = (Caches::in_memory(), Origin::open());
    let cache = versions(&caches, &origin);
    let answer = of("acme", cache.get(&"k".repeat(600))).await;
    assert!(matches!(answer, Err(CacheError::InvalidKey(_))), "{answer:?}");
    assert_eq!(origin.loads(), 0);
}
