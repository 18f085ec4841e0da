//! What an organisation is.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::secret::Sealed;

/// Names an organisation for ever: it is the tenant of everything below.
pub type OrgId = cache_core::TenantId;

/// Slugs nobody can have: they mean something else in a host or path.
pub const RESERVED_SLUGS: [&str; 20] = [
    "www",
    "api",
    "admin",
    "app",
    "o",
    "id",
    "static",
    "assets",
    "console",
    "healthz",
    "readyz",
    "metrics",
    "mail",
    "smtp",
    "ns",
    "ftp",
    "localhost",
    "status",
    "support",
    "help",
];

/// The name of an organisation in hosts and paths: an RFC 1123 label in lower case, not reserved.
///
/// ```
/// use org_resolution::{Slug, SlugError};
///
/// assert_eq!("ACME".parse::<Slug>().map(|slug| slug.to_string()), Ok("acme".to_owned()));
/// assert_eq!("-acme".parse::<Slug>(), Err(SlugError::Hyphen));
/// assert_eq!("admin".parse::<Slug>(), Err(SlugError::Reserved));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slug(Arc<str>);

/// Why a text is no slug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlugError {
    /// Nothing is no name.
    #[error("a slug must not be empty")]
    Empty,
    /// A host label has at most 63 bytes.
    #[error("a slug has at most 63 characters")]
    TooLong,
    /// Only `a-z`, `0-9` and `-`.
    #[error("a slug is made of letters a-z, digits and hyphens")]
    Character,
    /// Not at the ends.
    #[error("a slug must not begin or end with a hyphen")]
    Hyphen,
    /// One of [`RESERVED_SLUGS`].
    #[error("this slug is reserved")]
    Reserved,
}

impl Slug {
    /// The slug, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Slug {
    type Err = SlugError;

    fn from_str(text: &str) -> Result<Self, SlugError> {
        match text.len() {
            0 => return Err(SlugError::Empty),
            64.. => return Err(SlugError::TooLong),
            _ => {}
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(SlugError::Character);
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(SlugError::Hyphen);
        }
        let lower = text.to_ascii_lowercase();
        if RESERVED_SLUGS.contains(&lower.as_str()) {
            return Err(SlugError::Reserved);
        }
        Ok(Self(lower.into()))
    }
}

impl TryFrom<String> for Slug {
    type Error = SlugError;

    fn try_from(text: String) -> Result<Self, SlugError> {
        text.parse()
    }
}

impl From<Slug> for String {
    fn from(slug: Slug) -> Self {
        slug.0.as_ref().to_owned()
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slug({})", self.0)
    }
}

/// Whether an organisation may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub enum OrgStatus {
    /// It may.
    Active,
    /// Not now.
    Suspended,
    /// Never again.
    Deleted,
    /// A word this version does not know: treated as not usable.
    Unknown(String),
}

impl From<String> for OrgStatus {
    fn from(word: String) -> Self {
        match word.as_str() {
            "active" => Self::Active,
            "suspended" => Self::Suspended,
            "deleted" => Self::Deleted,
            _ => Self::Unknown(word),
        }
    }
}

impl From<OrgStatus> for String {
    fn from(status: OrgStatus) -> Self {
        match status {
            OrgStatus::Active => "active".into(),
            OrgStatus::Suspended => "suspended".into(),
            OrgStatus::Deleted => "deleted".into(),
            OrgStatus::Unknown(word) => word,
        }
    }
}

/// An organisation: what the directory answers, what is cached, and what a handler gets.
///
/// Secrets are sealed, here and everywhere; open one with a [`KeyRing`](crate::KeyRing).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrgContext {
    /// Its id; never changes.
    pub id: OrgId,
    /// Its name in hosts and paths; can change.
    pub slug: Slug,
    /// Its name for humans.
    pub name: String,
    /// What it pays for.
    pub plan: String,
    /// Whether it may be used.
    pub status: OrgStatus,
    /// What it has set up.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// A host of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_domain: Option<String>,
    /// Under which its validated tokens are cached: another one after each revocation, never one that was before, also
    /// when an organisation is removed and made again. What was validated before is then found no more, in whichever tier
    /// somebody puts it back. 0 for a directory that has none.
    #[serde(default)]
    pub token_generation: u64,
    /// Its secrets by field, sealed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Sealed>,
}

impl OrgContext {
    /// What anybody of the organisation may see, as JSON; never a secret, not even sealed.
    #[must_use]
    pub fn public(&self) -> Value {
        serde_json::json!({
            "id": self.id, "slug": self.slug, "name": self.name, "plan": self.plan,
            "status": self.status, "settings": self.settings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// K2: each rule has its verdict.
    #[test]
    fn each_rule_has_its_verdict() {
        let long = "a".repeat(64);
        for (text, verdict) in [
            ("", SlugError::Empty),
            (long.as_str(), SlugError::TooLong),
            ("a_b", SlugError::Character),
            ("a.b", SlugError::Character),
            ("é", SlugError::Character),
            ("a b", SlugError::Character),
            ("-a", SlugError::Hyphen),
            ("a-", SlugError::Hyphen),
            ("Admin", SlugError::Reserved),
            ("o", SlugError::Reserved),
        ] {
            assert_eq!(text.parse::<Slug>(), Err(verdict), "{text:?}");
        }
        for text in ["a", "9", "a-b", "a--b", &long[..63]] {
            assert!(text.parse::<Slug>().is_ok(), "{text}");
        }
    }

    /// K4: a status this version does not know survives a round trip, and is not `Active`.
    #[test]
    fn an_unknown_status_is_kept_and_not_active() {
        let status: OrgStatus = serde_json::from_str("\"frozen\"").expect("any word");
        assert_eq!(status, OrgStatus::Unknown("frozen".into()));
        assert_eq!(serde_json::to_string(&status).expect("a word"), "\"frozen\"");
    }

    proptest! {
        /// K2: whatever is read is in lower case, once, and reads as itself.
        #[test]
        fn a_slug_reads_as_itself(text in "[A-Za-z0-9-]{1,63}") {
            if let Ok(slug) = text.parse::<Slug>() {
                prop_assert_eq!(slug.as_str(), text.to_ascii_lowercase());
                prop_assert_eq!(slug.to_string().parse::<Slug>(), Ok(slug));
            }
        }
    }
}
