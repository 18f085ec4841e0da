//! Bytes of memory for an entry.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use cache_core::Scope;
use tenant_cache::{Caches, RequestScope, TenantCache};

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{HOUR, request, runtime};

static HELD: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a count of what is held.
pub struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const ENTRIES: usize = 100_000;

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let runtime = runtime(1);
    let entries = ENTRIES / size.less;
    let mut row = Measured::new("memory_per_entry", "bytes");
    for _ in 0..size.rounds {
        row.add(
            "ours",
            per_entry(entries, || {
                let cache: TenantCache<String, u64> = Caches::in_memory()
                    .domain("m")
                    .scope(Scope::Tenant)
                    .ttl(HOUR)
                    .capacity(entries)
                    .load(|_: String| async { Ok::<_, std::io::Error>(Some(1)) })
                    .expect("a definition");
                runtime.block_on(request().scope(async {
                    for n in 0..entries {
                        cache.get(&key(n)).await.expect("it is loaded");
                    }
                }));
                Box::new(cache)
            }),
        );
        row.add(
            "moka::future",
            per_entry(entries, || {
                let cache: moka::future::Cache<String, Arc<u64>> =
                    moka::future::Cache::builder().max_capacity(entries as u64).time_to_live(HOUR).build();
                runtime.block_on(async {
                    for n in 0..entries {
                        cache.insert(key(n), Arc::new(1)).await;
                    }
                    cache.run_pending_tasks().await;
                });
                Box::new(cache)
            }),
        );
    }
    report.finish(row);
    Ok(())
}

fn key(n: usize) -> String {
    format!("org-{n:07}")
}

fn per_entry(entries: usize, fill: impl FnOnce() -> Box<dyn std::any::Any>) -> f64 {
    let before = HELD.load(Ordering::Relaxed);
    let filled = fill();
    let held = HELD.load(Ordering::Relaxed).saturating_sub(before);
    drop(filled);
    held as f64 / entries as f64
}
