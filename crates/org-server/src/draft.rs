//! What an organisation may consist of: one set of rules for the import and for the admin routes.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Plans an organisation can have.
pub const PLANS: [&str; 3] = ["free", "pro", "enterprise"];
/// States an organisation can be put into.
pub const STATUSES: [&str; 2] = ["active", "suspended"];
/// The longest name, in characters.
pub const MAX_NAME_CHARS: usize = 200;
/// The largest settings, in bytes of JSON: they are part of every cached organisation.
pub const MAX_SETTINGS_BYTES: usize = 64 * 1024;
/// The most secrets of an organisation.
pub const MAX_SECRETS: usize = 32;
/// The longest secret, in bytes.
pub const MAX_SECRET_BYTES: usize = 4096;

/// Changes to an organisation; what is left out stays as it is. Unknown fields are refused.
///
/// `Debug` shows no secret.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrgDraft {
    /// The name for humans. Needed for a new organisation.
    pub name: Option<String>,
    /// One of [`PLANS`]. A new organisation is `free` unless told otherwise.
    pub plan: Option<String>,
    /// One of [`STATUSES`]. A new organisation is `active` unless told otherwise.
    pub status: Option<String>,
    /// Replaces the settings as a whole.
    pub settings: Option<Map<String, Value>>,
    /// Secrets to set, by field; `null` removes one. Those not named stay.
    #[serde(default, deserialize_with = "read_secrets")]
    pub secrets: SecretChanges,
    /// A host of its own; an empty text removes it.
    pub custom_domain: Option<String>,
}

/// Secrets by field: to set, or to remove (`None`).
pub type SecretChanges = BTreeMap<String, Option<SecretString>>;

impl OrgDraft {
    /// Every rule that is broken, one sentence each, by field; empty when it may be stored. Sentences repeat
    /// no secret.
    #[must_use]
    pub fn problems(&self, is_new: bool) -> Vec<String> {
        let mut problems = Vec::new();
        match &self.name {
            None if is_new => problems.push("`name` is missing".to_owned()),
            Some(name) => problems.extend(name_problem(name)),
            None => {}
        }
        problems.extend(one_of("plan", self.plan.as_deref(), &PLANS));
        problems.extend(one_of("status", self.status.as_deref(), &STATUSES));
        problems.extend(self.settings.as_ref().and_then(settings_problem));
        problems.extend(self.custom_domain.as_deref().and_then(domain_problem));
        problems.extend(secret_problems(&self.secrets));
        problems
    }
}

/// Why an id cannot be used, if so.
#[must_use]
pub fn id_problem(id: &str) -> Option<String> {
    match cache_core::TenantId::new(id) {
        Err(error) => Some(format!("`id`: {error}")),
        Ok(_) if id.chars().any(|char| char.is_control() || char.is_whitespace()) => {
            Some("`id` has a space or control character".to_owned())
        }
        Ok(_) => None,
    }
}

/// Whether a text is one part of a host name, in lower case.
pub(crate) fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn name_problem(name: &str) -> Option<String> {
    let chars = name.chars().count();
    if name.trim().is_empty() {
        return Some("`name` is empty".to_owned());
    }
    if chars > MAX_NAME_CHARS {
        return Some(format!("`name` has {chars} characters, more than {MAX_NAME_CHARS}"));
    }
    name.chars().any(char::is_control).then(|| "`name` has a control character".to_owned())
}

fn one_of(field: &str, value: Option<&str>, allowed: &[&str]) -> Option<String> {
    value
        .filter(|value| !allowed.contains(value))
        .map(|value| format!("`{field}` is {:?}, not one of {}", clip(value), allowed.join(", ")))
}

fn settings_problem(settings: &Map<String, Value>) -> Option<String> {
    let bytes = serde_json::to_vec(settings).map_or(usize::MAX, |bytes| bytes.len());
    (bytes > MAX_SETTINGS_BYTES)
        .then(|| format!("`settings` has {bytes} bytes, more than {MAX_SETTINGS_BYTES}"))
}

fn domain_problem(domain: &str) -> Option<String> {
    let fits = domain.len() <= 253 && domain.contains('.') && domain.split('.').all(is_label);
    (!domain.is_empty() && !fits)
        .then(|| format!("`custom_domain` {:?} is no lower-case host name", clip(domain)))
}

fn secret_problems(secrets: &SecretChanges) -> Vec<String> {
    let mut problems = Vec::new();
    if secrets.len() > MAX_SECRETS {
        problems.push(format!("`secrets` has {} fields, more than {MAX_SECRETS}", secrets.len()));
    }
    for (field, secret) in secrets {
        let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if field.is_empty() || field.len() > 64 || !field.bytes().all(plain) {
            problems.push("a name in `secrets` is not 1 to 64 of a-z, 0-9 and `_`".to_owned());
        }
        let bytes = secret.as_ref().map_or(1, |secret| secret.expose_secret().len());
        if bytes == 0 || bytes > MAX_SECRET_BYTES {
            problems.push(format!("a secret has {bytes} bytes, not 1 to {MAX_SECRET_BYTES}"));
        }
    }
    problems
}

/// Reads secrets by hand: the errors that serde makes repeat what they did not expect.
pub(crate) fn read_secrets<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<SecretChanges, D::Error> {
    use serde::de::Error as _;
    let wrong = || D::Error::custom("`secrets` is not an object of texts (or nulls)");
    let Value::Object(fields) = Value::deserialize(deserializer)? else { return Err(wrong()) };
    let read = |value| match value {
        Value::String(secret) => Ok(Some(secret.into())),
        Value::Null => Ok(None),
        _ => Err(wrong()),
    };
    fields.into_iter().map(|(field, value)| Ok((field, read(value)?))).collect()
}

/// So much of a text as an answer may repeat.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(json: Value) -> Result<OrgDraft, serde_json::Error> {
        serde_json::from_value(json)
    }

    /// L1: what may not be stored is named by field, all of it at once.
    #[test]
    fn every_broken_rule_is_named() {
        let json = serde_json::json!({
            "name": " ", "plan": "gold", "status": "deleted", "custom_domain": "Not A Host",
            "settings": { "blob": "x".repeat(MAX_SETTINGS_BYTES) }, "secrets": { "Key": "" },
        });
        let problems = draft(json).expect("well-formed").problems(true).join("\n");
        for part in
            ["`name`", "\"gold\"", "`status`", "`custom_domain`", "`settings`", "`secrets`", "0 bytes"]
        {
            assert!(problems.contains(part), "{part} in {problems}");
        }
        assert!(OrgDraft::default().problems(false).is_empty());
        assert_eq!(OrgDraft::default().problems(true), ["`name` is missing"]);
    }

    /// A7: neither an error nor `Debug` repeats a secret.
    #[test]
    fn no_message_repeats_a_secret() {
        for json in [
            serde_json::json!({ "secrets": "hunter2" }),
            serde_json::json!({ "secrets": { "key": ["hunter2"] } }),
            serde_json::json!({ "secrets": ["hunter2"] }),
        ] {
            let error = draft(json).expect_err("not an object of texts");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let fine = draft(serde_json::json!({ "secrets": { "key": "hunter2", "old": null } })).expect("valid");
        assert!(!format!("{fine:?} {:?}", fine.problems(false)).contains("hunter2"));
        assert_eq!(fine.secrets.len(), 2);
    }
}
