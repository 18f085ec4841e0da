//! Master keys: proved at the start, rotated by a command, and never made again in silence.

use std::collections::BTreeMap;

use conformance::redis_server::RedisServer;
use http::Method;
use org_resolution::secret::Sealed;
use org_server::serve::{ServeError, Server};
use org_server::store::{SealedRow, SealedSecrets};
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::binary::{self, Running};
use crate::common::{Folder, MASTER_KEY, TestServer, eventually, settings};

const OTHER: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";

fn both() -> String {
    format!("1:{MASTER_KEY},2:{OTHER}")
}

fn second() -> String {
    format!("2:{OTHER}")
}

/// The secrets of a database by the id of their key: which organisation and field.
async fn by_key(server: &TestServer) -> BTreeMap<u8, Vec<String>> {
    let mut keys = BTreeMap::<u8, Vec<String>>::new();
    for org in server.state.store().org_page(None, 500).await.expect("answers") {
        for (field, sealed) in &org.secrets {
            keys.entry(sealed.as_bytes()[4]).or_default().push(format!("{}/{field}", org.slug));
        }
    }
    keys
}

/// Which secrets a server cannot open.
async fn unopened(server: &TestServer) -> Vec<String> {
    let orgs = server.state.orgs();
    let mut unopened = vec![];
    for org in orgs.page(None, 500).await.expect("answers") {
        let closed = org.secrets.keys().filter(|field| orgs.secret(&org, field).is_err());
        unopened.extend(closed.map(|field| format!("{}/{field}", org.slug)));
    }
    unopened
}

async fn put_secret(server: &TestServer, slug: &str, secret: &str) {
    server.put_org(slug, json!({ "secrets": { "api_key": secret } })).await.is(200);
}

async fn opens_to(server: &TestServer, slug: &str, secret: &str) {
    let orgs = server.state.orgs();
    let org = orgs.page(None, 500).await.expect("answers").into_iter().find(|org| org.slug.as_str() == slug);
    let opened = orgs.secret(&org.expect("there"), "api_key").expect("opens").expect("there");
    assert_eq!(opened.expose_secret(), secret);
}

async fn refused(folder: &Folder, key: &str) -> String {
    let error = Server::start(settings(folder, &[("ORG_MASTER_KEY", key)])).await.expect_err("it is refused");
    assert!(matches!(error, ServeError::Orgs(_)), "{error:?}");
    let error = error.to_string();
    assert!(!error.contains(MASTER_KEY) && !error.contains(OTHER), "{error}");
    error
}

fn rotate(server: &TestServer, key: &str, more: &[(&str, &str)]) -> (Option<i32>, String) {
    let (folder, database) = (Folder::new(), server.folder.database_url());
    let settings = [&[("DATABASE_URL", database.as_str()), ("ORG_MASTER_KEY", key)], more].concat();
    let ended = binary::run(&folder, &["rotate-keys"], &settings);
    let said = binary::text(&ended);
    assert!(!said.contains(MASTER_KEY) && !said.contains(OTHER), "{said}");
    (ended.status.code(), said)
}

/// A server on the database of another.
async fn beside(server: &TestServer, key: &str) -> TestServer {
    let database = server.folder.database_url();
    TestServer::start_in(Folder::new(), &[("DATABASE_URL", &database), ("ORG_MASTER_KEY", key)]).await
}

/// Another master key, or one that is too short, is refused at the start.
#[tokio::test]
async fn another_key_is_refused() {
    let server = TestServer::start().await;
    assert!(refused(&server.folder, OTHER).await.contains("master key"));
    let error = refused(&server.folder, "c2hvcnQ=").await;
    assert!(error.contains("32 bytes") && !error.contains("c2hvcnQ"), "{error}");
}

/// A server that has a new key changes nothing that is stored: those without it go on, and nothing is lost whatever is
/// written meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn servers_with_different_keys_lose_nothing() {
    let old = TestServer::start().await;
    let sealed = by_key(&old).await;
    let new = beside(&old, &both()).await;
    assert_eq!(by_key(&old).await, sealed, "nothing is sealed again by a start");
    assert!(unopened(&old).await.is_empty());
    put_secret(&new, "globex", "stored by the new one").await;
    put_secret(&old, "acme", "stored by the old one").await;
    // A change of another field leaves the secret as it is, also where it cannot be opened.
    old.put_org("globex", json!({ "plan": "pro" })).await.is(200);
    opens_to(&new, "globex", "stored by the new one").await;
    opens_to(&new, "acme", "stored by the old one").await;
    assert!(refused(&old.folder, MASTER_KEY).await.contains("globex/api_key"), "the new key is missing");
    assert!(refused(&old.folder, &second()).await.contains("master key 1"), "the old key is missing");

    let (code, said) = rotate(&old, &both(), &[]);
    assert_eq!(code, Some(0), "{said}");
    put_secret(&old, "acme", "stored afterwards by the old one").await;
    let error = refused(&old.folder, &second()).await;
    assert!(error.contains("master key 1") && error.contains("acme/api_key"), "{error}");
    let (code, said) = rotate(&old, &both(), &[]);
    assert_eq!(code, Some(0), "{said}");
    let newest = beside(&old, &second()).await;
    assert!(unopened(&newest).await.is_empty());
    opens_to(&newest, "acme", "stored afterwards by the old one").await;
    opens_to(&newest, "globex", "stored by the new one").await;
    assert_eq!(by_key(&newest).await.into_keys().collect::<Vec<_>>(), [2]);
}

/// The key that seals is the one that is chosen, not the newest.
#[tokio::test(flavor = "multi_thread")]
async fn the_chosen_key_seals() {
    let old = TestServer::start().await;
    let database = old.folder.database_url();
    let ring = both();
    let chosen =
        |id| [("DATABASE_URL", database.as_str()), ("ORG_MASTER_KEY", &ring), ("ORG_MASTER_KEY_CURRENT", id)];
    let new = TestServer::start_in(Folder::new(), &chosen("1")).await;
    put_secret(&new, "acme", "a secret").await;
    assert_eq!(by_key(&old).await.into_keys().collect::<Vec<_>>(), [1]);
    opens_to(&old, "acme", "a secret").await;
    let (code, said) = rotate(&old, &ring, &[("ORG_MASTER_KEY_CURRENT", "2")]);
    assert!(code == Some(0) && said.contains("key 2: "), "{said}");
    let (code, said) = rotate(&old, &ring, &[("ORG_MASTER_KEY_CURRENT", "1")]);
    assert!(code == Some(0) && said.contains("key 1: ") && !said.contains("key 2: "), "{said}");
    for wrong in ["3", "newest"] {
        let (code, said) = rotate(&old, &ring, &[("ORG_MASTER_KEY_CURRENT", wrong)]);
        assert!(code == Some(2) && said.contains("error: ORG_MASTER_KEY_CURRENT"), "{said}");
    }
}

/// A damaged secret keeps nothing from being rotated and no server from starting; it is named, and left as it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_open_is_named_and_left() {
    let server = TestServer::start().await;
    put_secret(&server, "acme", "hunter2-hunter2").await;
    put_secret(&server, "globex", "hunter2-hunter2").await;
    let by_hand = sqlx::SqlitePool::connect(&server.folder.database_url()).await.expect("opened");
    let damage = "UPDATE organizations SET secrets = json_set(secrets, '$.api_key', \
                  (SELECT json_extract(secrets, '$.api_key') FROM organizations WHERE slug = 'globex')) \
                  WHERE slug = 'acme'";
    sqlx::query(damage).execute(&by_hand).await.expect("changed");
    by_hand.close().await;
    let (code, said) = rotate(&server, &both(), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("acme/api_key") && !said.contains("globex/") && !said.contains("hunter2"),
        "{said}"
    );
    let keys = by_key(&server).await;
    assert_eq!(keys[&1], ["acme/api_key"]);
    assert!(
        said.contains("key 1: 1 secret") && said.contains(&format!("key 2: {} secret", keys[&2].len())),
        "{said}"
    );
    let next = beside(&server, &both()).await;
    assert_eq!(unopened(&next).await, ["acme/api_key"]);
    assert!(refused(&server.folder, &second()).await.contains("master key 1"));
    next.put_org("acme", json!({ "secrets": { "api_key": null } })).await.is(200);
    assert_eq!(rotate(&server, &both(), &[]).0, Some(0));
    assert!(unopened(&beside(&server, &second()).await).await.is_empty());
}

/// What was changed or removed since it was read is not replaced, and nothing that was removed comes back.
#[tokio::test]
async fn what_is_written_meanwhile_wins() {
    let server = TestServer::start().await;
    for slug in ["acme", "globex", "a-third"] {
        server.put_org(slug, json!({ "name": "Any" })).await;
        put_secret(&server, slug, "as it was read").await;
    }
    let store = server.state.store();
    let read = store.sealed_page(None, 500).await.expect("answers");
    let read = read.into_iter().filter(|row| ["acme", "globex", "a-third"].contains(&row.slug.as_str()));
    let late =
        |row: SealedRow| (row, SealedSecrets::from([("late".to_owned(), Sealed::from_bytes(vec![1]))]));
    let late: Vec<_> = read.map(late).collect();
    let id = |slug: &str| late.iter().find(|(row, _)| row.slug == slug).expect("read").0.id.clone();
    server.admin(Method::DELETE, "/admin/orgs/acme").send().await.is(204);
    put_secret(&server, "globex", "written meanwhile").await;
    let rename = server.admin(Method::POST, "/admin/orgs/a-third/rename");
    rename.json(&json!({ "slug": "renamed" })).send().await.is(200);

    let resealed = store.reseal(&late).await.expect("answers");
    let mut expected = [id("acme"), id("globex")];
    let mut changed = resealed.changed_meanwhile;
    expected.sort();
    changed.sort();
    assert_eq!(changed, expected);
    assert!(store.org_by_id(&id("acme")).await.expect("answers").is_none(), "it stays removed");
    opens_to(&server, "globex", "written meanwhile").await;
    let renamed = store.org_by_slug("renamed").await.expect("answers").expect("there");
    assert_eq!(renamed.secrets.keys().collect::<Vec<_>>(), ["late"]);
    let (_, names) = resealed.change.expect("one was replaced");
    assert_eq!((names.slugs, names.ids), (["renamed".to_owned()].into(), [id("a-third")].into()));
}

/// What servers and Redis have cached of the old key is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_seen_by_caches() {
    for redis in [None, Some(RedisServer::start())] {
        let ring = both();
        let url = redis.as_ref().map(RedisServer::url);
        let url: Vec<_> = url.iter().map(|url| ("REDIS_URL", url.as_str())).collect();
        let old = [("ORG_MASTER_KEY", ring.as_str()), ("ORG_MASTER_KEY_CURRENT", "1")];
        let server = TestServer::start_with(&[&url[..], &old].concat()).await;
        put_secret(&server, "acme", "a secret").await;
        let cached = || async {
            let resolver = server.state.orgs().resolver();
            let org = resolver.by_slug(&"acme".parse().expect("a slug")).await.expect("there").org;
            org.secrets["api_key"].as_bytes()[4]
        };
        assert_eq!(cached().await, 1);
        let (code, said) = rotate(&server, &ring, &url);
        assert_eq!(code, Some(0), "{said}");
        eventually("it is seen", || async { cached().await == 2 }).await;
    }
}

/// A key file that is lost is not replaced by another key.
#[test]
fn a_lost_key_is_not_replaced() {
    let folder = Folder::new();
    drop(Running::start(&folder, &[]));
    let file = folder.0.join("data/master-key");
    let key = std::fs::read(&file).expect("made");
    std::fs::remove_file(&file).expect("removed");
    for args in [&["serve"][..], &["rotate-keys"]] {
        let ended =
            binary::run(&folder, args, &[("BIND_ADDR", "127.0.0.1:0"), ("ADMIN_BIND_ADDR", "127.0.0.1:0")]);
        let said = binary::text(&ended);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("data/master-key") && said.contains("restore"), "{said}");
        assert!(!file.exists(), "nothing was made");
    }
    std::fs::write(&file, key).expect("restored");
    drop(Running::start(&folder, &[]));
}
