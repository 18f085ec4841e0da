//! What is counted and told of locks.

use std::io;
use std::sync::{Arc, Mutex};

use cache_core::LockOptions;
use cache_core::prelude::*;
use conformance::redis_server::RedisServer;
use metrics_exporter_prometheus::PrometheusBuilder;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::fleet::{OWNER, instance, ms, ttl, until};

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// M1, M3: waits, time-outs and losses are counted, waits have a span, and nothing names the key.
#[tokio::test]
async fn waits_time_outs_and_losses_are_told() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _counting = metrics::set_default_local_recorder(Box::leak(Box::new(recorder)));
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(move || writer.clone())
        .finish();
    let _tracing = tracing::subscriber::set_default(subscriber);

    let server = RedisServer::start();
    let locks = instance(&server.url());
    let secret = "card-4111";
    let guard = locks.acquire(secret, &LockOptions::default()).await.expect("the lock");
    let hasty = LockOptions::default().with_wait(ms(30));
    locks.acquire(secret, &hasty).await.expect_err("it is held");
    guard.release().await.expect("released");
    let lost = locks.acquire("k", &ttl(ms(90))).await.expect("the lock");
    server.command(&["DEL", OWNER]);
    lost.lost().await;
    until("the count", || metrics.render().contains("lock_lost_total 1")).await;

    let counted = metrics.render();
    assert!(counted.contains("lock_wait_seconds_count 2"), "{counted}");
    assert!(counted.contains("lock_timeouts_total 1"), "{counted}");
    let log = String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("text");
    assert!(log.contains("lock_wait") && log.contains("a lock was lost"), "{log}");
    assert!(!log.contains(secret) && !counted.contains(secret));
}
