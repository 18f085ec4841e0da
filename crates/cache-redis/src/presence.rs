//! Presence across instances: who is connected to a tenant, told by a Redis that all of them share.
//!
//! Each member ends by itself, at a time of its own by the server's clock. What is past is never told, and swept a
//! hundred at a time by those who join and beat; what nobody uses expires as a whole.
//!
//! Why no expiry per field of the hash (`HEXPIRE`): servers before 7.4 do not know it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cache_core::key::validate;
use cache_core::{
    BackendError, BackendErrorKind, Member, Presence, PresenceError, PresenceOptions, Present, TenantId,
};

use crate::connection::RedisLink;
use crate::error::CallError;
use crate::keyspace::{BATCH, escaped};
use crate::script;

/// A TTL beyond this is taken for this: what a server can still add.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3_600);

/// [`Presence`] in Redis. Clones share the link.
///
/// One round trip per operation; [`list`](Presence::list) needs one per about 1 000 members. Members end by the
/// server's clock, whatever the clocks of the instances say. A Redis that was restarted empty knows nobody: then
/// heartbeats answer `false`, and those who live join again.
///
/// Something else under the keys is a [`WrongType`](BackendErrorKind::WrongType) and is not touched. So is a payload
/// that cannot be read, when it is listed: one left out in silence would make a listing look whole.
///
/// ```no_run
/// use cache_core::prelude::*;
/// use cache_core::{Member, TenantId, UserId};
/// use cache_redis::{RedisLink, RedisPresence, RedisSettings};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let presence = RedisPresence::on(RedisLink::lazy(RedisSettings::from_url("redis://localhost")?)?);
/// let (acme, ann) = (TenantId::new("acme")?, Member { user_id: UserId::new("ann")?, connected_at: 0 });
/// presence.join(&acme, "socket-7", &ann).await?;
/// if !presence.heartbeat(&acme, "socket-7").await? {
///     presence.join(&acme, "socket-7", &ann).await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct RedisPresence {
    link: RedisLink,
    ttl: Duration,
}

impl RedisPresence {
    /// The most living connections of one tenant; beyond, nobody can join: [`PresenceError::Full`]. What one
    /// tenant can take from the others, and what a listing can be.
    pub const MAX_MEMBERS: usize = 100_000;

    /// Presence with default options, on a link that others share.
    #[must_use]
    pub fn on(link: RedisLink) -> Self {
        Self::with_options(link, PresenceOptions::default())
    }

    /// Presence with options. The TTL is in whole milliseconds on the server, at least one and at most those of a
    /// year; instances may differ in it, each gives its own.
    #[must_use]
    pub fn with_options(link: RedisLink, options: PresenceOptions) -> Self {
        Self { link, ttl: options.ttl.clamp(Duration::from_millis(1), LONGEST) }
    }

    /// Gives connections of a tenant another TTL each, as [`heartbeat`](Presence::heartbeat) does for one, in one
    /// round trip per 1 000: `false` at the place of each that must join again.
    ///
    /// # Errors
    /// [`PresenceError::InvalidConnection`] when one of them is, before anything is sent;
    /// [`PresenceError::Backend`] when Redis cannot be asked: some may have been prolonged.
    ///
    /// # Cancel safety
    /// A dropped call may have prolonged some, and leaves nothing else behind.
    pub async fn heartbeat_all(
        &self,
        tenant: &TenantId,
        connections: &[&str],
    ) -> Result<Vec<bool>, PresenceError> {
        connections.iter().try_for_each(|connection| validate(connection))?;
        let (keys, [ttl, life]) = (self.keys(tenant), self.times());
        let mut living = Vec::with_capacity(connections.len());
        for batch in connections.chunks(BATCH) {
            let times = [ttl.as_bytes(), life.as_bytes()].into_iter();
            let arguments: Vec<_> =
                times.chain(batch.iter().map(|connection| connection.as_bytes())).collect();
            let beaten = script::PRESENCE_HEARTBEAT.with(&keys, &arguments).run(&self.link).await;
            let answers: Vec<bool> = beaten.map_err(refused)?;
            living.extend(answers);
        }
        Ok(living)
    }

    /// Who lives, by the end of their lives, and what is known of them: two keys in one slot of a cluster.
    fn keys(&self, tenant: &TenantId) -> [String; 2] {
        let members = self.link.prefixed(&format!("presence:{{{}}}", escaped(tenant.as_str())));
        let payloads = format!("{members}:d");
        [members, payloads]
    }

    /// The TTL of a member, and that of the keys when nobody joins or beats any more; in milliseconds.
    fn times(&self) -> [String; 2] {
        [self.ttl, self.ttl * 2].map(|time| time.as_millis().to_string())
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn join(&self, tenant: &TenantId, connection: &str, member: &Member) -> Result<(), PresenceError> {
        validate(connection)?;
        let (keys, [ttl, life]) = (self.keys(tenant), self.times());
        let most = Self::MAX_MEMBERS.to_string();
        let payload = serde_json::to_vec(member).expect("a text and a number are always JSON");
        let arguments =
            [ttl.as_bytes(), life.as_bytes(), most.as_bytes(), connection.as_bytes(), payload.as_slice()];
        let joined = script::PRESENCE_JOIN.with(&keys, &arguments).run(&self.link).await;
        if joined.map_err(refused)? { Ok(()) } else { Err(PresenceError::Full { limit: Self::MAX_MEMBERS }) }
    }

    async fn heartbeat(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        Ok(self.heartbeat_all(tenant, &[connection]).await? == [true])
    }

    async fn leave(&self, tenant: &TenantId, connection: &str) -> Result<bool, PresenceError> {
        validate(connection)?;
        let keys = self.keys(tenant);
        let arguments = [connection.as_bytes()];
        let left = script::PRESENCE_LEAVE.with(&keys, &arguments).run(&self.link).await;
        left.map_err(refused)
    }

    async fn list(&self, tenant: &TenantId) -> Result<Vec<Present>, PresenceError> {
        let (keys, page) = (self.keys(tenant), BATCH.to_string());
        let mut cursor = "0".to_owned();
        // A page may repeat what an earlier one had.
        let mut living = BTreeMap::new();
        loop {
            let arguments = [cursor.as_bytes(), page.as_bytes()];
            let answer = script::PRESENCE_LIST.with(&keys, &arguments).run(&self.link).await;
            let (next, found): (String, Vec<(Vec<u8>, Vec<u8>)>) = answer.map_err(refused)?;
            for (connection, payload) in found {
                let (connection, member) = read(connection, &payload)?;
                living.insert(connection, member);
            }
            if next == "0" {
                break;
            }
            // Twice, for those who came and went meanwhile.
            if living.len() > 2 * Self::MAX_MEMBERS {
                return Err(strange("more members than can join").into());
            }
            cursor = next;
        }
        Ok(living.into_iter().map(|(connection, member)| Present { connection, member }).collect())
    }

    async fn count(&self, tenant: &TenantId) -> Result<u64, PresenceError> {
        let counted = script::PRESENCE_COUNT.with(&self.keys(tenant), &[]).run(&self.link).await;
        counted.map_err(refused)
    }
}

fn read(connection: Vec<u8>, payload: &[u8]) -> Result<(Arc<str>, Member), BackendError> {
    let connection = String::from_utf8(connection).ok().filter(|connection| validate(connection).is_ok());
    // The reason is not kept: it may repeat what was read.
    match (connection, serde_json::from_slice(payload)) {
        (Some(connection), Ok(member)) => Ok((connection.into(), member)),
        _ => Err(strange("a member that is none of ours")),
    }
}

/// Somebody else writes under the keys of presence.
fn strange(detail: &'static str) -> BackendError {
    BackendError::new(BackendErrorKind::WrongType, "presence_list", detail)
}

fn refused(error: CallError) -> PresenceError {
    PresenceError::Backend(error.into_backend())
}
