//! Locks on a real Redis under faults: who holds, who waits, and what is left. Every test is in a module `redis`,
//! for it needs one.

mod fleet;

mod redis {
    mod cancelling;
    mod history;
    mod holding;
    mod metrics;
    mod strange;
    mod waiting;
}
