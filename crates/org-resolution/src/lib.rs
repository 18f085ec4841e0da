//! # Who is asking: org resolution and tokens as tower layers
//!
//! ```text
//! request ─► OrgLayer ─ source: which org does it name? ─ resolver: which one is that? ─► OrgContext
//!                │                                                                          │
//!                └────────── RequestContext of the task ◄───────────────────────────────────┘
//!            TokenLayer ─ token: whose is it, and does it belong to that org? ─► CachedToken
//! ```
//!
//! | you look for | module |
//! |---|---|
//! | what an organisation is | [`org`]: [`OrgContext`], [`Slug`], [`OrgStatus`] |
//! | how a request names its organisation | [`source`]: [`Strategy`], [`TrustedProxies`] |
//! | where organisations come from: the port to your database | [`directory`]: [`OrgDirectory`] |
//! | looking them up through the cache | [`resolver`]: [`OrgResolver`] |
//! | validating tokens through the cache | [`token`]: [`TokenService`], [`TokenValidator`] |
//! | the tower layers | [`layer`]: [`OrgLayer`], [`TokenLayer`] |
//! | limiting how often somebody asks | [`rate_limit`]: [`RateLimitLayer`] |
//! | the extractors | [`extract`]: [`Org`], [`Token`] |
//! | error answers | [`rejection`]: [`Problem`] |
//! | secrets at rest | [`secret`]: [`KeyRing`] |

pub mod directory;
pub mod extract;
pub mod layer;
pub mod org;
pub mod rate_limit;
pub mod rejection;
pub mod resolver;
pub mod secret;
pub mod source;
pub mod token;

pub use directory::{DirectoryError, OrgDirectory};
pub use extract::{Org, Token};
pub use layer::{OrgLayer, TokenLayer};
pub use org::{OrgContext, OrgId, OrgStatus, Slug, SlugError};
pub use rate_limit::RateLimitLayer;
pub use rejection::Problem;
pub use resolver::{Changed, OrgResolver, Resolved};
pub use secret::{KeyRing, SealError};
pub use source::{ResolvedBy, SourceConfig, Strategy, TrustedProxies};
pub use token::{CachedToken, TokenError, TokenPolicy, TokenService, TokenValidator};
