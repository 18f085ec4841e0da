//! The real binary: what it says, how it ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::Folder;

const LIMIT: Duration = Duration::from_secs(20);

/// A command of the binary in a folder of its own, with no settings but these.
fn command(folder: &Folder, args: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_org-server"));
    command.args(args).current_dir(&folder.0).env_clear().stdin(Stdio::null());
    command.envs(settings.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn run(folder: &Folder, args: &[&str], settings: &[(&str, &str)]) -> Output {
    command(folder, args, settings).output().expect("the binary runs")
}

/// The most memory that a command which fails held at once, in KiB.
#[cfg(target_os = "linux")]
pub(crate) fn peak_kib(folder: &Folder, args: &[&str]) -> usize {
    let mut child = command(folder, args, &[]).stderr(Stdio::null()).spawn().expect("the binary runs");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let held = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let held = held.and_then(|held| held.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(held.unwrap_or(0));
        if let Some(ended) = child.try_wait().expect("a child") {
            assert!(!ended.success(), "it is refused");
            return peak;
        }
        std::thread::yield_now();
    }
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// A running server; killed when dropped.
pub(crate) struct Running {
    child: Child,
    greeting: Vec<String>,
    address: SocketAddr,
    operators: SocketAddr,
}

impl Running {
    pub(crate) fn start(folder: &Folder, settings: &[(&str, &str)]) -> Self {
        Self::start_logging(folder, settings, Stdio::null())
    }

    pub(crate) fn start_logging(folder: &Folder, settings: &[(&str, &str)], log: Stdio) -> Self {
        let mut all = vec![("BIND_ADDR", "127.0.0.1:0"), ("ADMIN_BIND_ADDR", "127.0.0.1:0")];
        all.extend(settings);
        let mut command = command(folder, &[], &all);
        let mut child = command.stderr(log).spawn().expect("the binary runs");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut greeting = Vec::new();
        for line in stdout.lines() {
            greeting.push(line.expect("text"));
            if greeting.last().is_some_and(|line| line.starts_with("try: ")) {
                break;
            }
        }
        let listening = |prefix: &str| -> SocketAddr {
            let said = greeting.iter().find_map(|line: &String| line.strip_prefix(prefix));
            let address = said.expect("it says where it listens").split('/').next();
            address.expect("an address").parse().expect("an address")
        };
        let (address, operators) = (listening("listening on http://"), listening("for operators: http://"));
        Self { child, greeting, address, operators }
    }

    fn says(&self, prefix: &str) -> Option<&str> {
        self.greeting.iter().find_map(|line| line.strip_prefix(prefix))
    }

    fn open(&self) -> TcpStream {
        Self::connect(self.address)
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("set");
        stream
    }

    /// Sends a request and answers everything that comes back.
    pub(crate) fn ask(&self, line: &str, headers: &str) -> String {
        let of_operators = [" /admin", " /readyz", " /metrics"].iter().any(|path| line.contains(path));
        let mut stream = Self::connect(if of_operators { self.operators } else { self.address });
        write!(stream, "{line} HTTP/1.1\r\n{headers}connection: close\r\n\r\n").expect("sent");
        rest(stream)
    }

    /// Sends a request of an operator and waits for no answer.
    pub(crate) fn send(&self, line: &str, headers: &str) -> TcpStream {
        let mut stream = Self::connect(self.operators);
        write!(stream, "{line} HTTP/1.1\r\n{headers}connection: close\r\n\r\n").expect("sent");
        stream
    }

    /// Ends it at once, as a lost machine would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("killed");
    }

    pub(crate) fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().expect("kill runs").success());
    }

    /// Waits for its end, at most so long.
    pub(crate) fn ended(&mut self, within: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => return Some(status),
                None if Instant::now() > deadline => return None,
                None => std::thread::yield_now(),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

/// L1: on a fresh machine without settings it starts, and the line it prints to try works.
#[test]
fn a_first_start_prints_a_line_to_try_that_works() {
    let folder = Folder::new();
    let server = Running::start(&folder, &[]);
    assert!(server.says("imported 204 sample organisations").is_some(), "{:?}", server.greeting);
    assert!(server.says("made a master key in data/master-key").is_some(), "{:?}", server.greeting);
    let line = server.says("try: curl -H 'Host: ").expect("a line to try");
    let (host, url) = line.split_once("' http://").expect("a host and a URL");
    let (address, path) = url.split_once('/').expect("a path");
    assert_eq!(address, server.address.to_string());
    let answer = server.ask(&format!("GET /{path}"), &format!("host: {host}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"slug\":\"acme\""), "{answer}");
}

/// The admin token that a first start makes works, also after a restart; where standard output is no terminal, as in a
/// container, it is named by its file and not printed.
#[test]
fn the_admin_token_is_not_printed_to_a_log() {
    let folder = Folder::new();
    let first = Running::start(&folder, &[]);
    let token = std::fs::read_to_string(folder.0.join("data/admin-token")).expect("made");
    let token = token.trim();
    assert!(first.says("made an admin token in data/admin-token").is_some(), "{:?}", first.greeting);
    assert!(!first.greeting.iter().any(|line| line.contains(token)), "{:?}", first.greeting);
    let list = |server: &Running| {
        let headers = format!("host: h\r\nauthorization: Bearer {token}\r\n");
        server.ask("GET /admin/orgs?limit=1", &headers)
    };
    assert!(list(&first).starts_with("HTTP/1.1 200"), "{}", list(&first));
    drop(first);
    let second = Running::start(&folder, &[]);
    assert!(second.says("imported").is_none() && second.says("made").is_none(), "{:?}", second.greeting);
    assert!(list(&second).starts_with("HTTP/1.1 200"), "{}", list(&second));
}

/// On a terminal the admin token is said once.
#[cfg(target_os = "linux")]
#[test]
fn the_admin_token_is_said_once_on_a_terminal() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let folder = Folder::new();
    let said = || {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("ours");
        let name = ptsname(&terminal, Vec::new()).expect("a name").into_string().expect("text");
        let screen = std::fs::File::options().read(true).write(true).open(name).expect("opened");
        let settings = [("BIND_ADDR", "127.0.0.1:0"), ("ADMIN_BIND_ADDR", "127.0.0.1:0")];
        let mut command = command(&folder, &[], &settings);
        let mut child = command.stdout(screen).stderr(Stdio::null()).spawn().expect("the binary runs");
        let lines = BufReader::new(std::fs::File::from(terminal)).lines().map_while(Result::ok);
        let mut text = Vec::new();
        for line in lines {
            let is_last = line.starts_with("try: ");
            text.push(line);
            if is_last {
                break;
            }
        }
        child.kill().and_then(|()| child.wait()).expect("ended");
        text.join("\n")
    };
    let first = said();
    let token = std::fs::read_to_string(folder.0.join("data/admin-token")).expect("made");
    assert!(first.contains(token.trim()), "{first}");
    assert!(!said().contains(token.trim()));
}

/// Several servers that start at once on a new folder all start, with one database between them.
#[test]
fn servers_that_start_at_once_on_a_new_folder_all_start() {
    for _ in 0..4 {
        let folder = Folder::new();
        std::thread::scope(|scope| {
            let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| Running::start(&folder, &[]))).collect();
            for start in starts {
                let server = start.join().expect("it starts");
                let answer = server.ask("GET /o/acme/v1/org", "host: h\r\n");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
        });
    }
}

/// The sample, with its well-known ids, is for the database that nobody chose; for another one it is asked for.
#[test]
fn the_sample_is_not_put_into_a_chosen_database() {
    let folder = Folder::new();
    let settings = [
        ("DATABASE_URL", "sqlite://chosen/orgs.db?mode=rwc"),
        ("BIND_ADDR", "127.0.0.1:0"),
        ("ADMIN_BIND_ADDR", "127.0.0.1:0"),
    ];
    let said = |args: &[&str]| {
        let mut child =
            command(&folder, args, &settings).stderr(Stdio::null()).spawn().expect("the binary runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        // The last line of a server without organisations is where it listens.
        let lines = lines.map(|line| line.expect("text"));
        let mut text = Vec::new();
        for line in lines {
            let is_last = line.starts_with("for operators: ");
            text.push(line);
            if is_last {
                break;
            }
        }
        child.kill().and_then(|()| child.wait()).expect("ended");
        text.join("\n")
    };
    assert!(!said(&["serve"]).contains("sample"));
    assert!(said(&["serve", "--sample"]).contains("imported 204 sample organisations"));
}

/// L1, A7: a setting that cannot be used ends it with code 2 and a message that names the setting and shows no
/// secret, whatever command it was.
#[test]
fn a_bad_setting_is_named() {
    let folder = Folder::new();
    std::fs::write(folder.0.join("token"), "hunter2-hunter2-hunter2").expect("written");
    for (name, more) in [
        ("BIND_ADDR", &[("BIND_ADDR", "nowhere")][..]),
        ("DATABASE_URL", &[("DATABASE_URL", "postgres://u:hunter2@db/orgs")]),
        ("DATABASE_URL", &[("DATABASE_URL", "mysql://u:hunter2@db/orgs")]),
        ("REDIS_URL", &[("REDIS_URL", "http://:hunter2@cache")]),
        ("REDIS_ON_UNAVAILABLE", &[("REDIS_ON_UNAVAILABLE", "panic")]),
        ("CACHE_BACKEND", &[("CACHE_BACKEND", "redis")]),
        ("ORG_MASTER_KEY", &[("ORG_MASTER_KEY", "hunter2")]),
        ("ADMIN_TOKEN", &[("ADMIN_TOKEN", "hunter2 hunter2")]),
        ("ADMIN_TOKEN", &[("ADMIN_TOKEN", "hunter2-hunter2-hunter2"), ("ADMIN_TOKEN_FILE", "token")]),
        ("ADMIN_TOKEN_FILE", &[("ADMIN_TOKEN_FILE", "not-there")]),
        ("TRUSTED_PROXIES", &[("TRUSTED_PROXIES", "proxy.internal")]),
        ("RATE_LIMIT_API", &[("RATE_LIMIT_API", "many")]),
    ] {
        let ended = run(&folder, &[], more);
        let said = text(&ended);
        assert_eq!(ended.status.code(), Some(2), "{name}: {said}");
        let error = said.lines().find(|line| line.starts_with("error: ")).expect("an error");
        assert!(error.contains(name), "{name}: {said}");
        assert!(!said.contains("hunter2"), "{name}: {said}");
    }
}

/// L1: a database that was sealed with another master key is refused, by the setting's name.
#[test]
fn another_master_key_is_refused() {
    let folder = Folder::new();
    drop(Running::start(&folder, &[]));
    let ended =
        run(&folder, &[], &[("ORG_MASTER_KEY", crate::common::MASTER_KEY), ("BIND_ADDR", "127.0.0.1:0")]);
    assert_eq!(ended.status.code(), Some(2), "{}", text(&ended));
    assert!(text(&ended).contains("error: ORG_MASTER_KEY: "), "{}", text(&ended));
}

/// L1: an address that is in use is named.
#[test]
fn an_address_in_use_is_named() {
    let folder = Folder::new();
    let server = Running::start(&folder, &[]);
    let address = server.address.to_string();
    let ended = run(&folder, &["serve"], &[("BIND_ADDR", &address)]);
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended));
    assert!(
        text(&ended).contains(&format!("error: BIND_ADDR: cannot listen on {address}")),
        "{}",
        text(&ended)
    );
    let operators = server.operators.to_string();
    let settings = [("BIND_ADDR", "127.0.0.1:0"), ("ADMIN_BIND_ADDR", operators.as_str())];
    let said = text(&run(&folder, &["serve"], &settings));
    assert!(said.contains(&format!("error: ADMIN_BIND_ADDR: cannot listen on {operators}")), "{said}");
}

/// J2: with `fail` it does not start without Redis, and says where it was expected; with `degrade` it does.
#[test]
fn without_redis_it_starts_or_not_as_told() {
    let folder = Folder::new();
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let url = format!("redis://:hunter2@{nowhere}");
    let fail = [("REDIS_URL", url.as_str()), ("REDIS_ON_UNAVAILABLE", "fail")];
    let ended = run(&folder, &[], &fail);
    let said = text(&ended);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("is not available") && said.contains(&nowhere.to_string()), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    let server = Running::start(&folder, &fail[..1]);
    let ready = server.ask("GET /readyz", "host: h\r\n");
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("\"status\":\"degraded\""), "{ready}");
    assert!(ready.contains("\"l2\":false"), "{ready}");
}

/// L1: a file is imported as a whole, and again without a change.
#[test]
fn a_file_is_imported() {
    let folder = Folder::new();
    let file =
        r#"[{"slug": "one", "name": "One"}, {"slug": "two", "name": "Two", "secrets": {"k": "hunter2"}}]"#;
    std::fs::write(folder.0.join("orgs.json"), file).expect("written");
    for _ in 0..2 {
        let imported = run(&folder, &["import", "orgs.json"], &[]);
        assert!(imported.status.success(), "{}", text(&imported));
        assert!(text(&imported).contains("imported 2 organisations"), "{}", text(&imported));
        assert!(!text(&imported).contains("hunter2"));
    }
    let server = Running::start(&folder, &[]);
    assert!(server.says("imported").is_none(), "the sample is for an empty database");
    let answer = server.ask("GET /o/two/v1/org", "host: h\r\n");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"name\":\"Two\""), "{answer}");
}

/// L1: a file with mistakes imports nothing, makes no database, and every mistake is told with its place.
#[test]
fn a_file_with_mistakes_imports_nothing() {
    let folder = Folder::new();
    let bad = "[{\"slug\": \"fine\", \"name\": \"Fine\"},\n{\"slug\": \"x_y\", \"name\": \"\"},\n{\"slug\": \"FINE\", \"name\": \"F\"}]";
    std::fs::write(folder.0.join("bad.json"), bad).expect("written");
    let refused = run(&folder, &["import", "bad.json"], &[]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    for part in [
        "record [1] in line 2: `name` is empty",
        "record [1] in line 2: `slug`",
        "record [2] in line 3: `slug` \"fine\"",
    ] {
        assert!(text(&refused).contains(part), "{part} in {}", text(&refused));
    }
    assert!(!folder.0.join("data").exists(), "nothing was made");
    std::fs::write(folder.0.join("syntax.json"), "[\n{]").expect("written");
    let refused = run(&folder, &["import", "syntax.json"], &[]);
    assert!(text(&refused).contains("error: line 2, column 2: "), "{}", text(&refused));
    let missing = run(&folder, &["import", "missing.json"], &[]);
    assert!(text(&missing).contains("missing.json"), "{}", text(&missing));
}

/// L1: `invalidate` without a shared cache says what to do instead of nothing.
#[test]
fn invalidate_without_redis_says_what_to_do() {
    let refused = run(&Folder::new(), &["invalidate", "org:acme"], &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("REDIS_URL") && text(&refused).contains("/admin/cache/invalidate"));
}

/// L4: told to stop, it is not ready any more, finishes what is in flight, and ends well.
#[test]
fn told_to_stop_it_finishes_what_is_in_flight() {
    let folder = Folder::new();
    let token = "an-admin-token-for-tests";
    let mut server = Running::start(&folder, &[("ADMIN_TOKEN", token), ("SHUTDOWN_DELAY", "3s")]);
    let (head, tail) = (r#"{"name": "Renamed "#, r#"in flight"}"#);
    let mut slow = Running::connect(server.operators);
    let length = head.len() + tail.len();
    write!(
        slow,
        "PUT /admin/orgs/acme HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{head}"
    )
    .expect("sent");
    server.terminate();
    let deadline = Instant::now() + LIMIT;
    while !server.ask("GET /readyz", "host: h\r\n").contains("\"status\":\"stopping\"") {
        assert!(Instant::now() < deadline, "it never said that it is stopping");
    }
    slow.write_all(tail.as_bytes()).expect("sent");
    let answer = rest(slow);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("Renamed in flight"), "{answer}");
    assert!(server.ended(LIMIT).expect("it ends").success());
    assert!(TcpStream::connect(server.address).is_err());
}

/// L4: a request that never ends does not keep it from stopping.
#[test]
fn a_request_that_never_ends_does_not_keep_it_from_stopping() {
    let folder = Folder::new();
    let settings = [("SHUTDOWN_DELAY", "0s"), ("SHUTDOWN_TIMEOUT", "300ms"), ("REQUEST_TIMEOUT", "1h")];
    let mut server = Running::start(&folder, &settings);
    let mut stuck = server.open();
    stuck.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n").expect("sent");
    server.terminate();
    assert!(server.ended(Duration::from_secs(10)).expect("it ends").success());
}

/// L1: the sample in the repository and the one in the binary are the same file.
#[test]
fn the_sample_is_the_file_in_the_repository() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/orgs.json");
    assert_eq!(std::fs::read_to_string(file).expect("readable"), org_server::import::SAMPLE);
}
