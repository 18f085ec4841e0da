//! How long members live.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use cache_core::{Member, Present, UserId};

use super::PresenceFixture;

/// H1: a member that says nothing is there until its TTL is over, and not after.
pub async fn a_silent_member_ends_after_its_ttl(f: PresenceFixture) {
    let t = f.tenant("a");
    f.join(&t, "c").await;
    f.pass(5).await;
    assert_eq!(f.there(&t).await, ["c"]);
    f.pass(1).await;
    assert_eq!(f.there(&t).await, [""; 0]);
}

/// H1: with a heartbeat it lives for another TTL from then on, through whichever instance it beats.
pub async fn a_heartbeat_gives_another_ttl(f: PresenceFixture) {
    let t = f.tenant("a");
    f.join(&t, "c").await;
    for presence in [&f.presence, &f.peer, &f.presence] {
        f.pass(4).await;
        assert!(presence.heartbeat(&t, "c").await.unwrap());
    }
    f.pass(5).await;
    assert_eq!(f.there(&t).await, ["c"]);
    f.pass(1).await;
    assert_eq!(f.there(&t).await, [""; 0]);
}

/// H1: one member's heartbeat never prolongs another, of the same user, or of the same name in another tenant.
pub async fn a_heartbeat_prolongs_nobody_else(f: PresenceFixture) {
    let (t, other) = (f.tenant("a"), f.tenant("b"));
    for tenant in [&t, &other] {
        f.join(tenant, "c1").await;
        f.join(tenant, "c2").await;
    }
    f.pass(4).await;
    assert!(f.presence.heartbeat(&t, "c1").await.unwrap());
    f.pass(2).await;
    assert_eq!(f.there(&t).await, ["c1"]);
    assert_eq!(f.there(&other).await, [""; 0]);
    assert!(!f.presence.heartbeat(&t, "c2").await.unwrap());
    assert!(!f.presence.heartbeat(&other, "c1").await.unwrap());
}

/// H1: nor does one's joining.
pub async fn a_join_prolongs_nobody_else(f: PresenceFixture) {
    let t = f.tenant("a");
    f.join(&t, "c1").await;
    f.pass(4).await;
    f.join(&t, "c2").await;
    f.pass(2).await;
    assert_eq!(f.there(&t).await, ["c2"]);
}

/// H1: joining again is as good as a heartbeat.
pub async fn joining_again_gives_another_ttl(f: PresenceFixture) {
    let t = f.tenant("a");
    f.join(&t, "c").await;
    f.pass(4).await;
    f.join(&t, "c").await;
    f.pass(5).await;
    assert_eq!(f.there(&t).await, ["c"]);
    f.pass(1).await;
    assert_eq!(f.there(&t).await, [""; 0]);
}

/// H1: a heartbeat that comes too late is refused, and so is every later one, until the member has joined again;
/// then nothing of before is known.
pub async fn who_ended_stays_gone_until_it_joins(f: PresenceFixture) {
    let t = f.tenant("a");
    f.join(&t, "c").await;
    // Keeps the tenant in use: a late heartbeat must be refused for its own sake.
    f.pass(3).await;
    f.join(&t, "other").await;
    f.pass(3).await;
    for presence in [&f.presence, &f.peer, &f.presence] {
        assert!(!presence.heartbeat(&t, "c").await.unwrap());
        assert_eq!(f.there(&t).await, ["other"]);
    }
    let anew = Member { user_id: UserId::new("anew").unwrap(), connected_at: 9 };
    f.presence.join(&t, "c", &anew).await.unwrap();
    let list = f.presence.list(&t).await.unwrap();
    assert_eq!(list[0], Present { connection: "c".into(), member: anew });
    assert!(f.presence.heartbeat(&t, "c").await.unwrap());
    f.pass(5).await;
    assert_eq!(f.there(&t).await, ["c"]);
}

/// H1: who leaves after its end was not there any more.
pub async fn leaving_after_the_end_is_too_late(f: PresenceFixture) {
    let t = f.tenant("a");
    f.join(&t, "c").await;
    f.pass(3).await;
    f.join(&t, "other").await;
    f.pass(3).await;
    assert!(!f.presence.leave(&t, "c").await.unwrap());
    assert!(f.presence.leave(&t, "other").await.unwrap());
    assert_eq!(f.there(&t).await, [""; 0]);
}

/// H1: members that ended are neither listed nor counted nor prolonged, also when there are more of them than one
/// call cleans away.
pub async fn the_dead_are_not_told_however_many(f: PresenceFixture) {
    let t = f.tenant("a");
    for n in 0..450 {
        f.join(&t, &format!("dead{n:03}")).await;
    }
    f.pass(4).await;
    f.join(&t, "alive").await;
    f.pass(2).await;
    for n in [449, 100, 0] {
        assert_eq!(f.there(&t).await, ["alive"]);
        assert!(!f.presence.heartbeat(&t, &format!("dead{n:03}")).await.unwrap());
    }
    f.join(&t, "dead300").await;
    assert_eq!(f.there(&t).await, ["alive", "dead300"]);
}
