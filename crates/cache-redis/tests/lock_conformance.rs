//! The suite every lock backend must pass, on a real Redis.

use std::sync::Arc;

use cache_redis::{RedisBus, RedisLink, RedisLocks, RedisSettings};
use conformance::lock::LockFixture;
use conformance::redis_server::RedisServer;

async fn fixture() -> LockFixture {
    let settings = RedisSettings::from_url(&RedisServer::shared_url()).expect("a URL");
    let bus = RedisBus::on(RedisLink::lazy(settings).expect("a link"));
    LockFixture::new(Arc::new(RedisLocks::on(bus)))
}

conformance::lock_suite!(redis, crate::fixture);
