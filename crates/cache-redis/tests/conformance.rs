//! The suite every cache backend must pass, on a real Redis.

use std::sync::Arc;

use cache_redis::{RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
use conformance::cache::{CacheFixture, MAX_VALUE_BYTES, Time};
use conformance::redis_server::RedisServer;

fn service() -> Arc<RedisCacheService> {
    let settings = RedisSettings::from_url(&RedisServer::shared_url()).expect("a URL");
    let bus = RedisBus::on(RedisLink::lazy(settings).expect("settings"));
    let options = RedisCacheOptions::default().with_max_value_bytes(MAX_VALUE_BYTES);
    Arc::new(RedisCacheService::on(bus, options))
}

async fn fixture() -> CacheFixture {
    CacheFixture::new(service(), Time::Real).with_peer(service())
}

conformance::cache_suite!(redis, crate::fixture);
