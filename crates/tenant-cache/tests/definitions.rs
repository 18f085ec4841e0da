//! Which definitions are refused: those that cannot work, and those that are not the one that was made before.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Scope};
use tenant_cache::{Caches, DomainBuilder, Policy, Retry, TenantCache};

type Defining = DomainBuilder<u32, String>;

/// Adds an option.
type With = dyn Fn(Defining) -> Defining;

const SECOND: Duration = Duration::from_secs(1);

fn rows(caches: &Caches) -> Defining {
    caches.domain("rows").scope(Scope::Global)
}

/// A loader that asks a database of its own.
fn of_database(rows: Defining, database: &str) -> Result<TenantCache<u32, String>, CacheError> {
    let database: Arc<str> = database.into();
    rows.load(move |key: u32| {
        let row = format!("{key} from the {database} database");
        async move { Ok::<_, std::io::Error>(Some(row)) }
    })
}

fn refused<T: std::fmt::Debug>(defined: Result<T, CacheError>, word: &str) {
    let error = defined.unwrap_err();
    assert!(matches!(error, CacheError::Configuration { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("`rows`") && text.contains(word), "{word}: {text}");
}

/// Two closures of one type may hold different things, which cannot be compared: the second definition is refused, and
/// does not get the cache of the first.
#[tokio::test]
async fn another_captured_value_is_another_definition() {
    let caches = Caches::in_memory();
    let american = of_database(rows(&caches), "american").unwrap();
    assert_eq!(american.get(&1).await.unwrap().as_deref().unwrap(), "1 from the american database");
    refused(of_database(rows(&caches), "european"), "`version`");
    drop(american);
    let european = of_database(rows(&caches), "european").unwrap();
    assert_eq!(european.get(&1).await.unwrap().as_deref().unwrap(), "1 from the european database");
}

/// Each function of a definition can hold something.
#[tokio::test]
async fn every_function_counts() {
    let held = Arc::new(1_u32);
    let mine = || Arc::clone(&held);
    let with: [(&str, Box<With>); 6] = [
        ("ttl_by", {
            let held = mine();
            Box::new(move |rows| {
                let held = Arc::clone(&held);
                rows.ttl_by(move |_, _| SECOND * *held)
            })
        }),
        ("tags", {
            let held = mine();
            Box::new(move |rows| {
                let held = Arc::clone(&held);
                rows.tags(move |_| vec![held.to_string()])
            })
        }),
        ("fallback", {
            let held = mine();
            Box::new(move |rows| {
                let held = Arc::clone(&held);
                rows.fallback(move |_, _| Some(held.to_string()))
            })
        }),
        ("bulk", {
            let held = mine();
            Box::new(move |rows| {
                let held = Arc::clone(&held);
                rows.bulk(move |_| {
                    let all = HashMap::from([(*held, String::new())]);
                    async move { Ok::<_, std::io::Error>(all) }
                })
            })
        }),
        ("on_hit", {
            let held = mine();
            Box::new(move |rows| {
                let held = Arc::clone(&held);
                rows.on_hit(move |_, _| assert_eq!(*held, 1))
            })
        }),
        ("on_miss", {
            let held = mine();
            Box::new(move |rows| {
                let held = Arc::clone(&held);
                rows.on_miss(move |_| assert_eq!(*held, 1))
            })
        }),
    ];
    for (name, with) in with {
        let caches = Caches::in_memory();
        let load = |rows: Defining| rows.load(|_| async { Ok::<_, std::io::Error>(Some(String::new())) });
        let _kept = load(with(rows(&caches))).unwrap();
        let again = load(with(rows(&caches)));
        assert!(again.is_err(), "{name}");
        refused(again, "`version`");
    }
}

/// Whoever knows that two definitions hold the same says so, by a version; another version is another definition.
#[tokio::test]
async fn a_version_says_that_two_definitions_are_one() {
    let caches = Caches::in_memory();
    let versioned = |version: &str| of_database(rows(&caches).version(version), "american");
    let first = versioned("a").unwrap();
    first.get(&1).await.unwrap();
    let second = versioned("a").unwrap();
    assert!(second.peek(&1).unwrap().is_some(), "it is the same cache");
    refused(versioned("b"), "another way");
    refused(of_database(rows(&caches), "american"), "another way");
    let numbered = Caches::in_memory();
    let _kept = of_database(rows(&numbered).version(7), "american").unwrap();
    assert!(of_database(rows(&numbered).version(7), "american").is_ok());
    refused(of_database(rows(&numbered).version(8), "american"), "another way");
}

/// What is done about a loader that fails or is slow is part of the definition, as the other options are.
#[tokio::test]
async fn other_patience_is_another_definition() {
    let caches = Caches::in_memory();
    let load = |rows: Defining| rows.load(|_| async { Ok::<_, std::io::Error>(Some(String::new())) });
    let _kept = load(rows(&caches).timeout(SECOND)).unwrap();
    assert!(load(rows(&caches).timeout(SECOND)).is_ok());
    refused(load(rows(&caches)), "another way");
    refused(load(rows(&caches).timeout(2 * SECOND)), "another way");
    refused(load(rows(&caches).timeout(SECOND).retry(Retry::default())), "another way");
    refused(load(rows(&caches).timeout(SECOND).attempt_timeout(SECOND)), "another way");
}

/// Times and pauses that cannot work are refused by name when the cache is defined.
#[tokio::test]
async fn impossible_patience_is_refused_by_name() {
    let zero = Duration::ZERO;
    let load = |rows: Defining| rows.load(|_| async { Ok::<_, std::io::Error>(Some(String::new())) });
    let define = |options: fn(Defining) -> Defining| load(options(rows(&Caches::in_memory())));
    refused(define(|rows| rows.timeout(Duration::ZERO)), "`timeout`");
    refused(define(|rows| rows.attempt_timeout(Duration::ZERO)), "`attempt_timeout`");
    refused(define(|rows| rows.attempt_timeout(2 * SECOND).timeout(SECOND)), "`attempt_timeout`");
    let backwards = |rows: Defining| rows.retry(Retry::default().with_delays(2 * SECOND, SECOND));
    refused(load(backwards(rows(&Caches::in_memory()))), "`retry`");
    let soft = |rows: Defining| rows.stale_if_error(SECOND).soft_timeout(2 * SECOND).hard_timeout(SECOND);
    refused(load(soft(rows(&Caches::in_memory()))), "`soft_timeout`");
    let mut policy = Policy::default();
    (policy.stale_if_error, policy.soft_timeout, policy.hard_timeout) =
        (SECOND, Some(2 * SECOND), Some(SECOND));
    assert!(policy.validate("rows").unwrap_err().to_string().contains("`hard_timeout`"));
    // At the limit.
    let even = |rows: Defining| {
        let rows = rows.stale_if_error(SECOND).soft_timeout(SECOND).hard_timeout(SECOND);
        rows.attempt_timeout(SECOND).timeout(SECOND).retry(Retry::times(0).with_delays(zero, zero))
    };
    assert!(load(even(rows(&Caches::in_memory()))).is_ok());
}
