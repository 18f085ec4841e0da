//! The suite every invalidation bus must pass, on a real Redis.

use std::sync::Arc;

use cache_core::InvalidationBus;
use cache_redis::{RedisBus, RedisLink, RedisSettings};
use conformance::bus::BusFixture;
use conformance::redis_server::RedisServer;

fn bus() -> Arc<dyn InvalidationBus> {
    let settings = RedisSettings::from_url(&RedisServer::shared_url()).expect("a URL");
    RedisBus::on(RedisLink::lazy(settings).expect("a link"))
}

async fn fixture() -> BusFixture {
    BusFixture::new(bus()).with_peer(bus())
}

conformance::bus_suite!(redis, crate::fixture);
