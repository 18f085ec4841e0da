//! Lookups against removals, in memory.

use std::sync::Arc;

use cache_core::{FlushReason, Invalidation, Tick};
use shuttle::thread;

use super::{Instance, NEW, OLD, under_every_schedule, under_many_schedules};

fn tell(message: Invalidation) -> impl Fn(&Instance) + Clone + Send + Sync {
    move |instance| instance.bus.sinks.apply(&message)
}

/// An instance with the old row in memory.
fn cached() -> Arc<Instance> {
    let instance = Instance::new();
    instance.look_up();
    assert_eq!(instance.read(), Some(OLD));
    instance
}

/// A lookup is on its way when the row changes and is removed: whoever reads after the removal does not find the old
/// row, nor does anybody when all is over.
fn removal_against_a_lookup(
    instance: &Arc<Instance>,
    remove: &(impl Fn(&Instance) + Clone + Send + Sync + 'static),
) {
    let lookup = {
        let instance = Arc::clone(instance);
        thread::spawn(move || instance.look_up())
    };
    let writer = {
        let (instance, remove) = (Arc::clone(instance), remove.clone());
        thread::spawn(move || {
            instance.commit(NEW);
            remove(&instance);
            assert_ne!(instance.read(), Some(OLD), "read after the removal");
        })
    };
    lookup.join().expect("the lookup");
    writer.join().expect("the writer");
    assert_ne!(instance.read(), Some(OLD), "read when all is over");
}

/// SE1, P1, P3: removing a key, under every schedule.
#[test]
fn a_removed_key_does_not_come_back() {
    let remove = tell(Invalidation::key("acme:rows:7"));
    under_every_schedule(move || removal_against_a_lookup(&Instance::with_tags(Vec::new()), &remove));
}

/// SE1: removing a key that is in memory already, by the cache's own way and by a message.
#[test]
fn a_removed_entry_does_not_come_back() {
    let own = |instance: &Instance| instance.cache.inner.near.remove(&instance.query());
    under_many_schedules(move || removal_against_a_lookup(&cached(), &own));
    let message = tell(Invalidation::key("acme:rows:7"));
    under_many_schedules(move || removal_against_a_lookup(&cached(), &message));
}

/// SE3, SE4, SE5, SE13, SE14: removing a group, by each kind of message.
#[test]
fn a_removed_group_does_not_come_back() {
    let tenant = cache_core::TenantId::new("acme").ok();
    let domain: Arc<str> = "rows".into();
    for message in [
        Invalidation::Domain { tenant: tenant.clone(), domain: domain.clone() },
        Invalidation::Domain { tenant: None, domain },
        Invalidation::Tag { tenant, tag: "tag".into() },
        Invalidation::All,
    ] {
        let remove = tell(message);
        for instance in [cached, Instance::new] {
            let remove = remove.clone();
            under_many_schedules(move || removal_against_a_lookup(&instance(), &remove));
        }
    }
}

/// PROTOCOLS 3: a bulk removal, which names no single key, spoils every ticket before it looks through memory.
#[test]
fn a_removed_prefix_does_not_come_back() {
    let remove = tell(Invalidation::Prefix("acme:ro".into()));
    for instance in [cached, Instance::new] {
        let remove = remove.clone();
        under_many_schedules(move || removal_against_a_lookup(&instance(), &remove));
    }
}

/// SE1: of two lookups, one from before the removal and one from after it, the later one's value stays.
#[test]
fn the_later_of_two_lookups_stays() {
    under_many_schedules(|| {
        let instance = Instance::new();
        let early = {
            let instance = Arc::clone(&instance);
            thread::spawn(move || instance.look_up())
        };
        instance.commit(NEW);
        instance.cache.inner.near.remove(&instance.query());
        instance.look_up();
        assert_eq!(instance.read(), Some(NEW));
        early.join().expect("the early lookup");
        assert_eq!(instance.read(), Some(NEW), "and the early one does not replace it");
    });
}

/// I3, SF1, P2: messages were missed. Trust ends, memory is emptied, trust comes back; nobody who finds something in
/// memory from then on finds what was changed meanwhile, whatever was on its way.
#[test]
fn what_was_missed_is_not_found_when_trust_is_back() {
    under_many_schedules(|| {
        let instance = Instance::new();
        instance.look_up();
        let lookups = [(); 2].map(|()| {
            let instance = Arc::clone(&instance);
            thread::spawn(move || instance.look_up())
        });
        // The change whose message is lost.
        instance.commit(NEW);
        let trust = &instance.bus.trust;
        trust.revoke_near();
        assert_eq!(instance.read(), None, "no trust, no hit");
        instance.bus.sinks.flush(FlushReason::TrustReturned);
        trust.extend_near(Tick::NEVER);
        assert_ne!(instance.read(), Some(OLD), "trust is back");
        for lookup in lookups {
            lookup.join().expect("a lookup");
            assert_ne!(instance.read(), Some(OLD), "and a late answer has come");
        }
    });
}
