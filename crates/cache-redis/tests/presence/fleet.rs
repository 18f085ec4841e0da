//! A server, instances that share it, and what is seen on it.

use std::time::Duration;

use cache_core::prelude::*;
use cache_core::{Member, PresenceOptions, TenantId, UserId};
use cache_redis::{RedisLink, RedisPresence, RedisSettings};
use conformance::redis_server::RedisServer;
use conformance::resp::Reply;
pub(crate) use conformance::wait::until;

/// The server's keys of the tenant `acme`.
pub(crate) const MEMBERS: &str = "presence:{acme}";
pub(crate) const PAYLOADS: &str = "presence:{acme}:d";

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// The presence of an instance with default options.
pub(crate) fn instance(url: &str) -> RedisPresence {
    instance_for(url, PresenceOptions::default().ttl)
}

/// The presence of an instance that gives members so long.
pub(crate) fn instance_for(url: &str, ttl: Duration) -> RedisPresence {
    let settings = RedisSettings::from_url(url).expect("a URL");
    let link = RedisLink::lazy(settings).expect("a link");
    RedisPresence::with_options(link, PresenceOptions::default().with_ttl(ttl))
}

pub(crate) fn acme() -> TenantId {
    tenant("acme")
}

pub(crate) fn tenant(id: &str) -> TenantId {
    TenantId::new(id).expect("an id")
}

pub(crate) fn ann() -> Member {
    Member { user_id: UserId::new("ann").expect("an id"), connected_at: 7 }
}

/// Joins `acme`.
pub(crate) async fn join(presence: &RedisPresence, connection: &str) {
    presence.join(&acme(), connection, &ann()).await.expect("joined");
}

/// Who is in `acme`.
pub(crate) async fn there(presence: &RedisPresence) -> Vec<String> {
    let list = presence.list(&acme()).await.expect("a list");
    list.iter().map(|present| present.connection.to_string()).collect()
}

/// Makes members of `acme` that end so many milliseconds from now, `<name>1` to `<name><count>`, as if they had
/// joined.
pub(crate) fn seed(server: &RedisServer, name: &str, count: usize, ends: i64) {
    const SEED: &str = "
        local time = redis.call('TIME')
        local ends = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3])
        for n = 1, tonumber(ARGV[2]) do
          redis.call('ZADD', KEYS[1], ends, ARGV[1] .. n)
          redis.call('HSET', KEYS[2], ARGV[1] .. n, '{\"user_id\":\"ann\",\"connected_at\":7}')
        end
        redis.call('PEXPIRE', KEYS[1], 240000)
        return redis.call('PEXPIRE', KEYS[2], 240000)";
    let (count, ends) = (count.to_string(), ends.to_string());
    let seeded = server.command(&["EVAL", SEED, "2", MEMBERS, PAYLOADS, name, &count, &ends]);
    assert_eq!(seeded, Reply::Integer(1));
}

pub(crate) fn number(server: &RedisServer, command: &[&str]) -> i64 {
    match server.command(command) {
        Reply::Integer(number) => number,
        other => panic!("{command:?}: {other:?}"),
    }
}

/// How many members and how many payloads of `acme` are kept, dead ones included.
pub(crate) fn kept(server: &RedisServer) -> (i64, i64) {
    (number(server, &["ZCARD", MEMBERS]), number(server, &["HLEN", PAYLOADS]))
}

/// When a member of `acme` ends, in milliseconds of the server's clock.
pub(crate) fn end_of(server: &RedisServer, connection: &str) -> i64 {
    let score = server.command(&["ZSCORE", MEMBERS, connection]).text().expect("a member");
    score.parse().expect("a whole number")
}

/// The server's clock, in milliseconds.
pub(crate) fn now(server: &RedisServer) -> i64 {
    let time = server.command(&["TIME"]);
    let part = |n: usize| -> i64 { time.items()[n].text().expect("text").parse().expect("a number") };
    part(0) * 1_000 + part(1) / 1_000
}
