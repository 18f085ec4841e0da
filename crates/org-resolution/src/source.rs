//! How a request names its organisation.
//!
//! Strategies are asked in the configured order; the first that has an opinion wins, and which one it was is
//! recorded. An opinion can be a refusal: a host under the base domain that cannot be a name is not passed on to
//! the next strategy.

mod proxies;

pub use proxies::{ForwardingHeader, NotANetwork, TrustedProxies};

use std::net::IpAddr;
use std::str::FromStr;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Uri};
use metrics::counter;

use crate::org::{OrgId, Slug, SlugError};
use crate::rejection::Problem;

/// One way to find out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// `acme.example.com` under the base domain `example.com`.
    Host {
        /// In lower case, without port or final dot; [`Strategy::host`] makes it so.
        base_domain: String,
    },
    /// `/o/acme/…`; the prefix is taken off before the request goes on.
    Path,
    /// A header, from trusted proxies only.
    Header(HeaderName),
    /// An [`OrgClaim`] that an outer layer put into the request after it verified a token.
    Claim,
    /// A host of the organisation's own. One that no organisation has leaves it to the next strategy; the hosts
    /// under a base domain are never looked up.
    CustomDomain,
    /// Always this one: for a deployment with a single tenant.
    Static(Slug),
}

impl Strategy {
    /// [`Strategy::Host`] under a base domain, in whatever case, with or without a dot at either end.
    #[must_use]
    pub fn host(base_domain: &str) -> Self {
        Self::Host { base_domain: base_domain.trim_matches('.').to_ascii_lowercase() }
    }
}

/// Which strategy named the organisation; an extension of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResolvedBy {
    /// [`Strategy::Host`].
    Host,
    /// [`Strategy::Path`].
    Path,
    /// [`Strategy::Header`].
    Header,
    /// [`Strategy::Claim`].
    Claim,
    /// [`Strategy::CustomDomain`].
    CustomDomain,
    /// [`Strategy::Static`].
    Static,
}

/// The organisation of a verified token; an extension of the request, for [`Strategy::Claim`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrgClaim(pub OrgId);

/// How organisations are found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SourceConfig {
    /// Asked in this order.
    pub strategies: Vec<Strategy>,
    /// Whose headers are believed. Default nobody's.
    pub trusted_proxies: TrustedProxies,
    /// Paths that belong to no organisation, by whole segments: `/healthz` exempts `/healthz/x` and not
    /// `/healthzz`. Behind an organisation's prefix (`/o/acme/healthz`) they are 404 `not_found`.
    pub exempt: Vec<String>,
    /// Whether a request that names none is refused (`org_unresolved`). Default true.
    pub required: bool,
}

impl SourceConfig {
    /// A configuration with these strategies.
    #[must_use]
    pub fn new(strategies: Vec<Strategy>) -> Self {
        Self { strategies, trusted_proxies: TrustedProxies::default(), exempt: Vec::new(), required: true }
    }

    /// Sets [`trusted_proxies`](Self::trusted_proxies).
    #[must_use]
    pub fn trusting(mut self, proxies: TrustedProxies) -> Self {
        self.trusted_proxies = proxies;
        self
    }

    /// Adds a path to [`exempt`](Self::exempt).
    #[must_use]
    pub fn exempting(mut self, path: impl Into<String>) -> Self {
        self.exempt.push(path.into());
        self
    }

    /// Lets requests through that name no organisation.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.required = false;
        self
    }

    pub(crate) fn is_exempt(&self, path: &str) -> bool {
        self.exempt.iter().any(|exempt| match exempt.trim_end_matches('/') {
            // The root alone: as a prefix it would be everything.
            "" => path == "/",
            exempt => path.strip_prefix(exempt).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        })
    }

    /// What the request says, strategy by strategy; one is asked when the answer before it led nowhere.
    pub(crate) fn verdicts(&self, request: &Parts, peer: Option<IpAddr>) -> impl Iterator<Item = Verdict> {
        self.strategies.iter().map(move |strategy| self.ask(strategy, request, peer))
    }

    fn ask(&self, strategy: &Strategy, request: &Parts, peer: Option<IpAddr>) -> Verdict {
        match strategy {
            Strategy::Host { base_domain } => match host(request) {
                Host::Name(name) => under(base_domain, &name),
                Host::Ambiguous => Verdict::Refused(Problem::invalid_slug(false)),
                Host::None => Verdict::Silent,
            },
            Strategy::Path => by_path(&request.uri),
            Strategy::Header(name) => self.by_header(name, &request.headers, peer),
            Strategy::Claim => match request.extensions.get::<OrgClaim>() {
                Some(OrgClaim(id)) => Verdict::Named(Named::Id(id.clone()), ResolvedBy::Claim, None),
                None => Verdict::Silent,
            },
            Strategy::CustomDomain => match host(request) {
                Host::Name(name) if !self.is_ours(&name) => {
                    Verdict::Named(Named::Domain(name), ResolvedBy::CustomDomain, None)
                }
                _ => Verdict::Silent,
            },
            Strategy::Static(slug) => named(slug.clone(), ResolvedBy::Static),
        }
    }

    /// Whether a host is a base domain of ours or under one: nobody can claim it as a host of their own.
    fn is_ours(&self, host: &str) -> bool {
        self.strategies.iter().any(|strategy| match strategy {
            Strategy::Host { base_domain } => base_domain == host || label(base_domain, host).is_some(),
            _ => false,
        })
    }

    fn by_header(&self, name: &HeaderName, headers: &HeaderMap, peer: Option<IpAddr>) -> Verdict {
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else { return Verdict::Silent };
        if !peer.is_some_and(|peer| self.trusted_proxies.contains(peer)) {
            counter!("org_untrusted_headers_total").increment(1);
            tracing::debug!(header = %name, "an organisation header from an untrusted peer is ignored");
            return Verdict::Silent;
        }
        let slug = value.to_str().ok().filter(|_| values.next().is_none());
        match slug.map(str::trim).map(Slug::from_str) {
            Some(Ok(slug)) => named(slug, ResolvedBy::Header),
            _ => Verdict::Refused(Problem::invalid_slug(false)),
        }
    }
}

/// What a request says of its organisation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It names one; with the path that is left when part of it was the name.
    Named(Named, ResolvedBy, Option<Uri>),
    /// It names what cannot be one.
    Refused(Problem),
    /// It names none.
    Silent,
}

/// By what it is named.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Named {
    Slug(Slug),
    Id(OrgId),
    Domain(String),
}

fn named(slug: Slug, by: ResolvedBy) -> Verdict {
    Verdict::Named(Named::Slug(slug), by, None)
}

/// What stands in front of a base domain and its dot.
fn label<'a>(base_domain: &str, host: &'a str) -> Option<&'a str> {
    host.strip_suffix(base_domain)?.strip_suffix('.')
}

/// What a host under the base domain says.
fn under(base_domain: &str, host: &str) -> Verdict {
    let Some(label) = label(base_domain, host) else { return Verdict::Silent };
    match label.parse() {
        Ok(slug) => named(slug, ResolvedBy::Host),
        // `www.example.com` is a host of ours that names nobody.
        Err(SlugError::Reserved) => Verdict::Silent,
        Err(_) => Verdict::Refused(Problem::invalid_slug(true)),
    }
}

fn by_path(uri: &Uri) -> Verdict {
    let Some(rest) = uri.path().strip_prefix("/o/") else { return Verdict::Silent };
    let (slug, path) = rest.split_once('/').map_or((rest, ""), |(slug, path)| (slug, path));
    // A percent sign is no character of a slug: an encoded name has no second spelling.
    let Ok(slug) = slug.parse() else { return Verdict::Refused(Problem::invalid_slug(false)) };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    match format!("/{path}{query}").parse() {
        Ok(left) => Verdict::Named(Named::Slug(slug), ResolvedBy::Path, Some(left)),
        Err(_) => Verdict::Refused(Problem::invalid_slug(false)),
    }
}

enum Host {
    Name(String),
    /// Two of them: nobody knows which one the next hop believes.
    Ambiguous,
    /// None, or an address, or what is no host name.
    None,
}

/// The host name in lower case, without port and final dot.
fn host(request: &Parts) -> Host {
    let mut values = request.headers.get_all(HOST).iter();
    let from_header = values.next().map(|value| value.to_str().unwrap_or_default());
    if values.next().is_some() {
        return Host::Ambiguous;
    }
    let Some(authority) = request.uri.host().or(from_header) else { return Host::None };
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let address = name.parse::<IpAddr>().is_ok() || name.starts_with('[');
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if address || name.is_empty() || !name.bytes().all(plain) { Host::None } else { Host::Name(name) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::{prop_assert, proptest};

    fn config(strategies: Vec<Strategy>) -> SourceConfig {
        SourceConfig::new(strategies).trusting("10.0.0.0/8, ::1".parse().expect("networks"))
    }

    fn look(config: &SourceConfig, uri: &str, headers: &[(&str, &str)], peer: &str) -> Verdict {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let verdicts = config.verdicts(&parts, Some(peer.parse().expect("an address")));
        verdicts.into_iter().find(|verdict| *verdict != Verdict::Silent).unwrap_or(Verdict::Silent)
    }

    fn slug(text: &str) -> Named {
        Named::Slug(text.parse().expect("a slug"))
    }

    /// K1, K2: every form of host has its verdict.
    #[test]
    fn every_form_of_host_has_its_verdict() {
        let config = config(vec![Strategy::host("Example.com.")]);
        let by_host = |host: &str| look(&config, "/", &[("host", host)], "192.0.2.1");
        for host in [
            "acme.example.com",
            "ACME.Example.COM",
            "acme.example.com.",
            "acme.example.com:8080",
            "acme.example.com.:80",
        ] {
            assert_eq!(by_host(host), Verdict::Named(slug("acme"), ResolvedBy::Host, None), "{host}");
        }
        for host in [
            "example.com",
            "www.example.com",
            "other.org",
            "notexample.com",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:80",
            "",
            "a b",
        ] {
            assert_eq!(by_host(host), Verdict::Silent, "{host}");
        }
        for host in ["a.b.example.com", "-a.example.com", "a_b.example.com", ".example.com"] {
            assert_eq!(by_host(host), Verdict::Refused(Problem::invalid_slug(true)), "{host}");
        }
        let two = [("host", "acme.example.com"), ("host", "globex.example.com")];
        assert_eq!(look(&config, "/", &two, "192.0.2.1"), Verdict::Refused(Problem::invalid_slug(false)));
    }

    /// K1: the path form takes its prefix off, by whole segments, and knows one spelling.
    #[test]
    fn the_path_form_takes_its_prefix_off() {
        let config = config(vec![Strategy::Path]);
        let by_path = |path: &str| look(&config, path, &[], "192.0.2.1");
        for (path, left) in [
            ("/o/acme/v1/org?a=b", "/v1/org?a=b"),
            ("/o/acme", "/"),
            ("/o/acme/", "/"),
            ("/o/ACME//x", "//x"),
        ] {
            let left = Some(left.parse().expect("a path"));
            assert_eq!(by_path(path), Verdict::Named(slug("acme"), ResolvedBy::Path, left), "{path}");
        }
        for path in ["/", "/o", "/other/acme", "/oo/acme"] {
            assert_eq!(by_path(path), Verdict::Silent, "{path}");
        }
        for path in ["/o/", "/o//x", "/o/%61cme/x", "/o/a_b/x", "/o/admin/x"] {
            assert_eq!(by_path(path), Verdict::Refused(Problem::invalid_slug(false)), "{path}");
        }
    }

    /// K1: a header counts from trusted proxies only, and once.
    #[test]
    fn a_header_counts_from_trusted_proxies_only() {
        let config = config(vec![Strategy::Header(HeaderName::from_static("x-org-slug"))]);
        let header = |values: &[&str], peer: &str| {
            let headers: Vec<(&str, &str)> = values.iter().map(|value| ("x-org-slug", *value)).collect();
            look(&config, "/", &headers, peer)
        };
        assert_eq!(header(&["acme"], "10.1.2.3"), Verdict::Named(slug("acme"), ResolvedBy::Header, None));
        assert_eq!(
            header(&["acme"], "::ffff:10.1.2.3"),
            Verdict::Named(slug("acme"), ResolvedBy::Header, None)
        );
        assert_eq!(header(&["acme"], "192.0.2.1"), Verdict::Silent);
        assert_eq!(header(&[], "10.1.2.3"), Verdict::Silent);
        for values in [&["a_b"][..], &[""], &["acme", "globex"]] {
            assert_eq!(
                header(values, "10.1.2.3"),
                Verdict::Refused(Problem::invalid_slug(false)),
                "{values:?}"
            );
        }
    }

    /// K1: the order decides, and a refusal is an opinion.
    #[test]
    fn the_first_opinion_wins() {
        let host = Strategy::Host { base_domain: "example.com".into() };
        let fallback = Strategy::Static("only".parse().expect("a slug"));
        let config = config(vec![host, Strategy::Path, fallback]);
        let at = |host: &str, path: &str| look(&config, path, &[("host", host)], "192.0.2.1");
        assert!(matches!(at("acme.example.com", "/o/globex/x"), Verdict::Named(_, ResolvedBy::Host, None)));
        assert!(matches!(at("example.com", "/o/globex/x"), Verdict::Named(_, ResolvedBy::Path, Some(_))));
        assert_eq!(at("example.com", "/x"), Verdict::Named(slug("only"), ResolvedBy::Static, None));
        assert!(matches!(at("a.b.example.com", "/o/globex/x"), Verdict::Refused(_)));
    }

    /// K1: exempt paths match whole segments.
    #[test]
    fn exempt_paths_match_whole_segments() {
        let config = config(vec![]).exempting("/healthz").exempting("/admin/").exempting("/");
        for (path, exempt) in [
            ("/healthz", true),
            ("/healthz/", true),
            ("/healthz/x", true),
            ("/healthzz", false),
            ("/x/healthz", false),
            ("/admin", true),
            ("/administrator", false),
            ("/", true),
            ("/v1/org", false),
            ("//", false),
        ] {
            assert_eq!(config.is_exempt(path), exempt, "{path}");
        }
    }

    proptest! {
        /// K2: whatever stands in the request, an opinion is reached, and only the one label before the base
        /// domain can be a name by host.
        #[test]
        fn any_request_has_a_verdict(host in "[ -~]{0,40}|[a-z.-]{0,12}(\\.example\\.com)?(:[0-9]{0,3})?", path in "/(o/)?[a-z%/._-]{0,12}") {
            let config = config(vec![
                Strategy::host("example.com"), Strategy::CustomDomain, Strategy::Path,
                Strategy::Header(HeaderName::from_static("x-org-slug")),
            ]);
            let Ok(uri) = path.parse::<Uri>() else { return Ok(()) };
            let verdict = look(&config, &uri.to_string(), &[("host", host.trim())], "10.0.0.1");
            if let Verdict::Named(Named::Slug(slug), ResolvedBy::Host, _) = verdict {
                let lower = host.trim().to_ascii_lowercase();
                let expected = format!("{slug}.example.com");
                prop_assert!(lower.starts_with(&expected), "{host} {slug}");
            }
        }
    }
}
