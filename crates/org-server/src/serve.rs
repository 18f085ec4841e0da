//! Starting, answering, stopping.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use app_builder::{AppError, AppServiceBuilder};
use org_resolution::KeyRing;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::accept;
use crate::accept::places::Places;
use crate::first_start::{self, Made, MakeError};
use crate::import::ImportError;
use crate::orgs::keys;
use crate::orgs::{Orgs, OrgsError};
use crate::routes;
use crate::routes::admin_auth::AdminToken;
use crate::settings::ServerSettings;
use crate::state::{AppState, StateParts};
use crate::store::{Store, StoreError, StorePolicy};
use crate::telemetry;

/// Between two upkeeps of the metrics.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Why the server did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The services could not be assembled.
    #[error(transparent)]
    App(#[from] AppError),
    /// The database cannot be used.
    #[error("DATABASE_URL: {0}")]
    Store(#[from] StoreError),
    /// A secret could not be made.
    #[error(transparent)]
    Secret(#[from] MakeError),
    /// The organisations cannot be served.
    #[error(transparent)]
    Orgs(#[from] OrgsError),
    /// The sample could not be imported.
    #[error("the sample could not be imported: {0}")]
    Sample(#[from] ImportError),
    /// The address cannot be listened on.
    #[error("{setting}: cannot listen on {address}: {source}")]
    Bind {
        /// The setting that names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The metrics recorder could not be installed.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The listener failed.
    #[error("the server failed: {0}")]
    Io(#[from] std::io::Error),
}

/// A server that listens and does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    operators: Option<TcpListener>,
    state: AppState,
    settings: ServerSettings,
    new_admin_token: Option<SecretString>,
    /// What a human should be told once: where it listens, what was made. Never a secret.
    pub greeting: Vec<String>,
}

impl Server {
    /// Opens the database, assembles the services, imports the sample into an empty database if the settings say so,
    /// and listens.
    ///
    /// # Errors
    /// [`ServeError`], by what failed; each message names the setting to look at. Nothing keeps running then.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened. What the first start made (key, token, tables) stays.
    pub async fn start(settings: ServerSettings) -> Result<Self, ServeError> {
        // First: caches make their metric handles when they are defined.
        let metrics = telemetry::metrics()?;
        let mut greeting = Vec::new();
        let store = Store::open(settings.database_url.expose_secret(), StorePolicy::default()).await?;
        let ring = key_ring(&settings, &store, &mut greeting).await?;
        let (admin_token, new_admin_token) = admin_token(&settings, &mut greeting)?;
        let app = AppServiceBuilder::new().app_settings(settings.app.clone()).sealer(ring.clone());
        let app = app.build().await?;
        let orgs = Orgs::open(store.clone(), &app, ring).await?;
        if settings.sample && store.org_count().await? == 0 {
            let imported = orgs.import_new(crate::import::SAMPLE).await?;
            greeting.push(format!("imported {imported} sample organisations into the empty database"));
        }
        let listener = listen("BIND_ADDR", settings.bind_addr).await?;
        let operators = match settings.admin_bind_addr {
            Some(address) => Some(listen("ADMIN_BIND_ADDR", address).await?),
            None => None,
        };
        let parts = StateParts {
            store,
            app,
            orgs,
            admin: AdminToken::new(&admin_token),
            metrics,
            request_timeout: settings.request_timeout,
            max_requests: settings.max_requests,
        };
        let state = AppState::new(parts);
        let mut server = Self { listener, operators, state, settings, new_admin_token, greeting };
        server.greet()?;
        Ok(server)
    }

    /// Where it listens; the port is the real one when the setting says 0.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where operators are answered, if anywhere; the port is the real one when the setting says 0.
    ///
    /// # Errors
    /// What the system says.
    pub fn admin_address(&self) -> std::io::Result<Option<SocketAddr>> {
        self.operators.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// The admin token, when this start made it: for a human at a terminal, and for no log.
    #[must_use]
    pub fn new_admin_token(&self) -> Option<&SecretString> {
        self.new_admin_token.as_ref()
    }

    /// A line that a human can try, when there is an organisation to try it with.
    ///
    /// # Errors
    /// [`ServeError::Store`], [`ServeError::Io`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn to_try(&self) -> Result<Option<String>, ServeError> {
        let (address, first) = (self.address()?, self.state.orgs().any_active().await?);
        Ok(first.map(|slug| {
            let host = format!("{slug}.{}", self.settings.base_domain);
            format!("try: curl -H 'Host: {host}' http://{address}/v1/org")
        }))
    }

    /// What the routes share.
    #[must_use]
    pub fn state(&self) -> &AppState {
        &self.state
    }

    /// Answers requests until `stop` completes. Then it is not ready any more, goes on for the time that load
    /// balancers need to see that, accepts nothing new, and gives requests in flight their time to end.
    ///
    /// # Cancel safety
    /// Dropping the future closes the listeners; connections that are open go on by themselves, changes to their end.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) {
        let Self { listener, operators, state, settings, .. } = self;
        let closing = CancellationToken::new();
        let stopping = async {
            stop.await;
            state.stop();
            tracing::info!("stopping: not ready any more");
            tokio::time::sleep(settings.shutdown_delay).await;
            closing.cancel();
        };
        let places = |name| Places::new(name, settings.connections, settings.trusted_proxies.clone());
        let public = routes::public(state.clone(), &settings);
        let public = accept::serve(listener, public, places("public"), closing.cancelled());
        let operators = async {
            if let Some(listener) = operators {
                let routes = routes::operators(state.clone(), &settings);
                accept::serve(listener, routes, places("operators"), closing.cancelled()).await;
            }
        };
        let limit = settings.shutdown_timeout;
        tokio::select! {
            ((), (), ()) = async { tokio::join!(stopping, public, operators) } => {}
            () = out_of_time(&closing, limit) => {
                tracing::warn!(?limit, "requests were still in flight after the time to stop");
            }
            never = upkeep(&state) => match never {},
        };
        state.finish(limit).await;
        tracing::info!("stopped");
    }

    fn greet(&mut self) -> Result<(), ServeError> {
        let address = self.address()?;
        self.greeting.push(format!("listening on http://{address}"));
        if let Some(address) = self.admin_address()? {
            self.greeting.push(format!("for operators: http://{address}/admin, /metrics and /readyz"));
        }
        Ok(())
    }
}

/// Sorts what histograms were told into their buckets: until then each observation takes up memory, and nobody
/// may ever ask for the metrics.
async fn upkeep(state: &AppState) -> Infallible {
    loop {
        tokio::time::sleep(UPKEEP_EVERY).await;
        state.metrics().run_upkeep();
    }
}

/// Completes when the server closed its doors and then still ran for so long.
async fn out_of_time(closing: &CancellationToken, limit: Duration) {
    closing.cancelled().await;
    tokio::time::sleep(limit).await;
}

async fn listen(setting: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| ServeError::Bind { setting, address, source })
}

/// The master keys of the settings, or the one in the data folder; one is made for a database that has none.
pub(crate) async fn key_ring(
    settings: &ServerSettings,
    store: &Store,
    greeting: &mut Vec<String>,
) -> Result<Arc<KeyRing>, ServeError> {
    let keys = match &settings.master_key {
        Some(given) => given.clone(),
        // Asked before the file is looked for: another server that starts makes the file first.
        None => master_key(settings, keys::is_sealed(store).await?, greeting)?,
    };
    Ok(Arc::new(keys::ring(&keys, settings.master_key_current)?))
}

fn master_key(
    settings: &ServerSettings,
    is_sealed: bool,
    greeting: &mut Vec<String>,
) -> Result<SecretString, MakeError> {
    let folder = settings.data_folder();
    let made =
        if is_sealed { first_start::existing_master_key(&folder) } else { first_start::master_key(&folder) };
    let Made { secret, path, is_new } = made?;
    let path = path.display();
    if is_new {
        greeting.push(format!(
            "made a master key in {path}: keep a copy, without it no stored secret can be opened"
        ));
    }
    tracing::warn!(%path, "ORG_MASTER_KEY is not set: using the key in the data folder");
    Ok(secret)
}

/// The admin token of the settings, or the one in the data folder; and again when it was made just now.
fn admin_token(
    settings: &ServerSettings,
    greeting: &mut Vec<String>,
) -> Result<(SecretString, Option<SecretString>), MakeError> {
    if let Some(given) = &settings.admin_token {
        return Ok((given.clone(), None));
    }
    let Made { secret, path, is_new } = first_start::admin_token(&settings.data_folder())?;
    if is_new {
        greeting.push(format!("made an admin token in {}", path.display()));
    }
    Ok((secret.clone(), is_new.then_some(secret)))
}
