//! What an import does to organisations that change meanwhile, and what a bad file costs.

use std::time::Duration;

use crate::common::{Holder, TestServer};

/// An import changes what its file says of an organisation as it is when it is written, not as it was when the import
/// began: a suspension and a rotated secret of that time stay.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_undoes_no_change_made_meanwhile() {
    let server = TestServer::start().await;
    server.put_org("acme", serde_json::json!({ "secrets": { "k": "before" } })).await.is(200);
    server.org("acme").await.is(200);
    // A change that has the write lock, and is committed while the import waits for it.
    let holder = Holder::changing(&server, "acme", |mut row| {
        row.status = "suspended".into();
        row.secrets.remove("k");
        row
    })
    .await;
    let orgs = server.state.orgs().clone();
    let file = r#"[{"slug": "acme", "name": "Acme Imported"}, {"slug": "newco", "name": "New Co"}]"#;
    let mut import = tokio::spawn(async move { orgs.import(file).await });
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut import).await;
    assert!(waits.is_err(), "it waits for the other writer");
    holder.leave().await;
    assert_eq!(import.await.expect("no panic").expect("imported"), 2);
    let row = server.state.store().org_by_slug("acme").await.expect("answers").expect("there");
    assert_eq!((row.name.as_str(), row.status.as_str()), ("Acme Imported", "suspended"));
    assert!(!row.secrets.contains_key("k"), "the secret that was removed stays removed");
    server.org("acme").await.is_problem(403, "org_suspended");
    server.org("newco").await.is(200);
}

/// A file of nothing but bad records is refused without being held many times over.
#[cfg(target_os = "linux")]
#[test]
fn a_bad_file_costs_little_more_than_its_size() {
    use crate::binary;
    use crate::common::Folder;

    let folder = Folder::new();
    let size = 4 * 1024 * 1024;
    std::fs::write(folder.0.join("small.json"), "[1]").expect("written");
    std::fs::write(folder.0.join("bad.json"), format!("[{}1]", "1,".repeat(size / 2))).expect("written");
    let small = binary::peak_kib(&folder, &["import", "small.json"]);
    let large = binary::peak_kib(&folder, &["import", "bad.json"]);
    let more = large.saturating_sub(small) * 1024;
    assert!(more < 4 * size, "{more} bytes more for a file of {size}");
}
