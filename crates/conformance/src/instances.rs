//! What a suite is given: a service as two instances have it.

use std::sync::Arc;

/// A service under test, with nothing in it yet under its scope.
#[derive(Debug)]
pub struct Instances<S: ?Sized> {
    /// The service.
    pub service: Arc<S>,
    /// The same as another instance has it; the service itself when there is but one.
    pub peer: Arc<S>,
    /// Begins every key of the case.
    pub scope: String,
}

impl<S: ?Sized> Instances<S> {
    /// One instance, with a random scope.
    #[must_use]
    pub fn new(service: Arc<S>) -> Self {
        let peer = Arc::clone(&service);
        Self { service, peer, scope: format!("t{:016x}/", rand::random::<u64>()) }
    }

    /// Adds another instance that shares what there is.
    #[must_use]
    pub fn with_peer(mut self, peer: Arc<S>) -> Self {
        self.peer = peer;
        self
    }

    /// A key of this case.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.scope)
    }

    /// Another scope, asked the other way round; there is no forwarding implementation to go through.
    #[must_use]
    pub fn forwarded(self) -> Self {
        Self::new(self.peer).with_peer(self.service)
    }
}
