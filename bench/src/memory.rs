//! Bytes of memory for an entry.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

use anyhow::Result;
use cache_core::Scope;
use tenant_cache::{Caches, RequestScope, TenantCache};

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{HOUR, request, runtime};

/// Counted only while it is asked for: two threads that count in one place slow each other down, and every row
/// would pay for it.
static COUNTED: AtomicBool = AtomicBool::new(false);
static HELD: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator, with a count of what is held.
pub struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count(bytes: isize) {
    if COUNTED.load(Ordering::Relaxed) {
        HELD.fetch_add(bytes, Ordering::Relaxed);
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
    HELD.store(0, Ordering::Relaxed);
    COUNTED.store(true, Ordering::Relaxed);
    let filled = fill();
    COUNTED.store(false, Ordering::Relaxed);
    drop(filled);
    HELD.load(Ordering::Relaxed) as f64 / entries as f64
}
