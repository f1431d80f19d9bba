//! Where to look for an image: mirrors first, the registry itself last.

use super::hosts::{Host, Tls};
use super::{RegistryError, conf, hosts};
use crate::image::config::{ImagesConfig, MirrorConfig, PullFrom, RegistryConfig};
use crate::image::reference::Reference;

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host[:port]`, as it goes into the URL.
    pub host: String,
    /// What comes before the repository, as a rule `/v2`.
    pub base: String,
    /// The repository there.
    pub repository: String,
    /// Plain HTTP, without trying anything else first.
    pub http: bool,
    /// Certificates.
    pub tls: Tls,
    /// Sent along with every request.
    pub headers: Vec<(String, String)>,
    /// The registry that a proxy stands in for, which some proxies want to be told.
    pub namespace: Option<String>,
    /// Plain HTTP and unverifiable certificates are fine.
    pub insecure: bool,
    /// The registry that the reference names; unnamed credentials are for it alone.
    pub origin: bool,
    /// Which piece of configuration led here, for explanations.
    pub why: String,
}

impl Endpoint {
    /// A host that no configuration is about.
    pub(super) fn plain(host: &str) -> Endpoint {
        Endpoint {
            host: host.to_owned(),
            base: String::new(),
            repository: String::new(),
            http: false,
            tls: Tls::default(),
            headers: Vec::new(),
            namespace: None,
            insecure: false,
            origin: false,
            why: String::new(),
        }
    }

    /// Plain HTTP may be tried: configured so, or the traffic does not leave this machine.
    pub(crate) fn may_use_http(&self) -> bool {
        self.http || self.insecure || is_loopback(&self.host)
    }
}

/// What the configuration says about a reference.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The places where it is looked for, in order.
    pub endpoints: Vec<Endpoint>,
    /// Who is asked for credentials; `None` is the files alone.
    pub credential_helpers: Option<Vec<String>>,
}

/// What all the configuration there is says about a reference. Reads files.
pub(crate) fn resolve(reference: &Reference, config: &ImagesConfig) -> Result<Resolved, RegistryError> {
    let mut registries = config.registries.clone();
    let mut credential_helpers = None;
    if let Some(path) = &config.registries_conf {
        let conf = conf::load(path)?;
        credential_helpers = conf.credential_helpers;
        let theirs = conf.registries;
        registries
            .extend(theirs.into_iter().filter(|entry| config.registries.iter().all(|own| own.prefix != entry.prefix)));
    }
    let named = registries.iter().any(|entry| matches(&entry.prefix, &reference.name()));
    let from_hosts = if named { None } else { hosts::load(&config.hosts_directories, reference.domain())? };
    let mut found = match from_hosts {
        Some(hosts) => by_hosts(reference, hosts),
        None => endpoints(reference, &registries)?,
    };
    for endpoint in &mut found {
        hosts::certificates(&config.certificate_directories, &endpoint.host, &mut endpoint.tls)?;
        endpoint.tls.skip_verify |= endpoint.insecure;
    }
    Ok(Resolved { endpoints: found, credential_helpers })
}

fn by_hosts(reference: &Reference, hosts: Vec<Host>) -> Vec<Endpoint> {
    let by_digest = reference.digest().is_some();
    let usable = hosts.into_iter().filter(|host| by_digest || host.resolve);
    usable
        .map(|host| Endpoint {
            namespace: (!host.origin).then(|| reference.domain().to_owned()),
            host: host.host,
            base: host.base,
            repository: reference.path().to_owned(),
            http: host.http,
            tls: host.tls,
            headers: host.headers,
            insecure: false,
            origin: host.origin,
            why: host.why,
        })
        .collect()
}

/// The places where a reference is looked for, in order.
pub(super) fn endpoints(reference: &Reference, registries: &[RegistryConfig]) -> Result<Vec<Endpoint>, RegistryError> {
    let name = reference.name();
    let config = registries
        .iter()
        .filter(|config| matches(&config.prefix, &name))
        .max_by_key(|config| config.prefix.trim_start_matches("*.").len());
    let Some(config) = config else {
        let why = "the registry itself; no configuration names it".to_owned();
        return Ok(vec![Endpoint { origin: true, why, ..endpoint(&name, false, reference)? }]);
    };
    let file = config.defined_in.as_ref().map_or("the daemon's configuration".to_owned(), |p| p.display().to_string());
    let entry = format!("[[registry]] with prefix {:?} in {file}", config.prefix);
    let mut found = Vec::new();
    for mirror in config.mirrors.iter().filter(|mirror| serves(mirror, reference)) {
        let place = rewritten(&name, &config.prefix, Some(&mirror.location));
        let why = format!("mirror of {entry}");
        found.push(Endpoint { why, ..endpoint(&place, mirror.insecure, reference)? });
    }
    if config.blocked {
        // mirrors of a blocked registry are still fine, that is how air-gapped nodes are set up
        if found.is_empty() {
            return Err(RegistryError::Blocked { registry: config.prefix.clone(), reference: reference.to_string() });
        }
        return Ok(found);
    }
    let place = rewritten(&name, &config.prefix, config.location.as_deref());
    let why = if config.location.is_some() { format!("location of {entry}") } else { entry };
    found.push(Endpoint { origin: true, why, ..endpoint(&place, config.insecure, reference)? });
    Ok(found)
}

fn serves(mirror: &MirrorConfig, reference: &Reference) -> bool {
    match mirror.pull_from {
        PullFrom::All => true,
        PullFrom::DigestOnly => reference.digest().is_some(),
        PullFrom::TagOnly => reference.digest().is_none(),
    }
}

fn matches(prefix: &str, name: &str) -> bool {
    rest_after(prefix, name).is_some()
}

/// What a name has behind a prefix. A prefix matches whole components, and a host at any port, as containers tools have
/// it: `a.io/b` is a prefix of `a.io/b/c` and not of `a.io/bc`, `a.io` is one of `a.io:5000/b`. `*.a.io` stands for any
/// host below `a.io`.
fn rest_after<'a>(prefix: &str, name: &'a str) -> Option<&'a str> {
    let rest = match prefix.strip_prefix('*') {
        Some(domain) if domain.starts_with('.') => {
            let at = name.find(domain).filter(|at| *at > 0 && !name[..*at].contains('/'))?;
            &name[at + domain.len()..]
        }
        _ => name.strip_prefix(prefix)?,
    };
    (rest.is_empty() || rest.starts_with(['/', ':'])).then_some(rest)
}

fn rewritten(name: &str, prefix: &str, location: Option<&str>) -> String {
    let Some(location) = location.filter(|location| !location.is_empty()) else { return name.to_owned() };
    format!("{location}{}", rest_after(prefix, name).unwrap_or_default())
}

fn endpoint(name: &str, insecure: bool, reference: &Reference) -> Result<Endpoint, RegistryError> {
    let bad = || RegistryError::Address { location: name.to_owned(), reference: reference.to_string() };
    let (host, repository) = name.split_once('/').ok_or_else(bad)?;
    if host.is_empty() || repository.is_empty() || host.contains(['@', '?', '#', '\\', ' ']) {
        return Err(bad());
    }
    // the name that people use and the host that serves it differ for one registry
    let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
    Ok(Endpoint {
        host: host.to_owned(),
        base: "/v2".to_owned(),
        repository: repository.to_owned(),
        http: false,
        tls: Tls::default(),
        headers: Vec::new(),
        namespace: None,
        insecure,
        origin: false,
        why: String::new(),
    })
}

/// Whether a host is this machine: then nobody is in between who could listen.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::config::MirrorConfig;

    fn registry(prefix: &str, location: Option<&str>, mirrors: &[&str]) -> RegistryConfig {
        RegistryConfig {
            prefix: prefix.into(),
            location: location.map(str::to_owned),
            insecure: false,
            blocked: false,
            defined_in: None,
            mirrors: mirrors
                .iter()
                .map(|at| MirrorConfig { location: (*at).into(), insecure: true, pull_from: PullFrom::All })
                .collect(),
        }
    }

    fn places(reference: &str, registries: &[RegistryConfig]) -> Vec<String> {
        let reference = Reference::parse(reference).unwrap();
        let found = endpoints(&reference, registries).unwrap();
        found.iter().map(|endpoint| format!("{}/{}", endpoint.host, endpoint.repository)).collect()
    }

    #[test]
    fn without_configuration_the_registry_itself_is_asked() {
        assert_eq!(places("busybox", &[]), ["registry-1.docker.io/library/busybox"]);
        assert_eq!(places("quay.io/a/b:c", &[]), ["quay.io/a/b"]);
    }

    #[test]
    fn mirrors_come_first_and_the_longest_prefix_wins() {
        let registries = [
            registry("docker.io", None, &["m.example/hub"]),
            registry("docker.io/library", Some("other.example/lib"), &["m.example/lib", "n.example"]),
            registry("*.corp.example", Some("proxy.example/corp"), &[]),
        ];
        assert_eq!(
            places("busybox", &registries),
            ["m.example/lib/busybox", "n.example/busybox", "other.example/lib/busybox"]
        );
        assert_eq!(places("a/b", &registries), ["m.example/hub/a/b", "registry-1.docker.io/a/b"]);
        assert_eq!(places("x.corp.example/a/b", &registries), ["proxy.example/corp/a/b"]);
        assert_eq!(places("corp.example/a/b", &registries), ["corp.example/a/b"]);
        assert_eq!(places("x.corp.example.org/a", &registries), ["x.corp.example.org/a"]);
        let ported = [registry("r.example", Some("s.example"), &[]), registry("*.t.example", Some("u.example"), &[])];
        assert_eq!(places("x.t.example:5000/a", &ported), ["u.example:5000/a"]);
        assert_eq!(places("t.example/a", &ported), ["t.example/a"]);
        assert_eq!(places("r.example:5000/a", &ported), ["s.example:5000/a"]);
        assert_eq!(places("r.example.org/a", &ported), ["r.example.org/a"]);
        assert_eq!(places("docker.io/librarian/b", &registries)[0], "m.example/hub/librarian/b");
    }

    #[test]
    fn a_blocked_registry_is_refused_unless_a_mirror_has_it() {
        let blocked = RegistryConfig { blocked: true, ..registry("bad.example", None, &[]) };
        let reference = Reference::parse("bad.example/a").unwrap();
        assert!(matches!(endpoints(&reference, std::slice::from_ref(&blocked)), Err(RegistryError::Blocked { .. })));
        let mirrored = RegistryConfig { blocked: true, ..registry("bad.example", None, &["m.example"]) };
        assert_eq!(places("bad.example/a", &[mirrored]), ["m.example/a"]);
    }

    #[test]
    fn all_kinds_of_configuration_are_used_and_the_closest_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ImagesConfig::isolated(dir.path());
        config.registries_conf = Some(dir.path().join("registries.conf"));
        config.hosts_directories = vec![dir.path().join("hosts")];
        config.certificate_directories = vec![dir.path().join("certs")];
        for host in ["hosts/a.example", "hosts/b.example", "certs/conf.example"] {
            std::fs::create_dir_all(dir.path().join(host)).unwrap();
        }
        for host in ["a.example", "b.example"] {
            let path = dir.path().join("hosts").join(host).join("hosts.toml");
            std::fs::write(
                path,
                "[host.'http://hosts.example']\n[host.'https://blobs.example']\ncapabilities=['pull']",
            )
            .unwrap();
        }
        std::fs::write(dir.path().join("certs/conf.example/ca.crt"), "").unwrap();
        std::fs::write(
            dir.path().join("registries.conf"),
            "[[registry]]\nprefix='b.example'\nlocation='conf.example'\n[[registry]]\nprefix='c.example'\nlocation='lost.example'\n",
        )
        .unwrap();
        config.registries = vec![registry("c.example", Some("own.example"), &[])];
        let hosts = |name: &str| -> Vec<String> {
            let found = resolve(&Reference::parse(name).unwrap(), &config).unwrap();
            found.endpoints.into_iter().map(|endpoint| endpoint.host).collect()
        };
        assert_eq!(hosts("a.example/x"), ["hosts.example", "a.example"]);
        let digest = crate::content::Digest::of(b"");
        assert_eq!(hosts(&format!("a.example/x@{digest}")), ["hosts.example", "blobs.example", "a.example"]);
        assert_eq!(hosts("b.example/x"), ["conf.example"]);
        assert_eq!(hosts("c.example/x"), ["own.example"]);
        let found = resolve(&Reference::parse("a.example/x").unwrap(), &config).unwrap().endpoints;
        assert_eq!((found[0].http, found[0].namespace.as_deref()), (true, Some("a.example")));
        let found = resolve(&Reference::parse("b.example/x").unwrap(), &config).unwrap().endpoints;
        assert_eq!(found[0].tls.ca, [dir.path().join("certs/conf.example/ca.crt")]);
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for here in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.9.1", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in ["localhost.example", "10.0.0.1:5000", "registry", "[fe80::1]:5000", "127.example"] {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }
}
