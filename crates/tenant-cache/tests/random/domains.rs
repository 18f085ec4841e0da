//! The caches of an instance: each has options that the others have not.

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Scope};
use tenant_cache::{Caches, DomainBuilder, LoadRequest, NegativeTier, Retry, TenantCache};

use crate::entry::{Row, key_tag};
use crate::loader::{self, Functions};
use crate::world::World;

pub(crate) type Rows = TenantCache<u32, Row>;
type Builder = DomainBuilder<u32, Row>;

/// A domain, as far as the model must know its options.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) scope: Scope,
    /// Its keys have tags.
    pub(crate) tagged: bool,
    /// Its loader says tags of its own, and how long an answer lives, and whether it has changed. A value that is inserted
    /// has no such tags: nobody inserts here.
    pub(crate) loader_tags: bool,
    /// Its lookups end within this, so its loader may hang.
    pub(crate) hard_timeout: Option<Duration>,
    /// Its loads end with an error when they take too long.
    pub(crate) times_out: bool,
    /// Its hooks and its fallback panic at times.
    pub(crate) panics: bool,
    /// Whether a load that fails may be answered by the fallback.
    pub(crate) fallback: bool,
    options: fn(Builder) -> Builder,
}

const PLAIN: Spec = Spec {
    name: "plain",
    scope: Scope::Tenant,
    tagged: false,
    loader_tags: false,
    hard_timeout: None,
    times_out: false,
    panics: false,
    fallback: false,
    options: |domain| domain,
};

pub(crate) const DOMAINS: [Spec; 7] = [
    Spec {
        name: "everybody",
        scope: Scope::Global,
        tagged: true,
        options: |domain| {
            domain.stale_while_revalidate(ms(150)).refresh_ahead(0.5).tags(|key| vec![key_tag(*key)])
        },
        ..PLAIN
    },
    Spec {
        name: "tenants",
        tagged: true,
        options: |domain| {
            domain
                .tags(|key| vec![key_tag(*key)])
                .stale_if_error(ms(400))
                .error_throttle(ms(30))
                .soft_timeout(ms(25))
                .capacity(8)
                .negative_capacity(2)
                .tenant_share(0.5)
                .retry(Retry::times(1).with_delays(ms(1), ms(4)))
        },
        ..PLAIN
    },
    Spec {
        name: "users",
        scope: Scope::User,
        panics: true,
        options: |domain| {
            domain
                .negative_tier(NegativeTier::Near)
                .ttl_by(|key, row| match (key, row) {
                    (5, _) | (4, None) => Duration::ZERO,
                    (_, Some(_)) => ms(60),
                    (_, None) => ms(40),
                })
                .lease_for(ms(90))
        },
        ..PLAIN
    },
    Spec {
        name: "requests",
        scope: Scope::Request,
        tagged: true,
        hard_timeout: Some(ms(100)),
        fallback: true,
        panics: true,
        options: |domain| {
            domain
                .tags(|key| vec![key_tag(*key)])
                .hard_timeout(ms(100))
                .stale_if_error(ms(200))
                .soft_timeout(ms(30))
                .stale_while_revalidate(ms(60))
        },
        ..PLAIN
    },
    Spec {
        name: "far",
        loader_tags: true,
        options: |domain| {
            domain
                .near_ttl(Duration::ZERO)
                .stale_while_revalidate(ms(300))
                .stale_if_error(ms(500))
                .compress_over(40)
                .lease_wait(ms(60))
        },
        ..PLAIN
    },
    Spec {
        name: "local",
        tagged: true,
        hard_timeout: Some(ms(80)),
        options: |domain| {
            domain
                .local()
                .tags(|key| vec![key_tag(*key)])
                .stale_if_error(ms(300))
                .hard_timeout(ms(80))
                .refresh_ahead(0.7)
        },
        ..PLAIN
    },
    Spec {
        name: "tried",
        scope: Scope::Request,
        times_out: true,
        fallback: true,
        options: |domain| {
            domain
                .attempt_timeout(ms(40))
                .timeout(ms(90))
                .retry(Retry::times(2).with_delays(ms(1), ms(8)))
                .near_ttl(ms(15))
        },
        ..PLAIN
    },
];

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How wide a scope is: a loader may ask for what is as wide as its own, or wider.
pub(crate) fn width(scope: Scope) -> u8 {
    match scope {
        Scope::Global => 2,
        Scope::Tenant => 1,
        _ => 0,
    }
}

/// The caches of one instance, as [`DOMAINS`] has them.
pub(crate) fn define(caches: &Caches, world: &Arc<World>, instance: usize) -> Result<Vec<Rows>, CacheError> {
    let define = |(domain, spec): (usize, &Spec)| {
        let functions = Functions { world: Arc::clone(world), instance, domain };
        let mut builder = caches
            .domain(spec.name)
            .scope(spec.scope)
            .ttl(ms(40))
            .near_ttl(ms(25))
            .negative_ttl(ms(30))
            .lease_for(ms(2_500));
        builder = (spec.options)(builder);
        if spec.panics {
            let (on_hit, on_miss) = (functions.clone(), functions.clone());
            builder = builder.on_hit(move |_, _| on_hit.hook()).on_miss(move |_| on_miss.hook());
        }
        if spec.fallback {
            let functions = functions.clone();
            builder = builder.fallback(move |key, _| functions.fall_back(*key));
        }
        // A bulk loader names no tags: what it brings would not belong to the groups of what the loader does.
        if domain % 2 == 0 && !spec.loader_tags {
            let functions = functions.clone();
            builder = builder.bulk(move |keys| loader::bulk(functions.clone(), keys));
        }
        if spec.loader_tags {
            return builder.load_with(move |request: LoadRequest<u32, Row>| {
                loader::conditional(functions.clone(), request)
            });
        }
        builder.load(move |key| loader::load(functions.clone(), key))
    };
    DOMAINS.iter().enumerate().map(define).collect()
}
