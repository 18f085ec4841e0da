use std::path::Path;
use std::process::Command;

use super::*;
use crate::resp;

fn ok() -> Reply {
    Reply::Simple("OK".into())
}

fn value(text: &str) -> Reply {
    Reply::Bulk(text.into())
}

#[test]
fn a_server_starts_answers_dies_and_starts_again() {
    let mut server = RedisServer::start();
    assert_eq!(server.command(&["SET", "k", "v"]), ok());
    assert_eq!(server.command(&["GET", "k"]), value("v"));
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
    let mut paused = RedisServer::start();
    paused.restart();
    paused.pause();
    let (address, folder) = (paused.address(), paused.folder.clone());
    assert!(folder.exists());
    drop(paused);
    assert!(!answers(address));
    assert!(!folder.exists());
}

#[test]
fn a_restart_keeps_or_forgets_the_data() {
    let mut server = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    assert_eq!(server.command(&["SET", "k", "v"]), ok());
    server.kill();
    server.restart_with_data();
    assert_eq!(server.command(&["GET", "k"]), value("v"));
    server.restart();
    assert_eq!(server.command(&["GET", "k"]), Reply::Nil);
}

#[test]
fn a_password_and_other_options_are_taken() {
    let server = RedisServer::start_with(&["--requirepass", r#"se"cr\et"#, "--maxmemory", "9mb"]);
    assert_eq!(server.url(), format!(r#"redis://:se"cr\et@127.0.0.1:{}"#, server.port()));
    let refused = resp::command(server.address(), &["GET", "k"]).unwrap();
    assert!(matches!(refused, Reply::Error(text) if text.starts_with("NOAUTH")));
    assert_eq!(server.command(&["CONFIG", "GET", "maxmemory"]).items()[1], value("9437184"));
    assert_eq!(server.info("server", "tcp_port"), Some(server.port().to_string()));
}

#[test]
fn a_kept_connection_sees_what_others_do() {
    let server = RedisServer::start();
    let mut watcher = server.connect();
    assert_eq!(watcher.call(&["MONITOR"]).unwrap(), ok());
    server.command(&["SET", "seen", "1"]);
    let line = watcher.read().unwrap().text().unwrap();
    assert!(line.contains(r#""SET" "seen" "1""#), "{line}");
    server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert!(watcher.read().is_err(), "the connection was cut");
}

#[test]
fn the_shared_server_is_one() {
    let url = RedisServer::shared_url();
    assert_eq!(url, RedisServer::shared_url());
    let address = url.trim_start_matches("redis://").parse().unwrap();
    assert_eq!(resp::command(address, &["PING"]).unwrap(), Reply::Simple("PONG".into()));
}

/// The rest of [`a_killed_process_leaves_nothing`]: run by it as a process of its own.
#[test]
#[ignore = "run by another test, and killed by it"]
fn wait_to_be_killed() {
    if let Ok(note) = std::env::var("CONFORMANCE_NOTE") {
        let server = RedisServer::start();
        let text = format!("{} {}", server.address(), server.folder.display());
        std::fs::write(format!("{note}.part"), text).unwrap();
        std::fs::rename(format!("{note}.part"), note).unwrap();
        poll(Duration::from_secs(60), || false);
    }
}

#[test]
fn a_killed_process_leaves_nothing() {
    let holder = RedisServer::start();
    let note = holder.folder.join("note");
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "redis_server::tests::wait_to_be_killed", "--ignored"])
        .env("CONFORMANCE_NOTE", &note)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert!(poll(Duration::from_secs(20), || note.exists()));
    let text = std::fs::read_to_string(note).unwrap();
    let (address, folder) = text.split_once(' ').unwrap();
    let address = address.parse().unwrap();
    assert!(answers(address));
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(poll(Duration::from_secs(10), || !answers(address) && !Path::new(folder).exists()));
}

#[test]
fn a_taken_port_is_an_error_at_once() {
    let server = RedisServer::start();
    let started = Instant::now();
    let refused = RedisServer::start_on(server.port(), &[], &[]).unwrap_err();
    assert!(refused.to_string().contains("Failed listening on port"), "{refused}");
    assert!(started.elapsed() < START_DEADLINE / 2);
    assert_eq!(server.command(&["PING"]), Reply::Simple("PONG".into()));
}

#[test]
fn sentinels_promote_the_replica_on_order() {
    let mut set = SentinelSet::start();
    let before = set.master().address();
    assert_eq!(set.master().command(&["SET", "k", "v"]), ok());
    set.failover();
    assert_ne!(set.master().address(), before);
    assert_eq!(set.replica().address(), before);
    assert_eq!(set.master().command(&["GET", "k"]), value("v"));
    assert_eq!(set.master().command(&["SET", "k", "w"]), ok());
}

#[test]
fn sentinels_promote_the_replica_of_a_killed_master() {
    let quick = SentinelOptions { min_replicas_to_write: 0, down_after: Duration::from_millis(500) };
    let mut set = SentinelSet::start_with(&quick);
    let before = set.master().address();
    set.master().kill();
    let after = set.wait_for_another_master(before);
    assert_ne!(after, before);
    assert!(poll(Duration::from_secs(5), || {
        set.master().try_command(&["SET", "k", "v"]).is_ok_and(|reply| reply == ok())
    }));
    set.nodes()[0].restart();
    assert!(poll(Duration::from_secs(20), || { set.nodes()[0].command(&["GET", "k"]) == value("v") }));
}

#[test]
fn a_cluster_shares_its_keys_out() {
    let mut cluster = ClusterSet::start();
    let mut used = std::collections::HashSet::new();
    for key in ["a", "b", "c", "d", "{a}:x"] {
        let node = cluster.node_of(key);
        assert_eq!(node.command(&["SET", key, "v"]), ok());
        used.insert(node.port());
    }
    assert_eq!(used.len(), 3);
    let others = cluster.node_of("a").port();
    let other = cluster.nodes().iter().find(|node| node.port() != others).unwrap();
    assert!(matches!(other.command(&["GET", "a"]), Reply::Error(text) if text.starts_with("MOVED")));
}

#[test]
fn a_node_of_a_cluster_comes_back() {
    let mut cluster = ClusterSet::start();
    let node = cluster.node_of("a");
    assert_eq!(node.command(&["SET", "a", "v"]), ok());
    node.kill();
    node.restart();
    cluster.wait_until_ok();
    assert_eq!(cluster.node_of("a").command(&["GET", "a"]), Reply::Nil);
}
