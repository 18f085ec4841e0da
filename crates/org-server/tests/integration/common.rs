//! What the tests of the routes share: a server over a database of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use app_builder::MapSettings;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
pub(crate) use conformance::wait::eventually;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use org_server::routes;
use org_server::serve::Server;
use org_server::settings::ServerSettings;
use org_server::state::AppState;
use org_server::store::{OrgRow, StoreError};
use serde_json::Value;
use tower::ServiceExt as _;

/// The admin token of every server here.
pub(crate) const ADMIN: &str = "an-admin-token-for-tests";
/// The master key of every server here: 32 bytes in base64.
pub(crate) const MASTER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A folder of its own, removed when dropped.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("org-server-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        Self(folder)
    }

    pub(crate) fn database_url(&self) -> String {
        format!("sqlite://{}/data/orgs.db?mode=rwc", self.0.display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The real router over a real database, without a listener.
#[derive(Debug)]
pub(crate) struct TestServer {
    pub(crate) public: Router,
    pub(crate) operators: Router,
    pub(crate) state: AppState,
    pub(crate) folder: Folder,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// Asserts a problem document with this status and code.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) {
        assert_eq!((self.status.as_u16(), self.code()), (status, code), "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], status, "{self:?}");
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }
}

/// A request being written.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    router: &'a Router,
    request: http::request::Builder,
    body: Body,
    peer: SocketAddr,
}

impl TestServer {
    /// With the sample in the database and generous limits.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(values: &[(&str, &str)]) -> Self {
        Self::start_in(Folder::new(), values).await
    }

    pub(crate) async fn start_in(folder: Folder, values: &[(&str, &str)]) -> Self {
        let settings = settings(&folder, values);
        let server = Server::start(settings.clone()).await.expect("the server starts");
        let state = server.state().clone();
        let public = routes::public(state.clone(), &settings);
        Self { public, operators: routes::operators(state.clone(), &settings), state, folder }
    }

    /// On the listener that answers this path.
    pub(crate) fn ask(&self, method: Method, path: &str) -> Ask<'_> {
        let of_operators = ["/admin", "/metrics", "/readyz"].iter().any(|route| path.starts_with(route));
        if of_operators { self.operators(method, path) } else { self.public(method, path) }
    }

    pub(crate) fn public(&self, method: Method, path: &str) -> Ask<'_> {
        Self::on(&self.public, method, path)
    }

    pub(crate) fn operators(&self, method: Method, path: &str) -> Ask<'_> {
        Self::on(&self.operators, method, path)
    }

    fn on<'a>(router: &'a Router, method: Method, path: &str) -> Ask<'a> {
        Ask {
            router,
            request: Request::builder().method(method).uri(path),
            body: Body::empty(),
            peer: (Ipv4Addr::LOCALHOST, 4711).into(),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Ask<'_> {
        self.ask(Method::GET, path)
    }

    /// A request with the admin token.
    pub(crate) fn admin(&self, method: Method, path: &str) -> Ask<'_> {
        self.ask(method, path).bearer(ADMIN)
    }

    /// Creates or changes an organisation.
    pub(crate) async fn put_org(&self, slug: &str, body: Value) -> Answer {
        self.admin(Method::PUT, &format!("/admin/orgs/{slug}")).json(&body).send().await
    }

    /// `/v1/org` by host.
    pub(crate) async fn org(&self, slug: &str) -> Answer {
        self.get("/v1/org").host(&format!("{slug}.localhost")).send().await
    }

    /// Makes a token and answers its id and text.
    pub(crate) async fn token(&self, slug: &str, body: Value) -> (String, String) {
        let path = format!("/admin/orgs/{slug}/tokens");
        let made = self.admin(Method::POST, &path).json(&body).send().await;
        let text = |field: &str| made.is(201).body[field].as_str().expect("a text").to_owned();
        (text("id"), text("token"))
    }
}

impl Ask<'_> {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn host(self, host: &str) -> Self {
        self.header("host", host)
    }

    pub(crate) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.raw(body.to_string())
    }

    pub(crate) fn raw(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self.header("content-type", "application/json")
    }

    pub(crate) fn from(mut self, ip: &str) -> Self {
        self.peer = (ip.parse::<std::net::IpAddr>().expect("an address"), 4711).into();
        self
    }

    pub(crate) async fn send(self) -> Answer {
        let mut request = self.request.body(self.body).expect("a request");
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { status, headers, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null), text }
    }
}

/// Another writer that holds the database until it is released.
#[derive(Debug)]
pub(crate) struct Holder {
    release: std::sync::mpsc::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Holder {
    /// One that changes nothing.
    pub(crate) async fn enter(server: &TestServer) -> Self {
        Self::changing(server, "globex", |row| row).await
    }

    /// One that changes an organisation of the sample when it is released.
    pub(crate) async fn changing(
        server: &TestServer,
        slug: &'static str,
        change: fn(OrgRow) -> OrgRow,
    ) -> Self {
        let (entered, enter) = tokio::sync::oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let store = server.state.store().clone();
        let task = tokio::spawn(async move {
            let held = store.put_org::<StoreError>(slug, move |before| {
                entered.send(()).expect("the test waits");
                released.recv().expect("the test releases");
                Ok(change(before.expect("in the sample").clone()))
            });
            held.await.expect("stored");
        });
        enter.await.expect("the holder is in");
        Self { release, task }
    }

    pub(crate) async fn leave(self) {
        self.release.send(()).expect("the holder waits");
        self.task.await.expect("no panic");
    }
}

pub(crate) fn settings(folder: &Folder, values: &[(&str, &str)]) -> ServerSettings {
    let url = folder.database_url();
    let mut all = MapSettings::new([
        ("DATABASE_URL", url.as_str()),
        ("BIND_ADDR", "127.0.0.1:0"),
        ("ADMIN_BIND_ADDR", "127.0.0.1:0"),
        ("ADMIN_TOKEN", ADMIN),
        ("ORG_MASTER_KEY", MASTER_KEY),
        ("RATE_LIMIT_API", "100000/60s"),
        ("RATE_LIMIT_MUTATION", "100000/60s"),
        ("RATE_LIMIT_AUTH", "1000/60s"),
        ("SHUTDOWN_DELAY", "0s"),
    ]);
    for (name, value) in values {
        all = all.with(*name, *value);
    }
    let mut settings = ServerSettings::read(&all).expect("valid settings");
    settings.sample = true;
    settings
}
