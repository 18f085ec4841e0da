//! # What every backend must pass
//!
//! For tests only. Each suite is a library: one named case per function, run by every backend through a macro
//! that makes a test of each, at the path `<backend>::<suite>::<case>`.
//!
//! | you look for | module |
//! |---|---|
//! | real Redis servers on free ports | [`redis_server`] |
//! | a few lines of Redis protocol | [`resp`] |

pub mod redis_server;
pub mod resp;
