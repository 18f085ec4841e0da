//! The suite every cache backend must pass, on a real Redis.

use std::sync::Arc;

use cache_redis::{RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
use conformance::cache::{CacheFixture, MAX_VALUE_BYTES, Time};
use conformance::redis_server::RedisServer;

async fn fixture() -> CacheFixture {
    let settings = RedisSettings::from_url(&RedisServer::shared_url()).expect("a URL");
    let bus = RedisBus::on(RedisLink::lazy(settings).expect("settings"));
    let options = RedisCacheOptions::default().with_max_value_bytes(MAX_VALUE_BYTES);
    CacheFixture::new(Arc::new(RedisCacheService::on(bus, options)), Time::Real)
}

conformance::cache_suite!(redis, crate::fixture);
