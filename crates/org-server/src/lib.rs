//! # The reference server: orgs resolved, cached and kept coherent
//!
//! The layer at work in one small service. `cargo run -p org-server` needs no settings.
//!
//! | you look for | module |
//! |---|---|
//! | the commands | [`cli`] |
//! | the settings | [`settings`] |
//! | what the first start makes | [`first_start`] |
//! | the database | [`store`] |
//! | what an organisation may consist of | [`draft`] |
//! | organisations from a file | [`import`] |

pub mod cli;
pub mod draft;
pub mod first_start;
pub mod import;
pub mod settings;
pub mod store;
