//! Values to bytes and back.

use std::fmt;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// Turns values of `T` into bytes and back. One object-safe seam: a cache holds an `Arc<dyn Codec<V>>`.
pub trait Codec<T>: fmt::Debug + Send + Sync {
    /// Encodes a value.
    ///
    /// # Errors
    /// [`CodecError`] when the value cannot be represented, e.g. a map with keys that are not strings in JSON.
    fn encode(&self, value: &T) -> Result<Bytes, CodecError>;

    /// Decodes what [`Codec::encode`] made.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are not a value of `T`: truncated, of another type, or garbage.
    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError>;
}

/// JSON by `serde_json`, the default: readable with `redis-cli`, tolerant of added fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Json;

impl Json {
    /// Encodes any serialisable value, unsized ones too.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, CodecError> {
        serde_json::to_vec(value).map(Bytes::from).map_err(|error| CodecError::json::<T>("encode", &error))
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        serde_json::from_slice(bytes).map_err(|error| CodecError::json::<T>("decode", &error))
    }
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn encode(&self, value: &T) -> Result<Bytes, CodecError> {
        Self::to_bytes(value)
    }

    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError> {
        Self::from_bytes(bytes)
    }
}

/// Why a value could not be encoded or decoded.
///
/// It names the type and the place, and never repeats what `serde` says: that quotes the value
/// (`invalid type: string "hunter2"`), and a cache holds other people's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecError {
    /// `encode` or `decode`.
    pub operation: &'static str,
    /// The Rust type of the value.
    pub type_name: &'static str,
    /// What was wrong, in words that hold nothing of the value.
    pub reason: String,
}

impl CodecError {
    /// An error of a codec of your own. `reason` must hold nothing of the value.
    pub fn new<T: ?Sized>(operation: &'static str, reason: impl Into<String>) -> Self {
        Self { operation, type_name: std::any::type_name::<T>(), reason: reason.into() }
    }

    fn json<T: ?Sized>(operation: &'static str, error: &serde_json::Error) -> Self {
        use serde_json::error::Category;
        let what = match error.classify() {
            Category::Io => "the writer failed",
            Category::Syntax => "not JSON",
            Category::Data => "JSON of another shape",
            Category::Eof => "truncated JSON",
        };
        Self::new::<T>(operation, format!("{what} at line {} column {}", error.line(), error.column()))
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} `{}`: {}", self.operation, self.type_name, self.reason)
    }
}

impl std::error::Error for CodecError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A7: no error text carries a value.
    #[test]
    fn a_decode_error_does_not_quote_the_value() {
        let error = Json::from_bytes::<u32>(br#""hunter2""#).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(error.to_string().contains("u32"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }

    /// A7: the kinds of damage are told apart.
    #[test]
    fn truncated_and_malformed_are_told_apart() {
        assert!(Json::from_bytes::<Vec<u8>>(b"[1,2").unwrap_err().reason.starts_with("truncated"));
        assert!(Json::from_bytes::<Vec<u8>>(b"\xff\x00").unwrap_err().reason.starts_with("not JSON"));
    }
}
