//! The suites every backend must pass, with the faults and servers they need (for tests only).
