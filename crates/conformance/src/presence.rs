//! The suite of [`Presence`].
//!
//! ```text
//! conformance::presence_suite!(local, fixture);
//!
//! async fn fixture() -> conformance::presence::PresenceFixture { … }
//! ```

pub mod crowds;
pub mod lives;
pub mod members;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cache_core::{Member, Presence, Present, TenantId, UserId};

/// Lets time pass for the members of a fixture.
pub type Pass = Arc<dyn Fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Presence under test; nobody is in the tenants of its scope.
#[derive(Clone)]
pub struct PresenceFixture {
    /// The service.
    pub presence: Arc<dyn Presence>,
    /// The same members as another instance sees them; the service itself when there is but one.
    pub peer: Arc<dyn Presence>,
    /// The TTL it gives.
    pub ttl: Duration,
    /// Begins every tenant of the case.
    pub scope: String,
    pass: Pass,
}

impl fmt::Debug for PresenceFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { presence, peer, ttl, scope, pass: _ } = self;
        f.debug_struct("PresenceFixture")
            .field("presence", presence)
            .field("peer", peer)
            .field("ttl", ttl)
            .field("scope", scope)
            .finish_non_exhaustive()
    }
}

impl PresenceFixture {
    /// A fixture with a random scope, whose members live for `ttl` unless they beat.
    ///
    /// `pass` lets time pass: a clock is advanced, the ends of all lives in the store are moved by so much, or else
    /// it sleeps. A sixth of the TTL must be more than a few calls take on a busy machine.
    #[must_use]
    pub fn new(presence: Arc<dyn Presence>, ttl: Duration, pass: Pass) -> Self {
        let (peer, scope) = (Arc::clone(&presence), format!("t{:016x}/", rand::random::<u64>()));
        Self { presence, peer, ttl, scope, pass }
    }

    /// Adds another instance that shares the members.
    #[must_use]
    pub fn with_peer(mut self, peer: Arc<dyn Presence>) -> Self {
        self.peer = peer;
        self
    }

    /// Another scope, asked the other way round; presence has no forwarding implementation to go through.
    #[must_use]
    pub fn forwarded(self) -> Self {
        Self::new(self.peer, self.ttl, self.pass).with_peer(self.presence)
    }

    /// A tenant of this case.
    ///
    /// # Panics
    /// When the name is longer than an id may be.
    #[must_use]
    pub fn tenant(&self, name: &str) -> TenantId {
        TenantId::new(format!("{}{name}", self.scope)).unwrap()
    }

    /// Lets so many sixths of a TTL pass.
    pub async fn pass(&self, sixths: u32) {
        (self.pass)(self.ttl * sixths / 6).await;
    }

    async fn join(&self, tenant: &TenantId, connection: &str) {
        self.presence.join(tenant, connection, &member(connection)).await.unwrap();
    }

    /// Who is there, asked in both ways and of both instances.
    async fn there(&self, tenant: &TenantId) -> Vec<String> {
        let list = self.presence.list(tenant).await.unwrap();
        assert_eq!(self.peer.list(tenant).await.unwrap(), list, "instances agree");
        for presence in [&self.presence, &self.peer] {
            assert_eq!(presence.count(tenant).await.unwrap(), list.len() as u64, "count and list agree");
        }
        connections(&list)
    }
}

/// A member of which the user has the name of the connection, cut to what a user id may be.
fn member(connection: &str) -> Member {
    let user: String = connection.chars().take(30).collect();
    Member { user_id: UserId::new(user).unwrap(), connected_at: 7 }
}

fn connections(list: &[Present]) -> Vec<String> {
    list.iter().map(|present| present.connection.to_string()).collect()
}

/// A11: makes a test of each case for a backend, one of yours too.
#[macro_export]
macro_rules! presence_suite {
    ($backend:ident, $fixture:path) => {
        mod $backend {
            mod presence {
                $crate::cases!(
                    $fixture,
                    presence,
                    members,
                    [
                        who_joined_is_listed,
                        who_joins_again_is_known_anew,
                        who_left_is_gone,
                        who_is_not_known_cannot_beat,
                        a_user_may_have_many_connections,
                        members_are_listed_by_connection,
                        members_are_the_same_for_every_instance,
                        tenants_are_apart_whatever_they_are_called,
                        connections_may_be_called_anything,
                        unacceptable_connections_are_refused,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    presence,
                    lives,
                    [
                        a_silent_member_ends_after_its_ttl,
                        a_heartbeat_gives_another_ttl,
                        a_heartbeat_prolongs_nobody_else,
                        a_join_prolongs_nobody_else,
                        joining_again_gives_another_ttl,
                        who_ended_stays_gone_until_it_joins,
                        leaving_after_the_end_is_too_late,
                        the_dead_are_not_told_however_many,
                    ]
                );
                $crate::cases!(
                    $fixture,
                    presence,
                    crowds,
                    [
                        many_members_are_listed_completely,
                        a_listing_misses_nobody_while_others_come_and_go,
                        parallel_joins_and_leaves_all_count,
                        of_parallel_leaves_one_finds_it,
                        dropped_calls_leave_nothing,
                    ]
                );
            }
        }
    };
}
