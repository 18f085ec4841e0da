//! The crate graph: arrows point down only, and each library is named where it belongs.

use serde_json::Value;

use super::Findings;

/// Crates by floor; a crate may depend on lower floors only.
const FLOORS: [(&str, u32); 9] = [
    ("cache-core", 0),
    ("cache-moka", 1),
    ("cache-redis", 1),
    ("concurrency", 1),
    ("tenant-cache", 2),
    ("org-resolution", 3),
    ("app-builder", 3),
    ("org-server", 4),
    // For tests: on the contracts alone.
    ("conformance", 1),
];

/// Who may name a library in its ordinary dependencies.
const OWNED: [(&str, &[&str]); 9] = [
    ("redis", &["cache-redis"]),
    ("deadpool-redis", &["cache-redis"]),
    ("mini-moka", &["cache-moka"]),
    ("quick_cache", &["tenant-cache"]),
    ("http", &["org-resolution", "org-server"]),
    ("tower", &["org-resolution", "org-server"]),
    ("axum", &["org-resolution", "org-server"]),
    ("sqlx", &["org-server"]),
    ("cache-redis", &["app-builder"]),
];

pub(super) fn check(metadata: &Value, findings: &mut Findings) {
    let members = metadata["workspace_members"].as_array().cloned().unwrap_or_default();
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let own: Vec<&Value> = packages.iter().filter(|package| members.contains(&package["id"])).collect();
    let workspace_rust = own.iter().find_map(|package| package["rust_version"].as_str()).unwrap_or("0");
    for package in &own {
        edges(package, findings);
        if package["edition"] != "2024" {
            findings.fail(format!("{}: edition is not 2024", package["name"]));
        }
    }
    for package in &packages {
        let needs = package["rust_version"].as_str().unwrap_or("0");
        if version(needs) > version(workspace_rust) {
            findings.fail(format!(
                "{} needs Rust {needs}, the workspace promises {workspace_rust}",
                package["name"]
            ));
        }
    }
}

fn edges(package: &Value, findings: &mut Findings) {
    let name = package["name"].as_str().unwrap_or_default();
    let floor = |name: &str| FLOORS.iter().find(|(other, _)| *other == name).map(|(_, floor)| *floor);
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    // `kind` is null for ordinary dependencies.
    for dependency in dependencies.filter(|dependency| dependency["kind"].is_null()) {
        let target = dependency["name"].as_str().unwrap_or_default();
        if let (Some(from), Some(to)) = (floor(name), floor(target))
            && to >= from
        {
            findings.fail(format!("{name} must not depend on {target}: arrows point down only"));
        }
        if target == "conformance" && name != "xtask" {
            findings.fail(format!("{name} must not depend on conformance outside of its tests"));
        }
        let owners = OWNED.iter().find(|(library, _)| *library == target).map(|(_, owners)| *owners);
        if owners.is_some_and(|owners| !owners.contains(&name)) {
            findings.fail(format!("{name} must not name {target}"));
        }
    }
}

fn version(text: &str) -> Vec<u32> {
    let mut parts: Vec<u32> = text.split('.').map(|part| part.parse().unwrap_or(0)).collect();
    parts.resize(3, 0);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(name: &str, dependency: &str, kind: &Value, needs: &str) -> Findings {
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
        findings
    }

    #[test]
    fn planted_violations_are_found() {
        for (name, dependency) in [
            ("cache-core", "cache-moka"),
            ("cache-moka", "cache-redis"),
            ("concurrency", "cache-moka"),
            ("tenant-cache", "redis"),
            ("tenant-cache", "axum"),
            ("org-server", "cache-redis"),
            ("app-builder", "conformance"),
        ] {
            let findings = workspace(name, dependency, &Value::Null, "1.70");
            assert!(!findings.failures.is_empty(), "{name} -> {dependency}");
            assert!(
                workspace(name, dependency, &"dev".into(), "1.70").failures.is_empty(),
                "in tests it may"
            );
        }
        assert!(!workspace("cache-core", "bytes", &Value::Null, "1.95").failures.is_empty());
        assert!(workspace("tenant-cache", "cache-core", &Value::Null, "1.94.0").failures.is_empty());
    }
}
