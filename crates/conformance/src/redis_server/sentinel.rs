//! A master, its replica and three sentinels that watch them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::{RedisServer, field_of, poll};
use crate::resp::Reply;

/// Sentinels must agree by this many of three.
const QUORUM: &str = "2";
const READY: Duration = Duration::from_secs(30);

/// How the set is started.
#[derive(Debug, Clone)]
pub struct SentinelOptions {
    /// A master with fewer replicas in touch refuses to write. 1 by default, without which no client can tell a
    /// master that was cut off from one that was not; but after the master is killed, its successor refuses to
    /// write too, until the first is back.
    pub min_replicas_to_write: u32,
    /// How long a node may be silent until it counts as down. 3 s by default: the replica's greatest lag (1 s),
    /// and 2 s for a cut-off master to notice, both pass before another is promoted.
    pub down_after: Duration,
}

impl Default for SentinelOptions {
    fn default() -> Self {
        Self { min_replicas_to_write: 1, down_after: Duration::from_secs(3) }
    }
}

/// Two Redis servers and three sentinels on free ports.
#[derive(Debug)]
pub struct SentinelSet {
    nodes: [RedisServer; 2],
    sentinels: Vec<RedisServer>,
}

impl SentinelSet {
    /// The name under which the sentinels know the master.
    pub const MASTER_NAME: &str = "conformance";

    /// A set with [`SentinelOptions::default`], complete: the replica is linked up and each sentinel knows the
    /// others.
    ///
    /// # Panics
    /// When a server does not start, or the set is not complete within 30 s.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&SentinelOptions::default())
    }

    /// [`start`](Self::start) with other options.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(options: &SentinelOptions) -> Self {
        let replicas = options.min_replicas_to_write.to_string();
        let shared = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let guard = ["--min-replicas-to-write", &replicas, "--min-replicas-max-lag", "1"];
        let shared = [&shared[..], &guard].concat();
        let master = RedisServer::start_with(&shared);
        let port = master.port().to_string();
        let replica = RedisServer::start_with(&[&shared[..], &["--replicaof", "127.0.0.1", &port]].concat());
        wait("the replica is linked up", || is_linked(&replica));
        let sentinels = (0..3).map(|_| start_sentinel(&port, options)).collect();
        let set = Self { nodes: [master, replica], sentinels };
        wait("the sentinels know each other and the replica", || set.is_complete());
        wait("the replica confirms what it gets", || has_confirmed(&set.nodes[0]));
        set
    }

    /// Where the sentinels listen.
    #[must_use]
    pub fn sentinel_addresses(&self) -> Vec<SocketAddr> {
        self.sentinels.iter().map(RedisServer::address).collect()
    }

    /// The sentinels themselves, to pause or kill.
    pub fn sentinels(&mut self) -> &mut [RedisServer] {
        &mut self.sentinels
    }

    /// Both servers, the first master first, whatever their roles are now.
    pub fn nodes(&mut self) -> &mut [RedisServer; 2] {
        &mut self.nodes
    }

    /// Where the sentinels say that the master is; `None` while they do not all say the same.
    #[must_use]
    pub fn master_address(&self) -> Option<SocketAddr> {
        let mut said = self.sentinels.iter().filter(|sentinel| sentinel.is_running()).map(master_by);
        let first = said.next()??;
        said.all(|other| other == Some(first)).then_some(first)
    }

    /// The server that the sentinels name as the master.
    ///
    /// # Panics
    /// When they do not agree within 30 s.
    pub fn master(&mut self) -> &mut RedisServer {
        let at = self.index_of_master();
        &mut self.nodes[at]
    }

    /// The server that is not the master.
    ///
    /// # Panics
    /// As [`master`](Self::master).
    pub fn replica(&mut self) -> &mut RedisServer {
        let at = 1 - self.index_of_master();
        &mut self.nodes[at]
    }

    /// Has the sentinels promote the replica, and waits until the former master follows it and all agree.
    ///
    /// # Panics
    /// When that is not so within 30 s.
    pub fn failover(&mut self) {
        let before = self.index_of_master();
        wait("a sentinel takes the order", || {
            let order = ["SENTINEL", "FAILOVER", Self::MASTER_NAME];
            self.sentinels.iter().any(|sentinel| sentinel.is_running() && is_ok(sentinel.try_command(&order)))
        });
        let (old, new) = (&self.nodes[before], &self.nodes[1 - before]);
        wait("the replica is the master", || {
            self.master_address() == Some(new.address())
                && new.info("replication", "role").as_deref() == Some("master")
        });
        wait("the former master follows it", || is_linked(old));
        wait("the former master confirms what it gets", || has_confirmed(new));
        wait("the sentinels know of it", || self.is_complete());
    }

    /// Waits until the sentinels name another master than `before`, e.g. after that was killed or paused.
    ///
    /// # Panics
    /// When they do not within 30 s.
    pub fn wait_for_another_master(&self, before: SocketAddr) -> SocketAddr {
        let mut now = None;
        wait("the sentinels name another master", || {
            now = self.master_address().filter(|now| *now != before);
            now.is_some()
        });
        now.expect("just waited for")
    }

    fn index_of_master(&self) -> usize {
        let mut found = None;
        wait("the sentinels agree on the master", || {
            let master = self.master_address();
            found = self.nodes.iter().position(|node| Some(node.address()) == master);
            found.is_some()
        });
        found.expect("just waited for")
    }

    fn is_complete(&self) -> bool {
        let ask = |sentinel: &RedisServer, what| {
            sentinel.try_command(&["SENTINEL", what, Self::MASTER_NAME]).unwrap_or(Reply::Nil)
        };
        self.sentinels.iter().filter(|sentinel| sentinel.is_running()).all(|sentinel| {
            let (known, replicas) = (ask(sentinel, "MASTER"), ask(sentinel, "REPLICAS"));
            value_of(&known, "num-other-sentinels").as_deref() == Some("2")
                && value_of(&known, "flags").as_deref() == Some("master")
                && replicas.items().iter().any(is_usable)
        })
    }
}

fn start_sentinel(master_port: &str, options: &SentinelOptions) -> RedisServer {
    let name = SentinelSet::MASTER_NAME;
    let down_after = options.down_after.as_millis().to_string();
    let sentinel = RedisServer::start_on_a_free_port(&["--sentinel"], |_| {
        let monitor = ["--sentinel", "monitor", name, "127.0.0.1", master_port, QUORUM];
        let down_after = ["--sentinel", "down-after-milliseconds", name, &down_after];
        let timeout = ["--sentinel", "failover-timeout", name, "10000"];
        monitor.iter().chain(&down_after).chain(&timeout).map(|&word| word.to_owned()).collect()
    });
    // Sentinels look at the roles every 10 s by default, which makes a failover last for 20 s.
    let quick = [
        "SENTINEL",
        "DEBUG",
        "info-period",
        "500",
        "publish-period",
        "500",
        "ping-period",
        "200",
        "tilt-period",
        "1000",
    ];
    assert_eq!(sentinel.command(&quick), Reply::Simple("OK".into()));
    sentinel
}

fn master_by(sentinel: &RedisServer) -> Option<SocketAddr> {
    let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SentinelSet::MASTER_NAME];
    let reply = sentinel.try_command(&question).ok()?;
    let [host, port] = reply.items() else { return None };
    format!("{}:{}", host.text()?, port.text()?).parse().ok()
}

fn is_linked(node: &RedisServer) -> bool {
    let Ok(report) = node.try_command(&["INFO", "replication"]) else { return false };
    field_of(&report, "role").as_deref() == Some("slave")
        && field_of(&report, "master_link_status").as_deref() == Some("up")
}

/// Whether the replica of a master has confirmed anything. Until then, after a transfer without a disk, the
/// master holds back what is written, though it counts the replica as in touch: a failover would lose it.
fn has_confirmed(master: &RedisServer) -> bool {
    let replica = master.info("replication", "slave0").unwrap_or_default();
    let offset = replica.split(',').find_map(|part| part.strip_prefix("offset="));
    replica.contains("state=online") && offset.is_some_and(|offset| offset != "0")
}

fn is_ok(reply: io::Result<Reply>) -> bool {
    reply.is_ok_and(|reply| reply == Reply::Simple("OK".into()))
}

/// A replica that a sentinel would promote.
fn is_usable(replica: &Reply) -> bool {
    value_of(replica, "flags").as_deref() == Some("slave")
        && value_of(replica, "master-link-status").as_deref() == Some("ok")
}

/// The value that follows a name in a flat list of names and values.
fn value_of(list: &Reply, name: &str) -> Option<String> {
    let pairs = list.items().chunks_exact(2).find(|pair| pair[0].text().as_deref() == Some(name))?;
    pairs[1].text()
}

fn wait(what: &str, condition: impl FnMut() -> bool) {
    assert!(poll(READY, condition), "not within {READY:?}: {what}");
}
