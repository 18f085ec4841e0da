//! What the tests of this crate share: a directory and a validator that can be held or broken, a fleet on one
//! store, and requests.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "each test binary uses a part"
)]

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use cache_core::{CacheService, InvalidationBus, ManualClock, UserId};
use cache_moka::MokaCacheService;
use concurrency::LocalBus;
use http::Request;
use http_body_util::BodyExt;
use org_resolution::{
    CachedToken, DirectoryError, OrgContext, OrgDirectory, OrgId, OrgResolver, OrgStatus, Slug, TokenError,
    TokenPolicy, TokenService, TokenValidator,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tenant_cache::Caches;
use tokio::sync::watch;
use tower::{Service, ServiceExt};

/// Lets callers pass, or holds them; can be broken; counts.
#[derive(Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
    calls: AtomicUsize,
    broken: AtomicBool,
}

impl Default for Gate {
    fn default() -> Self {
        let (open, waiting) = (watch::Sender::new(true), watch::Sender::new(0));
        Self { open, waiting, calls: AtomicUsize::new(0), broken: AtomicBool::new(false) }
    }
}

impl Gate {
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }

    pub fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Waits until so many callers are held.
    pub async fn holds(&self, callers: usize) {
        let mut waiting = self.waiting.subscribe();
        let reached = waiting.wait_for(|now| *now >= callers);
        tokio::time::timeout(Duration::from_secs(5), reached).await.expect("callers reach the gate").unwrap();
    }

    async fn pass(&self) -> Result<(), io::Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let broken = self.broken.load(Ordering::SeqCst);
        self.waiting.send_modify(|now| *now += 1);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        self.waiting.send_modify(|now| *now -= 1);
        if broken { Err(io::Error::other("db-7.internal: connection refused")) } else { Ok(()) }
    }
}

/// A database of organisations. Each question reads its row *before* it waits at the gate, as a slow query does.
#[derive(Debug, Default)]
pub struct Directory {
    pub gate: Gate,
    rows: Mutex<Vec<OrgContext>>,
}

impl Directory {
    pub fn with(orgs: impl IntoIterator<Item = OrgContext>) -> Arc<Self> {
        Arc::new(Self { rows: Mutex::new(orgs.into_iter().collect()), ..Self::default() })
    }

    pub fn commit(&self, org: OrgContext) {
        let mut rows = self.rows.lock().unwrap();
        rows.retain(|row| row.id != org.id);
        rows.push(org);
    }

    /// [`commit`](Self::commit), as a database does it: not before it is awaited.
    pub async fn committed(&self, org: OrgContext) -> Result<(), io::Error> {
        self.commit(org);
        Ok(())
    }

    async fn find(&self, is: impl Fn(&OrgContext) -> bool) -> Result<Option<OrgContext>, DirectoryError> {
        let row = self.rows.lock().unwrap().iter().find(|row| is(row)).cloned();
        self.gate.pass().await.map_err(DirectoryError::new)?;
        Ok(row)
    }
}

#[async_trait]
impl OrgDirectory for Directory {
    async fn org_by_slug(&self, slug: &Slug) -> Result<Option<OrgContext>, DirectoryError> {
        self.find(|row| row.slug == *slug).await
    }

    async fn org_by_id(&self, id: &OrgId) -> Result<Option<OrgContext>, DirectoryError> {
        self.find(|row| row.id == *id).await
    }

    async fn org_by_domain(&self, domain: &str) -> Result<Option<OrgContext>, DirectoryError> {
        self.find(|row| row.custom_domain.as_deref() == Some(domain)).await
    }
}

/// Whoever knows tokens. Reads before it waits, as the directory.
#[derive(Debug, Default)]
pub struct Validator {
    pub gate: Gate,
    tokens: Mutex<HashMap<String, CachedToken>>,
}

impl Validator {
    pub fn issue(&self, token: &str, org: &str, user: &str, expires_at: u64) {
        let (org, user) = (org_id(org), UserId::new(user).unwrap());
        let token_is = CachedToken { org, user, scopes: vec!["read".into()], expires_at };
        self.tokens.lock().unwrap().insert(token.to_owned(), token_is);
    }

    pub fn revoke(&self, token: &str) {
        self.tokens.lock().unwrap().remove(token);
    }
}

#[async_trait]
impl TokenValidator for Validator {
    async fn validate(&self, _: &OrgId, token: &SecretString) -> Result<Option<CachedToken>, TokenError> {
        let found = self.tokens.lock().unwrap().get(token.expose_secret()).cloned();
        self.gate.pass().await.map_err(TokenError::validator)?;
        Ok(found)
    }
}

/// Two instances in front of one store, on one bus, with a clock that stands.
#[derive(Debug)]
pub struct Fleet {
    pub far: Arc<MokaCacheService>,
    pub hand: ManualClock,
    pub here: Caches,
    pub there: Caches,
}

pub fn fleet() -> Fleet {
    let (bus, hand): (Arc<dyn InvalidationBus>, _) = (Arc::new(LocalBus::new()), ManualClock::new());
    let far = MokaCacheService::builder().bus(bus).clock(hand.clock()).build().unwrap();
    let far = Arc::new(far);
    let instance = || {
        let far: Arc<dyn CacheService> = far.clone();
        Caches::builder().far(far).clock(hand.clock()).build().unwrap()
    };
    Fleet { here: instance(), there: instance(), far, hand }
}

pub fn resolver(caches: &Caches, directory: &Arc<Directory>) -> OrgResolver {
    OrgResolver::new(caches, directory.clone()).unwrap()
}

pub fn tokens(fleet: &Fleet, caches: &Caches, validator: &Arc<Validator>) -> TokenService {
    TokenService::new(caches, validator.clone(), TokenPolicy::default(), fleet.hand.clock()).unwrap()
}

pub fn org_id(id: &str) -> OrgId {
    OrgId::new(id).unwrap()
}

pub fn slug(text: &str) -> Slug {
    text.parse().unwrap()
}

/// An active organisation, with the id `id-<slug>`.
pub fn org(slug: &str) -> OrgContext {
    OrgContext {
        id: org_id(&format!("id-{slug}")),
        slug: slug.parse().unwrap(),
        name: slug.to_uppercase(),
        plan: "free".into(),
        status: OrgStatus::Active,
        settings: serde_json::Map::new(),
        custom_domain: None,
        token_generation: 0,
        secrets: std::collections::BTreeMap::new(),
    }
}

pub fn with_status(slug: &str, status: &str) -> OrgContext {
    OrgContext { status: status.to_owned().into(), ..org(slug) }
}

/// A `GET` by a client at an address.
pub fn get(uri: &str, peer: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let peer: SocketAddr = format!("{peer}:4711").parse().unwrap();
    let mut request = Request::builder().uri(uri).extension(ConnectInfo(peer));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

pub async fn call<S>(service: &S, request: Request<Body>) -> Response
where
    S: Service<Request<Body>, Response = Response, Error = std::convert::Infallible> + Clone,
{
    let Ok(response) = service.clone().oneshot(request).await;
    response
}

pub async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A problem's status and code; it is a problem document, and tells nothing of the inside.
pub async fn problem(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let text = text(response).await;
    assert!(!text.contains("db-7") && !text.contains("refused"), "{text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(body["status"], status);
    (status, body["code"].as_str().unwrap().to_owned())
}
