//! A lock's token with a real table, by the statements that `docs/coordination.md` gives.

use std::sync::mpsc;
use std::time::Duration;

use cache_core::prelude::*;
use cache_core::{FencingToken, LockGuard, LockOptions};
use cache_redis::{RedisBus, RedisLink, RedisLocks, RedisSettings};
use conformance::redis_server::RedisServer;
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;

use crate::common::Folder;

/// The statements of the document: the table, and the write under the lock.
fn statements() -> [&'static str; 2] {
    let mut blocks = include_str!("../../../../docs/coordination.md").split("```sql\n").skip(1);
    let mut next = || blocks.next().and_then(|block| block.split("```").next()).expect("a statement");
    [next(), next()]
}

/// Takes the lock in a process that shares the Redis.
async fn take(url: &str) -> LockGuard {
    let link = RedisLink::lazy(RedisSettings::from_url(url).expect("a URL")).expect("a link");
    let options = LockOptions::default().with_ttl(Duration::from_millis(300));
    RedisLocks::on(RedisBus::on(link)).acquire("accounts/1", &options).await.expect("the lock")
}

/// Writes as the document says; whether the row took it.
async fn write(accounts: &SqlitePool, fence: FencingToken, balance: i64) -> bool {
    let [_, update] = statements();
    let fence = i64::try_from(fence.0).expect("microseconds since 1970");
    let done = sqlx::query(update).bind("1").bind(fence).bind(balance).execute(accounts).await;
    done.expect("the statement is right").rows_affected() == 1
}

/// F5, SH7: a holder that is frozen past its TTL, and whose write comes after another's, changes nothing; each
/// holder in its time writes as often as it likes.
#[tokio::test]
async fn a_frozen_holders_late_write_is_refused_by_the_table() {
    let (redis, folder) = (RedisServer::start(), Folder::new());
    let file = SqliteConnectOptions::new().filename(folder.0.join("accounts.db")).create_if_missing(true);
    let accounts = SqlitePool::connect_with(file.clone()).await.expect("a database");
    sqlx::query(statements()[0]).execute(&accounts).await.expect("the table");
    sqlx::query("INSERT INTO accounts (id, balance) VALUES ('1', 100)")
        .execute(&accounts)
        .await
        .expect("a row");

    let ((told, held), (thaw, thawed), url) = (mpsc::channel(), mpsc::channel::<()>(), redis.url());
    let frozen = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let accounts = SqlitePool::connect_with(file).await.expect("a database");
            let guard = take(&url).await;
            assert!(write(&accounts, guard.fence(), 90).await && write(&accounts, guard.fence(), 80).await);
            told.send(()).expect("the test waits");
            // The whole process stands still between its check and its write.
            thawed.recv().expect("thawed");
            assert!(!write(&accounts, guard.fence(), 0).await, "the row has seen a higher token");
        });
    });
    tokio::task::spawn_blocking(move || held.recv().expect("held")).await.expect("joined");
    let other = take(&redis.url()).await;
    assert!(write(&accounts, other.fence(), 70).await, "its time has come");
    thaw.send(()).expect("it is there");
    tokio::task::spawn_blocking(move || frozen.join()).await.expect("joined").expect("no panic");

    let balance: i64 = sqlx::query_scalar("SELECT balance FROM accounts WHERE id = '1'")
        .fetch_one(&accounts)
        .await
        .expect("it");
    assert_eq!(balance, 70, "the late write did nothing");
    assert!(write(&accounts, other.fence(), 60).await, "the holder goes on");
    other.release().await.expect("still held");
}
