//! The suite every lock backend must pass, on a real Redis.

use std::sync::Arc;

use cache_redis::{RedisBus, RedisLink, RedisLocks, RedisSettings};
use conformance::lock::LockFixture;
use conformance::redis_server::RedisServer;

fn locks() -> Arc<RedisLocks> {
    let settings = RedisSettings::from_url(&RedisServer::shared_url()).expect("a URL");
    let bus = RedisBus::on(RedisLink::lazy(settings).expect("a link"));
    Arc::new(RedisLocks::on(bus))
}

async fn fixture() -> LockFixture {
    LockFixture::new(locks()).with_peer(locks())
}

conformance::lock_suite!(redis, crate::fixture);
