//! The instances as the run sees them: processes that are started, stopped, killed, and what they tell.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use conformance::proxy::Proxy;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;

use crate::instance::{NUMBER, ORIGIN, REDIS, SEED};
use crate::origin::Origin;
use crate::record::Record;
use crate::report::{Command, Line, MARK, Standing, now};

/// One running instance, and its own way to Redis.
pub(crate) struct Running {
    number: u32,
    child: Child,
    commands: ChildStdin,
    done: mpsc::Receiver<()>,
}

/// The instances of a run.
pub(crate) struct Fleet {
    pub(crate) links: Vec<Arc<Proxy>>,
    pub(crate) record: Arc<Mutex<Record>>,
    origin: Arc<Origin>,
    running: Vec<Running>,
    started: u32,
    seed: u64,
}

impl Fleet {
    pub(crate) async fn start(
        size: usize,
        redis: std::net::SocketAddr,
        origin: &Arc<Origin>,
        seed: u64,
    ) -> Self {
        let mut links = Vec::new();
        for _ in 0..size {
            links.push(Arc::new(Proxy::start(redis).await));
        }
        let record = Arc::new(Mutex::new(Record::new()));
        let mut fleet =
            Self { links, record, origin: Arc::clone(origin), running: Vec::new(), started: 0, seed };
        for at in 0..size {
            let instance = fleet.launch(at);
            fleet.running.push(instance);
        }
        fleet
    }

    /// Starts an instance behind the link `at`.
    fn launch(&mut self, at: usize) -> Running {
        let number = self.started;
        self.started += 1;
        // This program again, as the one test that is an instance.
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "redis::instance_of_a_fleet", "--ignored", "--nocapture"])
            .env(REDIS, self.links[at].address().to_string())
            .env(ORIGIN, self.origin.address.to_string())
            .env(NUMBER, at.to_string())
            .env(SEED, self.seed.wrapping_add(u64::from(number)).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("this program runs again");
        let commands = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (told, done) = mpsc::channel(4);
        let record = Arc::clone(&self.record);
        record.lock().unwrap().trusted.insert(number, Standing::default());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Some(line) = line.strip_prefix(MARK) else { continue };
                // Killed in the middle of a line: the rest of it is not there.
                let Ok(line) = serde_json::from_str(line) else { continue };
                if matches!(line, Line::Done) {
                    let _ = told.send(()).await;
                }
                record.lock().unwrap().hear(number, line);
            }
        });
        Running { number, child, commands, done }
    }

    /// `kill -9`, and another in its place.
    pub(crate) async fn replace(&mut self, at: usize) {
        let new = self.launch(at);
        let mut old = std::mem::replace(&mut self.running[at], new);
        old.child.kill().await.expect("an instance that runs is killed");
        self.record.lock().unwrap().trusted.remove(&old.number);
    }

    /// `SIGSTOP`, and `SIGCONT` after a while.
    pub(crate) async fn freeze(&self, at: usize, time: Duration) {
        let from = now();
        self.signal(at, "STOP");
        tokio::time::sleep(time).await;
        self.signal(at, "CONT");
        self.record.lock().unwrap().frozen.push((self.running[at].number, from, now()));
    }

    fn signal(&self, at: usize, name: &str) {
        let pid = self.running[at].child.id().expect("it runs").to_string();
        let mut kill = std::process::Command::new("sh");
        let sent = kill.args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "instance {at} does not run any more");
    }

    /// Fails when an instance ended by itself: it panicked, and a read was not answered.
    pub(crate) fn assert_alive(&mut self) {
        for running in &mut self.running {
            let ended = running.child.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "instance {} ended by itself: {ended:?}", running.number);
        }
    }

    /// How long it takes until every instance trusts its memory.
    pub(crate) async fn trust_returns(&self, within: Duration) -> Option<Duration> {
        let began = Instant::now();
        while began.elapsed() < within {
            let trusted = self.record.lock().unwrap().trusted.values().all(|standing| standing.trusted);
            if trusted {
                return Some(began.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Has one instance do something, or all of them.
    pub(crate) async fn command(&mut self, at: impl Into<Option<usize>>, command: Command) {
        let at = at.into();
        let chosen = |n: &usize| at.is_none_or(|at| at == *n);
        let all: Vec<usize> = (0..self.running.len()).filter(chosen).collect();
        for at in &all {
            let word = format!("{}\n", command.word());
            self.running[*at].commands.write_all(word.as_bytes()).await.expect("it listens");
        }
        for at in all {
            let done = tokio::time::timeout(Duration::from_secs(30), self.running[at].done.recv()).await;
            assert!(matches!(done, Ok(Some(()))), "instance {at} does not do what it is told: {command:?}");
        }
    }
}
