//! Device nodes, and what the device controller lets a container do with them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nodeagent_cri_api::ContainerConfig;
use nodeagent_shim::protocol::{Device, IdMaps};

use super::SpecError;
use crate::cgroup::DeviceRule;
use crate::container::cdi::Device as Named;

/// Directories of `/dev` that a container has for itself.
const OWN: [&str; 6] = ["pts", "shm", "fd", "mqueue", "console", "ptmx"];

/// Deeper than any device is.
const MAX_DEPTH: usize = 8;

#[derive(Debug)]
pub(super) struct Devices {
    pub nodes: Vec<Device>,
    pub rules: Vec<DeviceRule>,
}

pub(super) fn resolve(config: &ContainerConfig, named: &[Named], privileged: bool) -> Result<Devices, SpecError> {
    let mut devices = Devices { nodes: defaults(), rules: DeviceRule::defaults() };
    if privileged {
        devices.rules = vec![DeviceRule::everything()];
        collect(Path::new("/dev"), Path::new("/dev"), 0, &mut devices.nodes)
            .map_err(|source| SpecError::Device { path: "/dev".into(), source })?;
    }
    for asked in &config.devices {
        let path = PathBuf::from(&asked.host_path);
        let failed = |source| SpecError::Device { path: path.clone(), source };
        let target = if asked.container_path.is_empty() { &asked.host_path } else { &asked.container_path };
        let access = access(&asked.host_path, &asked.permissions)?;
        let mut found = Vec::new();
        if fs::metadata(&path).map_err(failed)?.is_dir() {
            collect(&path, Path::new(target), 0, &mut found).map_err(failed)?;
        } else {
            found.extend(node(&path, target.clone()).map_err(failed)?);
        }
        if found.is_empty() {
            return Err(failed(io::Error::other("is no device")));
        }
        devices.rules.extend(found.iter().map(|device| rule(device, access)));
        devices.nodes.retain(|known| found.iter().all(|new| new.path != known.path));
        devices.nodes.extend(found);
    }
    for asked in named {
        let path = PathBuf::from(asked.host());
        let failed = |source| SpecError::Device { path: path.clone(), source };
        let found = node(&path, asked.path.clone()).map_err(failed)?;
        let mut device = found.ok_or_else(|| failed(io::Error::other("is no device")))?;
        device.mode = asked.file_mode.map_or(device.mode, |mode| mode & 0o7777);
        (device.uid, device.gid) = (asked.uid.unwrap_or(device.uid), asked.gid.unwrap_or(device.gid));
        devices.rules.push(rule(&device, access(asked.host(), &asked.permissions)?));
        devices.nodes.retain(|known| known.path != device.path);
        devices.nodes.push(device);
    }
    Ok(devices)
}

/// What may be done with a device: everything, unless it is said.
fn access<'a>(device: &str, permissions: &'a str) -> Result<&'a str, SpecError> {
    let known = permissions.chars().all(|letter| matches!(letter, 'r' | 'w' | 'm'));
    match (permissions, known) {
        ("", _) => Ok("rwm"),
        (some, true) => Ok(some),
        (other, false) => Err(SpecError::Invalid(format!("device {device}: permissions `{other}`"))),
    }
}

/// Gives the nodes to those who have their owners' ids inside; what has no owner there stays with the host's.
pub(super) fn map_owners(nodes: &mut [Device], ids: &IdMaps) {
    for node in nodes {
        if let Some((uid, gid)) = ids.uid(node.uid).zip(ids.gid(node.gid)) {
            (node.uid, node.gid) = (uid, gid);
        }
    }
}

fn rule(device: &Device, access: &str) -> DeviceRule {
    let kind = if device.kind == "b" { 'b' } else { 'c' };
    DeviceRule { kind, major: Some(device.major), minor: Some(device.minor), access: access.to_owned() }
}

/// What every program expects.
fn defaults() -> Vec<Device> {
    let numbers = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    let node = |(name, major, minor)| Device {
        path: format!("/dev/{name}"),
        kind: "c".to_owned(),
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    numbers.map(node).to_vec()
}

/// Every device below a directory of the host, shown below `target`; those that are already there are kept.
fn collect(dir: &Path, target: &Path, depth: usize, nodes: &mut Vec<Device>) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        if OWN.iter().any(|own| name == *own) {
            continue;
        }
        let (path, target) = (entry.path(), target.join(&name));
        // devices come and go while one looks
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect(&path, &target, depth + 1, nodes)?;
        } else if let Ok(Some(device)) = node(&path, target.to_string_lossy().into_owned())
            && !kind.is_symlink()
            && nodes.iter().all(|known| known.path != device.path)
        {
            nodes.push(device);
        }
    }
    Ok(())
}

/// The device at that path; none when it is something else.
fn node(path: &Path, target: String) -> io::Result<Option<Device>> {
    let metadata = fs::metadata(path)?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return Ok(None),
    };
    let number = |value: u64| u32::try_from(value).map_err(io::Error::other);
    Ok(Some(Device {
        path: target,
        kind: kind.to_owned(),
        major: number(major(metadata.rdev()))?,
        minor: number(minor(metadata.rdev()))?,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    }))
}

#[cfg(test)]
mod tests {
    use nodeagent_cri_api::Device as Asked;

    use super::*;

    fn asked(host_path: &str, container_path: &str, permissions: &str) -> ContainerConfig {
        let device = Asked {
            host_path: host_path.to_owned(),
            container_path: container_path.to_owned(),
            permissions: permissions.to_owned(),
        };
        ContainerConfig { devices: vec![device], ..ContainerConfig::default() }
    }

    #[test]
    fn a_device_gets_a_node_and_a_rule() {
        let devices = resolve(&asked("/dev/null", "/dev/hole", "rw"), &[], false).unwrap();
        let node = devices.nodes.last().unwrap();
        assert_eq!((node.path.as_str(), node.kind.as_str(), node.major, node.minor), ("/dev/hole", "c", 1, 3));
        assert_eq!(devices.rules.last().unwrap().to_string(), "c 1:3 rw");
    }

    #[test]
    fn a_device_in_the_place_of_a_default_one_replaces_it() {
        let devices = resolve(&asked("/dev/zero", "/dev/null", ""), &[], false).unwrap();
        let nodes: Vec<_> = devices.nodes.iter().filter(|node| node.path == "/dev/null").collect();
        assert_eq!((nodes.len(), nodes[0].minor), (1, 5));
    }

    #[test]
    fn a_privileged_container_sees_the_devices_of_the_host() {
        let devices = resolve(&ContainerConfig::default(), &[], true).unwrap();
        assert_eq!(devices.rules, [DeviceRule::everything()]);
        assert!(!devices.nodes.iter().any(|node| node.path.starts_with("/dev/pts")));
        assert_eq!(devices.nodes.iter().filter(|node| node.path == "/dev/null").count(), 1);
    }

    #[test]
    fn what_is_no_device_is_refused() {
        assert!(matches!(resolve(&asked("/etc/passwd", "/dev/x", "r"), &[], false), Err(SpecError::Device { .. })));
        assert!(matches!(resolve(&asked("/dev/none-such", "/dev/x", "r"), &[], false), Err(SpecError::Device { .. })));
        assert!(matches!(resolve(&asked("/dev/null", "/dev/x", "rx"), &[], false), Err(SpecError::Invalid(_))));
    }
}
