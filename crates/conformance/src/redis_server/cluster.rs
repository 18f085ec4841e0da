//! A Redis Cluster of three masters.

use std::net::SocketAddr;
use std::time::Duration;

use super::process::free_port;
use super::{RedisServer, field_of, poll};
use crate::resp::Reply;

const READY: Duration = Duration::from_secs(30);
/// The slots of each master, all of 0..16384.
const SLOTS: [(&str, &str); 3] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

/// Three masters on free ports, without replicas, the slots shared out evenly.
#[derive(Debug)]
pub struct ClusterSet {
    nodes: Vec<RedisServer>,
}

impl ClusterSet {
    /// A cluster in which every node knows the others and says `cluster_state:ok`.
    ///
    /// # Panics
    /// When a server does not start, or the cluster is not complete within 30 s.
    #[must_use]
    pub fn start() -> Self {
        let nodes: Vec<_> = SLOTS.iter().map(|_| start_node()).collect();
        for (at, (node, (first, last))) in nodes.iter().zip(SLOTS).enumerate() {
            // Each its own epoch before they meet: equal ones collide, which takes seconds to settle.
            expect_ok(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            expect_ok(node, &["CLUSTER", "ADDSLOTSRANGE", first, last]);
        }
        for other in &nodes[1..] {
            let (port, bus) = (other.port().to_string(), bus_port(other));
            expect_ok(&nodes[0], &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        let cluster = Self { nodes };
        cluster.wait_until_ok();
        cluster
    }

    /// The nodes, to look at, pause or kill.
    pub fn nodes(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }

    /// Where the nodes listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(RedisServer::address).collect()
    }

    /// `redis://127.0.0.1:PORT` of each node.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// The node that holds a key.
    ///
    /// # Panics
    /// When no node answers.
    pub fn node_of(&mut self, key: &str) -> &mut RedisServer {
        let slot = self.slot_of(key);
        let holds = |(first, last): &(&str, &str)| {
            let bound = |text: &str| text.parse::<i64>().expect("a number");
            (bound(first)..=bound(last)).contains(&slot)
        };
        let at = SLOTS.iter().position(holds).expect("every slot has its node");
        &mut self.nodes[at]
    }

    /// Waits until every node that runs says `cluster_state:ok` and knows all others.
    ///
    /// # Panics
    /// When that is not so within 30 s.
    pub fn wait_until_ok(&self) {
        let is_ok = |node: &RedisServer| {
            let Ok(report) = node.try_command(&["CLUSTER", "INFO"]) else { return false };
            let has = |field, value| field_of(&report, field).as_deref() == Some(value);
            has("cluster_state", "ok") && has("cluster_known_nodes", "3") && has("cluster_slots_ok", "16384")
        };
        let complete = poll(READY, || self.nodes.iter().filter(|node| node.is_running()).all(is_ok));
        assert!(complete, "the cluster is not complete within {READY:?}");
    }

    fn slot_of(&self, key: &str) -> i64 {
        let node = self.nodes.iter().find(|node| node.is_running()).expect("a node is running");
        match node.command(&["CLUSTER", "KEYSLOT", key]) {
            Reply::Integer(slot) => slot,
            other => panic!("no slot: {other:?}"),
        }
    }
}

fn start_node() -> RedisServer {
    RedisServer::start_on_a_free_port(&[], |port| {
        // Not the usual port + 10 000, which somebody else may hold.
        let bus = std::iter::repeat_with(free_port).find(|bus| *bus != port);
        let bus = bus.expect("an endless iterator").to_string();
        let enabled = ["--cluster-enabled", "yes", "--cluster-port", &bus];
        let quick = ["--cluster-node-timeout", "2000"];
        enabled.iter().chain(&quick).map(|&word| word.to_owned()).collect()
    })
}

fn bus_port(node: &RedisServer) -> String {
    let reply = node.command(&["CONFIG", "GET", "cluster-port"]);
    reply.items().get(1).and_then(Reply::text).expect("a node of a cluster has a bus")
}

fn expect_ok(node: &RedisServer, words: &[&str]) {
    assert_eq!(node.command(words), Reply::Simple("OK".into()), "{words:?}");
}
