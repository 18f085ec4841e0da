//! The places of a listener's connections: how many there are, how many of them one client may have, and whose place
//! a newcomer takes when all are taken.
//!
//! A newcomer is not turned away for connections that do nothing: it takes the place of the one that has waited
//! longest for its client. Sockets that are opened to be held displace one another, and a health check gets through.
//! Only when every connection is answering a request is there no place.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use metrics::{counter, gauge};
use org_resolution::TrustedProxies;
use parking_lot::Mutex;

use crate::accept::ConnectionPolicy;
use crate::accept::activity::Activity;
use crate::telemetry::Seldom;

/// Connections unless told otherwise, where the system allows as many open files.
const CONNECTIONS: usize = 10_000;
/// Descriptors left for the database, Redis, logs, and the operators' listener.
const OTHER_DESCRIPTORS: usize = 192;
/// Connections looked at for the one that has waited longest. A sample, as exactness would cost a look at all of them
/// for each newcomer of a flood.
const SAMPLE: usize = 32;

/// How many connections fit below the limit of open files.
#[must_use]
pub fn default_connections() -> usize {
    match open_files() {
        Some(limit) => CONNECTIONS.min(limit.saturating_sub(OTHER_DESCRIPTORS).max(limit / 4)).max(1),
        None => CONNECTIONS,
    }
}

/// The limit of open files, where there is one.
#[cfg(unix)]
#[must_use]
pub fn open_files() -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
    usize::try_from(limit).ok()
}

/// The limit of open files, where there is one.
#[cfg(not(unix))]
#[must_use]
pub fn open_files() -> Option<usize> {
    None
}

/// Connections closed when descriptors ran out: others of the process need some, too.
const FREED: usize = 16;

/// The places of one listener.
#[derive(Debug)]
pub struct Places {
    listener: &'static str,
    policy: ConnectionPolicy,
    proxies: TrustedProxies,
    table: Mutex<Table>,
    refusals: Seldom,
}

#[derive(Debug, Default)]
struct Table {
    open: BTreeMap<u64, Open>,
    by_client: HashMap<IpAddr, Vec<u64>>,
    next: u64,
    /// Where the next sample begins.
    cursor: u64,
}

#[derive(Debug)]
struct Open {
    activity: Arc<Activity>,
    client: Option<IpAddr>,
}

/// One connection's place; free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    activity: Arc<Activity>,
    number: u64,
}

impl Places {
    /// Places of a listener that metrics call so. Connections from `proxies` are those of many clients, and count to no
    /// client's share.
    #[must_use]
    pub fn new(listener: &'static str, policy: ConnectionPolicy, proxies: TrustedProxies) -> Arc<Self> {
        Arc::new(Self { listener, policy, proxies, table: Mutex::default(), refusals: Seldom::default() })
    }

    /// A place for a connection from this address; `None` when all places, or all of this client, are answering.
    pub fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let client = Some(peer).filter(|peer| !self.proxies.contains(*peer)).map(network);
        let activity = Activity::new(self.policy);
        match self.table.lock().insert(client, &activity, &self.policy) {
            Ok(number) => {
                gauge!("http_connections_open", "listener" => self.listener).increment(1.0);
                Some(Place { places: Arc::clone(self), activity, number })
            }
            Err(cause) => {
                self.refused(cause, None);
                None
            }
        }
    }

    /// No connection could be accepted, most likely for want of descriptors: some that wait are closed.
    pub(super) fn failed_to_accept(&self, error: &io::Error) {
        self.refused("accept", Some(error));
        let mut table = self.table.lock();
        for _ in 0..FREED {
            let candidates = table.sample();
            if !table.displace(candidates) {
                break;
            }
        }
    }

    fn refused(&self, cause: &'static str, error: Option<&io::Error>) {
        counter!("http_connections_refused_total", "listener" => self.listener, "cause" => cause)
            .increment(1);
        if let Some(unsaid) = self.refusals.may_say() {
            let (listener, error) = (self.listener, error.map(ToString::to_string));
            tracing::warn!(listener, cause, error, unsaid, "a connection was refused");
        }
    }
}

impl Table {
    fn insert(
        &mut self,
        client: Option<IpAddr>,
        activity: &Arc<Activity>,
        policy: &ConnectionPolicy,
    ) -> Result<u64, &'static str> {
        let own = client.and_then(|client| self.by_client.get(&client));
        if let Some(own) = own.filter(|own| own.len() >= policy.per_client) {
            let own = own.clone();
            if !self.displace(own) {
                return Err("client");
            }
        } else if self.open.len() >= policy.connections {
            let candidates = self.sample();
            if !self.displace(candidates) {
                return Err("all");
            }
        }
        let number = self.next;
        self.next += 1;
        self.open.insert(number, Open { activity: Arc::clone(activity), client });
        if let Some(client) = client {
            self.by_client.entry(client).or_default().push(number);
        }
        Ok(number)
    }

    /// The next connections from the cursor on; all of them when none of those waits.
    fn sample(&mut self) -> Vec<u64> {
        let around = self.open.range(self.cursor..).chain(self.open.range(..self.cursor));
        let mut numbers: Vec<u64> = around.map(|(number, _)| *number).take(SAMPLE).collect();
        self.cursor = numbers.last().map_or(0, |last| last + 1);
        if !numbers.iter().any(|number| self.open[number].activity.waiting_since().is_some()) {
            numbers = self.open.keys().copied().collect();
        }
        numbers
    }

    /// Takes the place of the one among these that has waited longest; `false` when none waits.
    fn displace(&mut self, candidates: Vec<u64>) -> bool {
        let since = |number: u64| Some((self.open.get(&number)?.activity.waiting_since()?, number));
        let mut waiting: Vec<_> = candidates.into_iter().filter_map(since).collect();
        waiting.sort_unstable();
        let displaced = waiting.into_iter().find(|(_, number)| self.open[number].activity.displace());
        let Some((_, number)) = displaced else { return false };
        self.remove(number);
        true
    }

    /// Removes a connection, once: a displaced one is gone from here before its socket is closed.
    fn remove(&mut self, number: u64) {
        let Some(Open { client: Some(client), .. }) = self.open.remove(&number) else { return };
        let Some(own) = self.by_client.get_mut(&client) else { return };
        own.retain(|other| *other != number);
        if own.is_empty() {
            self.by_client.remove(&client);
        }
    }
}

impl Place {
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    pub(super) fn policy(&self) -> ConnectionPolicy {
        self.places.policy
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.table.lock().remove(self.number);
        gauge!("http_connections_open", "listener" => self.places.listener).decrement(1.0);
    }
}

/// Whom a connection counts to: an IPv6 client is its /64, which is what one subscriber has at least.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept::activity::Answering;

    fn places(connections: usize, per_client: usize) -> Arc<Places> {
        let policy = ConnectionPolicy { connections, per_client, ..ConnectionPolicy::default() };
        Places::new("test", policy, "10.0.0.0/8".parse().expect("a network"))
    }

    fn take(places: &Arc<Places>, client: &str) -> Option<Place> {
        places.take(client.parse().expect("an address"))
    }

    fn is_displaced(place: &Place) -> bool {
        Answering::begin(place.activity()).is_none()
    }

    /// A newcomer takes the place of the connection that has waited longest, and none of one that answers.
    #[tokio::test(start_paused = true)]
    async fn a_newcomer_takes_the_longest_waiting_place() {
        let places = places(3, 3);
        let first = take(&places, "192.0.2.1").expect("free");
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        let second = take(&places, "192.0.2.2").expect("free");
        let _third = take(&places, "192.0.2.3").expect("free");
        let answering = Answering::begin(first.activity()).expect("its own place");
        let newcomer = take(&places, "192.0.2.4").expect("the second's place");
        assert!(is_displaced(&second));
        drop(answering);
        let busy: Vec<_> = [&first, &_third, &newcomer].map(|p| Answering::begin(p.activity())).into();
        assert!(busy.iter().all(Option::is_some));
        assert!(take(&places, "192.0.2.5").is_none(), "all are answering");
        drop(first);
        // The displaced connection's end frees nothing a second time.
        drop(second);
        assert_eq!(places.table.lock().open.len(), 2);
    }

    /// A client's share is its own: it displaces only itself, by network in IPv6; a proxy has no share.
    #[tokio::test]
    async fn a_client_displaces_only_itself() {
        let places = places(100, 2);
        let others = take(&places, "192.0.2.9").expect("free");
        let own: Vec<_> = (1..=2).map(|n| take(&places, &format!("2001:db8::{n}")).expect("free")).collect();
        let _newcomer = take(&places, "2001:db8::3").expect("the place of one of its own");
        assert_eq!(own.iter().filter(|place| is_displaced(place)).count(), 1);
        assert!(!is_displaced(&others));
        let _proxied: Vec<_> = (0..20).map(|_| take(&places, "10.0.0.1").expect("no share")).collect();
    }

    /// When a client's connections are all answering it gets no more, and others do.
    #[tokio::test]
    async fn a_busy_share_is_full() {
        let places = places(100, 1);
        let busy = take(&places, "192.0.2.1").expect("free");
        let _answering = Answering::begin(busy.activity());
        assert!(take(&places, "192.0.2.1").is_none());
        assert!(take(&places, "::ffff:192.0.2.1").is_none(), "the same client, mapped");
        assert!(take(&places, "192.0.2.2").is_some());
    }

    /// When descriptors ran out some connections that wait make room, and none that answers.
    #[tokio::test]
    async fn waiting_connections_make_room_for_descriptors() {
        let places = places(100, 100);
        let busy = take(&places, "192.0.2.1").expect("free");
        let _answering = Answering::begin(busy.activity());
        let waiting: Vec<_> = (0..20).map(|_| take(&places, "192.0.2.1").expect("free")).collect();
        places.failed_to_accept(&io::Error::other("too many open files"));
        assert_eq!(waiting.iter().filter(|place| is_displaced(place)).count(), FREED);
        places.failed_to_accept(&io::Error::other("too many open files"));
        assert_eq!(places.table.lock().open.len(), 1, "the one that answers");
    }

    /// Beyond the first sample one that waits is still found, and a flood displaces its own kind.
    #[tokio::test]
    async fn one_that_waits_is_found_among_many() {
        let places = places(200, 1_000);
        let open: Vec<_> = (0..200).map(|_| take(&places, "192.0.2.1").expect("free")).collect();
        let busy: Vec<_> = open[..199].iter().map(|place| Answering::begin(place.activity())).collect();
        let _newcomer = take(&places, "192.0.2.2").expect("the last one's place");
        assert!(busy.iter().all(Option::is_some) && is_displaced(&open[199]));
        assert_eq!(places.table.lock().open.len(), 200);
    }
}
