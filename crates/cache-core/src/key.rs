//! What a key looks like, and why two scopes can never share one.
//!
//! | scope | text |
//! |---|---|
//! | global | `{domain}:{key}` |
//! | tenant | `{tenant}:{domain}:{key}` |
//! | user | `{tenant}:{user}:{domain}:{key}` |
//!
//! Ids and keys are *segments*: `:` `%` `{` `}` and control characters in them are percent-encoded, so a
//! segment never holds a separator and the number of segments tells the scope. The words in
//! [`RESERVED_ROOTS`] begin keys that belong to no tenant (`org:id:…`, `lock:…`); a tenant whose id is such
//! a word gets its first byte encoded. Hence the text is injective: different scopes, different keys,
//! whatever the ids contain; and ordinary ids stay readable.
//!
//! Braces are encoded because Redis Cluster takes what stands between them for the slot.

use std::borrow::Cow;

use crate::{CacheError, KeyError, TenantId, UserId};

/// The longest key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 512;

/// The longest name of a domain, in bytes.
pub const MAX_DOMAIN_BYTES: usize = 64;

/// First segments that no tenant's key begins with.
pub const RESERVED_ROOTS: [&str; 8] =
    ["org", "token", "gen", "lock", "presence", "limit", "cache", "refresh"];

/// The reserved roots under which a global domain may be named, also with further parts (`org:id`).
const DOMAIN_ROOTS: [&str; 2] = ["org", "token"];

/// Checks a key or prefix: 1 to [`MAX_KEY_BYTES`] bytes without control characters.
///
/// # Errors
/// [`KeyError`], which names the rule and never repeats the key.
pub fn validate(key: &str) -> Result<(), KeyError> {
    if key.is_empty() {
        return Err(KeyError::Empty);
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(KeyError::TooLong { bytes: key.len(), limit: MAX_KEY_BYTES });
    }
    // Nearly every key.
    if key.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(());
    }
    match key.char_indices().find(|(_, char)| char.is_control()) {
        Some((at, _)) => Err(KeyError::ControlCharacter { at }),
        None => Ok(()),
    }
}

/// Checks that a key or prefix names nothing that a service keeps beside the entries of the cache: it begins with none of
/// `gen:`, `refresh:`, `lock:`, `limit:`, `presence:`, `cache:`, also behind the brace that keeps several in one slot.
///
/// ```
/// use cache_core::key::check_plain;
///
/// assert!(check_plain("greeting").is_ok() && check_plain("locks:x").is_ok());
/// assert!(check_plain("lock:x").is_err() && check_plain("{lock:x}:fence").is_err());
/// ```
///
/// # Errors
/// [`KeyError::Reserved`].
pub fn check_plain(key: &str) -> Result<(), KeyError> {
    let key = key.strip_prefix('{').unwrap_or(key);
    let begins = |root: &&&str| key.strip_prefix(**root).is_some_and(|rest| rest.starts_with(':'));
    let root = RESERVED_ROOTS.iter().filter(|root| !DOMAIN_ROOTS.contains(root)).find(begins);
    root.map_or(Ok(()), |root| Err(KeyError::Reserved { root }))
}

/// Checks the name of a cache domain: 1 to [`MAX_DOMAIN_BYTES`] of `a-z 0-9 _ -`. A global domain may also
/// have several parts joined by `:` when the first is `org` or `token`.
///
/// # Errors
/// [`CacheError::Configuration`] with the rule that was broken.
pub fn validate_domain(name: &str, global: bool) -> Result<(), CacheError> {
    let refuse = |reason: &'static str| Err(CacheError::configuration(format!("domain `{name}`"), reason));
    let plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
    };
    if name.len() > MAX_DOMAIN_BYTES {
        return refuse("the name is longer than 64 bytes");
    }
    if !name.split(':').all(plain) {
        return refuse("a name is made of a-z, 0-9, `_` and `-`");
    }
    let root = name.split(':').next().unwrap_or(name);
    if global && RESERVED_ROOTS.contains(&root) && !DOMAIN_ROOTS.contains(&root) {
        return refuse("the name is reserved");
    }
    if name.contains(':') && !(global && DOMAIN_ROOTS.contains(&root)) {
        return refuse("only global domains under `org` or `token` may have several parts");
    }
    Ok(())
}

/// Whose entry a key names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Owner {
    /// Nobody in particular.
    Global,
    /// All users of a tenant.
    Tenant(TenantId),
    /// One user of a tenant.
    User(TenantId, UserId),
}

impl Owner {
    /// The tenant, unless global.
    #[must_use]
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Global => None,
            Self::Tenant(tenant) | Self::User(tenant, _) => Some(tenant),
        }
    }
}

/// The parts a key's text is made of.
///
/// ```
/// use cache_core::key::{KeyParts, Owner};
/// use cache_core::TenantId;
///
/// let tenant = TenantId::new("acme")?;
/// let parts = KeyParts { owner: Owner::Tenant(tenant), domain: "org-config".into(), key: "a:b".into() };
/// assert_eq!(parts.to_text(), "acme:org-config:a%3Ab");
/// assert_eq!(KeyParts::parse("acme:org-config:a%3Ab"), Some(parts));
/// # Ok::<(), cache_core::IdError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyParts<'a> {
    /// Whose entry it is.
    pub owner: Owner,
    /// The cache domain.
    pub domain: Cow<'a, str>,
    /// The key within the domain, unescaped.
    pub key: Cow<'a, str>,
}

impl<'a> KeyParts<'a> {
    /// The text under which every tier and every message knows the entry. May be longer than
    /// [`MAX_KEY_BYTES`]: [`validate`] it before use.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = domain_prefix(&self.owner, &self.domain);
        push_segment(&mut text, &self.key);
        text
    }

    /// Reads a text back; `None` when it is not of the form that [`KeyParts::to_text`] writes.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (head, key) = text.rsplit_once(':')?;
        let key = unescape(key)?;
        let root = head.split(':').next().unwrap_or(head);
        let mut segments = head.split(':');
        if RESERVED_ROOTS.contains(&root) {
            return Some(Self { owner: Owner::Global, domain: head.into(), key });
        }
        let parts = (segments.next()?, segments.next(), segments.next(), segments.next());
        let tenant = |segment: &str| TenantId::new(&*unescape(segment)?).ok();
        let (owner, domain) = match parts {
            (domain, None, None, None) => (Owner::Global, domain),
            (owner, Some(domain), None, None) => (Owner::Tenant(tenant(owner)?), domain),
            (owner, Some(user), Some(domain), None) => {
                (Owner::User(tenant(owner)?, UserId::new(&*unescape(user)?).ok()?), domain)
            }
            _ => return None,
        };
        Some(Self { owner, domain: domain.into(), key })
    }
}

/// The text that all keys of one owner's domain begin with, with its last `:`.
#[must_use]
pub fn domain_prefix(owner: &Owner, domain: &str) -> String {
    let mut text = String::with_capacity(64);
    match owner {
        Owner::Global => {}
        Owner::Tenant(tenant) => push_tenant(&mut text, tenant.as_str()),
        Owner::User(tenant, user) => {
            push_tenant(&mut text, tenant.as_str());
            push_segment(&mut text, user.as_str());
            text.push(':');
        }
    }
    text.push_str(domain);
    text.push(':');
    text
}

/// Appends one segment, percent-encoding what must not stand in it.
pub fn push_segment(text: &mut String, segment: &str) {
    for char in segment.chars() {
        if matches!(char, ':' | '%' | '{' | '}') || char.is_control() {
            push_encoded(text, char);
        } else {
            text.push(char);
        }
    }
}

/// Reads one segment back; `None` when its encoding is broken.
#[must_use]
pub fn unescape(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(segment.into());
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn push_tenant(text: &mut String, tenant: &str) {
    let mut chars = tenant.chars();
    match chars.next() {
        Some(first) if RESERVED_ROOTS.contains(&tenant) => {
            push_encoded(text, first);
            push_segment(text, chars.as_str());
        }
        _ => push_segment(text, tenant),
    }
    text.push(':');
}

fn push_encoded(text: &mut String, char: char) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in char.encode_utf8(&mut [0; 4]).bytes() {
        text.push('%');
        text.push(HEX[usize::from(byte >> 4)] as char);
        text.push(HEX[usize::from(byte & 15)] as char);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner() -> impl Strategy<Value = Owner> {
        let id =
            || prop_oneof!["[a-c:%{}]{1,4}", Just("org".to_owned()), Just("lock".to_owned()), "\\PC{1,8}"];
        let tenant = || id().prop_map(|id| TenantId::new(id).expect("one to 128 bytes"));
        prop_oneof![
            Just(Owner::Global),
            tenant().prop_map(Owner::Tenant),
            (tenant(), id())
                .prop_map(|(tenant, user)| Owner::User(tenant, UserId::new(user).expect("short"))),
        ]
    }

    fn parts() -> impl Strategy<Value = KeyParts<'static>> {
        let domain = prop_oneof![Just("org"), Just("org:id"), Just("a"), Just("b-c")];
        (owner(), domain, prop_oneof!["[a-c:%{}]{0,6}", any::<String>()])
            .prop_filter("several parts are for global domains", |(owner, domain, _)| {
                *owner == Owner::Global || !domain.contains(':')
            })
            .prop_map(|(owner, domain, key)| KeyParts { owner, domain: domain.into(), key: key.into() })
    }

    proptest! {
        /// D2: the text is read back to exactly the parts it was made of, so it is injective.
        #[test]
        fn text_and_parts_are_one_to_one(parts in parts()) {
            let text = parts.to_text();
            prop_assert_eq!(KeyParts::parse(&text), Some(parts.clone()));
            prop_assert!(!text.chars().any(char::is_control));
            let braces = text.contains(['{', '}']);
            prop_assert!(!braces);
        }

        /// D2, SG5: different parts never share a text.
        #[test]
        fn different_parts_have_different_texts(a in parts(), b in parts()) {
            prop_assert_eq!(a == b, a.to_text() == b.to_text());
        }

        /// A7: arbitrary text is parsed or refused, never a panic.
        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = KeyParts::parse(&text);
            let _ = validate(&text);
        }
    }

    /// D3: the look-ups of orgs keep exactly the documented text.
    #[test]
    fn org_lookups_keep_their_text() {
        let text = |domain: &'static str, key: &'static str| {
            KeyParts { owner: Owner::Global, domain: domain.into(), key: key.into() }.to_text()
        };
        assert_eq!(text("org", "acme"), "org:acme");
        assert_eq!(text("org:id", "7d4"), "org:id:7d4");
        let tenant = Owner::Tenant(TenantId::new("org").expect("an id"));
        let rival = KeyParts { owner: tenant, domain: "id".into(), key: "7d4".into() }.to_text();
        assert_eq!(rival, "%6Frg:id:7d4");
    }

    /// A8: the limits of a key.
    #[test]
    fn keys_have_limits() {
        assert_eq!(validate(""), Err(KeyError::Empty));
        assert_eq!(validate(&"k".repeat(512)), Ok(()));
        assert_eq!(validate(&"k".repeat(513)), Err(KeyError::TooLong { bytes: 513, limit: 512 }));
        assert_eq!(validate("a\nb"), Err(KeyError::ControlCharacter { at: 1 }));
        assert_eq!(validate("é\u{85}"), Err(KeyError::ControlCharacter { at: 2 }));
        assert_eq!(validate("a b*?[^]-\\"), Ok(()));
    }

    /// E1: names of domains.
    #[test]
    fn domain_names_have_rules() {
        for (name, global, good) in [
            ("org-config", false, true),
            ("org", true, true),
            ("org:id", true, true),
            ("org:id", false, false),
            ("lock", true, false),
            ("lock", false, true),
            ("a:b", true, false),
            ("A", false, false),
            ("", false, false),
        ] {
            assert_eq!(validate_domain(name, global).is_ok(), good, "{name} {global}");
        }
    }
}
