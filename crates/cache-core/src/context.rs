//! Who is asking: plain data that a middleware fills and a cache reads.

use std::net::IpAddr;
use std::sync::Arc;

use crate::{TenantId, UserId};

/// The tenant of a request, and what else scopes its data.
///
/// Plain data: how it travels with a task is the business of the crate that composes the tiers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestContext {
    /// The organisation the request acts for.
    pub tenant: TenantId,
    /// The user, when the request has a session.
    pub user: Option<UserId>,
    /// The client's address, after trusted proxies were taken into account.
    pub client_ip: Option<IpAddr>,
    /// The id that finds this request in the logs.
    pub request_id: Option<Arc<str>>,
}

impl RequestContext {
    /// A request of `tenant`, by nobody in particular.
    #[must_use]
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, user: None, client_ip: None, request_id: None }
    }

    /// Adds the user.
    #[must_use]
    pub fn with_user(mut self, user: UserId) -> Self {
        self.user = Some(user);
        self
    }

    /// Adds the client's address.
    #[must_use]
    pub fn with_client_ip(mut self, ip: IpAddr) -> Self {
        self.client_ip = Some(ip);
        self
    }

    /// Adds the request's id.
    #[must_use]
    pub fn with_request_id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.request_id = Some(id.into());
        self
    }
}
