//! What two definitions of one domain must agree in.

use std::any::TypeId;
use std::sync::{Arc, Weak};

use cache_core::Sealer;

use crate::load::Resilience;
use crate::policy::Policy;

pub(crate) const ANOTHER_WAY: &str = "it was defined before, in another way";

const CAPTURED: &str = "it was defined before, and with functions that capture values, which cannot be compared: keep the \
    first handle, or give both definitions the same `version`";

/// A definition, as far as it can be compared with another one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Definition {
    pub(crate) policy: Policy,
    pub(crate) resilience: Resilience,
    /// What whoever defines it says of what cannot be compared.
    pub(crate) version: Option<String>,
    /// What the codec says of itself, its version included.
    pub(crate) codec: String,
    pub(crate) sealer: SealerId,
    pub(crate) made_of: MadeOf,
}

impl Definition {
    /// Whether the other one is the same, or why not.
    pub(crate) fn check(&self, other: &Self) -> Result<(), &'static str> {
        if self != other {
            return Err(ANOTHER_WAY);
        }
        if self.made_of.captures && self.version.is_none() { Err(CAPTURED) } else { Ok(()) }
    }
}

/// The types and functions that a definition was made with.
///
/// Why not compare what closures hold: nothing can be said of it. By type alone, a second definition with another
/// database would get the cache of the first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct MadeOf {
    types: Vec<TypeId>,
    /// Whether one of the functions holds something.
    captures: bool,
}

impl MadeOf {
    pub(crate) fn types(types: &[TypeId]) -> Self {
        Self { types: types.to_vec(), captures: false }
    }

    /// A function, which its type tells when it holds nothing.
    pub(crate) fn function<F: 'static>(&mut self, _: &F) {
        self.types.push(TypeId::of::<F>());
        self.captures |= size_of::<F>() > 0;
    }

    /// A value that says elsewhere what it holds.
    pub(crate) fn value<T: 'static>(&mut self, _: &T) {
        self.types.push(TypeId::of::<T>());
    }
}

/// Which sealer it is. Weak: a definition outlives its cache, and must not keep keys in memory.
#[derive(Debug, Clone)]
pub(crate) struct SealerId(Option<Weak<dyn Sealer>>);

impl SealerId {
    pub(crate) fn of(sealer: Option<&Arc<dyn Sealer>>) -> Self {
        Self(sealer.map(Arc::downgrade))
    }
}

impl PartialEq for SealerId {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(this), Some(other)) => std::ptr::addr_eq(this.as_ptr(), other.as_ptr()),
            (this, other) => this.is_none() && other.is_none(),
        }
    }
}
