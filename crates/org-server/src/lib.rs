//! # The reference server: orgs resolved, cached and kept coherent
//!
//! The layer at work in one small service. `cargo run -p org-server` needs no settings.
//!
//! | you look for | module |
//! |---|---|
//! | the commands, and running them | [`cli`], [`run`] |
//! | the settings | [`settings`] |
//! | starting, answering, stopping | [`serve`] |
//! | connections: accepting them, their places and deadlines | [`accept`] |
//! | the routes, and what they share | [`routes`], [`state`] |
//! | connections to release when it stops | [`connections`] |
//! | organisations: caches, sealed secrets, tokens | [`orgs`] |
//! | what an organisation may consist of | [`draft`] |
//! | organisations from a file | [`import`] |
//! | the database | [`store`] |
//! | what the first start makes | [`first_start`] |
//! | logs and metrics | [`telemetry`] |

pub mod accept;
pub mod cli;
pub mod connections;
pub mod draft;
pub mod first_start;
pub mod import;
pub mod orgs;
pub mod routes;
pub mod run;
pub mod serve;
pub mod settings;
pub mod state;
pub mod store;
pub mod telemetry;
