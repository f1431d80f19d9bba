//! Where to look for an image: mirrors first, the registry itself last.

use super::RegistryError;
use crate::image::config::RegistryConfig;
use crate::image::reference::Reference;

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host[:port]`, as it goes into the URL.
    pub host: String,
    /// The repository there.
    pub repository: String,
    /// Plain HTTP and unverifiable certificates are fine.
    pub insecure: bool,
    /// The registry that the reference names; unnamed credentials are for it alone.
    pub origin: bool,
}

impl Endpoint {
    /// Plain HTTP may be tried: configured so, or the traffic does not leave this machine.
    pub(super) fn may_use_http(&self) -> bool {
        self.insecure || is_loopback(&self.host)
    }
}

/// The places where a reference is looked for, in order.
pub(crate) fn endpoints(reference: &Reference, registries: &[RegistryConfig]) -> Result<Vec<Endpoint>, RegistryError> {
    let name = reference.name();
    let config = registries
        .iter()
        .filter(|config| matches(&config.prefix, &name))
        .max_by_key(|config| config.prefix.trim_start_matches("*.").len());
    let Some(config) = config else {
        return Ok(vec![endpoint(&name, false, true, reference)?]);
    };
    let mut found = Vec::new();
    for mirror in &config.mirrors {
        found.push(endpoint(
            &rewritten(&name, &config.prefix, Some(&mirror.location)),
            mirror.insecure,
            false,
            reference,
        )?);
    }
    if config.blocked {
        // mirrors of a blocked registry are still fine, that is how air-gapped nodes are set up
        if found.is_empty() {
            return Err(RegistryError::Blocked { registry: config.prefix.clone(), reference: reference.to_string() });
        }
        return Ok(found);
    }
    found.push(endpoint(
        &rewritten(&name, &config.prefix, config.location.as_deref()),
        config.insecure,
        true,
        reference,
    )?);
    Ok(found)
}

/// A prefix matches whole components: `a.io/b` is a prefix of `a.io/b/c` and not of `a.io/bc`. `*.a.io` stands for
/// any host below `a.io`.
fn matches(prefix: &str, name: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix("*.") {
        let host = name.split('/').next().unwrap_or_default();
        return host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1);
    }
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn rewritten(name: &str, prefix: &str, location: Option<&str>) -> String {
    let Some(location) = location.filter(|location| !location.is_empty()) else { return name.to_owned() };
    let rest = match prefix.strip_prefix("*.") {
        Some(_) => name.split_once('/').map_or("", |(host, _)| &name[host.len()..]),
        None => name.strip_prefix(prefix).unwrap_or_default(),
    };
    format!("{location}{rest}")
}

fn endpoint(name: &str, insecure: bool, origin: bool, reference: &Reference) -> Result<Endpoint, RegistryError> {
    let bad = || RegistryError::Address { location: name.to_owned(), reference: reference.to_string() };
    let (host, repository) = name.split_once('/').ok_or_else(bad)?;
    if host.is_empty() || repository.is_empty() || host.contains(['@', '?', '#', '\\', ' ']) {
        return Err(bad());
    }
    // the name that people use and the host that serves it differ for one registry
    let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
    Ok(Endpoint { host: host.to_owned(), repository: repository.to_owned(), insecure, origin })
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
            mirrors: mirrors.iter().map(|at| MirrorConfig { location: (*at).into(), insecure: true }).collect(),
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
    fn only_this_machine_is_loopback() {
        for here in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.9.1", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in ["localhost.example", "10.0.0.1:5000", "registry", "[fe80::1]:5000", "127.example"] {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }
}
