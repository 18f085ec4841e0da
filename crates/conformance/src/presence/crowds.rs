//! Many members, and many at the same time.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cache_core::TenantId;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::{PresenceFixture, connections, member};

/// Joins `0..count` in several tasks, on both instances; answers their names in order.
async fn crowd(f: &PresenceFixture, tenant: &TenantId, count: usize) -> Vec<String> {
    let mut tasks = JoinSet::new();
    for part in 0..16 {
        let presence = if part % 2 == 0 { f.presence.clone() } else { f.peer.clone() };
        let tenant = tenant.clone();
        tasks.spawn(async move {
            for n in (part..count).step_by(16) {
                let connection = format!("c{n:05}");
                presence.join(&tenant, &connection, &member(&connection)).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    (0..count).map(|n| format!("c{n:05}")).collect()
}

/// H1: a listing is complete and in order however many there are, each with its own.
pub async fn many_members_are_listed_completely(f: PresenceFixture) {
    let t = f.tenant("a");
    let all = crowd(&f, &t, 2_500).await;
    assert_eq!(f.there(&t).await, all);
    for present in f.presence.list(&t).await.unwrap() {
        assert_eq!(present.member, member(&present.connection));
    }
}

/// H1: who is there all the time is in every listing, once, while others join, beat and leave between.
pub async fn a_listing_misses_nobody_while_others_come_and_go(f: PresenceFixture) {
    let t = f.tenant("a");
    let steady = crowd(&f, &t, 1_500).await;
    let (stop, mut restless) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    for task in 0..8 {
        let (presence, tenant, stop) = (f.peer.clone(), t.clone(), Arc::clone(&stop));
        let steady = steady.clone();
        restless.spawn(async move {
            let mut turn = task;
            while !stop.load(Ordering::Relaxed) {
                for n in 0..40 {
                    // Among the others in the order, and before some of them.
                    let connection = format!("c{:05}-{task}", (turn * 7 + n * 37) % 1_500);
                    presence.join(&tenant, &connection, &member("restless")).await.unwrap();
                    assert!(presence.heartbeat(&tenant, &steady[(turn + n) % 1_500]).await.unwrap());
                    if n % 4 > 0 {
                        assert!(presence.leave(&tenant, &connection).await.unwrap());
                    }
                }
                turn += 8;
                // In process nothing else yields: aborted when the case fails, it must end.
                tokio::task::yield_now().await;
            }
        });
    }
    for _ in 0..12 {
        let listed = connections(&f.presence.list(&t).await.unwrap());
        assert!(listed.is_sorted_by(|a, b| a < b), "in order, and each once");
        let missed = steady.iter().find(|name| listed.binary_search(name).is_err());
        assert_eq!(missed, None);
    }
    stop.store(true, Ordering::Relaxed);
    restless.join_all().await;
}

/// H1: whatever joins and leaves at the same time, on both instances, those who are left are those who stayed.
pub async fn parallel_joins_and_leaves_all_count(f: PresenceFixture) {
    let t = f.tenant("a");
    let (start, mut tasks) = (Arc::new(Barrier::new(32)), JoinSet::new());
    for task in 0..32_u32 {
        let (here, there) = (f.presence.clone(), f.peer.clone());
        let (tenant, start) = (t.clone(), Arc::clone(&start));
        tasks.spawn(async move {
            let connection = format!("c{task:02}");
            start.wait().await;
            for round in 0..20 {
                let (join, leave) = if round % 2 == 0 { (&here, &there) } else { (&there, &here) };
                join.join(&tenant, &connection, &member(&connection)).await.unwrap();
                assert!(leave.heartbeat(&tenant, &connection).await.unwrap());
                if round < 19 || task % 2 == 0 {
                    assert!(leave.leave(&tenant, &connection).await.unwrap());
                }
            }
        });
    }
    tasks.join_all().await;
    let stayed: Vec<_> = (0..32).filter(|task| task % 2 == 1).map(|task| format!("c{task:02}")).collect();
    assert_eq!(f.there(&t).await, stayed);
}

/// H1: of many who remove the same member at the same time, one hears that it was there.
pub async fn of_parallel_leaves_one_finds_it(f: PresenceFixture) {
    let t = f.tenant("a");
    for _ in 0..10 {
        f.join(&t, "c").await;
        let (found, mut tasks) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        for task in 0..16 {
            let presence = if task % 2 == 0 { f.presence.clone() } else { f.peer.clone() };
            let (tenant, found) = (t.clone(), Arc::clone(&found));
            tasks.spawn(async move {
                let left = presence.leave(&tenant, "c").await.unwrap();
                found.fetch_add(usize::from(left), Ordering::Relaxed);
            });
        }
        tasks.join_all().await;
        assert_eq!(found.load(Ordering::Relaxed), 1);
    }
    assert_eq!(f.there(&t).await, [""; 0]);
}

/// H1, SH5: a call that is dropped on its way may have happened, and nothing else is left of it: everything
/// works, and who leaves is gone.
pub async fn dropped_calls_leave_nothing(f: PresenceFixture) {
    let t = f.tenant("a");
    f.join(&t, "steady").await;
    for round in 0..60 {
        let patience = Duration::from_micros(round * 10);
        let impatient = async {
            f.join(&t, "c").await;
            f.presence.heartbeat(&t, "c").await.unwrap();
            f.presence.list(&t).await.unwrap();
            f.presence.leave(&t, "c").await.unwrap();
        };
        let _ = tokio::time::timeout(patience, impatient).await;
        f.presence.leave(&t, "c").await.unwrap();
        assert_eq!(f.there(&t).await, ["steady"], "after {patience:?}");
    }
    f.join(&t, "c").await;
    assert_eq!(f.there(&t).await, ["c", "steady"]);
}
