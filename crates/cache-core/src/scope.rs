//! Whose data it is.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest tenant or user id, in bytes.
pub const MAX_ID_BYTES: usize = 128;

/// Which part of the request context becomes part of a cache's keys. Set once per cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Scope {
    /// Shared by all users of a tenant: `{tenant}:{domain}:{key}`.
    Tenant,
    /// One user's own: `{tenant}:{user}:{domain}:{key}`; a request without a user is an error.
    User,
    /// The user's when the request has one, the tenant's otherwise.
    #[default]
    Request,
    /// Before any tenant is known, e.g. the look-up of the tenant itself: `{domain}:{key}`.
    Global,
}

/// Why an id is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// Nothing is not an id.
    #[error("an id must not be empty")]
    Empty,
    /// Longer than [`MAX_ID_BYTES`].
    #[error("an id of {bytes} bytes is over the limit of {MAX_ID_BYTES}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Arc<str>", into = "Arc<str>")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Any text of 1 to [`MAX_ID_BYTES`] bytes; keys escape what needs it.
            ///
            /// # Errors
            /// [`IdError`] when it is empty or too long.
            pub fn new(id: impl Into<Arc<str>>) -> Result<Self, IdError> {
                let id = id.into();
                match id.len() {
                    0 => Err(IdError::Empty),
                    bytes if bytes > MAX_ID_BYTES => Err(IdError::TooLong { bytes }),
                    _ => Ok(Self(id)),
                }
            }

            /// The id as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), &self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(id: &str) -> Result<Self, IdError> {
                Self::new(id)
            }
        }

        impl TryFrom<Arc<str>> for $name {
            type Error = IdError;

            fn try_from(id: Arc<str>) -> Result<Self, IdError> {
                Self::new(id)
            }
        }

        impl From<$name> for Arc<str> {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

id! {
    /// An organisation whose data must never be seen by another. Cloning shares the text.
    TenantId
}
id! {
    /// A user within a tenant. Cloning shares the text.
    UserId
}
