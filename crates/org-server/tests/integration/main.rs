//! The server from outside: its database, its routes, its binary, and several of them together.

mod binary;
mod common;
mod fencing;
mod fleet;
mod forgeries;
mod import;
mod keys;
mod operators;
mod presence;
mod propagation;
mod routes;
mod sockets;
mod store;
mod tokens;
