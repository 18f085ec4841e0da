//! When members end: by the server's clock, each for itself.

use std::time::{Duration, Instant};

use cache_core::PresenceError;
use cache_core::PresenceOptions;
use cache_core::prelude::*;
use cache_redis::{RedisLink, RedisPresence, RedisSettings};
use conformance::proxy::{Direction, Gate, Proxy};
use conformance::redis_server::RedisServer;

use crate::fleet::{
    MEMBERS, SECOND, acme, end_of, instance, instance_for, join, now, number, seed, there, until,
};

/// An instance behind a proxy, patient enough for what is held there.
fn behind(proxy: &Proxy, ttl: Duration) -> RedisPresence {
    let settings = RedisSettings::from_url(&format!("redis://{}", proxy.address())).expect("a URL");
    let link = RedisLink::lazy(settings.with_response_timeout(10 * SECOND)).expect("a link");
    RedisPresence::with_options(link, PresenceOptions::default().with_ttl(ttl))
}

/// H1: a process that dies tells nobody; its members end a TTL after their last heartbeat, neither later nor sooner.
#[tokio::test]
async fn a_member_of_a_dead_process_does_not_outlive_its_ttl() {
    const TTL: Duration = Duration::from_millis(400);
    let server = RedisServer::start();
    let presence = instance(&server.url());
    let url = server.url();
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let beaten = runtime.block_on(async {
            let dying = instance_for(&url, TTL);
            join(&dying, "c").await;
            let before = Instant::now();
            assert!(dying.heartbeat(&acme(), "c").await.expect("beaten"));
            (before, Instant::now())
        });
        runtime.shutdown_background();
        beaten
    });
    let (before, after) = process.join().expect("it ran");
    loop {
        let asked = Instant::now();
        assert!(asked < after + 20 * SECOND);
        if there(&presence).await.is_empty() {
            break;
        }
        assert!(asked < after + TTL, "listed {:?} too late", asked - after - TTL);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The server counts whole milliseconds.
    assert!(Instant::now() + Duration::from_millis(1) >= before + TTL, "it ended too soon");
    assert!(!presence.heartbeat(&acme(), "c").await.expect("beaten"));
}

/// H1: a heartbeat that is sent in time and arrives too late is too late: it is the server's clock that counts.
#[tokio::test]
async fn a_heartbeat_that_arrives_too_late_is_too_late() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let (slow, other) = (behind(&proxy, Duration::from_millis(500)), instance(&server.url()));
    join(&slow, "c").await;
    proxy.set(Direction::ToServer, Gate::Hold);
    let tenant = acme();
    let mut beating = slow.heartbeat(&tenant, "c");
    let sent = tokio::time::timeout(Duration::from_millis(20), &mut beating).await;
    assert!(sent.is_err(), "it is held");
    while !there(&other).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    proxy.set(Direction::ToServer, Gate::Pass);
    assert!(!beating.await.expect("beaten"));
    assert_eq!(there(&slow).await, [""; 0]);
}

/// H1: the TTL begins when the server hears of it, not when an instance said it by a clock of its own.
#[tokio::test]
async fn a_life_begins_when_the_server_hears_of_it() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let slow = behind(&proxy, 60 * SECOND);
    join(&slow, "warm").await;
    for beat in [false, true] {
        proxy.set(Direction::ToServer, Gate::Hold);
        let mut sent = Box::pin(async {
            if beat {
                assert!(slow.heartbeat(&acme(), "c").await.expect("beaten"));
            } else {
                join(&slow, "c").await;
            }
        });
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut sent).await.is_err(), "it is held");
        let heard_after = now(&server);
        proxy.set(Direction::ToServer, Gate::Pass);
        sent.await;
        let end = end_of(&server, "c");
        assert!((heard_after + 60_000..=now(&server) + 60_000).contains(&end), "{end} after {heard_after}");
    }
}

/// H1: when the server's clock was put back, a member's end lies too far ahead; its next heartbeat sets that right.
#[tokio::test]
async fn a_heartbeat_sets_an_end_too_far_ahead_right() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    join(&presence, "c").await;
    server.command(&["ZINCRBY", MEMBERS, "3600000", "c"]);
    assert!(presence.heartbeat(&acme(), "c").await.expect("beaten"));
    assert!(end_of(&server, "c") <= now(&server) + 120_000);
}

/// H1: members end by themselves while nobody looks; heartbeats of many in one go say which ended.
#[tokio::test]
async fn heartbeats_of_many_are_answered_one_by_one() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    assert_eq!(presence.heartbeat_all(&acme(), &[]).await.expect("nothing to do"), [false; 0]);
    seed(&server, "dead", 5, -1);
    seed(&server, "c", 2_500, 30_000);
    let names: Vec<String> =
        (1..=2_501).map(|n| if n == 1_234 { "dead3".into() } else { format!("c{n}") }).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let answers = presence.heartbeat_all(&acme(), &names).await.expect("beaten");
    let refused: Vec<_> =
        answers.iter().enumerate().filter(|(_, living)| !**living).map(|(at, _)| at).collect();
    assert_eq!((answers.len(), refused), (2_501, vec![1_233, 2_500]));
    assert!(
        end_of(&server, "c1") > now(&server) + 100_000 && end_of(&server, "c2500") > now(&server) + 100_000
    );
    assert!(end_of(&server, "c1234") < now(&server) + 30_000, "nobody beat for it");
    let before = end_of(&server, "c1");
    let refused = presence.heartbeat_all(&acme(), &["c1", "\n"]).await;
    assert!(matches!(refused, Err(PresenceError::InvalidConnection(_))), "{refused:?}");
    assert_eq!(end_of(&server, "c1"), before, "nothing was sent");
}

/// A8: a TTL that cannot be is taken for the longest or the shortest that can.
#[tokio::test]
async fn endless_and_empty_times_are_possible() {
    let server = RedisServer::start();
    let endless = instance_for(&server.url(), Duration::MAX);
    join(&endless, "c").await;
    assert!(endless.heartbeat(&acme(), "c").await.expect("beaten"));
    assert!(number(&server, &["PTTL", MEMBERS]) > 364 * 24 * 3_600_000);
    let empty = instance_for(&server.url(), Duration::ZERO);
    join(&empty, "short").await;
    until("its end", || now(&server) >= end_of(&server, "short")).await;
    assert_eq!(there(&endless).await, ["c"]);
}
