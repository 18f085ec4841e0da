//! The contracts of the coherent cache layer: what is promised, without how.
