//! Where settings come from: the environment, a map, or a source of your own.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

/// The largest file that a `…_FILE` setting may point to, in bytes. A secret is shorter by far; the bound
/// keeps a mistaken path (`/dev/zero`) from filling the memory.
pub const MAX_SECRET_FILE_BYTES: u64 = 64 * 1024;

/// Answers settings by name. Object safe, asked only while an application is being built.
///
/// [`SettingServiceExt`] reads secrets and typed values on top of it.
pub trait SettingService: fmt::Debug + Send + Sync {
    /// The text of a setting, or `None` when it is not set.
    ///
    /// # Errors
    /// [`SettingError`] when the setting is there and cannot be read.
    fn get(&self, name: &str) -> Result<Option<String>, SettingError>;
}

/// The environment of the process.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnvSettings;

impl SettingService for EnvSettings {
    fn get(&self, name: &str) -> Result<Option<String>, SettingError> {
        match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(SettingError::invalid(name, None, "text in UTF-8")),
        }
    }
}

/// Settings from a map: for tests, and for applications that have read their configuration elsewhere.
///
/// `Debug` shows the names only, since any of the values may be a secret.
///
/// ```
/// use app_builder::{MapSettings, SettingService};
///
/// let settings = MapSettings::new([("CACHE_BACKEND", "memory")]);
/// assert_eq!(settings.get("CACHE_BACKEND")?.as_deref(), Some("memory"));
/// assert_eq!(settings.get("REDIS_URL")?, None);
/// # Ok::<(), app_builder::SettingError>(())
/// ```
#[derive(Clone, Default)]
pub struct MapSettings(BTreeMap<String, String>);

impl MapSettings {
    /// Settings with these names and values; the last of a name wins.
    pub fn new<N: Into<String>, V: Into<String>>(values: impl IntoIterator<Item = (N, V)>) -> Self {
        Self(values.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// Adds or replaces one.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }
}

impl SettingService for MapSettings {
    fn get(&self, name: &str) -> Result<Option<String>, SettingError> {
        Ok(self.0.get(name).cloned())
    }
}

impl fmt::Debug for MapSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Typed and secret settings, on every [`SettingService`].
pub trait SettingServiceExt: SettingService {
    /// The text of a setting without surrounding space; an empty one counts as not set, because that is
    /// how a compose file or a unit file leaves a variable out.
    ///
    /// # Errors
    /// As [`SettingService::get`].
    fn text(&self, name: &str) -> Result<Option<String>, SettingError> {
        let text = self.get(name)?;
        Ok(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    /// A secret: the setting itself, or the content of the file that `{name}_FILE` names (a line break at
    /// its end is not part of the secret).
    ///
    /// # Errors
    /// [`SettingError::Both`] when both are set; [`SettingError::Unreadable`] when the file cannot be read,
    /// is larger than [`MAX_SECRET_FILE_BYTES`] or no UTF-8. No error carries the secret.
    fn secret(&self, name: &str) -> Result<Option<SecretString>, SettingError> {
        let file_setting = format!("{name}_FILE");
        match (self.text(name)?, self.text(&file_setting)?) {
            (Some(_), Some(_)) => Err(SettingError::Both { name: name.to_owned(), other: file_setting }),
            (Some(secret), None) => Ok(Some(secret.into())),
            (None, Some(path)) => read_secret(&file_setting, Path::new(&path)).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// A setting read by `parse`, which answers `None` for text it does not understand. `expected` tells a
    /// human what would have been right.
    ///
    /// # Errors
    /// [`SettingError::Invalid`] with the name, the text and `expected`: not for secrets.
    fn parsed<T>(
        &self,
        name: &str,
        expected: impl Into<Cow<'static, str>>,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, SettingError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(SettingError::invalid(name, Some(text), expected)),
        }
    }
}

impl<S: SettingService + ?Sized> SettingServiceExt for S {}

/// Why a setting cannot be used. Names the setting; never carries a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// The value is not of the expected form.
    #[error("{name} {}: expected {expected}", shown(.value.as_deref()))]
    Invalid {
        /// The setting.
        name: String,
        /// What was given, unless it may be secret.
        value: Option<String>,
        /// What would have been right.
        expected: Cow<'static, str>,
    },
    /// A secret is given as a value and as a file.
    #[error("{name} and {other} are both set: keep one of them")]
    Both {
        /// The setting.
        name: String,
        /// The other.
        other: String,
    },
    /// Two settings contradict each other, or one needs another.
    #[error("{name}: {reason}")]
    Contradiction {
        /// The setting.
        name: String,
        /// Why it does not fit.
        reason: Cow<'static, str>,
    },
    /// The file that a `…_FILE` setting names cannot be read.
    #[error("{name}: cannot read {}: {source}", path.display())]
    Unreadable {
        /// The setting.
        name: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SettingError {
    /// A value of the wrong form. Give `None` as `value` when it may be secret.
    pub fn invalid(
        name: impl Into<String>,
        value: Option<String>,
        expected: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Invalid { name: name.into(), value, expected: expected.into() }
    }

    /// A setting that does not fit another one.
    pub fn contradiction(name: impl Into<String>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Contradiction { name: name.into(), reason: reason.into() }
    }

    /// The setting to correct.
    #[must_use]
    pub fn setting(&self) -> &str {
        match self {
            Self::Invalid { name, .. }
            | Self::Both { name, .. }
            | Self::Contradiction { name, .. }
            | Self::Unreadable { name, .. } => name,
        }
    }
}

fn shown(value: Option<&str>) -> String {
    match value {
        Some(value) => format!("is {:?}", value.chars().take(100).collect::<String>()),
        None => "is not valid (not shown)".to_owned(),
    }
}

fn read_secret(name: &str, path: &Path) -> Result<SecretString, SettingError> {
    let unreadable =
        |source| SettingError::Unreadable { name: name.to_owned(), path: path.to_owned(), source };
    let wrong =
        |reason: &'static str| unreadable(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut secret = String::new();
    file.take(MAX_SECRET_FILE_BYTES + 1).read_to_string(&mut secret).map_err(unreadable)?;
    if secret.len() as u64 > MAX_SECRET_FILE_BYTES {
        return Err(wrong("the file is larger than 64 KiB"));
    }
    let trimmed = secret.trim();
    if trimmed.is_empty() {
        return Err(wrong("the file is empty"));
    }
    Ok(trimmed.to_owned().into())
}
