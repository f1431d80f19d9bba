//! Files that a pod's containers share: resolv.conf, hostname, /dev/shm.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nodeagent_cri_api::{DnsConfig, NamespaceMode, PodSandboxConfig};

use super::record::namespaces;
use super::{PodError, SandboxRecord};
use crate::container::spec::with_context;
use crate::selinux;

/// As everywhere else; a pod that needs more mounts its own.
const SHM_OPTIONS: &str = "mode=1777,size=64m";

/// Longest host name that the kernel takes.
pub(super) const MAX_HOSTNAME: usize = 64;

/// Longest part of a name in DNS.
const MAX_LABEL: usize = 63;

/// Longest resolv.conf taken over from the host.
const MAX_RESOLV_CONF: u64 = 1 << 20;

/// Makes the pod's directory and what is in it.
pub(super) fn make(dir: &Path, pod: &SandboxRecord, label: Option<&str>) -> Result<(), PodError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| PodError::File { action, path, source }
    };
    fs::create_dir_all(dir).map_err(failed("make", dir))?;
    let resolv_conf = dir.join("resolv.conf");
    let text = match &pod.config.dns_config {
        Some(dns) if !is_empty(dns) => render(dns).into_bytes(),
        _ => host_resolv_conf().map_err(failed("read", Path::new("/etc/resolv.conf")))?,
    };
    fs::write(&resolv_conf, text).map_err(failed("write", &resolv_conf))?;
    let name = dir.join("hostname");
    fs::write(&name, format!("{}\n", hostname(&pod.config))).map_err(failed("write", &name))?;
    if let Some(label) = label {
        for path in [&resolv_conf, &name] {
            selinux::relabel(path, label).map_err(|source| PodError::Label { id: pod.id.clone(), source })?;
        }
    }
    // who is root in the pod
    let ids = pod.id_maps();
    let root = ids.and_then(|ids| ids.uid(0).zip(ids.gid(0)));
    if let Some((uid, gid)) = root {
        for path in [&resolv_conf, &name] {
            chown(path, Some(uid), Some(gid)).map_err(failed("chown", path))?;
        }
    }
    if pod.namespaces().ipc() != NamespaceMode::Node {
        let shm = dir.join("shm");
        fs::create_dir_all(&shm).map_err(failed("make", &shm))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let owner = root.map(|(uid, gid)| format!(",uid={uid},gid={gid}")).unwrap_or_default();
        let options = with_context(&format!("{SHM_OPTIONS}{owner}"), label);
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(|errno| failed("mount", &shm)(errno.into()))?;
    }
    if !pod.config.log_directory.is_empty() {
        let logs = Path::new(&pod.config.log_directory);
        fs::create_dir_all(logs).map_err(failed("make", logs))?;
    }
    Ok(())
}

/// Removes it all; what is missing is as good. Logs are kubelet's.
pub(super) fn remove(dir: &Path) -> Result<(), PodError> {
    unmount(&dir.join("shm"))?;
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PodError::File { action: "remove", path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Unmounts every layer at that path; one that is not mounted, or not there, is as good.
fn unmount(path: &Path) -> Result<(), PodError> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(()),
            Err(errno) => {
                return Err(PodError::File { action: "unmount", path: path.to_owned(), source: errno.into() });
            }
        }
    }
}

/// The pod's host name: as asked for, or the node's when it shares the node's network and said nothing.
pub fn hostname(config: &PodSandboxConfig) -> String {
    if !config.hostname.is_empty() {
        return config.hostname.clone();
    }
    if namespaces(config).network() == NamespaceMode::Node {
        return nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    }
    // a pod's name may have 253 characters: cut as kubelet does
    let name = config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    let cut: String = name.chars().take(MAX_LABEL).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn is_empty(dns: &DnsConfig) -> bool {
    dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()
}

fn render(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

fn host_resolv_conf() -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    match fs::File::open("/etc/resolv.conf") {
        Ok(file) => file.take(MAX_RESOLV_CONF).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(text)
}

#[cfg(test)]
mod tests {
    use nodeagent_cri_api::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, PodSandboxMetadata};

    use super::*;

    #[test]
    fn dns_becomes_resolv_conf() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into(), "fd00::a".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            render(&dns),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
    }

    #[test]
    fn a_pod_is_named_as_asked_or_after_itself_or_after_the_node() {
        let metadata = PodSandboxMetadata { name: "web-0".into(), ..PodSandboxMetadata::default() };
        let plain = PodSandboxConfig { metadata: Some(metadata), ..PodSandboxConfig::default() };
        assert_eq!(hostname(&plain), "web-0");
        assert_eq!(hostname(&PodSandboxConfig { hostname: "other".into(), ..plain.clone() }), "other");
        let long = PodSandboxMetadata { name: format!("{}-and-more", "x".repeat(62)), ..PodSandboxMetadata::default() };
        let long = PodSandboxConfig { metadata: Some(long), ..PodSandboxConfig::default() };
        assert_eq!(hostname(&long), "x".repeat(62));
        let options = NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() };
        let context = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux = Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
        let node = nix::unistd::gethostname().unwrap().into_string().unwrap();
        assert_eq!(hostname(&PodSandboxConfig { linux, ..plain }), node);
    }

    #[test]
    fn what_is_not_there_is_removed_already() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("none")).unwrap();
    }
}
