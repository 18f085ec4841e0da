//! What travels on the channel `<prefix>cache:invalidate`.
//!
//! ```json
//! {"n":42,"v":1,"src":"<instance>","op":"key","domain":"org-config","key":"7","tenantId":"acme"}
//! ```
//! | `op` | names |
//! |---|---|
//! | `key` | one entry: `key` within `domain`, of `tenantId` (and `userId`); without `domain`, `key` is a full key |
//! | `keys` | entries by their full keys: `keys` |
//! | `prefix` | all entries whose full key starts with `key` |
//! | `domain` | all entries of `domain`, of `tenantId` or of everybody |
//! | `tag` | all entries that carry the tag `key`, of `tenantId` or of no tenant |
//! | `all` | everything |
//!
//! `n` is the sequence number the server counted; a message without one (by hand, by a foreign program) is
//! applied and not counted. Full keys are without the deployment's prefix. **A payload that is not a JSON object
//! is taken as one full key**, so that any client can `PUBLISH cache:invalidate org:acme`. An object that is
//! not understood (no known `op`, another `v`) is counted and skipped; one that also carries a number was counted
//! by the script of a newer version, names nobody here knows what, and empties memory.

use std::borrow::Cow;
use std::sync::Arc;

use cache_core::key::{self, KeyParts, Owner};
use cache_core::{Invalidation, TenantId, UserId};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// A message as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// The server's sequence number, if the message was counted.
    pub(crate) number: Option<u64>,
    pub(crate) source: Option<String>,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Invalidation(Invalidation),
    /// This instance's own beat, by its counter.
    Beat(u64),
    /// Not understood.
    Malformed,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    #[serde(skip_serializing)]
    #[serde(default)]
    n: Option<u64>,
    #[serde(default)]
    v: Option<u32>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    src: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    op: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    domain: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<Arc<str>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant_id: Option<TenantId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user_id: Option<UserId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b: Option<u64>,
}

/// The text of a message, without its opening brace: the script puts the sequence number in front.
pub(crate) fn write(message: &Invalidation, source: &str) -> String {
    let mut wire = Wire { v: Some(VERSION), src: Some(source.into()), ..Wire::default() };
    match message {
        Invalidation::Keys(keys) => match &keys[..] {
            [key] => write_key(&mut wire, key),
            keys => {
                wire.op = "keys".into();
                wire.keys = Some(keys.to_vec());
            }
        },
        Invalidation::Prefix(prefix) => {
            wire.op = "prefix".into();
            wire.key = Some((&**prefix).into());
        }
        Invalidation::Domain { tenant, domain } => {
            wire.op = "domain".into();
            wire.domain = Some((&**domain).into());
            wire.tenant_id = tenant.clone();
        }
        Invalidation::Tag { tenant, tag } => {
            wire.op = "tag".into();
            wire.key = Some((&**tag).into());
            wire.tenant_id = tenant.clone();
        }
        // What this version has no word for is announced as more than it is, never as less.
        _ => wire.op = "all".into(),
    }
    without_brace(&wire)
}

fn write_key<'a>(wire: &mut Wire<'a>, full: &'a str) {
    wire.op = "key".into();
    match KeyParts::parse(full).filter(|parts| parts.to_text() == full) {
        None => wire.key = Some(full.into()),
        Some(parts) => {
            wire.domain = Some(parts.domain);
            wire.key = Some(parts.key);
            match parts.owner {
                Owner::Tenant(tenant) => wire.tenant_id = Some(tenant),
                Owner::User(tenant, user) => (wire.tenant_id, wire.user_id) = (Some(tenant), Some(user)),
                _ => {}
            }
        }
    }
}

/// The text of a beat, without its opening brace.
pub(crate) fn write_beat(counter: u64) -> String {
    without_brace(&Wire { v: Some(VERSION), op: "beat".into(), b: Some(counter), ..Wire::default() })
}

fn without_brace(wire: &Wire<'_>) -> String {
    let mut text = serde_json::to_string(wire).expect("strings and numbers always have a JSON form");
    text.remove(0);
    text
}

/// Reads a payload. Never fails: what is not understood is [`Content::Malformed`].
pub(crate) fn read(payload: &[u8]) -> Received {
    let uncounted = |content| Received { number: None, source: None, content };
    let Ok(text) = std::str::from_utf8(payload) else { return uncounted(Content::Malformed) };
    if !text.trim_start().starts_with('{') {
        let plain = text.trim();
        return uncounted(match key::validate(plain) {
            Ok(()) => Content::Invalidation(Invalidation::key(plain)),
            Err(_) => Content::Malformed,
        });
    }
    let Ok(wire) = serde_json::from_str::<Wire<'_>>(text) else { return uncounted(Content::Malformed) };
    let (number, source) = (wire.n, wire.src.as_deref().map(str::to_owned));
    let content = content(wire).unwrap_or(Content::Malformed);
    Received { number, source, content }
}

fn content(wire: Wire<'_>) -> Option<Content> {
    if wire.v.is_some_and(|version| version != VERSION) {
        return None;
    }
    let (domain, tenant) = (wire.domain.as_deref(), wire.tenant_id);
    let message = match &*wire.op {
        "beat" => return wire.b.map(Content::Beat),
        "key" => Invalidation::key(full_key(domain, wire.key?, tenant, wire.user_id)?),
        "keys" => Invalidation::Keys(wire.keys?),
        "prefix" => Invalidation::Prefix(wire.key.filter(|prefix| !prefix.is_empty())?.into()),
        "domain" => Invalidation::Domain { tenant, domain: domain?.into() },
        "tag" => Invalidation::Tag { tenant, tag: wire.key?.into() },
        "all" => Invalidation::All,
        _ => return None,
    };
    Some(Content::Invalidation(message))
}

fn full_key(
    domain: Option<&str>,
    key: Cow<'_, str>,
    tenant: Option<TenantId>,
    user: Option<UserId>,
) -> Option<String> {
    let Some(domain) = domain else {
        return (!key.is_empty()).then(|| key.into_owned());
    };
    let owner = match (tenant, user) {
        (None, None) => Owner::Global,
        (Some(tenant), None) => Owner::Tenant(tenant),
        (Some(tenant), Some(user)) => Owner::User(tenant, user),
        (None, Some(_)) => return None,
    };
    Some(KeyParts { owner, domain: domain.into(), key }.to_text())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).expect("an id")
    }

    /// I1: what one instance writes, another reads; the sequence number is the server's.
    #[test]
    fn messages_are_read_back() {
        for message in [
            Invalidation::key("acme:org-config:7"),
            Invalidation::key("acme:ann:org-config:a%3Ab"),
            Invalidation::key("org:acme"),
            Invalidation::key("org:id:7d4"),
            Invalidation::key("no parts at all"),
            Invalidation::key("a:b:c:d:e:f"),
            Invalidation::Keys(vec!["a".into(), "\"quoted\"".into()]),
            Invalidation::Keys(vec![]),
            Invalidation::Prefix("acme:".into()),
            Invalidation::Domain { tenant: Some(tenant("acme")), domain: "d".into() },
            Invalidation::Domain { tenant: None, domain: "d".into() },
            Invalidation::Tag { tenant: Some(tenant("acme")), tag: "t".into() },
            Invalidation::All,
        ] {
            let text = format!("{{\"n\":42,{}", write(&message, "me"));
            let received = read(text.as_bytes());
            assert_eq!((received.number, received.source.as_deref()), (Some(42), Some("me")), "{text}");
            assert_eq!(received.content, Content::Invalidation(message), "{text}");
        }
    }

    /// SH2: the form other programs rely on.
    #[test]
    fn the_form_on_the_wire_stays() {
        assert_eq!(
            write(&Invalidation::key("acme:org-config:7"), "me"),
            r#""v":1,"src":"me","op":"key","domain":"org-config","key":"7","tenantId":"acme"}"#
        );
        assert_eq!(write_beat(3), r#""v":1,"op":"beat","b":3}"#);
    }

    /// I1: any client can publish a plain key, and an object without a number or source.
    #[test]
    fn foreign_messages_are_understood() {
        let invalidation = |payload: &str| match read(payload.as_bytes()).content {
            Content::Invalidation(message) => message,
            other => panic!("{payload}: {other:?}"),
        };
        assert_eq!(invalidation("org:acme"), Invalidation::key("org:acme"));
        assert_eq!(invalidation(" org:acme\n"), Invalidation::key("org:acme"));
        assert_eq!(
            invalidation(r#"{"op":"key","domain":"d","key":"a:b","tenantId":"acme"}"#),
            Invalidation::key("acme:d:a%3Ab")
        );
        assert_eq!(invalidation(r#"{"op":"all","more":[1]}"#), Invalidation::All);
    }

    /// I1, SD11, SD13: what is not understood is malformed, never a panic and never a wrong key.
    #[test]
    fn what_is_not_understood_is_malformed() {
        for payload in [
            &b""[..],
            b"\xff\xfe",
            b"{",
            b"{}",
            br#"{"op":"key"}"#,
            br#"{"op":"key","key":""}"#,
            br#"{"op":"prefix","key":""}"#,
            br#"{"op":"key","key":"k","domain":"d","userId":"u"}"#,
            br#"{"op":"dance"}"#,
            br#"{"v":2,"op":"all"}"#,
            br#"{"op":"domain"}"#,
            br#"{"op":"keys","keys":"k"}"#,
            br#"{"op":"domain","domain":"d","tenantId":""}"#,
        ] {
            let text = String::from_utf8_lossy(payload);
            assert_eq!(read(payload).content, Content::Malformed, "{text}");
        }
    }

    /// SD11: a counted message of another version still counts, or its number would look like a gap.
    #[test]
    fn a_malformed_message_keeps_its_number() {
        assert_eq!(read(br#"{"n":7,"v":9,"op":"new"}"#).number, Some(7));
    }
}
