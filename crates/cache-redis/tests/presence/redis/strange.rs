//! What others put under the keys of presence.

use cache_core::prelude::*;
use cache_core::{BackendErrorKind, PresenceError};
use conformance::redis_server::RedisServer;

use crate::fleet::{MEMBERS, PAYLOADS, acme, ann, instance, join, there};

fn is_wrong_type<T>(answer: &Result<T, PresenceError>) -> bool {
    matches!(answer, Err(PresenceError::Backend(error)) if error.kind == BackendErrorKind::WrongType)
}

/// A7: something else under a key of presence is said as what it is by every operation, and is not touched.
#[tokio::test]
async fn something_else_under_the_keys_is_a_typed_error() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    let strange: [&[&str]; 9] = [
        &["SET", MEMBERS, "another program's"],
        &["SET", MEMBERS, "another program's", "PX", "60000"],
        &["HSET", MEMBERS, "c", "v"],
        &["ZADD", MEMBERS, "1", "first", "2", "second"],
        &["RPUSH", PAYLOADS, "v"],
        &["SET", PAYLOADS, "another program's", "PX", "60000"],
        &["ZADD", PAYLOADS, "1", "c"],
        &["HSET", PAYLOADS, "c", "v"],
        &["SADD", PAYLOADS, "c"],
    ];
    for there_before in [false, true] {
        for command in strange {
            let key = command[1];
            if there_before {
                join(&presence, "c").await;
                server.command(&["DEL", key]);
            }
            server.command(command);
            let dump = || [MEMBERS, PAYLOADS].map(|key| server.command(&["DUMP", key]));
            let before = dump();
            assert!(is_wrong_type(&presence.join(&acme(), "c", &ann()).await), "{command:?}");
            assert!(is_wrong_type(&presence.heartbeat(&acme(), "c").await), "{command:?}");
            assert!(is_wrong_type(&presence.leave(&acme(), "c").await), "{command:?}");
            assert!(is_wrong_type(&presence.list(&acme()).await), "{command:?}");
            assert!(is_wrong_type(&presence.count(&acme()).await), "{command:?}");
            assert_eq!(dump(), before, "{command:?}");
            server.command(&["DEL", MEMBERS, PAYLOADS]);
            join(&presence, "c").await;
            assert_eq!(there(&presence).await, ["c"], "an ordinary tenant again");
            server.command(&["DEL", MEMBERS, PAYLOADS]);
        }
    }
}

/// A7: a payload that cannot be read is said, not left out in silence, and not repeated; joining again mends it.
#[tokio::test]
async fn a_payload_of_somebody_else_is_a_typed_error() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    join(&presence, "other").await;
    for payload in [
        "",
        "hunter2",
        "{}",
        r#"{"user_id":"","connected_at":1}"#,
        r#"{"user_id":"hunter2","connected_at":-1}"#,
    ] {
        join(&presence, "c").await;
        server.command(&["HSET", PAYLOADS, "c", payload]);
        let answer = presence.list(&acme()).await;
        assert!(is_wrong_type(&answer), "{payload}: {answer:?}");
        assert!(!format!("{answer:?} {}", answer.as_ref().expect_err("refused")).contains("hunter2"));
        assert_eq!(presence.count(&acme()).await.expect("counted"), 2);
        join(&presence, "c").await;
        assert_eq!(there(&presence).await, ["c", "other"]);
    }
    server.command(&["HSET", PAYLOADS, "c", r#"{"user_id":"ann","connected_at":1,"of a later version":[]}"#]);
    assert_eq!(there(&presence).await, ["c", "other"]);
    server.command(&["ZADD", MEMBERS, "99999999999999", "a\nb"]);
    server.command(&["HSET", PAYLOADS, "a\nb", r#"{"user_id":"ann","connected_at":1}"#]);
    assert!(is_wrong_type(&presence.list(&acme()).await), "no connection of ours");
}

/// H1: payloads nobody stands behind are nobody's.
#[tokio::test]
async fn payloads_alone_are_no_members() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    join(&presence, "c").await;
    server.command(&["HSET", PAYLOADS, "ghost", "{"]);
    assert_eq!(there(&presence).await, ["c"]);
    assert_eq!(presence.count(&acme()).await.expect("counted"), 1);
    assert!(!presence.heartbeat(&acme(), "ghost").await.expect("beaten"));
    assert!(!presence.leave(&acme(), "ghost").await.expect("left"));
}
