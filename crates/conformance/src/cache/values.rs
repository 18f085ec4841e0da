//! Values and how long they live.

#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cache_core::{CacheError, CacheServiceExt, Ttl};

use super::{CacheFixture, MAX_VALUE_BYTES};

/// A2: what was set is read, by the typed and by the plain call.
pub async fn set_then_get(f: CacheFixture) {
    let key = f.key("k");
    f.service.set(&key, "hello", Some(300)).await.unwrap();
    assert_eq!(f.service.get::<String>(&key).await.unwrap().as_deref(), Some("hello"));
    assert_eq!(f.service.get_bytes(&key).await.unwrap().as_deref(), Some(&br#""hello""#[..]));
}

/// A2: structures, options, maps, numbers and empty things come back as they were.
pub async fn values_of_every_shape_come_back(f: CacheFixture) {
    let key = f.key("k");
    let map = BTreeMap::from([("a".to_owned(), vec![1.5, -0.25]), (String::new(), vec![])]);
    f.service.set(&key, &map, None).await.unwrap();
    assert_eq!(f.service.get(&key).await.unwrap(), Some(map));
    f.service.set(&key, &None::<u32>, None).await.unwrap();
    assert_eq!(f.service.get::<Option<u32>>(&key).await.unwrap(), Some(None));
    f.service.set(&key, &u64::MAX, None).await.unwrap();
    assert_eq!(f.service.get(&key).await.unwrap(), Some(u64::MAX));
    f.service.set(&key, "", None).await.unwrap();
    assert_eq!(f.service.get::<String>(&key).await.unwrap().as_deref(), Some(""));
}

/// PROTOCOLS 2: no value is mistaken for a lease, whatever it begins with; the empty one included.
pub async fn a_value_may_begin_with_any_byte(f: CacheFixture) {
    for first in 0..=255_u8 {
        let key = f.key(&format!("k{first}"));
        for value in [vec![first], [vec![first], vec![7; 16]].concat()] {
            let value = Bytes::from(value);
            f.service.set_bytes(&key, value.clone(), Ttl::Default).await.unwrap();
            assert_eq!(f.service.get_bytes(&key).await.unwrap(), Some(value), "{first:#04x}");
        }
    }
    let key = f.key("empty");
    f.service.set_bytes(&key, Bytes::new(), Ttl::Default).await.unwrap();
    assert_eq!(f.service.get_bytes(&key).await.unwrap(), Some(Bytes::new()));
}

/// A2: nothing is `None`, not an error.
pub async fn an_absent_key_is_none(f: CacheFixture) {
    assert_eq!(f.service.get::<u32>(&f.key("absent")).await.unwrap(), None);
}

/// A2: the newer value counts, and so does the newer life: a longer one keeps, a shorter one ends.
pub async fn overwriting_replaces_value_and_life(f: CacheFixture) {
    let (longer, shorter) = (f.key("longer"), f.key("shorter"));
    f.service.set(&longer, &1, f.short()).await.unwrap();
    f.service.set(&longer, &2, Some(300)).await.unwrap();
    f.service.set(&shorter, &1, Some(300)).await.unwrap();
    f.service.set(&shorter, &2, f.short()).await.unwrap();
    assert_eq!(f.service.get(&shorter).await.unwrap(), Some(2));
    f.time.pass(f.short()).await;
    assert_eq!(f.service.get(&longer).await.unwrap(), Some(2));
    assert_eq!(f.service.get::<u32>(&shorter).await.unwrap(), None);
}

/// A2, B2: every entry honours its own life, and is never returned after it.
pub async fn an_entry_lives_as_long_as_it_says(f: CacheFixture) {
    let (short, long) = (f.key("short"), f.key("long"));
    f.service.set(&short, &1, f.short()).await.unwrap();
    f.service.set(&long, &1, f.short() * 10).await.unwrap();
    assert_eq!(f.service.get(&short).await.unwrap(), Some(1));
    if let super::Time::Manual(clock) = &f.time {
        clock.advance(f.short() - Duration::from_nanos(1));
        assert_eq!(f.service.get(&short).await.unwrap(), Some(1), "to the last nanosecond");
        clock.advance(Duration::from_nanos(1));
    } else {
        f.time.pass(f.short()).await;
    }
    assert_eq!(f.service.get::<u32>(&short).await.unwrap(), None);
    assert_eq!(f.service.get_many::<u32>(&[&short, &long]).await.unwrap(), [None, Some(1)]);
}

/// A2: `None` means the service's default, which is not "for ever" and not "never".
pub async fn the_default_life_is_the_services(f: CacheFixture) {
    let key = f.key("k");
    f.service.set(&key, &1, None).await.unwrap();
    f.time.pass(f.short()).await;
    assert_eq!(f.service.get(&key).await.unwrap(), Some(1));
    if let super::Time::Manual(clock) = &f.time {
        clock.advance(Duration::from_secs(300));
        assert_eq!(f.service.get::<u32>(&key).await.unwrap(), None);
    }
}

/// A3: a life of zero stores nothing, and an older value is gone; one by one, in bulk, by any spelling.
pub async fn a_life_of_zero_removes(f: CacheFixture) {
    let keys: Vec<String> = (0..4).map(|n| f.key(&n.to_string())).collect();
    for key in &keys {
        f.service.set(key, &1, None).await.unwrap();
    }
    f.service.set(&keys[0], &2, Some(0)).await.unwrap();
    f.service.set(&keys[1], &2, Duration::ZERO).await.unwrap();
    f.service.set_many(&[(keys[2].as_str(), 2), (keys[3].as_str(), 2)], Some(0)).await.unwrap();
    for key in &keys {
        assert_eq!(f.service.get::<u32>(key).await.unwrap(), None);
    }
}

/// A3: a life beyond what the store can hold is clamped, never wrapped into the past.
pub async fn a_huge_life_is_clamped(f: CacheFixture) {
    let key = f.key("k");
    for life in
        [Duration::MAX, Duration::from_secs(u64::MAX / 1_000), Duration::from_secs(u64::from(u32::MAX))]
    {
        f.service.set(&key, &1, life).await.unwrap();
        assert_eq!(f.service.get(&key).await.unwrap(), Some(1), "{life:?}");
        f.service.invalidate(&key).await.unwrap();
    }
    f.service.set(&key, &2, Some(u64::MAX)).await.unwrap();
    assert_eq!(f.service.get(&key).await.unwrap(), Some(2));
}

/// A3: a life under the store's granularity is short, not none and not an error.
pub async fn a_tiny_life_is_not_none(f: CacheFixture) {
    let key = f.key("k");
    f.service.set(&key, &1, Duration::from_nanos(1)).await.unwrap();
    f.time.pass(Duration::from_millis(2)).await;
    assert_eq!(f.service.get::<u32>(&key).await.unwrap(), None);
}

/// A8: the largest value fits; a larger one is a clear error and leaves the older value alone.
pub async fn a_value_of_the_largest_size_fits_and_no_larger_one(f: CacheFixture) {
    let (key, other) = (f.key("k"), f.key("other"));
    let large = Bytes::from(vec![b'x'; MAX_VALUE_BYTES]);
    let larger = Bytes::from(vec![b'x'; MAX_VALUE_BYTES + 1]);
    f.service.set_bytes(&key, large.clone(), Ttl::Default).await.unwrap();
    let limit = MAX_VALUE_BYTES;
    let refused = |error: CacheError| {
        assert!(
            matches!(error, CacheError::ValueTooLarge { size, limit: max } if size == limit + 1 && max == limit),
            "{error:?}"
        );
    };
    refused(f.service.set_bytes(&key, larger.clone(), Ttl::Default).await.unwrap_err());
    let entries = [(other.as_str(), large.clone()), (key.as_str(), larger)];
    refused(f.service.set_many_bytes(&entries, Ttl::Default).await.unwrap_err());
    assert_eq!(f.service.get_bytes(&key).await.unwrap(), Some(large));
    assert_eq!(f.service.get_bytes(&other).await.unwrap(), None, "nothing of a refused bulk is stored");
}

/// A9: stored bytes that are no value of the type asked for are a typed error, and not lost.
pub async fn bytes_of_another_type_are_a_typed_error(f: CacheFixture) {
    let key = f.key("k");
    for bytes in [&b"not json"[..], b"\"text\"", b"[1", b"\xff\xfe\x00"] {
        f.service.set_bytes(&key, Bytes::from_static(bytes), Ttl::Default).await.unwrap();
        let error = f.service.get::<u32>(&key).await.unwrap_err();
        assert!(matches!(error, CacheError::Serialization(_)), "{error:?}");
        assert!(error.to_string().starts_with("Cache serialization error: "), "{error}");
        assert_eq!(f.service.get_bytes(&key).await.unwrap().as_deref(), Some(bytes));
    }
}

/// J4: a living store says so.
pub async fn health_answers(f: CacheFixture) {
    assert!(f.service.health().await.unwrap() < Duration::from_secs(5));
}
