//! Running a command to its end.

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;

use app_builder::{AppError, AppService, AppServiceBuilder, Backend, SettingError, SettingService};
use org_resolution::KeyRing;
use secrecy::ExposeSecret;

use crate::cli::Command;
use crate::first_start::MakeError;
use crate::import::{self, ImportError};
use crate::orgs::rotate::Unopened;
use crate::orgs::{Orgs, OrgsError};
use crate::serve::{self, ServeError, Server};
use crate::settings::ServerSettings;
use crate::store::{Store, StoreError, StorePolicy};

/// Why a command failed. No message carries a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A setting cannot be used; its name is in the message.
    #[error(transparent)]
    Setting(SettingError),
    /// The services could not be assembled.
    #[error(transparent)]
    App(AppError),
    /// The server did not start, or stopped by itself.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The database cannot be used.
    #[error("DATABASE_URL: {0}")]
    Store(#[from] StoreError),
    /// A secret could not be made.
    #[error(transparent)]
    Secret(#[from] MakeError),
    /// Secrets cannot be sealed with this key.
    #[error(transparent)]
    Orgs(#[from] OrgsError),
    /// Nothing was imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Not every secret is under the current key.
    #[error(
        "{unopened} secret(s) did not open and were left as they are, {left} are under another key than {current}: keep \
         the old keys until none is"
    )]
    NotRotated {
        /// How many did not open.
        unopened: usize,
        /// How many are under another key.
        left: u64,
        /// The key that seals.
        current: u32,
    },
    /// The caches could not be told.
    #[error("the caches could not be told: {0}")]
    Invalidate(#[from] cache_core::CacheError),
    /// There is no shared cache.
    #[error(
        "REDIS_URL: is not set: each server then has a cache of its own, which no other process can reach; ask \
         the server itself: POST /admin/cache/invalidate"
    )]
    NothingShared,
}

impl From<SettingError> for RunError {
    fn from(error: SettingError) -> Self {
        Self::Setting(error)
    }
}

impl From<AppError> for RunError {
    fn from(error: AppError) -> Self {
        match error {
            AppError::Setting(error) => Self::Setting(error),
            error => Self::App(error),
        }
    }
}

/// Runs a command with settings from `source`; `say` tells the human at the terminal.
///
/// # Errors
/// [`RunError`].
///
/// # Cancel safety
/// As the command: dropping `serve` closes the listener, dropping `import` stores all or nothing.
pub async fn run(command: Command, source: &dyn SettingService, say: fn(&str)) -> Result<(), RunError> {
    let settings = ServerSettings::read(source)?;
    match command {
        Command::Serve { sample } => {
            let sample = sample || settings.sample;
            serve(ServerSettings { sample, ..settings }, say).await
        }
        Command::Import { file } => import(settings, &file, say).await,
        Command::RotateKeys => rotate_keys(settings, say).await,
        Command::Invalidate { keys } => invalidate(settings, &keys, say).await,
    }
}

async fn serve(settings: ServerSettings, say: fn(&str)) -> Result<(), RunError> {
    tracing::info!(?settings, "starting");
    let stop = told_to_stop().map_err(ServeError::Io)?;
    let server = Server::start(settings).await.map_err(misset)?;
    for line in &server.greeting {
        say(line);
    }
    // Not where it would end in the log of a container.
    if let Some(token) = server.new_admin_token().filter(|_| std::io::stdout().is_terminal()) {
        say(&format!("admin token, said once: {}", token.expose_secret()));
    }
    if let Some(line) = server.to_try().await? {
        say(&line);
    }
    server.run(stop).await;
    Ok(())
}

/// What a command works on; to be closed by it.
struct Opened {
    store: Store,
    app: AppService,
    orgs: Orgs,
}

/// Opens the database and the organisations in it, and says what had to be made for that.
async fn opened(
    settings: &ServerSettings,
    say: fn(&str),
    open: impl AsyncFnOnce(Store, &AppService, Arc<KeyRing>) -> Result<Orgs, OrgsError>,
) -> Result<Opened, RunError> {
    let store =
        Store::open(settings.database_url.expose_secret(), StorePolicy::default()).await.map_err(misset)?;
    let mut notes = Vec::new();
    let ring = serve::key_ring(settings, &store, &mut notes).await.map_err(misset)?;
    let app = AppServiceBuilder::new().app_settings(settings.app.clone()).sealer(ring.clone());
    let app = app.build().await?;
    let orgs = open(store.clone(), &app, ring).await.map_err(misset)?;
    notes.iter().for_each(|note| say(note));
    Ok(Opened { store, app, orgs })
}

async fn import(settings: ServerSettings, file: &Path, say: fn(&str)) -> Result<(), RunError> {
    let text = import::read_file(file).await?;
    // Before anything is opened: a file with mistakes makes no database.
    import::parse(&text)?;
    let Opened { store, app, orgs } = opened(&settings, say, Orgs::open).await?;
    let shares_no_cache = matches!(settings.app.backend, Backend::Memory);
    if shares_no_cache {
        orgs.leave_changes_to_servers();
    }
    let imported = orgs.import(&text).await;
    app.shutdown().await;
    store.close().await;
    say(&format!("imported {} organisations", imported?));
    if shares_no_cache {
        say(
            "without REDIS_URL one server on this database sees them within seconds, others when their entries end",
        );
    }
    Ok(())
}

async fn rotate_keys(settings: ServerSettings, say: fn(&str)) -> Result<(), RunError> {
    let Opened { store, app, orgs } = opened(&settings, say, Orgs::open_to_rotate).await?;
    if matches!(settings.app.backend, Backend::Memory) {
        orgs.leave_changes_to_servers();
    }
    let rotated = orgs.rotate().await;
    app.shutdown().await;
    store.close().await;
    let rotation = rotated?;
    for ((_, field), Unopened { slug, reason }) in &rotation.unopened {
        say(&format!("does not open: {slug}/{field}: {reason}"));
    }
    for (key, held) in &rotation.held {
        let key = key.map_or_else(|| "no key at all".to_owned(), |id| format!("key {id}"));
        say(&format!("under {key}: {} secret(s)", held.secrets));
    }
    if rotation.is_complete() {
        return Ok(());
    }
    let (left, current) = (rotation.left(), rotation.current);
    Err(RunError::NotRotated { unopened: rotation.unopened.len(), left, current })
}

async fn invalidate(settings: ServerSettings, keys: &[String], say: fn(&str)) -> Result<(), RunError> {
    if matches!(settings.app.backend, Backend::Memory) {
        return Err(RunError::NothingShared);
    }
    // Without the key ring: it removes keys, and reads and writes no entry.
    let app = AppServiceBuilder::new().app_settings(settings.app).build().await?;
    let texts: Vec<&str> = keys.iter().map(String::as_str).collect();
    let told = app.caches().invalidate_keys(&texts).await;
    app.shutdown().await;
    told?;
    say(&format!("invalidated {} key(s) on every server", keys.len()));
    Ok(())
}

/// A wrong setting that only shows when it is used is still a wrong setting.
fn misset<E: Into<ServeError>>(error: E) -> RunError {
    match error.into() {
        ServeError::App(error) => error.into(),
        ServeError::Store(error @ StoreError::Url { .. }) => {
            RunError::Setting(SettingError::contradiction("DATABASE_URL", error.to_string()))
        }
        ServeError::Orgs(error @ OrgsError::NoSuchKey { .. }) => {
            RunError::Setting(SettingError::contradiction("ORG_MASTER_KEY_CURRENT", error.to_string()))
        }
        ServeError::Orgs(error @ (OrgsError::MasterKey { .. } | OrgsError::MissingKeys { .. })) => {
            RunError::Setting(SettingError::contradiction("ORG_MASTER_KEY", error.to_string()))
        }
        error => RunError::Serve(error),
    }
}

/// Ctrl-C, or SIGTERM as service managers send it. Listens from this call on, not from the first poll: a signal
/// in between would end the process at once.
#[cfg(unix)]
fn told_to_stop() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Ctrl-C.
#[cfg(not(unix))]
fn told_to_stop() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            // No handler could be installed: the signal then ends the process as it always did.
            std::future::pending::<()>().await;
        }
    })
}
