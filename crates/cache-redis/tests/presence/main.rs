//! Presence on a real Redis: what it keeps there, for how long, and what it says when that is not to be had. Every
//! test is in a module `redis`, for it needs one.

mod fleet;

mod redis {
    mod away;
    mod crowds;
    mod keys;
    mod lives;
    mod strange;
}
