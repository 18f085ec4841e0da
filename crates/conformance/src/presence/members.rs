//! Coming, going, and who is told.
#![expect(clippy::missing_panics_doc, reason = "a case fails by panicking")]

use cache_core::{KeyError, Member, PresenceError, Present, UserId};

use super::{PresenceFixture, connections, member};

/// H1: who joined is listed with exactly what was said, numbers and texts of any kind included.
pub async fn who_joined_is_listed(f: PresenceFixture) {
    let t = f.tenant("a");
    assert_eq!(f.there(&t).await, [""; 0]);
    let ann = Member { user_id: UserId::new("ann \"é\" \\ \n {}").unwrap(), connected_at: u64::MAX };
    let bob = Member { user_id: UserId::new("b").unwrap(), connected_at: 0 };
    f.presence.join(&t, "c1", &ann).await.unwrap();
    f.presence.join(&t, "c2", &bob).await.unwrap();
    let expected = [("c1", ann), ("c2", bob)]
        .map(|(connection, member)| Present { connection: connection.into(), member });
    assert_eq!(f.presence.list(&t).await.unwrap(), expected);
    assert_eq!(f.there(&t).await, ["c1", "c2"]);
    assert!(f.presence.heartbeat(&t, "c1").await.unwrap());
    assert_eq!(f.presence.list(&t).await.unwrap(), expected, "a heartbeat changes nothing of it");
}

/// H1: a second join of a connection replaces what is known of it, and adds nobody.
pub async fn who_joins_again_is_known_anew(f: PresenceFixture) {
    let t = f.tenant("a");
    f.join(&t, "c").await;
    let other = Member { user_id: UserId::new("other").unwrap(), connected_at: 8 };
    f.presence.join(&t, "c", &other).await.unwrap();
    let list = f.presence.list(&t).await.unwrap();
    assert_eq!(list, [Present { connection: "c".into(), member: other }]);
    assert_eq!(f.there(&t).await, ["c"]);
}

/// H1: who left is gone at once, and leaving again is no error.
pub async fn who_left_is_gone(f: PresenceFixture) {
    let t = f.tenant("a");
    for connection in ["c1", "c2", "c3"] {
        f.join(&t, connection).await;
    }
    assert!(f.presence.leave(&t, "c2").await.unwrap());
    assert_eq!(f.there(&t).await, ["c1", "c3"]);
    assert!(!f.presence.leave(&t, "c2").await.unwrap());
    assert!(!f.presence.heartbeat(&t, "c2").await.unwrap());
    assert!(!f.presence.leave(&t, "never").await.unwrap());
    assert!(f.presence.leave(&t, "c1").await.unwrap() && f.presence.leave(&t, "c3").await.unwrap());
    assert_eq!(f.there(&t).await, [""; 0]);
    f.join(&t, "c2").await;
    assert_eq!(f.there(&t).await, ["c2"]);
}

/// H1: a heartbeat of one that never joined says so, and makes nobody a member.
pub async fn who_is_not_known_cannot_beat(f: PresenceFixture) {
    let t = f.tenant("a");
    assert!(!f.presence.heartbeat(&t, "c").await.unwrap());
    f.join(&t, "other").await;
    assert!(!f.presence.heartbeat(&t, "c").await.unwrap());
    assert_eq!(f.there(&t).await, ["other"]);
}

/// H1: a connection is what is counted, not a user.
pub async fn a_user_may_have_many_connections(f: PresenceFixture) {
    let t = f.tenant("a");
    for connection in ["laptop", "phone"] {
        f.presence.join(&t, connection, &member("ann")).await.unwrap();
    }
    assert_eq!(f.there(&t).await, ["laptop", "phone"]);
    assert!(f.presence.leave(&t, "laptop").await.unwrap());
    assert_eq!(f.there(&t).await, ["phone"]);
}

/// H1: the order is that of the connections' bytes, whatever the order of joining and beating.
pub async fn members_are_listed_by_connection(f: PresenceFixture) {
    let t = f.tenant("a");
    let sorted = ["!", "-1", "10", "9", "B", "a", "a b", "aa", "b", "z", "é", "中"];
    for n in [7, 0, 11, 3, 9, 1, 5, 10, 2, 8, 4, 6] {
        f.join(&t, sorted[n]).await;
    }
    for n in [6, 2, 9] {
        assert!(f.presence.heartbeat(&t, sorted[n]).await.unwrap());
    }
    assert_eq!(f.there(&t).await, sorted);
}

/// H1: who joined through one instance beats, is seen, and leaves through any other.
pub async fn members_are_the_same_for_every_instance(f: PresenceFixture) {
    let t = f.tenant("a");
    f.join(&t, "here").await;
    f.peer.join(&t, "there", &member("there")).await.unwrap();
    assert_eq!(f.there(&t).await, ["here", "there"]);
    assert!(f.peer.heartbeat(&t, "here").await.unwrap());
    assert!(f.presence.heartbeat(&t, "there").await.unwrap());
    assert!(f.peer.leave(&t, "here").await.unwrap());
    assert!(!f.presence.leave(&t, "here").await.unwrap());
    assert_eq!(f.there(&t).await, ["there"]);
}

/// D2, F13 of COHERENCE: tenants stay apart, also those that are called like another's keys.
pub async fn tenants_are_apart_whatever_they_are_called(f: PresenceFixture) {
    let names = [
        "a",
        "A",
        "a ",
        "{a}",
        "a}",
        "{a",
        "{",
        "}",
        "{}",
        "}{",
        "%",
        "%7B",
        "%7Ba%7D",
        "a:d",
        "a}:d",
        "{a}:d",
        ":",
        "é",
        "a\n",
        "\0",
        "*",
        "?",
        "[a]",
        "presence:{a}",
        "lock:a",
    ];
    let tenants = names.map(|name| f.tenant(name));
    for (name, tenant) in names.iter().zip(&tenants) {
        assert_eq!(f.presence.count(tenant).await.unwrap(), 0, "{name:?}");
        f.join(tenant, "c").await;
        f.join(tenant, &format!("c{}", name.len())).await;
    }
    for (name, tenant) in names.iter().zip(&tenants) {
        assert_eq!(f.there(tenant).await, ["c".to_owned(), format!("c{}", name.len())], "{name:?}");
        assert!(f.presence.leave(tenant, "c").await.unwrap(), "{name:?}");
        assert!(!f.presence.heartbeat(tenant, "c").await.unwrap(), "{name:?}");
    }
    for (name, tenant) in names.iter().zip(&tenants) {
        assert_eq!(f.there(tenant).await, [format!("c{}", name.len())], "{name:?}");
    }
}

/// A8: a connection id may be whatever a key may be.
pub async fn connections_may_be_called_anything(f: PresenceFixture) {
    let t = f.tenant("a");
    let long = "x".repeat(512);
    let mut names = vec!["{a}", "%", "*", "-inf", "(1", "+inf", "0", "nan", "XX", " ", "é", "d", ":", &long];
    for name in &names {
        f.join(&t, name).await;
    }
    names.sort_unstable();
    assert_eq!(f.there(&t).await, names);
    for name in &names {
        assert!(f.presence.heartbeat(&t, name).await.unwrap(), "{name}");
        assert!(f.presence.leave(&t, name).await.unwrap(), "{name}");
    }
    assert_eq!(f.there(&t).await, [""; 0]);
}

/// A8: what can be no connection id is refused, and leaves nothing.
pub async fn unacceptable_connections_are_refused(f: PresenceFixture) {
    let t = f.tenant("a");
    let long = "x".repeat(513);
    for connection in ["", "a\nb", "\0", &long] {
        for refused in [
            f.presence.join(&t, connection, &member("u")).await.map(|()| true),
            f.presence.heartbeat(&t, connection).await,
            f.presence.leave(&t, connection).await,
        ] {
            let Err(PresenceError::InvalidConnection(why)) = refused else { panic!("{refused:?}") };
            assert!(matches!(
                why,
                KeyError::Empty | KeyError::TooLong { .. } | KeyError::ControlCharacter { .. }
            ));
        }
    }
    assert_eq!(connections(&f.presence.list(&t).await.unwrap()), [""; 0]);
}
