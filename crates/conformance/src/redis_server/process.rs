//! One server process, held by a shell that outlives a killed test by a moment.
//!
//! Why a shell: only the parent-death signal or a watcher ends a server whose starter was killed, and setting
//! that signal takes `unsafe` code. The shell reads a pipe that only this process writes to. When that ends, for
//! whatever reason, the shell kills the server and removes its folder.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rand::Rng;

/// The server's log, within its folder.
pub(super) const LOG: &str = "redis.log";
/// The server's configuration, within its folder; a failover writes to it.
pub(super) const CONFIGURATION: &str = "redis.conf";

/// Any line means: the folder is still needed. The end of the input means that nobody is left to need it.
const HOLD: &str = r#"
cd / || exit 1
redis-server "$FOLDER/redis.conf" "$@" </dev/null >"$FOLDER/redis.log" 2>&1 &
server=$!
echo "$server"
keep=no
if read -r _; then keep=yes; fi
kill -9 "$server"
wait "$server"
if [ "$keep" = no ]; then rm -rf -- "$FOLDER"; fi
"#;

const HOW_TO_GET_IT: &str = "`redis-server` is not on the PATH; install it (Debian: `apt-get install redis-server`, \
     macOS: `brew install redis`) or run `cargo xtask test`, which does";

/// A running server.
#[derive(Debug)]
pub(super) struct Process {
    shell: Child,
    pid: u32,
}

impl Process {
    /// Starts `redis-server` on the configuration in `folder`.
    pub(super) fn start(folder: &Path, arguments: &[&str]) -> io::Result<Self> {
        if !is_installed() {
            return Err(io::Error::new(io::ErrorKind::NotFound, HOW_TO_GET_IT));
        }
        let mut shell = Command::new("sh")
            .args(["-c", HOLD, "sh"])
            .args(arguments)
            .env("FOLDER", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Of its own, so that Ctrl-C reaches the tests alone and the shell can clean up after them.
            .process_group(0)
            .spawn()?;
        let mut pid = String::new();
        let out = shell.stdout.take().expect("the output was asked for");
        BufReader::new(out).read_line(&mut pid)?;
        let pid = pid.trim().parse().map_err(io::Error::other)?;
        Ok(Self { shell, pid })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal, by the name that `kill` knows it by.
    pub(super) fn signal(&self, name: &str) {
        // The shell's own `kill`: a small system has no program of that name.
        let mut kill = Command::new("sh");
        kill.args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &self.pid.to_string()]);
        let sent = kill.stderr(Stdio::null()).status();
        assert!(sent.is_ok_and(|status| status.success()), "the server {} does not run any more", self.pid);
    }

    /// `kill -9`, and waits until it is gone. Its folder stays.
    pub(super) fn end(mut self) {
        // The shell does the killing: the process id is its child's, so it cannot be anybody else's by now.
        if let Some(mut stdin) = self.shell.stdin.take() {
            let _ = stdin.write_all(b"keep\n");
        }
        let _ = self.shell.wait();
    }
}

fn is_installed() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let tried = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })
}

/// The text of a configuration; later options win.
pub(super) fn configuration(port: u16, folder: &Path, options: &[String]) -> String {
    let port = port.to_string();
    let folder = folder.to_string_lossy();
    let base = ["--port", &port, "--bind", "127.0.0.1", "--dir", &folder, "--save", "", "--appendonly", "no"];
    let mut text = String::new();
    for word in base.into_iter().chain(options.iter().map(String::as_str)) {
        match word.strip_prefix("--") {
            Some(name) => text.push_str(&format!("\n{name}")),
            None => text.push_str(&format!(" \"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))),
        }
    }
    text + "\n"
}

/// Outside of the range from which the system hands out ports by itself: a server that is killed for a while
/// then finds its port still free when it comes back.
pub(super) fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut random = rand::rng();
    let port = std::iter::repeat_with(|| random.random_range(15_000..32_000)).take(1_000).find(free);
    port.expect("a port is free")
}
