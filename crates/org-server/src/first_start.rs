//! What the server makes for itself when nobody gave it: a master key and an admin token.
//!
//! Each stands in a file of the data folder that only its owner can read, so that the next start finds it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD};
use rand::TryRngCore as _;
use secrecy::SecretString;

/// Why a secret could not be made or found.
#[derive(Debug, thiserror::Error)]
#[error("{setting} is not set, and {}: {source}", path.display())]
pub struct MakeError {
    /// The setting to give instead.
    pub setting: &'static str,
    /// The file it would stand in.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// A secret of the server.
#[derive(Debug, Clone)]
pub struct Made {
    /// The secret; `Debug` hides it.
    pub secret: SecretString,
    /// The file it stands in.
    pub path: PathBuf,
    /// Whether it was made just now.
    pub is_new: bool,
}

/// The master key in the data folder: 32 random bytes in base64.
///
/// # Errors
/// [`MakeError`] when the file can neither be read nor made.
pub fn master_key(folder: &Path) -> Result<Made, MakeError> {
    find_or_make("ORG_MASTER_KEY", &folder.join("master-key"), |random| BASE64.encode(random))
}

/// The master key that must be in the data folder, because a database was sealed with it: none is made.
///
/// # Errors
/// [`MakeError`] when the file cannot be read, or is gone.
pub fn existing_master_key(folder: &Path) -> Result<Made, MakeError> {
    let (setting, path) = ("ORG_MASTER_KEY", folder.join("master-key"));
    let lost = || {
        let reason =
            "is gone, and secrets of the database are sealed with the key in it: restore it, none is made";
        io::Error::new(io::ErrorKind::NotFound, reason)
    };
    match find(&path).and_then(|found| found.ok_or_else(lost)) {
        Ok(secret) => Ok(Made { secret: secret.into(), path, is_new: false }),
        Err(source) => Err(MakeError { setting, path, source }),
    }
}

/// The admin token in the data folder.
///
/// # Errors
/// [`MakeError`] when the file can neither be read nor made.
pub fn admin_token(folder: &Path) -> Result<Made, MakeError> {
    find_or_make("ADMIN_TOKEN", &folder.join("admin-token"), |random| URL_SAFE_NO_PAD.encode(random))
}

fn find_or_make(
    setting: &'static str,
    path: &Path,
    encode: impl FnOnce([u8; 32]) -> String,
) -> Result<Made, MakeError> {
    let failed = |source| MakeError { setting, path: path.to_owned(), source };
    let done = |secret: String, is_new| Made { secret: secret.into(), path: path.to_owned(), is_new };
    if let Some(found) = find(path).map_err(failed)? {
        return Ok(done(found, false));
    }
    let mut random = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut random).map_err(|error| failed(io::Error::other(error)))?;
    let secret = encode(random);
    match make(path, &secret) {
        Ok(()) => Ok(done(secret, true)),
        // Two servers started at once, and the other was first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = find(path).map_err(failed)?;
            found.map(|found| done(found, false)).ok_or_else(|| failed(error))
        }
        Err(error) => Err(failed(error)),
    }
}

fn find(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"))
        }
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Written under another name and then linked: nobody ever sees a file that is not complete, and one that is
/// there is never replaced.
fn make(path: &Path, secret: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let draft = path.with_extension(format!("{}.new", uuid::Uuid::new_v4().simple()));
    let made = write_private(&draft, secret).and_then(|()| std::fs::hard_link(&draft, path));
    let removed = std::fs::remove_file(&draft);
    made.and(removed)
}

fn write_private(path: &Path, secret: &str) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    writeln!(file, "{secret}")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("org-server-{}", uuid::Uuid::new_v4().simple()))
    }

    /// L1: made once, found again, private, and never shown.
    #[test]
    fn a_secret_is_made_once() {
        let folder = folder();
        let made = master_key(&folder).expect("made");
        let found = master_key(&folder).expect("found");
        assert!(made.is_new && !found.is_new);
        assert_eq!(made.secret.expose_secret(), found.secret.expose_secret());
        assert_eq!(BASE64.decode(made.secret.expose_secret()).expect("base64").len(), 32);
        assert!(!format!("{made:?}").contains(made.secret.expose_secret()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(&made.path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let token = admin_token(&folder).expect("made");
        assert!(token.secret.expose_secret().len() >= crate::settings::MIN_ADMIN_TOKEN_BYTES);
        assert_eq!(std::fs::read_dir(&folder).expect("there").count(), 2, "no drafts are left");
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    /// L1: several servers that start at once on a new folder agree on the secret.
    #[test]
    fn servers_that_start_at_once_agree() {
        let folder = folder();
        let barrier = std::sync::Barrier::new(8);
        let start = || {
            barrier.wait();
            master_key(&folder).expect("made or found").secret.expose_secret().to_owned()
        };
        let keys: Vec<String> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            starts.into_iter().map(|start| start.join().expect("no panic")).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    /// L1: a folder that cannot be written to is an error that names the setting.
    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = master_key(Path::new("/proc/nowhere")).expect_err("not writable");
        assert!(error.to_string().contains("ORG_MASTER_KEY"), "{error}");
    }
}
