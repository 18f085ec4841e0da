//! Rate limits: those of this process, and those of a fleet as one of its processes sees them.
//!
//! | you look for | module |
//! |---|---|
//! | counting in this process | `local` |
//! | counting in a store, with what this process knows by itself | `fleet`: [`FleetRateLimits`] |
//! | the bounded table behind both | `counts` |
//! | what is measured | `meters` |

mod counts;
mod fleet;
mod local;
mod meters;

pub use fleet::{FleetRateLimits, FleetRateLimitsBuilder};
pub(crate) use local::LocalRateLimits;
