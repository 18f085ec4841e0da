//! Real Redis servers for tests: started on free ports, stopped by their process id.
//!
//! | you need | take |
//! |---|---|
//! | a server to share with other tests | [`RedisServer::shared_url`] |
//! | a server to break | [`RedisServer::start`] |
//! | a master, its replica and three sentinels | [`SentinelSet::start`] |
//! | a cluster of three masters | [`ClusterSet::start`] |
//!
//! Nothing here touches a server it did not start. A server and its files go when its value is dropped, and also
//! when the process that started it is killed. Calls block, for some milliseconds as a rule.

mod cluster;
mod process;
mod sentinel;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rand::Rng;

pub use self::cluster::ClusterSet;
use self::process::{CONFIGURATION, LOG, Process, configuration, free_port};
pub use self::sentinel::{SentinelOptions, SentinelSet};
use crate::resp::{Connection, Reply};

/// The variable that names a server which is there already: `redis://127.0.0.1:PORT`.
pub const SHARED_URL_VARIABLE: &str = "CONFORMANCE_REDIS_URL";

const START_DEADLINE: Duration = Duration::from_secs(10);
const TRIES: u32 = 5;

/// A Redis server of this process. Stopped, and its files removed, when dropped.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    folder: PathBuf,
    arguments: &'static [&'static str],
    password: Option<String>,
    running: Option<Process>,
}

impl RedisServer {
    /// A standalone server without persistence.
    ///
    /// # Panics
    /// When `redis-server` is not installed or does not start: a missing Redis is a failure, never a skip.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A standalone server with further options, e.g. `["--maxmemory", "1mb"]`. With
    /// `["--requirepass", "…"]`, [`url`](Self::url) and [`command`](Self::command) carry the password; with
    /// `["--appendonly", "yes"]`, [`restart_with_data`](Self::restart_with_data) finds every acknowledged write.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(options: &[&str]) -> Self {
        Self::start_on_a_free_port(&[], |_| options.iter().map(|&option| option.to_owned()).collect())
    }

    /// The URL of a server that several tests share: the one named by [`SHARED_URL_VARIABLE`], or else one that
    /// is started for this process. Tests keep apart by a random prefix each.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn shared_url() -> String {
        static OWN: OnceLock<RedisServer> = OnceLock::new();
        std::env::var(SHARED_URL_VARIABLE).unwrap_or_else(|_| OWN.get_or_init(Self::start).url())
    }

    /// `redis://127.0.0.1:PORT`, with the password if there is one.
    #[must_use]
    pub fn url(&self) -> String {
        let password = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{password}{}", self.address())
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Sends a command on a connection of its own and waits for the answer, 5 s at most.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn command(&self, words: &[&str]) -> Reply {
        self.try_command(words).expect("the server answers")
    }

    /// [`command`](Self::command) for a server that may be away, or cut the connection in the middle of it as
    /// one does that changes its role.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn try_command(&self, words: &[&str]) -> io::Result<Reply> {
        self.try_connect(Duration::from_secs(5))?.call(words)
    }

    /// A connection to keep, e.g. for `MONITOR` or `SUBSCRIBE`; already authenticated.
    ///
    /// # Panics
    /// When the server does not answer.
    #[must_use]
    pub fn connect(&self) -> Connection {
        self.try_connect(Duration::from_secs(5)).expect("the server answers")
    }

    /// One line of `INFO`, e.g. `info("replication", "role")`; `None` without that line, or without an answer.
    #[must_use]
    pub fn info(&self, section: &str, field: &str) -> Option<String> {
        field_of(&self.try_command(&["INFO", section]).ok()?, field)
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it is not running.
    pub fn kill(&mut self) {
        self.running.take().expect("the server is running").end();
    }

    /// Starts it again on the same port, empty; kills it before when it runs.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.end();
        let _ = std::fs::remove_file(self.folder.join("dump.rdb"));
        let _ = std::fs::remove_dir_all(self.folder.join("appendonlydir"));
        self.launch().expect("the server starts again");
    }

    /// Starts it again on the same port with what is in its files: all writes when it was started with
    /// `--appendonly yes`, those until the last `SAVE` otherwise. Kills it before when it runs.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart_with_data(&mut self) {
        self.end();
        self.launch().expect("the server starts again");
    }

    /// `SIGSTOP`: connections stay open, nothing is answered.
    ///
    /// # Panics
    /// When it is not running.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// `SIGCONT`.
    ///
    /// # Panics
    /// When it is not running.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Whether it was started and not killed since.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    fn signal(&self, name: &str) {
        self.running.as_ref().expect("the server is running").signal(name);
    }

    /// A server whose options may depend on its port. `arguments` come after the configuration's name.
    fn start_on_a_free_port(
        arguments: &'static [&'static str],
        options: impl Fn(u16) -> Vec<String>,
    ) -> Self {
        let mut last = io::Error::other("no port was free");
        for _ in 0..TRIES {
            let port = free_port();
            match Self::start_on(port, arguments, &options(port)) {
                Ok(server) => return server,
                Err(error) if error.kind() == io::ErrorKind::NotFound => panic!("{error}"),
                Err(error) => last = error,
            }
        }
        panic!("redis-server did not start in {TRIES} tries: {last}");
    }

    fn start_on(port: u16, arguments: &'static [&'static str], options: &[String]) -> io::Result<Self> {
        let random: u64 = rand::rng().random();
        let folder = std::env::temp_dir().join(format!("conformance-redis-{port}-{random:016x}"));
        std::fs::create_dir(&folder)?;
        let password = options.iter().position(|option| option == "--requirepass");
        let password = password.and_then(|at| options.get(at + 1)).cloned();
        // From here on the folder goes with the server.
        let mut server = Self { port, folder, arguments, password, running: None };
        std::fs::write(server.folder.join(CONFIGURATION), configuration(port, &server.folder, options))?;
        server.launch()?;
        Ok(server)
    }

    fn launch(&mut self) -> io::Result<()> {
        self.running = Some(Process::start(&self.folder, self.arguments)?);
        let ready = self.wait_until_ready();
        if ready.is_err() {
            self.end();
        }
        ready
    }

    fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }

    fn wait_until_ready(&self) -> io::Result<()> {
        let mut verdict = Err("no answer".to_owned());
        let decided = poll(START_DEADLINE, || {
            verdict = self.is_ready();
            verdict.is_ok() || self.has_given_up()
        });
        match verdict {
            Ok(()) if decided => Ok(()),
            verdict => {
                let (verdict, log) = (verdict.err().unwrap_or_default(), self.log());
                Err(io::Error::other(format!("not ready within {START_DEADLINE:?} ({verdict}):\n{log}")))
            }
        }
    }

    fn is_ready(&self) -> Result<(), String> {
        let mut connection = self.try_connect(START_DEADLINE).map_err(|error| error.to_string())?;
        let info = connection.call(&["INFO", "server"]).map_err(|error| error.to_string())?;
        // Asked for its process id, lest another server on the port be taken for ours.
        let ours = self.running.as_ref().map(|running| running.pid().to_string());
        if field_of(&info, "process_id") != ours {
            return Err(format!("an answer that is not ours: {info:?}"));
        }
        match connection.call(&["PING"]) {
            Ok(Reply::Simple(_)) => Ok(()),
            other => Err(format!("PING is answered by {other:?}")),
        }
    }

    fn try_connect(&self, limit: Duration) -> io::Result<Connection> {
        let mut connection = Connection::open(self.address(), limit)?;
        if let Some(password) = &self.password {
            connection.call(&["AUTH", password])?;
        }
        Ok(connection)
    }

    fn has_given_up(&self) -> bool {
        let log = self.log();
        log.contains("Failed listening on port") || log.contains("FATAL CONFIG FILE ERROR")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join(LOG)).unwrap_or_default()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Asks again and again until the answer is yes; false when it was not within the limit.
fn poll(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() > limit {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A line `field:value` of a report such as `INFO`.
fn field_of(report: &Reply, field: &str) -> Option<String> {
    let text = report.text()?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(name, _)| *name == field).map(|(_, value)| value.trim().to_owned())
}

/// Whether anything accepts connections at an address.
#[must_use]
pub fn answers(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

#[cfg(test)]
mod tests;
