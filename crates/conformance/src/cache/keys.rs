//! Keys, bulk calls and prefixes.

#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use bytes::Bytes;
use cache_core::{CacheError, CacheServiceExt, Claim, KeyError, LeaseToken, Lookup, Stamp, Ttl};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::CacheFixture;

const LEASE: std::time::Duration = std::time::Duration::from_secs(30);

/// Text that patterns, hash tags, escapes and shells would take for something else.
const HOSTILE: [&str; 22] = [
    " ",
    "a b",
    "*",
    "?",
    "[a]",
    "[^a]",
    "\\",
    "a\\*",
    "-",
    "{a}",
    "{",
    "}",
    "%",
    "%00",
    "a:b:c",
    "é",
    "日本語",
    "\u{1f600}",
    "'\"",
    "${x}",
    "--",
    "\u{a0}",
];

/// A8: any text without control characters is a key: spaces, globs, braces, percent signs, other scripts.
pub async fn hostile_keys_are_ordinary(f: CacheFixture) {
    let longest = "x".repeat(512 - f.scope.len());
    let names: Vec<&str> = HOSTILE.into_iter().chain([longest.as_str()]).collect();
    for (value, name) in names.iter().enumerate() {
        f.service.set(&f.key(name), &value, None).await.unwrap();
    }
    for (value, name) in names.iter().enumerate() {
        assert_eq!(f.service.get(&f.key(name)).await.unwrap(), Some(value), "{name}");
    }
    for name in names {
        f.service.invalidate(&f.key(name)).await.unwrap();
        assert_eq!(f.service.get::<usize>(&f.key(name)).await.unwrap(), None, "{name}");
    }
}

/// A5, A6, A8: bulk calls take the same keys, named twice too; and every one of them is a prefix like any other.
pub async fn hostile_keys_are_ordinary_in_bulk_and_as_prefixes(f: CacheFixture) {
    let keys: Vec<String> = HOSTILE.iter().map(|name| f.key(name)).collect();
    let twice: Vec<&str> = keys.iter().chain(&keys).map(String::as_str).collect();
    let entries: Vec<(&str, usize)> = twice.iter().copied().zip(0..).collect();
    let expected: Vec<Option<usize>> = (keys.len()..2 * keys.len()).map(Some).collect();
    f.service.set_many(&entries, None).await.unwrap();
    assert_eq!(f.service.get_many(&twice).await.unwrap(), [expected.clone(), expected].concat());
    for prefix in HOSTILE {
        f.service.set_many(&entries, None).await.unwrap();
        let removed = f.service.invalidate_prefix(&f.key(prefix)).await.unwrap();
        let starting = HOSTILE.iter().filter(|name| name.starts_with(prefix)).count() as u64;
        assert_eq!(removed, starting, "{prefix}");
    }
    f.service.set_many(&entries, None).await.unwrap();
    f.service.invalidate_many(&twice).await.unwrap();
    assert_eq!(f.service.get_many::<usize>(&twice).await.unwrap(), vec![None; twice.len()]);
}

/// A8: empty, too long, and control characters are refused by every call, by kind, before anything happens.
pub async fn unacceptable_keys_are_refused_everywhere(f: CacheFixture) {
    let long = "x".repeat(513);
    for (key, kind) in [
        ("", KeyError::Empty),
        (long.as_str(), KeyError::TooLong { bytes: 513, limit: 512 }),
        ("a\nb", KeyError::ControlCharacter { at: 1 }),
        ("\0", KeyError::ControlCharacter { at: 0 }),
        ("a\u{85}", KeyError::ControlCharacter { at: 1 }),
    ] {
        let (s, value) = (&f.service, Bytes::from_static(b"1"));
        let good = f.key("good");
        let (claim, stamp) = (Claim::lease(LeaseToken::random()), Stamp::of(&value));
        let refused = [
            s.get_bytes(key).await.err(),
            s.get_many_bytes(&[&good, key]).await.err(),
            s.set_bytes(key, value.clone(), Ttl::Default).await.err(),
            s.set_many_bytes(&[(good.as_str(), value.clone()), (key, value.clone())], Ttl::Default)
                .await
                .err(),
            s.invalidate(key).await.err(),
            s.invalidate_many(&[&good, key]).await.err(),
            s.invalidate_prefix(key).await.err(),
            s.get_or_lease(key, LeaseToken::random(), LEASE).await.err(),
            s.lease_over(key, &stamp, LeaseToken::random(), LEASE).await.err(),
            s.take_lease(key, LeaseToken::random(), LEASE).await.err(),
            s.fill(key, &claim, value.clone(), Ttl::Default).await.err(),
            s.renew(key, &claim, LEASE).await.err(),
            s.release(key, &claim).await.err(),
        ];
        for (call, error) in refused.into_iter().enumerate() {
            assert!(
                matches!(error, Some(CacheError::InvalidKey(k)) if k == kind),
                "{key:?} {call}: {error:?}"
            );
        }
        assert_eq!(s.get_bytes(&good).await.unwrap(), None, "nothing of a refused bulk is stored");
    }
}

/// A6: answers come in the order asked, absent ones and repeated ones included.
pub async fn bulk_reads_keep_their_order(f: CacheFixture) {
    let keys: Vec<String> = (0..50).map(|n| f.key(&n.to_string())).collect();
    for n in (0..50).step_by(2) {
        f.service.set(&keys[n], &n, None).await.unwrap();
    }
    let asked: Vec<&str> =
        keys.iter().rev().chain([&keys[4], &keys[4], &keys[5]]).map(String::as_str).collect();
    let mut expected: Vec<Option<usize>> = (0..50).rev().map(|n| (n % 2 == 0).then_some(n)).collect();
    expected.extend([Some(4), Some(4), None]);
    assert_eq!(f.service.get_many::<usize>(&asked).await.unwrap(), expected);
}

/// A6: a bulk write stores every entry; of a key named twice the last counts.
pub async fn bulk_writes_store_all_or_refuse_all(f: CacheFixture) {
    let keys: Vec<String> = (0..2_500).map(|n| f.key(&n.to_string())).collect();
    let mut entries: Vec<(&str, usize)> = keys.iter().enumerate().map(|(n, key)| (key.as_str(), n)).collect();
    entries.push((&keys[0], 9_999));
    f.service.set_many(&entries, None).await.unwrap();
    let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
    let found = f.service.get_many::<usize>(&asked).await.unwrap();
    assert_eq!(found[0], Some(9_999));
    assert!(found.iter().enumerate().skip(1).all(|(n, value)| *value == Some(n)));
}

/// A6: nothing in, nothing out.
pub async fn empty_bulks_do_nothing(f: CacheFixture) {
    assert_eq!(f.service.get_many::<u32>(&[]).await.unwrap(), []);
    f.service.set_many::<u32>(&[], None).await.unwrap();
    f.service.invalidate_many(&[]).await.unwrap();
}

/// A4: invalidating what is not there is fine, twice too.
pub async fn invalidation_is_idempotent(f: CacheFixture) {
    let key = f.key("k");
    f.service.invalidate(&key).await.unwrap();
    f.service.set(&key, &1, None).await.unwrap();
    f.service.invalidate(&key).await.unwrap();
    f.service.invalidate(&key).await.unwrap();
    assert_eq!(f.service.get::<u32>(&key).await.unwrap(), None);
}

/// A6: a bulk invalidation removes the named and nothing else.
pub async fn invalidating_many_removes_just_those(f: CacheFixture) {
    let keys: Vec<String> = (0..2_500).map(|n| f.key(&n.to_string())).collect();
    let entries: Vec<(&str, usize)> = keys.iter().enumerate().map(|(n, key)| (key.as_str(), n)).collect();
    f.service.set_many(&entries, None).await.unwrap();
    let even: Vec<&str> = keys.iter().step_by(2).map(String::as_str).collect();
    f.service.invalidate_many(&even).await.unwrap();
    let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
    let found = f.service.get_many::<usize>(&asked).await.unwrap();
    assert!(found.iter().enumerate().all(|(n, value)| *value == (n % 2 == 1).then_some(n)));
}

/// A5, B3: exactly what starts with the prefix goes, at once, and is counted; globs are ordinary characters.
pub async fn a_prefix_removes_exactly_what_starts_with_it(f: CacheFixture) {
    let names = ["a", "a*", "a*b", "ab", "a?", "a[b]", "a[", "a\\", "a\\*", "a-", "a^", "b", "A", "*", "**"];
    for prefix in ["a*", "a[", "a\\", "a?", "a-", "a^", "*", "ab", "zz", "a"] {
        for name in names {
            f.service.set(&f.key(name), &1, None).await.unwrap();
        }
        let removed = f.service.invalidate_prefix(&f.key(prefix)).await.unwrap();
        let expected = names.iter().filter(|name| name.starts_with(prefix)).count() as u64;
        assert_eq!(removed, expected, "{prefix}");
        for name in names {
            let there = f.service.get::<u32>(&f.key(name)).await.unwrap().is_some();
            assert_eq!(there, !name.starts_with(prefix), "{prefix}: {name}");
        }
    }
}

/// A5: a key that holds the prefix somewhere else, or only begins as it does, is another key; its lease too.
pub async fn a_prefix_is_at_the_beginning_and_whole(f: CacheFixture) {
    let prefix = f.key("a/b");
    let others = [f.key(&prefix), f.key("a/"), f.key("a/B"), f.key("a"), format!("x{prefix}")];
    for (value, key) in others.iter().enumerate() {
        f.service.set(key, &value, None).await.unwrap();
    }
    let leased = f.key(&f.key("a/b/leased"));
    let Lookup::Granted(claim) = f.service.get_or_lease(&leased, LeaseToken::random(), LEASE).await.unwrap()
    else {
        panic!("the lease is free");
    };
    f.service.set(&prefix, &1, None).await.unwrap();
    assert_eq!(f.service.invalidate_prefix(&prefix).await.unwrap(), 1);
    for (value, key) in others.iter().enumerate() {
        assert_eq!(f.service.get(key).await.unwrap(), Some(value), "{key}");
    }
    assert!(f.service.renew(&leased, &claim, LEASE).await.unwrap(), "{leased}");
    f.service.invalidate(&others[4]).await.unwrap();
}

/// A5: random prefixes over random hostile keys, against `str::starts_with`.
pub async fn random_prefixes_agree_with_a_naive_model(f: CacheFixture) {
    let seed = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    let alphabet: Vec<char> = "ab*?[]^-\\{}:% é".chars().collect();
    let word = |rng: &mut StdRng, least: usize| -> String {
        (0..rng.random_range(least..5)).filter_map(|_| alphabet.choose(rng).copied()).collect()
    };
    for round in 0..40 {
        let mut names: Vec<String> = (0..30).map(|_| word(&mut rng, 1)).collect();
        names.sort();
        names.dedup();
        for name in &names {
            f.service.set(&f.key(name), &1, None).await.unwrap();
        }
        let prefix = word(&mut rng, 1);
        let removed = f.service.invalidate_prefix(&f.key(&prefix)).await.unwrap();
        let expected = names.iter().filter(|name| name.starts_with(&prefix)).count() as u64;
        assert_eq!(removed, expected, "seed {seed}, round {round}, prefix {prefix:?}");
        for name in &names {
            let there = f.service.get::<u32>(&f.key(name)).await.unwrap().is_some();
            assert_eq!(there, !name.starts_with(&prefix), "seed {seed}, prefix {prefix:?}, key {name:?}");
        }
        f.service.invalidate_prefix(&f.scope).await.unwrap();
    }
}

/// A5: no prefix is not "everything".
pub async fn an_empty_prefix_is_refused(f: CacheFixture) {
    let key = f.key("k");
    f.service.set(&key, &1, None).await.unwrap();
    let refused = f.service.invalidate_prefix("").await;
    assert!(matches!(refused, Err(CacheError::InvalidKey(KeyError::Empty))), "{refused:?}");
    assert_eq!(f.service.get(&key).await.unwrap(), Some(1));
}
