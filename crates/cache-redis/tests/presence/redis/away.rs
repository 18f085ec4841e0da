//! Redis dead, frozen, restarted, full.

use std::time::{Duration, Instant};

use cache_core::prelude::*;
use cache_core::{BackendErrorKind, PresenceError};
use cache_redis::RedisPresence;
use conformance::proxy::{Direction, Gate, Proxy};
use conformance::redis_server::RedisServer;

use crate::fleet::{SECOND, acme, ann, instance, join, kept, there, until};

/// Every operation, with the error it answered and the time it took.
async fn refusals(presence: &RedisPresence) -> Vec<(PresenceError, Duration)> {
    let mut refusals = Vec::new();
    let tenant = acme();
    for operation in 0..5 {
        let asked = Instant::now();
        let answer = match operation {
            0 => presence.join(&tenant, "c", &ann()).await,
            1 => presence.heartbeat(&tenant, "c").await.map(drop),
            2 => presence.leave(&tenant, "c").await.map(drop),
            3 => presence.list(&tenant).await.map(drop),
            _ => presence.count(&tenant).await.map(drop),
        };
        refusals.push((answer.expect_err("Redis is away"), asked.elapsed()));
    }
    refusals
}

fn assert_in_time(refusals: &[(PresenceError, Duration)]) {
    for (error, took) in refusals {
        let PresenceError::Backend(error) = error else { panic!("{error:?}") };
        assert!(
            matches!(error.kind, BackendErrorKind::Unavailable | BackendErrorKind::CircuitOpen),
            "{error:?}"
        );
        assert!(*took < 2 * SECOND, "{error} after {took:?}");
    }
}

/// Joins when Redis is back, as one does that tries again.
async fn until_joined(presence: &RedisPresence) {
    let deadline = Instant::now() + 20 * SECOND;
    while let Err(error) = presence.join(&acme(), "c", &ann()).await {
        assert!(Instant::now() < deadline, "still: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// C5, SC5: with Redis dead every operation says so within its deadline, and works again by itself when Redis is
/// back. One that is back empty knows nobody: the heartbeat says so, and who joins again is there.
#[tokio::test]
async fn a_dead_server_is_said_and_a_restarted_one_is_joined_anew() {
    let mut server = RedisServer::start();
    let presence = instance(&server.url());
    join(&presence, "c").await;
    server.kill();
    for _ in 0..3 {
        assert_in_time(&refusals(&presence).await);
    }
    server.restart();
    let deadline = Instant::now() + 20 * SECOND;
    let known = loop {
        match presence.heartbeat(&acme(), "c").await {
            Ok(known) => break known,
            Err(error) => assert!(Instant::now() < deadline, "still: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(!known, "it must join again");
    assert_eq!(there(&presence).await, [""; 0]);
    join(&presence, "c").await;
    assert!(presence.heartbeat(&acme(), "c").await.expect("beaten"));
    assert_eq!(there(&presence).await, ["c"]);
}

/// C5: a server that is frozen costs each call its deadline, and no more.
#[tokio::test]
async fn a_frozen_server_costs_the_deadline() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    join(&presence, "c").await;
    server.pause();
    assert_in_time(&refusals(&presence).await);
    server.resume();
    until_joined(&presence).await;
    assert_eq!(there(&presence).await, ["c"]);
}

/// C3: a connection that the server closed while idle costs nobody an error, nor a member.
#[tokio::test]
async fn an_idle_connection_that_was_closed_is_no_error() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    let close = || server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    join(&presence, "c").await;
    close();
    assert!(presence.heartbeat(&acme(), "c").await.expect("beaten"));
    close();
    assert_eq!(there(&presence).await, ["c"]);
    close();
    assert!(presence.leave(&acme(), "c").await.expect("left"));
}

/// C3, C6: a call whose answer was lost with its connection is made again; twice does no harm. Only who leaves then
/// hears that it was not there any more.
#[tokio::test]
async fn a_call_that_is_made_twice_does_no_harm() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let (presence, other) = (instance(&format!("redis://{}", proxy.address())), instance(&server.url()));
    let tenant = acme();
    let scripts_are_known = async {
        join(&other, "warm").await;
        other.heartbeat(&tenant, "warm").await.expect("beaten");
        other.leave(&tenant, "warm").await.expect("left");
    };
    scripts_are_known.await;
    let asked = || server.info("commandstats", "cmdstat_evalsha").expect("asked before");
    for (operation, expected) in ["join", "heartbeat", "leave"].into_iter().zip([true, true, false]) {
        presence.count(&tenant).await.expect("a connection");
        proxy.set(Direction::ToClient, Gate::Hold);
        let before = asked();
        let call = async {
            match operation {
                "join" => presence.join(&tenant, "c", &ann()).await.map(|()| true),
                "heartbeat" => presence.heartbeat(&tenant, "c").await,
                _ => presence.leave(&tenant, "c").await,
            }
        };
        let lose_the_answer = async {
            until("the question", || asked() != before).await;
            let once = asked();
            proxy.cut().await;
            proxy.set(Direction::ToClient, Gate::Pass);
            once
        };
        let (answer, once) = tokio::join!(call, lose_the_answer);
        assert_eq!(answer.expect("an answer to the second"), expected, "{operation}");
        assert_ne!(asked(), once, "{operation}: it was asked twice");
        let there = if operation == "leave" { 0 } else { 1 };
        assert_eq!(kept(&server), (there, there), "{operation}");
    }
}

/// SC11: a server without memory refuses who comes, says so, and lets go who leaves; nobody is half there.
#[tokio::test]
async fn a_full_server_refuses_who_comes_and_not_who_leaves() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    join(&presence, "c").await;
    join(&presence, "d").await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for refused in
        [presence.join(&acme(), "new", &ann()).await.map(|()| true), presence.heartbeat(&acme(), "c").await]
    {
        let full = matches!(&refused, Err(PresenceError::Backend(error)) if error.kind == BackendErrorKind::OutOfMemory);
        assert!(full, "{refused:?}");
    }
    assert_eq!(there(&presence).await, ["c", "d"]);
    assert!(presence.leave(&acme(), "d").await.expect("left"));
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(presence.heartbeat(&acme(), "c").await.expect("beaten"));
    assert_eq!(there(&presence).await, ["c"]);
}
