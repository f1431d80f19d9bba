//! Registries, their mirrors and exceptions, for our runtime and for every other tool that reads containers-registries.conf(5).

use toml::Value;

use super::super::file::FileResource;
use super::super::owned_file::{HEADER, OwnedFile};
use crate::config::host::RegistrySettings;
use crate::plan::{Notify, Stage};

/// Read after /etc/containers/registries.conf.
pub const FILE: &str = "/etc/containers/registries.conf.d/50-nodeagent.conf";

/// The drop-in, which this unit reads; none where the config names no registry.
pub fn registries(registries: &[RegistrySettings], runtime: &str) -> Option<FileResource> {
    if registries.is_empty() {
        return None;
    }
    for registry in registries.iter().filter(|registry| registry.insecure) {
        log::warn!(
            "registry {}: what is pulled from it can be changed on its way (insecure)",
            registry.prefix.as_str()
        );
    }
    let file = OwnedFile::public(FILE, render(registries));
    let restart = vec![Notify::RestartUnit(runtime.to_owned())];
    Some(FileResource::new(file, restart, Stage::Prepare, "so that images come from where [[registries]] says"))
}

fn render(registries: &[RegistrySettings]) -> String {
    let mut text = HEADER.to_owned();
    for registry in registries {
        let location =
            registry.location.as_ref().or(Some(&registry.prefix)).filter(|place| !place.as_str().contains('*'));
        text.push_str("\n[[registry]]\n");
        for (key, value) in [
            ("prefix", Some(Value::from(registry.prefix.as_str()))),
            ("location", location.map(|place| Value::from(place.as_str()))),
            ("insecure", Some(Value::from(registry.insecure))),
            ("blocked", Some(Value::from(registry.blocked))),
        ] {
            if let Some(value) = value {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        for mirror in &registry.mirrors {
            text.push_str(&format!("\n[[registry.mirror]]\nlocation = {}\n", Value::from(mirror.as_str())));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_written_as_containers_registries_conf_has_them() {
        let registry = |prefix: &str, mirrors: &[&str]| RegistrySettings {
            prefix: prefix.parse().unwrap(),
            location: None,
            insecure: false,
            blocked: false,
            mirrors: mirrors.iter().map(|mirror| mirror.parse().unwrap()).collect(),
        };
        let text = render(&[registry("docker.io", &["mirror:5000", "other/x"]), registry("quay.io", &[])]);
        let read: toml::Table = text.parse().unwrap();
        let all = read["registry"].as_array().unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0]["prefix"].as_str(), Some("docker.io"));
        assert_eq!(all[0]["mirror"][1]["location"].as_str(), Some("other/x"));
        assert!(all[1].get("mirror").is_none());
    }
}
