//! The in-process cache backend, on mini-moka.
