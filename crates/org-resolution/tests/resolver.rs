//! Organisations through the cache: keys, coalescing, what is not remembered, and changes.

mod support;

use std::time::Duration;

use cache_core::prelude::*;
use org_resolution::OrgContext;
use support::{Directory, fleet, org, org_id, resolver, slug};
use tenant_cache::Source;

/// K3, D3: entries stand under exactly these keys.
#[tokio::test]
async fn entries_stand_under_their_documented_keys() {
    let (fleet, directory) = (fleet(), Directory::with([org("acme")]));
    let orgs = resolver(&fleet.here, &directory);
    orgs.by_slug(&slug("acme")).await.unwrap();
    orgs.by_id(&org_id("id-acme")).await.unwrap();
    for key in ["org:acme", "org:id:id-acme"] {
        assert!(fleet.far.get_bytes(key).await.unwrap().is_some(), "{key}");
    }
}

/// K3: it is looked up again after 300 s, and not before.
#[tokio::test]
async fn an_organisation_is_cached_for_300_s() {
    let (fleet, directory) = (fleet(), Directory::with([org("acme")]));
    let orgs = resolver(&fleet.here, &directory);
    orgs.by_slug(&slug("acme")).await.unwrap();
    // Up to a tenth of a life is cut off at random.
    fleet.hand.advance(Duration::from_secs(269));
    assert_eq!(orgs.by_slug(&slug("acme")).await.unwrap().source, Source::Far);
    fleet.hand.advance(Duration::from_secs(32));
    orgs.by_slug(&slug("acme")).await.unwrap();
    assert_eq!(directory.gate.calls(), 2);
}

/// K3, SA1: a crowd for a cold organisation is one question, also across instances.
#[tokio::test]
async fn a_crowd_asks_once() {
    let (fleet, directory) = (fleet(), Directory::with([org("acme")]));
    directory.gate.close();
    let crowd: Vec<_> = (0..200)
        .map(|n| {
            let orgs = resolver(if n % 2 == 0 { &fleet.here } else { &fleet.there }, &directory);
            tokio::spawn(async move { orgs.by_slug(&slug("acme")).await.unwrap().org.name.clone() })
        })
        .collect();
    directory.gate.holds(1).await;
    directory.gate.open();
    for caller in crowd {
        assert_eq!(caller.await.unwrap(), "ACME");
    }
    assert_eq!(directory.gate.calls(), 1);
}

/// K3, E6: names nobody has are remembered for 30 s, in this process only.
#[tokio::test]
async fn invented_names_stay_out_of_the_shared_tier() {
    let (fleet, directory) = (fleet(), Directory::with([]));
    let orgs = resolver(&fleet.here, &directory);
    for _ in 0..3 {
        assert_eq!(orgs.by_slug(&slug("nobody")).await.unwrap_err().code(), "org_not_found");
    }
    assert_eq!(directory.gate.calls(), 1);
    assert_eq!(fleet.far.get_bytes("org:nobody").await.unwrap(), None);
    fleet.hand.advance(Duration::from_secs(31));
    assert_eq!(orgs.by_slug(&slug("nobody")).await.unwrap_err().status(), 404);
    assert_eq!(directory.gate.calls(), 2);
}

/// K3, SB12: a name that was remembered as nobody's is found on every instance once somebody took it.
#[tokio::test]
async fn a_new_organisation_is_found_at_once() {
    let (fleet, directory) = (fleet(), Directory::with([]));
    let (here, there) = (resolver(&fleet.here, &directory), resolver(&fleet.there, &directory));
    for orgs in [&here, &there] {
        assert_eq!(orgs.by_slug(&slug("acme")).await.unwrap_err().status(), 404);
    }
    let commit = directory.committed(org("acme"));
    here.change(&[&org("acme")], commit).await.unwrap().told.unwrap();
    for orgs in [&here, &there] {
        assert_eq!(orgs.by_slug(&slug("acme")).await.unwrap().org.name, "ACME");
    }
}

/// K3: a rename moves both slugs and the id, on every instance.
#[tokio::test]
async fn a_rename_moves_both_slugs() {
    let (fleet, directory) = (fleet(), Directory::with([org("old")]));
    let (here, there) = (resolver(&fleet.here, &directory), resolver(&fleet.there, &directory));
    for orgs in [&here, &there] {
        orgs.by_slug(&slug("old")).await.unwrap();
        assert_eq!(orgs.by_slug(&slug("new")).await.unwrap_err().status(), 404);
        orgs.by_id(&org_id("id-old")).await.unwrap();
    }
    let after = OrgContext { slug: slug("new"), ..org("old") };
    let commit = directory.committed(after.clone());
    here.change(&[&org("old"), &after], commit).await.unwrap().told.unwrap();
    for orgs in [&here, &there] {
        assert_eq!(orgs.by_slug(&slug("old")).await.unwrap_err().code(), "org_not_found");
        assert_eq!(orgs.by_slug(&slug("new")).await.unwrap().org.id, org_id("id-old"));
        assert_eq!(orgs.by_id(&org_id("id-old")).await.unwrap().org.slug, slug("new"));
    }
}

/// K3, SE1: a look-up that read the old row before the commit cannot leave it in any tier.
#[tokio::test]
async fn a_look_up_in_flight_does_not_outlive_a_change() {
    let (fleet, directory) = (fleet(), Directory::with([org("acme")]));
    let (here, there) = (resolver(&fleet.here, &directory), resolver(&fleet.there, &directory));
    directory.gate.close();
    let slow = tokio::spawn({
        let there = there.clone();
        async move { there.by_slug(&slug("acme")).await.unwrap().org.plan.clone() }
    });
    directory.gate.holds(1).await;
    let after = OrgContext { plan: "pro".into(), ..org("acme") };
    let commit = directory.committed(after.clone());
    here.change(&[&org("acme"), &after], commit).await.unwrap().told.unwrap();
    directory.gate.open();
    assert_eq!(slow.await.unwrap(), "free", "its caller asked before the change");
    for orgs in [&here, &there] {
        assert_eq!(orgs.by_slug(&slug("acme")).await.unwrap().org.plan, "pro");
    }
}

/// K3: it is forgotten before the commit too, and also when the commit says it failed: the answer may be what
/// was lost.
#[tokio::test]
async fn a_change_forgets_before_and_after_whatever_the_commit_says() {
    let (fleet, directory) = (fleet(), Directory::with([org("acme")]));
    let orgs = resolver(&fleet.here, &directory);
    orgs.by_slug(&slug("acme")).await.unwrap();
    let after = OrgContext { plan: "pro".into(), ..org("acme") };
    let commit = async {
        assert_eq!(fleet.far.get_bytes("org:acme").await.unwrap(), None, "forgotten before");
        // A reader between the two times brings the old row back.
        assert_eq!(orgs.by_slug(&slug("acme")).await.unwrap().org.plan, "free");
        directory.commit(after.clone());
        Err::<(), _>("the answer was lost")
    };
    assert_eq!(orgs.change(&[&org("acme"), &after], commit).await.unwrap_err(), "the answer was lost");
    assert_eq!(orgs.by_slug(&slug("acme")).await.unwrap().org.plan, "pro");
}

/// K6: the shared tier holds secrets only as they were sealed, and the public view holds none.
#[tokio::test]
async fn the_shared_tier_holds_sealed_secrets_only() {
    let ring = org_resolution::KeyRing::parse("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
    let mut acme = org("acme");
    acme.secrets.insert("api_key".into(), ring.seal(&acme.id, "api_key", "hunter2"));
    let (fleet, directory) = (fleet(), Directory::with([acme.clone()]));
    resolver(&fleet.here, &directory).by_slug(&slug("acme")).await.unwrap();
    let stored = fleet.far.get_bytes("org:acme").await.unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&stored).contains("hunter2"));
    // Another instance opens what came through the shared tier.
    let found = resolver(&fleet.there, &directory).by_slug(&slug("acme")).await.unwrap();
    assert_eq!(found.source, Source::Far);
    let opened = ring.open(&found.org.id, "api_key", &found.org.secrets["api_key"]).unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&opened), "hunter2");
    assert!(!acme.public().to_string().contains("api_key"));
    assert!(!format!("{acme:?}").contains("hunter2"));
}

/// Two resolvers on one directory share its caches; one on another directory is refused, and does not get the
/// organisations of the first.
#[tokio::test]
async fn another_directory_is_refused() {
    let (fleet, directory) = (fleet(), Directory::with([org("acme")]));
    let (first, second) = (resolver(&fleet.here, &directory), resolver(&fleet.here, &directory));
    first.by_slug(&slug("acme")).await.unwrap();
    assert_eq!(second.by_slug(&slug("acme")).await.unwrap().source, Source::Near);
    let error = org_resolution::OrgResolver::new(&fleet.here, Directory::with([org("acme")])).unwrap_err();
    assert!(matches!(error, CacheError::Configuration { .. }), "{error:?}");
}

/// Bytes of one organisation in the place of another are not served, though the entry says that it belongs there: the
/// directory is asked. Nor is what the directory itself confuses.
#[tokio::test]
async fn another_organisation_than_asked_for_is_not_served() {
    let fleet = fleet();
    let with_domain = |slug: &str| OrgContext { custom_domain: Some(format!("{slug}.test")), ..org(slug) };
    let directory = Directory::with([with_domain("acme"), with_domain("globex")]);
    let orgs = resolver(&fleet.here, &directory);
    for name in ["acme", "globex"] {
        orgs.by_slug(&slug(name)).await.unwrap();
        orgs.by_id(&org_id(&format!("id-{name}"))).await.unwrap();
        orgs.by_domain(&format!("{name}.test")).await.unwrap();
    }
    for (from, to) in [
        ("org:acme", "org:globex"),
        ("org:id:id-acme", "org:id:id-globex"),
        ("org:domain:acme.test", "org:domain:globex.test"),
    ] {
        let held = fleet.far.get_bytes(to).await.unwrap().expect("it is stored");
        let mut moved = fleet.far.get_bytes(from).await.unwrap().expect("it is stored").to_vec();
        // The hash of the key.
        moved[17..25].copy_from_slice(&held[17..25]);
        fleet.far.set_bytes(to, moved.into(), Ttl::For(Duration::from_secs(60))).await.unwrap();
    }
    let there = resolver(&fleet.there, &directory);
    let found = [
        there.by_slug(&slug("globex")).await.unwrap(),
        there.by_id(&org_id("id-globex")).await.unwrap(),
        there.by_domain("globex.test").await.unwrap(),
    ];
    for found in found {
        assert_eq!((found.org.slug.as_str(), found.source), ("globex", Source::Origin));
    }
}

/// While the directory is away an organisation in use is served for ten minutes more; one that was changed is not.
#[tokio::test]
async fn an_outage_of_the_directory_is_bridged_within_its_limit() {
    let (fleet, directory) = (fleet(), Directory::with([org("acme"), org("globex")]));
    let orgs = resolver(&fleet.here, &directory);
    for name in ["acme", "globex"] {
        orgs.by_slug(&slug(name)).await.unwrap();
    }
    directory.gate.set_broken(true);
    fleet.hand.advance(Duration::from_secs(500));
    assert_eq!(orgs.by_slug(&slug("acme")).await.unwrap().org.name, "ACME");
    orgs.forget(&[&org("globex")]).await.unwrap();
    assert_eq!(orgs.by_slug(&slug("globex")).await.unwrap_err().code(), "store_unavailable");
    fleet.hand.advance(Duration::from_secs(401));
    assert_eq!(orgs.by_slug(&slug("acme")).await.unwrap_err().code(), "store_unavailable");
}
