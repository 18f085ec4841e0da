//! What several test binaries share.
#![allow(dead_code, unreachable_pub, reason = "each binary uses a part of it")]

pub mod proxy;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_core::prelude::*;
use cache_core::{Clock, FlushReason, Invalidation, InvalidationSink, Subscription};
use cache_redis::{BusPolicy, RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
use conformance::redis_server::RedisServer;
pub use conformance::wait::until;

const TRUST_FOR: Duration = Duration::from_millis(500);

/// What a process heard.
#[derive(Debug, Default)]
pub struct Heard {
    messages: Mutex<Vec<Invalidation>>,
    flushes: Mutex<Vec<FlushReason>>,
}

impl InvalidationSink for Heard {
    fn apply(&self, message: &Invalidation) {
        self.messages.lock().expect("not poisoned").push(message.clone());
    }

    fn flush(&self, reason: FlushReason) {
        self.flushes.lock().expect("not poisoned").push(reason);
    }
}

impl Heard {
    pub fn messages(&self) -> Vec<Invalidation> {
        self.messages.lock().expect("not poisoned").clone()
    }

    pub fn flushed(&self, reason: FlushReason) -> usize {
        let flushes = self.flushes.lock().expect("not poisoned");
        flushes.iter().filter(|other| **other == reason).count()
    }
}

/// One instance: its bus, and what it heard.
pub struct Instance {
    pub bus: Arc<RedisBus>,
    pub heard: Arc<Heard>,
    _subscription: Subscription,
}

impl Instance {
    /// An instance with short times, trusted already.
    pub async fn start(server: &RedisServer) -> Self {
        let instance = Self::start_untrusted(&server.url());
        until("trust", || instance.trusted()).await;
        instance
    }

    pub fn start_untrusted(url: &str) -> Self {
        let settings = RedisSettings::from_url(url).expect("a URL");
        let policy = BusPolicy::default().with_heartbeat(Duration::from_millis(50)).with_trust_for(TRUST_FOR);
        let bus = RedisBus::with_policy(RedisLink::lazy(settings).expect("a link"), policy);
        let heard = Arc::new(Heard::default());
        let subscription = bus.subscribe(heard.clone());
        Self { bus, heard, _subscription: subscription }
    }

    /// The bound that instances here are started with.
    pub fn trust_for(&self) -> Duration {
        TRUST_FOR
    }

    pub fn trusted(&self) -> bool {
        self.bus.trust().near(Clock::system().now())
    }

    pub fn messages(&self) -> Vec<Invalidation> {
        self.heard.messages()
    }

    pub fn flushed(&self, reason: FlushReason) -> usize {
        self.heard.flushed(reason)
    }

    /// Another sink of the same instance.
    pub fn hear_more(&self) -> (Arc<Heard>, Subscription) {
        let heard = Arc::new(Heard::default());
        (heard.clone(), self.bus.subscribe(heard))
    }

    pub fn cache(&self) -> RedisCacheService {
        RedisCacheService::on(self.bus.clone(), RedisCacheOptions::default())
    }
}
