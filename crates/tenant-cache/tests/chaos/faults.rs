//! What goes wrong, drawn by a seed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use conformance::proxy::{Direction, Gate, Proxy};
use conformance::redis_server::RedisServer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::fleet::Fleet;

/// One kind of fault.
type Kind = (&'static str, u32);

/// To Redis or to an instance, with how often each is drawn.
const DIRECT: [Kind; 17] = [
    ("redis killed, back empty", 3),
    ("redis killed, back with its data", 3),
    ("redis frozen", 4),
    ("pubsub connections killed", 4),
    ("data connections killed", 4),
    ("all clients paused", 3),
    ("writes paused", 3),
    ("a message lost", 4),
    ("malformed and foreign messages", 3),
    ("scripts forgotten", 2),
    ("a slow subscriber dropped", 2),
    ("an instance frozen", 6),
    ("an instance killed and replaced", 4),
    ("generations lost", 2),
    ("a storm of messages", 1),
    ("memory full", 2),
    ("channels forbidden", 2),
];

/// To one instance's way to Redis.
const LINK: [Kind; 8] = [
    ("link: black hole", 3),
    ("link: answers held", 3),
    ("link: requests held", 3),
    ("link: delayed", 3),
    ("link: dripping", 2),
    ("link: half-open", 3),
    ("link: cut", 3),
    ("link: cut and refused", 3),
];

/// The subscriber's limits that make a slow one be dropped soon.
pub(crate) const OUTPUT_LIMIT: [&str; 4] =
    ["CONFIG", "SET", "client-output-buffer-limit", "pubsub 256kb 128kb 1"];

const CHANNEL: &str = "cache:invalidate";

/// Injects faults, and counts them by kind.
pub(crate) struct Faults {
    pub(crate) rng: StdRng,
    pub(crate) counts: BTreeMap<&'static str, u32>,
    /// Subscribers that Redis was seen to drop because they read too slowly.
    pub(crate) dropped: usize,
    /// When the last ones were drawn, since the run began.
    pub(crate) last: VecDeque<(Duration, &'static str)>,
    pub(crate) began: Instant,
}

/// Faults that are remembered with their time.
const REMEMBERED: usize = 10_000;

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            counts: BTreeMap::new(),
            dropped: 0,
            last: VecDeque::new(),
            began: Instant::now(),
        }
    }

    /// What was drawn in the seconds before a time.
    pub(crate) fn before(&self, time: Duration) -> impl Iterator<Item = &(Duration, &'static str)> {
        const SECONDS: Duration = Duration::from_secs(4);
        self.last.iter().filter(move |(at, _)| *at <= time && time.saturating_sub(SECONDS) <= *at)
    }

    pub(crate) fn total(&self) -> u32 {
        self.counts.values().sum()
    }

    /// Does something bad, and undoes it. A fault of a link is undone in the background, so that another can come
    /// on top of it.
    pub(crate) async fn inject(&mut self, server: &mut RedisServer, fleet: &mut Fleet) {
        let at = self.rng.random_range(0..fleet.links.len());
        if self.rng.random_bool(0.4) {
            let (kind, seed) = (self.draw(&LINK), self.rng.random());
            let link = Arc::clone(&fleet.links[at]);
            let fault = async move { break_link(&link, kind, seed).await };
            match self.rng.random_bool(0.5) {
                true => fault.await,
                false => drop(tokio::spawn(fault)),
            }
            return;
        }
        match self.draw(&DIRECT) {
            "an instance frozen" => {
                let time = Duration::from_millis(self.rng.random_range(100..2_000));
                fleet.freeze(at, time).await;
            }
            "an instance killed and replaced" => fleet.replace(at).await,
            "a slow subscriber dropped" => {
                let link = Arc::clone(&fleet.links[at]);
                let before = subscribers(server);
                link.set(Direction::ToClient, Gate::Hold);
                flood(server, 600, 16 * 1_024).await;
                self.dropped += before.saturating_sub(subscribers(server));
                self.pause(10..300).await;
                link.heal().await;
            }
            kind => self.trouble(kind, server).await,
        }
    }

    /// Does something bad to Redis.
    async fn trouble(&mut self, kind: &str, server: &mut RedisServer) {
        let millis = self.rng.random_range(50..900).to_string();
        match kind {
            "redis killed, back empty" => {
                server.kill();
                self.pause(50..900).await;
                server.restart();
                server.command(&OUTPUT_LIMIT);
            }
            "redis killed, back with its data" => {
                server.kill();
                self.pause(50..900).await;
                server.restart_with_data();
                server.command(&OUTPUT_LIMIT);
            }
            "redis frozen" => {
                server.pause();
                self.pause(50..1_500).await;
                server.resume();
            }
            "pubsub connections killed" => drop(server.command(&["CLIENT", "KILL", "TYPE", "pubsub"])),
            "data connections killed" => drop(server.command(&["CLIENT", "KILL", "TYPE", "normal"])),
            "all clients paused" => drop(server.command(&["CLIENT", "PAUSE", &millis, "ALL"])),
            "writes paused" => drop(server.command(&["CLIENT", "PAUSE", &millis, "WRITE"])),
            // Counted and never delivered.
            "a message lost" => drop(server.command(&["INCR", "{cache:invalidate}:seq"])),
            "malformed and foreign messages" => {
                let foreign =
                    ["{", "{\"op\":\"key\"}", "\u{1}", "{\"v\":9,\"op\":\"all\"}", "0:rows:1", "a:b:c:d:e"];
                for message in foreign {
                    server.command(&["PUBLISH", CHANNEL, message]);
                }
            }
            "scripts forgotten" => drop(server.command(&["SCRIPT", "FLUSH"])),
            "generations lost" => {
                let script = "for _,k in ipairs(redis.call('KEYS','gen:*')) do redis.call('DEL',k) end";
                server.command(&["EVAL", script, "0"]);
            }
            // Nothing can be stored; removals and beats go through.
            "memory full" => {
                server.command(&["CONFIG", "SET", "maxmemory", "1"]);
                self.pause(100..1_500).await;
                server.command(&["CONFIG", "SET", "maxmemory", "0"]);
            }
            // Ends the subscriptions, refuses new ones and every announcement; reads and fills go through.
            "channels forbidden" => {
                server.command(&["ACL", "SETUSER", "default", "resetchannels"]);
                self.pause(100..1_500).await;
                server.command(&["ACL", "SETUSER", "default", "allchannels"]);
            }
            "a storm of messages" => flood(server, 20_000, 64).await,
            other => unreachable!("no such fault: {other}"),
        }
    }

    fn draw(&mut self, kinds: &[Kind]) -> &'static str {
        let mut at = self.rng.random_range(0..kinds.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in kinds {
            if at < *weight {
                *self.counts.entry(kind).or_default() += 1;
                if self.last.len() == REMEMBERED {
                    self.last.pop_front();
                }
                self.last.push_back((self.began.elapsed(), kind));
                return kind;
            }
            at -= weight;
        }
        unreachable!("the weights add up")
    }

    async fn pause(&mut self, millis: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(millis))).await;
    }
}

/// Does something bad to one instance's way to Redis, for a while.
async fn break_link(link: &Proxy, kind: &str, seed: u64) {
    match kind {
        "link: black hole" => link.black_hole(),
        "link: answers held" => link.set(Direction::ToClient, Gate::Hold),
        "link: requests held" => link.set(Direction::ToServer, Gate::Hold),
        "link: delayed" => link.set(Direction::ToClient, Gate::Delay(Duration::from_millis(5 + seed % 150))),
        "link: dripping" => {
            link.set(Direction::ToClient, Gate::Drip { bytes: 7, every: Duration::from_millis(2) });
        }
        "link: half-open" => link.half_open().await,
        "link: cut and refused" => {
            link.refuse().await;
            link.cut().await;
        }
        _ => link.cut().await,
    }
    tokio::time::sleep(Duration::from_millis(100 + seed / 3 % 1_400)).await;
    link.heal().await;
}

fn subscribers(server: &RedisServer) -> usize {
    let list = server.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).text().unwrap_or_default();
    list.lines().filter(|line| !line.is_empty()).count()
}

/// Publishes so many messages of so many bytes, as fast as the server takes them.
async fn flood(server: &RedisServer, messages: usize, bytes: usize) {
    let mut connection = server.connect();
    let flooding = tokio::task::spawn_blocking(move || {
        let pad = "x".repeat(bytes);
        let message =
            format!(r#"{{"v":1,"src":"flood","op":"key","domain":"rows","key":"999","pad":"{pad}"}}"#);
        for _ in 0..messages / 100 {
            for _ in 0..100 {
                connection.send(&["PUBLISH", CHANNEL, &message])?;
            }
            for _ in 0..100 {
                connection.read()?;
            }
        }
        std::io::Result::Ok(())
    });
    flooding.await.expect("the flood does not panic").expect("the server takes it");
}
