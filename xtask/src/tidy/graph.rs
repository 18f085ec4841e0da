//! The crate graph: arrows point down only, and each library is named where it belongs.

use serde_json::Value;

use super::Findings;

/// Crates by floor; a crate may depend on lower floors only.
const FLOORS: [(&str, u32); 11] = [
    ("cache-core", 0),
    ("cache-moka", 1),
    ("cache-redis", 1),
    ("concurrency", 1),
    // For tests: on the contracts alone.
    ("conformance", 1),
    ("tenant-cache", 2),
    ("org-resolution", 3),
    ("app-builder", 3),
    ("org-server", 4),
    ("xtask", 5),
    ("bench", 5),
];

/// Who may name a crate in its ordinary dependencies.
const OWNED: [(&str, &[&str]); 12] = [
    ("redis", &["cache-redis", "bench"]),
    ("deadpool-redis", &["cache-redis", "bench"]),
    ("mini-moka", &["cache-moka", "bench"]),
    ("quick_cache", &["tenant-cache", "bench"]),
    ("http", &["org-resolution", "org-server", "bench"]),
    ("tower", &["org-resolution", "org-server", "bench"]),
    ("axum", &["org-resolution", "org-server", "bench"]),
    ("sqlx", &["org-server"]),
    ("cache-moka", &["app-builder", "bench"]),
    ("cache-redis", &["app-builder", "bench"]),
    ("concurrency", &["app-builder", "bench"]),
    ("conformance", &["xtask", "bench"]),
];

/// What is kept to its owners in their tests as well: the backend's own choice of library.
const OWNED_IN_TESTS: [&str; 3] = ["redis", "deadpool-redis", "mini-moka"];

pub(super) fn check(metadata: &Value, findings: &mut Findings) {
    let members = metadata["workspace_members"].as_array().cloned().unwrap_or_default();
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let own: Vec<&Value> = packages.iter().filter(|package| members.contains(&package["id"])).collect();
    let workspace_rust = own.iter().find_map(|package| package["rust_version"].as_str()).unwrap_or("0");
    for package in &own {
        check_member(package, findings);
    }
    for package in &packages {
        let needs = package["rust_version"].as_str().unwrap_or("0");
        if version(needs) > version(workspace_rust) {
            let name = text(&package["name"]);
            findings.fail(format!("{name} needs Rust {needs}, the workspace promises {workspace_rust}"));
        }
    }
}

fn check_member(package: &Value, findings: &mut Findings) {
    let name = text(&package["name"]);
    if floor_of(name).is_none() {
        findings.fail(format!("{name} has no floor in the crate graph"));
    }
    if package["edition"] != "2024" {
        findings.fail(format!("{name}: edition is not 2024"));
    }
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        check_edge(name, text(&dependency["name"]), dependency["kind"] == "dev", findings);
    }
}

fn check_edge(name: &str, target: &str, in_tests: bool, findings: &mut Findings) {
    if let (Some(from), Some(to), false) = (floor_of(name), floor_of(target), in_tests)
        && to >= from
    {
        findings.fail(format!("{name} must not depend on {target}: arrows point down only"));
    }
    let owners = OWNED.iter().find(|(owned, _)| *owned == target).map(|(_, owners)| *owners);
    if owners.is_some_and(|owners| !owners.contains(&name)) && (!in_tests || OWNED_IN_TESTS.contains(&target))
    {
        findings.fail(format!("{name} must not name {target}"));
    }
}

fn floor_of(name: &str) -> Option<u32> {
    FLOORS.iter().find(|(other, _)| *other == name).map(|(_, floor)| *floor)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn version(text: &str) -> Vec<u32> {
    let mut parts: Vec<u32> = text.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    parts.resize(3, 0);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(name: &str, dependency: &str, kind: &Value, needs: &str) -> usize {
        let mut findings = Findings::default();
        let metadata = serde_json::json!({
            "workspace_members": ["own"],
            "packages": [
                { "id": "own", "name": name, "edition": "2024", "rust_version": "1.94",
                  "dependencies": [{ "name": dependency, "kind": kind }] },
                { "id": "other", "name": "other", "rust_version": needs, "dependencies": [] },
            ],
        });
        check(&metadata, &mut findings);
        findings.failures.len()
    }

    #[test]
    fn planted_edges_are_found() {
        let (build, dev) = ("build".into(), "dev".into());
        for (name, dependency) in [
            ("cache-core", "cache-moka"),
            ("cache-moka", "cache-redis"),
            ("concurrency", "cache-moka"),
            ("tenant-cache", "cache-moka"),
            ("tenant-cache", "axum"),
            ("org-server", "cache-redis"),
            ("org-resolution", "app-builder"),
            ("app-builder", "conformance"),
        ] {
            for kind in [&Value::Null, &build] {
                assert!(failures(name, dependency, kind, "1.70") > 0, "{name} -> {dependency} {kind}");
            }
            assert_eq!(failures(name, dependency, &dev, "1.70"), 0, "{name} -> {dependency} in tests");
        }
        for (name, dependency) in [("tenant-cache", "redis"), ("conformance", "deadpool-redis")] {
            assert!(failures(name, dependency, &Value::Null, "1.70") > 0, "{name} -> {dependency}");
            assert!(failures(name, dependency, &dev, "1.70") > 0, "{name} -> {dependency} in tests");
        }
        assert_eq!(failures("tenant-cache", "cache-core", &Value::Null, "1.70"), 0);
        assert_eq!(failures("cache-redis", "redis", &Value::Null, "1.70"), 0);
    }

    #[test]
    fn a_crate_without_a_floor_is_found() {
        assert_eq!(failures("newcomer", "bytes", &Value::Null, "1.70"), 1);
    }

    #[test]
    fn a_dependency_that_needs_a_newer_compiler_is_found() {
        assert_eq!(failures("cache-core", "bytes", &Value::Null, "1.94.0"), 0);
        assert_eq!(failures("cache-core", "bytes", &Value::Null, "1.94.1"), 1);
        assert_eq!(failures("cache-core", "bytes", &Value::Null, "1.95"), 1);
    }
}
