//! The suite every presence backend must pass, on a real Redis.

use std::sync::Arc;
use std::time::Duration;

use cache_core::PresenceOptions;
use cache_redis::{RedisLink, RedisPresence, RedisSettings};
use conformance::presence::PresenceFixture;
use conformance::redis_server::RedisServer;

/// Moves the end of every life under a prefix, as if so much time had passed for it.
const PASS: &str = "
    for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
      if redis.call('TYPE', key).ok == 'zset' then
        for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
          redis.call('ZINCRBY', key, -ARGV[2], member)
        end
      end
      redis.call('PEXPIRE', key, redis.call('PTTL', key) - ARGV[2])
    end";

async fn fixture() -> PresenceFixture {
    let prefix = format!("t{:016x}:", rand::random::<u64>());
    let settings = || {
        RedisSettings::from_url(&RedisServer::shared_url())
            .and_then(|settings| settings.with_key_prefix(prefix.clone()))
            .expect("settings")
    };
    let presence = || Arc::new(RedisPresence::on(RedisLink::lazy(settings()).expect("a link")));
    let link = RedisLink::lazy(settings()).expect("a link");
    let (here, there, prefix) = (presence(), presence(), prefix.clone());
    let pass = move |time: Duration| {
        let (link, prefix) = (link.clone(), prefix.clone());
        let passed = async move {
            let mut connection = link.connection().await.expect("a connection");
            let mut script = ::redis::cmd("EVAL");
            script.arg(PASS).arg(0).arg(prefix).arg(time.as_millis().to_string());
            let () = script.query_async(&mut connection).await.expect("time passes");
        };
        Box::pin(passed) as _
    };
    PresenceFixture::new(here, PresenceOptions::default().ttl, Arc::new(pass)).with_peer(there)
}

conformance::presence_suite!(redis, crate::fixture);
