//! The suite every backend of rate limits must pass, on a real Redis.

use std::sync::Arc;

use cache_redis::{RedisLink, RedisRateLimits, RedisSettings};
use conformance::rate_limit::RateLimitFixture;
use conformance::redis_server::RedisServer;

fn limits() -> Arc<RedisRateLimits> {
    let settings = RedisSettings::from_url(&RedisServer::shared_url()).expect("a URL");
    Arc::new(RedisRateLimits::on(RedisLink::lazy(settings).expect("a link")))
}

async fn fixture() -> RateLimitFixture {
    RateLimitFixture::new(limits()).with_peer(limits())
}

conformance::rate_limit_suite!(redis, crate::fixture);
