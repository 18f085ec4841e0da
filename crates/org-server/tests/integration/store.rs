//! The database: what is stored is found, limits hold, and nothing is half done.

use std::time::Duration;

use org_resolution::secret::Sealed;
use org_server::store::{OrgRow, Store, StoreError, StorePolicy, TokenRow};

use crate::common::Folder;

async fn opened(folder: &Folder) -> Store {
    Store::open(&folder.database_url(), StorePolicy::default()).await.expect("a new database")
}

fn org(slug: &str) -> OrgRow {
    OrgRow {
        id: format!("id-{slug}"),
        slug: slug.into(),
        name: slug.to_uppercase(),
        plan: "pro".into(),
        status: "active".into(),
        settings: serde_json::from_str(r#"{"locale": "en-GB", "n": [1, 2]}"#).expect("JSON"),
        secrets: [("webhook_key".to_owned(), Sealed::from_bytes(vec![0, 159, 255]))].into(),
        custom_domain: None,
        token_generation: 0,
        created_at: 1,
        updated_at: 1,
    }
}

async fn put(store: &Store, row: OrgRow) -> Result<org_server::store::OrgWrite, StoreError> {
    let slug = row.slug.clone();
    store.put_org(&slug, |_| Ok(row)).await
}

async fn import(store: &Store, rows: &[OrgRow]) -> Result<(), (usize, StoreError)> {
    let change = |at: usize, _: Option<&OrgRow>| Ok(rows[at].clone());
    store.import_orgs(rows.iter().map(|row| row.slug.as_str()), change).await.map(drop)
}

/// L1: the folder and the file are made, and what is stored survives a restart.
#[tokio::test]
async fn a_database_is_made_and_kept() {
    let folder = Folder::new();
    let store = opened(&folder).await;
    let written = put(&store, org("acme")).await.expect("stored");
    assert!(written.before.is_none());
    store.close().await;
    let store = opened(&folder).await;
    let found = store.org_by_slug("acme").await.expect("answers").expect("there");
    assert_eq!(found, written.row);
    assert_eq!(store.org_by_id("id-acme").await.expect("answers"), Some(found));
    assert_eq!(store.org_by_slug("nobody").await.expect("answers"), None);
    assert_eq!(store.org_count().await.expect("answers"), 1);
    assert!(store.ping().await.expect("answers") < Duration::from_secs(2));
}

/// L1: a database in memory is one database, also for many callers at once.
#[tokio::test]
async fn a_database_in_memory_is_one_database() {
    let store = Store::open("sqlite::memory:", StorePolicy::default()).await.expect("opened");
    put(&store, org("acme")).await.expect("stored");
    let looks = (0..20).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.org_by_slug("acme").await.expect("answers").is_some() })
    });
    for look in looks.collect::<Vec<_>>() {
        assert!(look.await.expect("no panic"));
    }
}

/// L2: an update sees and answers what was there, and keeps the id.
#[tokio::test]
async fn an_update_answers_what_was_there() {
    let folder = Folder::new();
    let store = opened(&folder).await;
    put(&store, org("acme")).await.expect("stored");
    let written = store
        .put_org::<StoreError>("acme", |before| {
            Ok(OrgRow { status: "suspended".into(), ..before.expect("there").clone() })
        })
        .await
        .expect("stored");
    assert_eq!(written.before.expect("there").status, "active");
    assert_eq!((written.row.id.as_str(), written.row.status.as_str()), ("id-acme", "suspended"));
}

/// L2: slugs and custom domains belong to one organisation; renaming a missing one is told.
#[tokio::test]
async fn slugs_and_domains_are_unique() {
    let folder = Folder::new();
    let store = opened(&folder).await;
    let with_domain = |slug: &str| OrgRow { custom_domain: Some("a.example.com".into()), ..org(slug) };
    put(&store, with_domain("a")).await.expect("stored");
    put(&store, org("b")).await.expect("stored");
    let taken = put(&store, with_domain("c")).await.expect_err("taken");
    assert!(matches!(taken, StoreError::Taken { what: "custom_domain" }), "{taken:?}");
    let taken = store.rename_org("a", "b").await.expect_err("taken");
    assert!(matches!(taken, StoreError::Taken { what: "slug" }), "{taken:?}");
    assert_eq!(store.rename_org("nobody", "b").await.expect("answers"), None);
    assert_eq!(store.rename_org("a", "d").await.expect("answers").expect("there").row.id, "id-a");
    assert_eq!(store.org_by_domain("a.example.com").await.expect("answers").expect("there").slug, "d");
}

/// L2: pages follow each other in the order of slugs, without gaps or repetitions.
#[tokio::test]
async fn pages_follow_each_other() {
    let folder = Folder::new();
    let store = opened(&folder).await;
    let rows: Vec<OrgRow> = ["c", "a", "e", "b", "d"].map(org).into();
    import(&store, &rows).await.expect("stored");
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = store.org_page(after.as_deref(), 2).await.expect("answers");
        let Some(last) = page.last() else { break };
        after = Some(last.slug.clone());
        seen.extend(page.into_iter().map(|row| row.slug));
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
}

/// L1: an import that fails at its last record has stored nothing, and names the record.
#[tokio::test]
async fn nothing_is_half_imported() {
    let folder = Folder::new();
    let store = opened(&folder).await;
    put(&store, org("there")).await.expect("stored");
    let clash = OrgRow { id: "another".into(), ..org("there") };
    let (at, error) = import(&store, &[org("a"), org("b"), clash]).await.expect_err("taken");
    assert!(at == 2 && matches!(error, StoreError::Taken { what: "slug" }), "{at} {error:?}");
    let clash = OrgRow { id: "id-there".into(), ..org("c") };
    let (at, error) = import(&store, &[org("a"), clash]).await.expect_err("taken");
    assert!(at == 1 && matches!(error, StoreError::Taken { what: "id" }), "{at} {error:?}");
    assert_eq!(store.org_count().await.expect("answers"), 1);
}

/// K7: a token is found by its digest only, belongs to its organisation and goes with it.
#[tokio::test]
async fn tokens_are_digests_that_belong_to_an_organisation() {
    let folder = Folder::new();
    let store = opened(&folder).await;
    put(&store, org("acme")).await.expect("stored");
    let token = |id: &str, byte| TokenRow {
        id: id.into(),
        org_id: "id-acme".into(),
        user: "ada".into(),
        scopes: vec!["read".into()],
        digest: [byte; 32],
        cache_digest: [byte + 100; 32],
        expires_at: i64::MAX,
    };
    store.insert_token(&token("1", 1)).await.expect("stored");
    store.insert_token(&token("2", 2)).await.expect("stored");
    assert_eq!(store.token_by_digest(&[1; 32]).await.expect("answers"), Some(token("1", 1)));
    assert_eq!(store.token_by_digest(&[9; 32]).await.expect("answers"), None);
    assert_eq!(store.delete_token("another-org", "1").await.expect("answers"), None);
    assert_eq!(
        store.delete_token("id-acme", "1").await.expect("answers").map(|gone| gone.row),
        Some(token("1", 1))
    );
    assert_eq!(store.token_by_digest(&[1; 32]).await.expect("answers"), None);
    assert!(store.delete_org("acme").await.expect("answers").is_some());
    assert_eq!(store.token_by_digest(&[2; 32]).await.expect("answers"), None);
    let orphan = store.insert_token(&token("3", 3)).await.expect_err("no such organisation");
    assert!(matches!(orphan, StoreError::Unavailable { .. }), "{orphan:?}");
}

/// L1: of several servers that prove the master key at once, all go on with the first one's record.
#[tokio::test]
async fn a_fact_is_stored_once() {
    let folder = Folder::new();
    let store = opened(&folder).await;
    assert_eq!(store.fact("canary").await.expect("answers"), None);
    assert_eq!(store.fact_or_insert("canary", b"first").await.expect("answers"), b"first");
    assert_eq!(store.fact_or_insert("canary", b"second").await.expect("answers"), b"first");
}

/// L1: a database that cannot be used says why, and shows no password.
#[tokio::test]
async fn a_database_that_cannot_be_used_says_why() {
    let open = |url: &'static str| Store::open(url, StorePolicy::default());
    let error = open("postgres://u:hunter2@db/orgs").await.expect_err("not yet").to_string();
    assert!(error.contains("PostgreSQL is not supported yet") && !error.contains("hunter2"), "{error}");
    assert!(matches!(open("mysql://h").await, Err(StoreError::Url { .. })));
    let error = open("sqlite://x?mode=hunter2").await.expect_err("no mode").to_string();
    assert!(error.contains("mode=rwc") && !error.contains("hunter2"), "{error}");
    assert!(matches!(open("sqlite:///nowhere/x.db").await, Err(StoreError::Unavailable { .. })));
    assert!(matches!(open("sqlite:///proc/x/y.db?mode=rwc").await, Err(StoreError::Folder { .. })));
}

/// L4: a writer that waits for another longer than its deadline answers, and nothing is stored.
#[tokio::test]
async fn a_locked_database_answers_by_its_deadline() {
    let folder = Folder::new();
    let first = opened(&folder).await;
    let mut policy = StorePolicy::default();
    policy.deadline = Duration::from_millis(100);
    let second = Store::open(&folder.database_url(), policy).await.expect("opened");
    let (held, entered) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(first.put_org::<StoreError>("acme", |_| {
                entered.wait();
                held.wait();
                Ok(org("acme"))
            }))
        });
        entered.wait();
        let runtime = tokio::runtime::Handle::current();
        let late = std::thread::scope(|inner| {
            inner.spawn(|| runtime.block_on(put(&second, org("late")))).join().expect("no panic")
        });
        assert!(late.expect_err("locked").is_transient());
        held.wait();
        holder.join().expect("no panic").expect("stored");
    });
    // Asked by one that has more time.
    assert_eq!(opened(&folder).await.org_by_slug("late").await.expect("answers"), None);
}
