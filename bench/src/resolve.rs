//! From a request's `Host` to its organisation, with everything in memory.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};
use org_resolution::{
    DirectoryError, OrgContext, OrgDirectory, OrgId, OrgLayer, OrgResolver, Slug, SourceConfig, Strategy,
};
use tenant_cache::Caches;
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::{per_operation, runtime};

const REQUESTS: usize = 200_000;

/// Any slug is an organisation.
#[derive(Debug)]
struct Everybody;

#[async_trait]
impl OrgDirectory for Everybody {
    async fn org_by_slug(&self, slug: &Slug) -> Result<Option<OrgContext>, DirectoryError> {
        let org = serde_json::json!({
            "id": format!("id-{}", slug.as_str()), "slug": slug.as_str(), "name": "An organisation",
            "plan": "enterprise", "status": "active", "settings": { "theme": "dark", "seats": 100 },
        });
        serde_json::from_value(org).map(Some).map_err(DirectoryError::new)
    }

    async fn org_by_id(&self, _: &OrgId) -> Result<Option<OrgContext>, DirectoryError> {
        Ok(None)
    }

    async fn org_by_domain(&self, _: &str) -> Result<Option<OrgContext>, DirectoryError> {
        Ok(None)
    }
}

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let runtime = runtime(1);
    let caches = Caches::in_memory();
    let resolver = OrgResolver::new(&caches, Arc::new(Everybody))?;
    let slugs: Vec<Slug> = (0..100).map(|n| format!("org-{n}").parse()).collect::<Result<_, _>>()?;
    let hosts: Vec<String> = slugs.iter().map(|slug| format!("{}.example.com", slug.as_str())).collect();
    let inner = service_fn(async |request: Request<Body>| {
        black_box(&request);
        Ok::<_, Infallible>(Response::new(Body::empty()))
    });
    let layer = OrgLayer::new(SourceConfig::new(vec![Strategy::host("example.com")]), resolver.clone());
    let (mut layered, mut alone) = (layer.layer(inner.clone()), inner);
    let count = REQUESTS / size.less;
    let mut row = Measured::new("resolve_warm", "ns/op");
    let mut hits = || {
        let began = Instant::now();
        runtime.block_on(async {
            for slug in slugs.iter().cycle().take(count) {
                black_box(resolver.by_slug(slug).await.expect("an organisation"));
            }
        });
        per_operation(count, began)
    };
    row.measure(
        size.rounds,
        &mut [
            ("ours", &mut || runtime.block_on(ask(&mut layered, &hosts, count))),
            ("bare service without the layer", &mut || runtime.block_on(ask(&mut alone, &hosts, count))),
            ("bare near hit (OrgResolver::by_slug)", &mut hits),
        ],
    );
    report.finish(row);
    Ok(())
}

async fn ask<S>(service: &mut S, hosts: &[String], count: usize) -> f64
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let began = Instant::now();
    for host in hosts.iter().cycle().take(count) {
        let request = Request::get("/v1/org").header("host", host).body(Body::empty()).expect("a request");
        let Ok(answer) = service.ready().await.expect("it is ready").call(request).await;
        assert!(answer.status().is_success(), "{answer:?}");
    }
    per_operation(count, began)
}
