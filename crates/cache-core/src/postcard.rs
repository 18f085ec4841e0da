//! A compact binary codec, by the `postcard` crate.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::codec::{Codec, CodecError};

/// Compact binary: no field names, integers of variable length; about a third of JSON's size.
///
/// It is *not* self-describing: bytes of an older shape of the type may well be read as the newer shape, with other
/// contents. So every value carries the version of its shape in front (a varint, one byte below 128), and another
/// version is an error: in a cache, a miss that is replaced. **Count the version up with every change of the type**:
/// fields added, removed, reordered or of another type, also in what it contains. Types that look at their input
/// (`#[serde(untagged)]`, `flatten`, `skip_serializing_if`, `serde_json::Value`) do not work; take
/// [`Json`](crate::Json) for them.
///
/// ```
/// use cache_core::{Codec, Postcard};
///
/// let old = Postcard::version(1);
/// let bytes = old.encode(&("acme".to_owned(), 7_u32))?;
/// assert_eq!(bytes.len(), 7);
/// assert_eq!(Codec::<(String, u32)>::decode(&old, &bytes)?, ("acme".to_owned(), 7));
/// // After the type has changed:
/// assert!(Codec::<(String, u64)>::decode(&Postcard::version(2), &bytes).is_err());
/// # Ok::<(), cache_core::CodecError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Postcard {
    version: u32,
}

impl Postcard {
    /// For the given version of the type's shape. [`Postcard::default`] is version 0.
    #[must_use]
    pub const fn version(version: u32) -> Self {
        Self { version }
    }
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Postcard {
    fn encode(&self, value: &T) -> Result<Bytes, CodecError> {
        let refused = |_| CodecError::new::<T>("encode", "postcard cannot represent it");
        let bytes = ::postcard::to_stdvec(&self.version).map_err(refused)?;
        ::postcard::to_extend(value, bytes).map(Bytes::from).map_err(refused)
    }

    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError> {
        let refused = |reason: &str| CodecError::new::<T>("decode", reason);
        let (version, rest) =
            ::postcard::take_from_bytes::<u32>(bytes).map_err(|_| refused("it has no version"))?;
        if version != self.version {
            return Err(refused(&format!("version {version}, not {}", self.version)));
        }
        match ::postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            Ok(_) => Err(refused("there are bytes left over")),
            Err(::postcard::Error::DeserializeUnexpectedEnd) => Err(refused("truncated")),
            Err(_) => Err(refused("another shape")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Value = (String, Option<i64>, Vec<(u8, bool)>);

    proptest! {
        /// SC6: what was written is read back, under its own version only; every cut is refused.
        #[test]
        fn values_are_read_back_under_their_own_version(value in any::<Value>(), version in any::<u32>(), cut in any::<prop::sample::Index>()) {
            let codec = Postcard::version(version);
            let bytes = codec.encode(&value).expect("encodes");
            prop_assert_eq!(&Codec::<Value>::decode(&codec, &bytes).expect("decodes"), &value);
            let other = Postcard::version(version ^ 1);
            prop_assert!(Codec::<Value>::decode(&other, &bytes).is_err());
            prop_assert!(Codec::<Value>::decode(&codec, &bytes[..cut.index(bytes.len())]).is_err());
            let mut longer = bytes.to_vec();
            longer.push(0);
            prop_assert!(Codec::<Value>::decode(&codec, &longer).is_err());
        }

        /// SC6: random bytes never panic.
        #[test]
        fn random_bytes_never_panic(bytes in any::<Vec<u8>>()) {
            let _ = Codec::<Value>::decode(&Postcard::default(), &bytes);
        }
    }

    /// A7: no error text carries a value.
    #[test]
    fn an_error_does_not_quote_the_value() {
        let codec = Postcard::default();
        let bytes = codec.encode(&"hunter2".to_owned()).expect("encodes");
        let error = Codec::<bool>::decode(&codec, &bytes).expect_err("another shape");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }

    /// SH2: the form of version 3, as first released.
    #[test]
    fn the_first_released_form_is_read() {
        let bytes = [3, 4, b'a', b'c', b'm', b'e', 0xac, 0x02];
        let value: (String, u32) = Postcard::version(3).decode(&bytes).expect("reads");
        assert_eq!(value, ("acme".to_owned(), 300));
    }
}
