//! The reference server: orgs resolved, cached and kept coherent.
fn main() {}
