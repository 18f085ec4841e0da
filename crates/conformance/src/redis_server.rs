//! Real Redis servers for tests: started on free ports, stopped by their process id.
//!
//! Nothing here touches a server it did not start. A server dies with the process that started it, even when
//! that is killed: a shell between the two holds the server and waits for its own input to end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::resp::{self, Reply};

/// The variable that names a server which is there already: `redis://127.0.0.1:PORT`.
pub const SHARED_URL_VARIABLE: &str = "CONFORMANCE_REDIS_URL";

const START_DEADLINE: Duration = Duration::from_secs(10);
const HOLD: &str = r#""$@" </dev/null >"$REDIS_LOG" 2>&1 & echo $!; read -r _; kill -9 $! 2>/dev/null; wait"#;

/// A Redis server of this process. Stopped, and its files removed, when dropped.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    folder: PathBuf,
    options: Vec<String>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    shell: Child,
    pid: u32,
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

    /// A standalone server with further options, e.g. `["--maxmemory", "1mb"]`.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(options: &[&str]) -> Self {
        let mut last = io::Error::other("no port was free");
        for _ in 0..5 {
            let port = free_port();
            let folder =
                std::env::temp_dir().join(format!("conformance-redis-{}-{port}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            let mut server = Self { port, folder, options, running: None };
            match server.launch() {
                Ok(()) => return server,
                Err(error) => last = error,
            }
        }
        panic!("redis-server did not start: {last}");
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

    /// `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
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
        resp::command(self.address(), words).expect("the server answers")
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it is not running.
    pub fn kill(&mut self) {
        let running = self.running.take().expect("the server is running");
        running.end();
    }

    /// Starts it again on the same port, empty.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
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

    fn signal(&self, signal: &str) {
        let pid = self.running.as_ref().expect("the server is running").pid;
        send_signal(pid, signal);
    }

    fn launch(&mut self) -> io::Result<()> {
        let port = self.port.to_string();
        let folder = self.folder.to_string_lossy().into_owned();
        let log = self.folder.join("redis.log");
        let mut shell = Command::new("sh")
            .args(["-c", HOLD, "sh", redis_server_program()?, "--port", &port, "--bind", "127.0.0.1"])
            .args(["--dir", &folder, "--save", "", "--appendonly", "no"])
            .args(&self.options)
            .env("REDIS_LOG", &log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut pid = String::new();
        let out = shell.stdout.take().ok_or_else(|| io::Error::other("the shell has no output"))?;
        BufReader::new(out).read_line(&mut pid)?;
        let pid = pid.trim().parse().map_err(io::Error::other)?;
        self.running = Some(Running { shell, pid });
        self.wait_until_ready(&log)
    }

    fn wait_until_ready(&mut self, log: &Path) -> io::Result<()> {
        let started = Instant::now();
        while started.elapsed() < START_DEADLINE {
            // Asked for its process id, lest another server on the port be taken for ours.
            if let Ok(Reply::Bulk(info)) = resp::command(self.address(), &["INFO", "server"])
                && let Some(running) = &self.running
                && String::from_utf8_lossy(&info).contains(&format!("process_id:{}\r", running.pid))
            {
                return Ok(());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        if let Some(running) = self.running.take() {
            running.end();
        }
        let mut text = String::new();
        let _ = std::fs::File::open(log).and_then(|mut file| file.read_to_string(&mut text));
        Err(io::Error::other(format!("not ready within {START_DEADLINE:?}; its log:\n{text}")))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Running {
    fn end(mut self) {
        send_signal(self.pid, "KILL");
        if let Some(mut stdin) = self.shell.stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
        let _ = self.shell.wait();
    }
}

fn send_signal(pid: u32, signal: &str) {
    let sent =
        Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).stderr(Stdio::null()).status();
    sent.expect("`kill` can be run");
}

fn redis_server_program() -> io::Result<&'static str> {
    let there = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    match there {
        Ok(status) if status.success() => Ok("redis-server"),
        _ => Err(io::Error::other(
            "`redis-server` is not on the PATH; install it (Debian: `apt-get install redis-server`, \
             macOS: `brew install redis`) or run `cargo xtask test`, which does",
        )),
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port can be bound");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Whether anything accepts connections at an address.
#[must_use]
pub fn answers(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_starts_answers_dies_and_starts_again() {
        let mut server = RedisServer::start();
        assert_eq!(server.command(&["SET", "k", "v"]), Reply::Simple("OK".into()));
        assert_eq!(server.command(&["GET", "k"]), Reply::Bulk(b"v".to_vec()));
        server.kill();
        assert!(!answers(server.address()));
        server.restart();
        assert_eq!(server.command(&["GET", "k"]), Reply::Nil, "it starts empty");
        server.pause();
        assert!(resp::command_within(server.address(), &["PING"], Duration::from_millis(200)).is_err());
        server.resume();
        assert_eq!(server.command(&["PING"]), Reply::Simple("PONG".into()));
    }

    #[test]
    fn a_dropped_server_leaves_nothing() {
        let server = RedisServer::start();
        let (address, folder) = (server.address(), server.folder.clone());
        drop(server);
        assert!(!answers(address));
        assert!(!folder.exists());
    }
}
