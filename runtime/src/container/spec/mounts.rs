//! What is mounted where in a container, and in which order.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;
use nodeagent_cri_api::{Mount as Asked, MountPropagation, NamespaceMode};
use nodeagent_shim::protocol::{Mount, Propagation};

use super::{Inputs, SpecError, text};
use crate::cgroup::{Hierarchy, Layout};

const NOTHING: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Defaults first, so that what is asked for may be mounted inside them; then what is asked for, parents before
/// children.
pub(super) fn all(inputs: &Inputs<'_>, privileged: bool) -> Result<Vec<Mount>, SpecError> {
    let mut asked = Vec::new();
    for mount in &inputs.config.mounts {
        asked.push(bind(mount, inputs.host.kernel.mount_setattr)?);
    }
    asked.sort_by_key(|mount| Path::new(&mount.target).components().count());
    let mut mounts = file_systems(inputs, privileged);
    mounts.extend(of_the_pod(inputs));
    mounts.retain(|default| asked.iter().all(|mount| mount.target != default.target));
    mounts.extend(asked);
    Ok(mounts)
}

fn file_system(fstype: &str, target: &str, flags: MsFlags, data: &str) -> Mount {
    Mount {
        fstype: fstype.to_owned(),
        source: fstype.to_owned(),
        target: target.to_owned(),
        flags: flags.bits(),
        data: data.to_owned(),
        ..Mount::default()
    }
}

fn file_systems(inputs: &Inputs<'_>, privileged: bool) -> Vec<Mount> {
    let readonly = if privileged { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    let mut mounts = vec![
        file_system("proc", "/proc", NOTHING, ""),
        file_system("tmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME, "mode=755,size=65536k"),
        file_system(
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        file_system("mqueue", "/dev/mqueue", NOTHING, ""),
        file_system("sysfs", "/sys", NOTHING | readonly, ""),
    ];
    match inputs.cgroups.layout() {
        Layout::V2 { .. } => mounts.push(file_system("cgroup2", "/sys/fs/cgroup", NOTHING | readonly, "")),
        Layout::V1 { hierarchies } => mounts.extend(v1_view(hierarchies, inputs, privileged)),
    }
    mounts
}

/// v1 has no view of its own worth having: the container's directory of each hierarchy is bound in its place.
fn v1_view(hierarchies: &[Hierarchy], inputs: &Inputs<'_>, privileged: bool) -> Vec<Mount> {
    let top = file_system("tmpfs", "/sys/fs/cgroup", NOTHING, "mode=755,size=64k");
    let mut mounts = vec![Mount { readonly: !privileged, ..top }];
    for hierarchy in hierarchies {
        let Some(name) = hierarchy.mountpoint.file_name() else { continue };
        mounts.push(Mount {
            source: text(&inputs.cgroup.under(&hierarchy.mountpoint)),
            target: format!("/sys/fs/cgroup/{}", name.to_string_lossy()),
            flags: NOTHING.bits(),
            readonly: !privileged,
            ..Mount::default()
        });
    }
    mounts
}

/// Files that all containers of the pod share. `/etc/hosts` is kubelet's.
fn of_the_pod(inputs: &Inputs<'_>) -> Vec<Mount> {
    let readonly = inputs.context().readonly_rootfs;
    let shared = |source: PathBuf, target: &str, file: bool| Mount {
        source: text(&source),
        target: target.to_owned(),
        recursive: !file,
        readonly: readonly && file,
        file,
        ..Mount::default()
    };
    let shm = match inputs.pod.namespaces().ipc() {
        NamespaceMode::Node => PathBuf::from("/dev/shm"),
        _ => inputs.pod_dir.join("shm"),
    };
    vec![
        shared(shm, "/dev/shm", false),
        shared(inputs.pod_dir.join("resolv.conf"), "/etc/resolv.conf", true),
        shared(inputs.pod_dir.join("hostname"), "/etc/hostname", true),
    ]
}

fn bind(asked: &Asked, kernel_can: bool) -> Result<Mount, SpecError> {
    let invalid = |message: String| Err(SpecError::Invalid(message));
    if asked.image.as_ref().is_some_and(|image| !image.image.is_empty()) {
        return invalid("ImageVolumeMountFailed: image volumes are not offered by this runtime".to_owned());
    }
    if !asked.uid_mappings.is_empty() || !asked.gid_mappings.is_empty() {
        return invalid(format!("mount {}: idmapped mounts need a user namespace", asked.container_path));
    }
    if !Path::new(&asked.host_path).is_absolute() {
        return invalid(format!("mount {}: host path `{}` is not absolute", asked.container_path, asked.host_path));
    }
    check_recursive(asked, kernel_can)?;
    let source = source(Path::new(&asked.host_path))?;
    check_propagation(asked, &source)?;
    let mut flags = MsFlags::empty();
    for option in &asked.mount_options {
        flags |= match option.as_str() {
            "noexec" => MsFlags::MS_NOEXEC,
            "nodev" => MsFlags::MS_NODEV,
            "nosuid" => MsFlags::MS_NOSUID,
            other => return invalid(format!("mount {}: option `{other}`", asked.container_path)),
        };
    }
    let file = fs::metadata(&source).map(|metadata| !metadata.is_dir());
    Ok(Mount {
        target: inside(&asked.container_path),
        flags: flags.bits(),
        recursive: true,
        readonly: asked.readonly,
        recursive_readonly: asked.recursive_read_only,
        propagation: match asked.propagation() {
            MountPropagation::PropagationPrivate => Propagation::Private,
            MountPropagation::PropagationHostToContainer => Propagation::Slave,
            MountPropagation::PropagationBidirectional => Propagation::Shared,
        },
        file: file.map_err(|error| SpecError::Source { path: source.clone(), source: error })?,
        source: text(&source),
        ..Mount::default()
    })
}

fn check_recursive(asked: &Asked, kernel_can: bool) -> Result<(), SpecError> {
    let refused = |why: &str| Err(SpecError::RecursiveReadOnly(format!("mount {}: {why}", asked.container_path)));
    match asked.recursive_read_only {
        true if !asked.readonly => refused("it is not read-only"),
        true if asked.propagation() != MountPropagation::PropagationPrivate => {
            refused("its propagation is not private")
        }
        true if !kernel_can => refused("the kernel has no recursive mount attributes (before 5.12)"),
        _ => Ok(()),
    }
}

/// Links are followed on the host, since the launcher follows none. What is missing becomes a directory, as with every
/// other runtime.
fn source(path: &Path) -> Result<PathBuf, SpecError> {
    let failed = |source| SpecError::Source { path: path.to_owned(), source };
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path).map_err(failed)?;
            fs::canonicalize(path).map_err(failed)
        }
        other => other.map_err(failed),
    }
}

/// A mount can propagate only if what it is made of does.
fn check_propagation(asked: &Asked, source: &Path) -> Result<(), SpecError> {
    let wanted: &[&str] = match asked.propagation() {
        MountPropagation::PropagationPrivate => return Ok(()),
        MountPropagation::PropagationHostToContainer => &["shared:", "master:"],
        MountPropagation::PropagationBidirectional => &["shared:"],
    };
    let failed = |source| SpecError::Source { path: "/proc/self/mountinfo".into(), source };
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    let Some((mountpoint, tags)) = mount_of(&mountinfo, source) else { return Ok(()) };
    if tags.iter().any(|tag| wanted.iter().any(|prefix| tag.starts_with(prefix))) {
        return Ok(());
    }
    Err(SpecError::Invalid(format!(
        "mount {}: {} is on the mount at {}, which is not a shared one",
        asked.container_path,
        source.display(),
        mountpoint.display()
    )))
}

/// The mount a path is on, with its tags of propagation. Of several on one place, the last covers the others.
fn mount_of<'a>(mountinfo: &'a str, path: &Path) -> Option<(PathBuf, Vec<&'a str>)> {
    let mut best: Option<(PathBuf, Vec<&str>)> = None;
    for line in mountinfo.lines() {
        let Some((mount, _)) = line.split_once(" - ") else { continue };
        let mut fields = mount.split(' ');
        let Some(mountpoint) = fields.nth(4).map(|text| PathBuf::from(unescape(text))) else { continue };
        let longer = best.as_ref().is_none_or(|(known, _)| mountpoint.starts_with(known));
        if path.starts_with(&mountpoint) && longer {
            best = Some((mountpoint, fields.skip(1).collect()));
        }
    }
    best
}

/// The kernel writes blanks and backslashes in paths as octal numbers.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The target as an absolute path without `..`.
fn inside(path: &str) -> String {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    text(&clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host_path: &Path, propagation: MountPropagation) -> Asked {
        Asked {
            container_path: "/data".into(),
            host_path: text(host_path),
            propagation: propagation.into(),
            ..Asked::default()
        }
    }

    #[test]
    fn links_are_followed_and_missing_directories_made() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        assert_eq!(bind(&asked(&link, MountPropagation::PropagationPrivate), true).unwrap().source, text(&real));
        let missing = real.join("a/b");
        let mount = bind(&asked(&missing, MountPropagation::PropagationPrivate), true).unwrap();
        assert!(missing.is_dir() && !mount.file && mount.recursive);
        fs::write(real.join("file"), "").unwrap();
        assert!(bind(&asked(&real.join("file"), MountPropagation::PropagationPrivate), true).unwrap().file);
    }

    #[test]
    fn recursive_read_only_has_its_conditions() {
        let dir = tempfile::tempdir().unwrap();
        let base = Asked {
            readonly: true,
            recursive_read_only: true,
            ..asked(dir.path(), MountPropagation::PropagationPrivate)
        };
        assert!(bind(&base, true).unwrap().recursive_readonly);
        let slave = MountPropagation::PropagationHostToContainer.into();
        let bad = [
            (Asked { readonly: false, ..base.clone() }, true),
            (Asked { propagation: slave, ..base.clone() }, true),
            (base, false),
        ];
        for (mount, kernel_can) in bad {
            let error = bind(&mount, kernel_can).unwrap_err().to_string();
            assert!(error.starts_with("RROUnsupported: mount /data"), "{error}");
        }
    }

    #[test]
    fn the_mount_of_a_path_is_the_deepest_one() {
        let mountinfo = "\
1 0 8:1 / / rw shared:1 - ext4 /dev/vda rw
2 1 0:5 / /mnt/with\\040blank rw - tmpfs t rw
3 1 0:6 / /mnt rw master:7 propagate_from:2 - tmpfs t rw
";
        let tags = |path: &str| mount_of(mountinfo, Path::new(path)).unwrap().1;
        assert_eq!(tags("/etc"), ["shared:1"]);
        assert_eq!(tags("/mnt/x"), ["master:7", "propagate_from:2"]);
        assert_eq!(tags("/mntx"), ["shared:1"]);
        assert_eq!(mount_of(mountinfo, Path::new("/mnt/with blank/y")).unwrap().0, Path::new("/mnt/with blank"));
    }

    #[test]
    fn targets_stay_inside() {
        assert_eq!(inside("/a/../../b/./c/"), "/b/c");
        assert_eq!(inside("relative"), "/relative");
    }

    #[test]
    fn options_are_flags_and_others_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = asked(dir.path(), MountPropagation::PropagationPrivate);
        mount.mount_options = vec!["noexec".into(), "nosuid".into()];
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID;
        assert_eq!(bind(&mount, true).unwrap().flags, flags.bits());
        mount.mount_options = vec!["suid".into()];
        assert!(bind(&mount, true).is_err());
    }
}
