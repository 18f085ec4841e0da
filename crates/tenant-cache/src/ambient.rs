//! The request context of the running task.
//!
//! A middleware runs the handler inside [`RequestScope::scope`]; everything below reads
//! [`RequestScope::current`]. A task that is spawned does not inherit it: [`carry`] takes it along.

use std::sync::Arc;

use cache_core::{RequestContext, TenantId, UserId};
use tokio::task_local;

use crate::load_stack::LoadStack;

task_local! {
    static CURRENT: Option<Arc<RequestContext>>;
}

/// How a [`RequestContext`] travels with a task.
///
/// ```
/// use cache_core::{RequestContext, TenantId};
/// use tenant_cache::RequestScope;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let tenant = TenantId::new("acme")?;
/// let seen = RequestContext::new(tenant.clone())
///     .scope(async { RequestContext::current().map(|context| context.tenant.clone()) })
///     .await;
/// assert_eq!(seen, Some(tenant));
/// assert!(RequestContext::current().is_none());
/// # Ok::<(), cache_core::IdError>(()) }).unwrap();
/// ```
pub trait RequestScope: Sized {
    /// Runs a future as part of this request. An outer scope is hidden until it ends.
    fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output>
    where
        Self: Into<Arc<RequestContext>>,
    {
        CURRENT.scope(Some(self.into()), work)
    }

    /// The request the running task works for, if any.
    #[must_use]
    fn current() -> Option<Arc<RequestContext>> {
        CURRENT.try_with(Option::clone).ok().flatten()
    }
}

impl RequestScope for RequestContext {}
impl RequestScope for Arc<RequestContext> {}

/// Takes the current request along into a future that another task will run; where there is none, it runs as part of
/// none.
///
/// Inside a loader it takes along which load this is, too: a lookup that would wait for that load's own result is then
/// told so ([`LoadError::Reentrant`](cache_core::LoadError::Reentrant)) instead of waiting for ever, as it would in a
/// task that was spawned without `carry`.
///
/// ```
/// # use tenant_cache::ambient::carry;
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// tokio::spawn(carry(async { /* the same tenant as here */ })).await?;
/// # Ok::<(), tokio::task::JoinError>(()) }).unwrap();
/// ```
pub fn carry<F: Future>(work: F) -> impl Future<Output = F::Output> {
    // Not in an async block, which would hold `work` twice: where it was captured, and where it is awaited.
    LoadStack::current().scope(CURRENT.scope(RequestContext::current(), work))
}

/// Runs a future in the scope of an entry: as its tenant and user, and without anything else of a request.
pub(crate) fn in_scope<F: Future>(
    tenant: Option<&TenantId>,
    user: Option<&UserId>,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    let context = tenant.map(|tenant| {
        let mut context = RequestContext::new(tenant.clone());
        context.user = user.cloned();
        Arc::new(context)
    });
    CURRENT.scope(context, work)
}

/// Runs a future as part of no request: what it makes is for everybody.
pub(crate) fn outside<F: Future>(work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(None, work)
}

/// Looks at the current request without cloning it.
pub(crate) fn with_current<R>(look: impl FnOnce(Option<&RequestContext>) -> R) -> R {
    let mut look = Some(look);
    let seen = CURRENT.try_with(|context| look.take().map(|look| look(context.as_deref())));
    match (seen, look) {
        (Ok(Some(result)), _) => result,
        (_, Some(look)) => look(None),
        (_, None) => unreachable!("`look` is only taken where its result is returned"),
    }
}
