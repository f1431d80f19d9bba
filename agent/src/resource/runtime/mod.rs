//! The container runtime that the config chooses: where it comes from, and its own settings. All of it is made of files, one
//! package and one unit; this is what differs between the kinds.

use super::file::{self, FileResource};
use super::host::registries;
use super::owned_file::{HEADER, OwnedFile};
use super::package::{Version, Wanted};
use super::repo;
use super::unit::{self, Unit};
use crate::config::host::RegistrySettings;
use crate::config::settings::{CgroupDriver, PackageSource, RuntimeKind, RuntimeSettings, Settings};
use crate::host::Platform;
use crate::host::platform::CgroupMode;
use crate::plan::{Notify, Stage};

/// Repository and package of CRI-O.
const CRIO: &str = "cri-o";

/// Read after crio.conf and what the package has in this directory.
const CRIO_CONF: &str = "/etc/crio/crio.conf.d/50-nodeagent.conf";

/// The package's own switches the CRI off; there is no directory for additions that every version reads.
const CONTAINERD_CONF: &str = "/etc/containerd/config.toml";

/// One directory for each host of a registry.
const CERTS_D: &str = "/etc/containerd/certs.d";

/// Repository of containerd.
const DOCKER: &str = "docker-ce";

/// Who makes cgroups: as told, else by the host; our runtime decides by the same rule.
pub fn cgroup_driver(runtime: &RuntimeSettings, platform: &Platform) -> CgroupDriver {
    let by_host = match platform.cgroups {
        CgroupMode::V2 => CgroupDriver::Systemd,
        CgroupMode::V1 => CgroupDriver::Cgroupfs,
        // EL 8 boots with v1 unless told otherwise
        CgroupMode::Unknown if platform.el_major() == Some(8) => CgroupDriver::Cgroupfs,
        CgroupMode::Unknown => CgroupDriver::Systemd,
    };
    runtime.cgroup_driver.unwrap_or(by_host)
}

/// The word that every config file has for it.
pub fn driver_word(driver: CgroupDriver) -> &'static str {
    match driver {
        CgroupDriver::Systemd => "systemd",
        CgroupDriver::Cgroupfs => "cgroupfs",
    }
}

/// The files that the runtime reads.
pub fn files(settings: &Settings, platform: &Platform) -> Vec<FileResource> {
    let (runtime, registries) = (&settings.runtime, &settings.host.registries);
    let own = match runtime.kind {
        RuntimeKind::Embedded => file::runtime_toml(runtime),
        RuntimeKind::Crio => crio_conf(runtime, platform),
        RuntimeKind::Containerd => containerd_conf(runtime, platform),
    };
    let restart = vec![Notify::RestartUnit(runtime.kind.unit().to_owned())];
    let purpose = "so that the runtime listens and stores where the config says";
    let mut files = vec![FileResource::new(own, restart.clone(), Stage::Prepare, purpose)];
    // other tools on the host read these too
    files.extend(registries::registries(registries, runtime.kind.unit()));
    if runtime.kind == RuntimeKind::Containerd {
        let purpose = "so that images come from where [[registries]] says";
        // read at each pull: nothing has to be restarted
        let of = |registry| FileResource::new(hosts_toml(registry), Vec::new(), Stage::Prepare, purpose);
        files.extend(registries.iter().map(of));
    }
    files
}

/// Where its package comes from, unless it is ours.
pub fn repository(settings: &Settings, platform: &Platform) -> Option<repo::Desired> {
    let runtime = &settings.runtime;
    let minor = settings.kubernetes.as_ref().map(|kubernetes| kubernetes.version.minor());
    let (name, title, base, key) = match runtime.kind {
        RuntimeKind::Embedded => return None,
        RuntimeKind::Crio => {
            let theirs = format!(
                "https://download.opensuse.org/repositories/isv:/cri-o:/stable:/v1.{}/rpm/",
                minor.unwrap_or(0)
            );
            (CRIO, minor.map_or("CRI-O".to_owned(), |minor| format!("CRI-O 1.{minor}")), theirs, None)
        }
        RuntimeKind::Containerd => {
            // not $releasever: with a subscription that is a minor release, which Docker does not have
            let major = platform.el_major().unwrap_or(9);
            let theirs = format!("https://download.docker.com/linux/centos/{major}/$basearch/stable/");
            let key = "https://download.docker.com/linux/centos/gpg".to_owned();
            (DOCKER, "Docker CE".to_owned(), theirs, Some(key))
        }
    };
    let base = match &runtime.repo_baseurl {
        Some(url) => format!("{}/", url.as_str().trim_end_matches('/')),
        None => base,
    };
    let key = match (&runtime.repo_gpgkey, key) {
        (Some(key), _) => key.as_str().to_owned(),
        (None, Some(theirs)) if runtime.repo_baseurl.is_none() => theirs,
        (None, _) => format!("{base}repodata/repomd.xml.key"),
    };
    Some(repo::Desired::signed(name, &title, &base, &key))
}

/// Its package, unless it is ours.
pub fn package(settings: &Settings) -> Option<Wanted> {
    match settings.runtime.kind {
        RuntimeKind::Embedded => None,
        RuntimeKind::Crio => Some(match settings.kubernetes.as_ref().map(|kubernetes| kubernetes.version.minor()) {
            // patches of CRI-O are not those of Kubernetes
            Some(minor) => Wanted {
                name: CRIO.to_owned(),
                spec: format!("{CRIO}-1.{minor}.*"),
                version: Version::Series(format!("1.{minor}.")),
            },
            None => Wanted::any(CRIO),
        }),
        RuntimeKind::Containerd => Some(Wanted::any("containerd.io")),
    }
}

/// The name of its repository, where it has one.
pub fn repository_name(settings: &Settings) -> Option<&'static str> {
    match settings.runtime.kind {
        _ if settings.packages.source != PackageSource::Dnf => None,
        RuntimeKind::Embedded => None,
        RuntimeKind::Crio => Some(CRIO),
        RuntimeKind::Containerd => Some(DOCKER),
    }
}

/// Ours must not run beside another one. Pods that run under it would be nobody's: then it stays, and that is said.
pub fn ours_is_off(settings: &Settings) -> Option<Unit> {
    (settings.runtime.kind != RuntimeKind::Embedded)
        .then(|| Unit::off(unit::RUNTIME).while_empty("/run/nodeagent/pods"))
}

fn crio_conf(runtime: &RuntimeSettings, platform: &Platform) -> OwnedFile {
    let text = |value: &str| toml::Value::from(value).to_string();
    let content = format!(
        "{HEADER}[crio.api]\nlisten = {}\n\n[crio.runtime]\ncgroup_manager = {}\n\
         # with cgroupfs it has to be, and with systemd it is what accounts for the pod\nconmon_cgroup = \"pod\"\n\
         # found by PATH: older configs name a place where the package no longer has it\nconmon = \"\"\n\n\
         [crio.image]\npause_image = {}\n",
        text(runtime.socket.as_str()),
        text(driver_word(cgroup_driver(runtime, platform))),
        text(&runtime.pause_image),
    );
    OwnedFile::public(CRIO_CONF, content)
}

fn containerd_conf(runtime: &RuntimeSettings, platform: &Platform) -> OwnedFile {
    let text = |value: &str| toml::Value::from(value).to_string();
    let by_systemd = cgroup_driver(runtime, platform) == CgroupDriver::Systemd;
    // version 2: containerd 1.3 and later read it, and 2.x translates it
    let content = format!(
        "{HEADER}version = 2\n\n[grpc]\naddress = {}\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {}\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{CERTS_D}\"\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = {by_systemd}\n",
        text(runtime.socket.as_str()),
        text(&runtime.pause_image),
    );
    OwnedFile::public(CONTAINERD_CONF, content)
}

fn hosts_toml(registry: &RegistrySettings) -> OwnedFile {
    let text = |value: String| toml::Value::from(value).to_string();
    let scheme = if registry.insecure { "http" } else { "https" };
    let place = registry.location.as_ref().unwrap_or(&registry.prefix).as_str();
    // the name of Docker's registry is not where it is
    let place = if place == "docker.io" { "registry-1.docker.io" } else { place };
    let mut content = format!("{HEADER}server = {}\n", text(format!("{scheme}://{place}")));
    for mirror in &registry.mirrors {
        let (host, path) = mirror.as_str().split_once('/').unwrap_or((mirror.as_str(), ""));
        let (url, override_path) = match path.is_empty() {
            true => (format!("https://{host}"), ""),
            // containerd puts /v2 behind the address unless it is told that the path is whole
            false => (format!("https://{host}/v2/{path}"), "override_path = true\n"),
        };
        content.push_str(&format!("\n[host.{}]\ncapabilities = [\"pull\", \"resolve\"]\n{override_path}", text(url)));
    }
    OwnedFile::public(&format!("{CERTS_D}/{}/hosts.toml", registry.prefix.as_str()), content)
}

#[cfg(test)]
mod tests;
