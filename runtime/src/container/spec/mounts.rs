//! What is mounted where in a container, and in which order.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;
use nodeagent_cri_api::{IdMapping, Mount as Asked, MountPropagation, NamespaceMode};
use nodeagent_shim::protocol::{IdMap, IdMaps, Mount, Propagation};

use super::{Inputs, SpecError, layers, text};
use crate::cgroup::{Hierarchy, Layout};
use crate::container::cdi;
use crate::image::Rootfs;

/// `tty` in every group file.
const TERMINALS: u32 = 5;

const NOTHING: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Defaults first, so that what is asked for may be mounted inside them; then what is asked for, parents before
/// children.
pub(super) fn all(
    inputs: &Inputs<'_>,
    of_devices: &[cdi::Mount],
    privileged: bool,
    label: Option<&str>,
) -> Result<Vec<Mount>, SpecError> {
    let mut asked = Vec::new();
    let mut volumes = inputs.volumes.iter();
    let ids = inputs.pod.id_maps();
    for mount in &inputs.config.mounts {
        asked.push(match image_of(mount) {
            Some(_) => image_volume(mount, volumes.next())?,
            None => bind(mount, inputs.host.kernel.mount_setattr, ids.as_ref())?,
        });
    }
    for mount in of_devices {
        asked.push(of_device(mount)?);
    }
    asked.sort_by_key(|mount| Path::new(&mount.target).components().count());
    let mut mounts = file_systems(inputs, privileged, ids.as_ref());
    // not mqueue, which takes no such option: the shim labels it
    for mount in mounts.iter_mut().filter(|mount| ["tmpfs", "devpts"].contains(&mount.fstype.as_str())) {
        mount.data = with_context(&mount.data, label);
    }
    mounts.extend(of_the_pod(inputs));
    mounts.retain(|default| asked.iter().all(|mount| mount.target != default.target));
    mounts.extend(asked);
    Ok(mounts)
}

/// Options of a mount whose files all have one label; the quotes keep the commas of its categories.
pub fn with_context(options: &str, label: Option<&str>) -> String {
    match label {
        None => options.to_owned(),
        Some(label) if options.is_empty() => format!("context=\"{label}\""),
        Some(label) => format!("{options},context=\"{label}\""),
    }
}

/// The options as they are without a label, for who labels mounts by other means.
pub fn without_context(options: &str) -> &str {
    options.split_once("context=").map_or(options, |(before, _)| before.trim_end_matches(','))
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

fn file_systems(inputs: &Inputs<'_>, privileged: bool, ids: Option<&IdMaps>) -> Vec<Mount> {
    let readonly = if privileged { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    // mounted with the host's ids: root, and the group of terminals, are those inside
    let outside = |uid: u32, gid: u32| ids.and_then(|ids| ids.uid(uid).zip(ids.gid(gid))).unwrap_or((uid, gid));
    let (root, terminals) = (outside(0, 0), outside(0, TERMINALS).1);
    let dev = format!("mode=755,size=65536k,uid={},gid={}", root.0, root.1);
    let pts = format!("newinstance,ptmxmode=0666,mode=0620,gid={terminals}");
    let mut mounts = vec![
        file_system("proc", "/proc", NOTHING, ""),
        file_system("tmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME, &dev),
        file_system("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, &pts),
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

/// What a device brings along, a driver's libraries for the most part.
fn of_device(mount: &cdi::Mount) -> Result<Mount, SpecError> {
    let source = Path::new(&mount.host_path);
    let failed = |error| SpecError::Source { path: source.to_owned(), source: error };
    let file = !fs::metadata(source).map_err(failed)?.is_dir();
    let has = |option: &str| mount.options.iter().any(|one| one == option);
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_NOEXEC, has("noexec"));
    flags.set(MsFlags::MS_NODEV, has("nodev"));
    flags.set(MsFlags::MS_NOSUID, has("nosuid"));
    Ok(Mount {
        target: inside(&mount.container_path),
        source: text(&fs::canonicalize(source).map_err(failed)?),
        flags: flags.bits(),
        recursive: has("rbind"),
        readonly: has("ro"),
        propagation: if has("rslave") || has("slave") { Propagation::Slave } else { Propagation::Private },
        file,
        ..Mount::default()
    })
}

/// The image that a mount shows, if it shows one.
pub(in crate::container) fn image_of(asked: &Asked) -> Option<&str> {
    asked.image.as_ref().map(|image| image.image.as_str()).filter(|image| !image.is_empty())
}

fn image_volume(asked: &Asked, layers: Option<&Rootfs>) -> Result<Mount, SpecError> {
    let refused = |why: String| Err(SpecError::ImageVolume(format!("mount {}: {why}", asked.container_path)));
    let Some(layers) = layers else { return refused("its image was not made ready".to_owned()) };
    if !asked.host_path.is_empty() {
        return refused(format!("it has a host path too, `{}`", asked.host_path));
    }
    if !asked.readonly {
        return refused("images are mounted read-only".to_owned());
    }
    if asked.propagation() != MountPropagation::PropagationPrivate {
        return refused("its propagation is not private".to_owned());
    }
    let sub_path = Path::new(&asked.image_sub_path);
    if sub_path.is_absolute() || sub_path.components().any(|part| part == Component::ParentDir) {
        return refused(format!("sub-path `{}` leads out of the image", asked.image_sub_path));
    }
    match layers::exists(&layers.lower, sub_path) {
        Ok(true) => {}
        Ok(false) => return refused(format!("the image has no `{}`", asked.image_sub_path)),
        Err(error) => return refused(format!("sub-path `{}`: {error}", asked.image_sub_path)),
    }
    Ok(Mount {
        target: inside(&asked.container_path),
        flags: options(asked)?.bits(),
        readonly: true,
        image: Some(super::readonly_layers(layers)),
        sub_path: asked.image_sub_path.clone(),
        ..Mount::default()
    })
}

/// Kubelet says on each mount how it is mapped. It has to be as in the pod's user namespace, the only one there is.
fn check_mappings(asked: &Asked, ids: Option<&IdMaps>) -> Result<bool, SpecError> {
    if asked.uid_mappings.is_empty() && asked.gid_mappings.is_empty() {
        return Ok(false);
    }
    let maps = |mappings: &[IdMapping]| -> Vec<IdMap> {
        let map = |one: &IdMapping| IdMap { inside: one.container_id, outside: one.host_id, length: one.length };
        mappings.iter().map(map).collect()
    };
    let wanted = IdMaps { uids: maps(&asked.uid_mappings), gids: maps(&asked.gid_mappings) };
    match ids {
        Some(ids) if *ids == wanted => Ok(true),
        Some(_) => Err(SpecError::Invalid(format!(
            "mount {}: its ids are mapped otherwise than in the pod's user namespace",
            asked.container_path
        ))),
        None => {
            let message = format!("mount {}: mapped ids, and the pod has no user namespace", asked.container_path);
            Err(SpecError::Invalid(message))
        }
    }
}

fn options(asked: &Asked) -> Result<MsFlags, SpecError> {
    let mut flags = MsFlags::empty();
    for option in &asked.mount_options {
        flags |= match option.as_str() {
            "noexec" => MsFlags::MS_NOEXEC,
            "nodev" => MsFlags::MS_NODEV,
            "nosuid" => MsFlags::MS_NOSUID,
            other => {
                let message =
                    format!("mount {}: option `{other}` is none of noexec, nodev, nosuid", asked.container_path);
                return Err(SpecError::Invalid(message));
            }
        };
    }
    Ok(flags)
}

fn bind(asked: &Asked, kernel_can: bool, ids: Option<&IdMaps>) -> Result<Mount, SpecError> {
    let invalid = |message: String| Err(SpecError::Invalid(message));
    let idmapped = check_mappings(asked, ids)?;
    if ids.is_some() && asked.propagation() == MountPropagation::PropagationBidirectional {
        return invalid(format!("mount {}: a user namespace shows nothing to the host", asked.container_path));
    }
    if !Path::new(&asked.host_path).is_absolute() {
        return invalid(format!("mount {}: host path `{}` is not absolute", asked.container_path, asked.host_path));
    }
    check_recursive(asked, kernel_can)?;
    let source = source(Path::new(&asked.host_path))?;
    check_propagation(asked, &source)?;
    let flags = options(asked)?;
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
        idmapped,
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
        assert_eq!(bind(&asked(&link, MountPropagation::PropagationPrivate), true, None).unwrap().source, text(&real));
        let missing = real.join("a/b");
        let mount = bind(&asked(&missing, MountPropagation::PropagationPrivate), true, None).unwrap();
        assert!(missing.is_dir() && !mount.file && mount.recursive);
        fs::write(real.join("file"), "").unwrap();
        assert!(bind(&asked(&real.join("file"), MountPropagation::PropagationPrivate), true, None).unwrap().file);
    }

    #[test]
    fn recursive_read_only_has_its_conditions() {
        let dir = tempfile::tempdir().unwrap();
        let base = Asked {
            readonly: true,
            recursive_read_only: true,
            ..asked(dir.path(), MountPropagation::PropagationPrivate)
        };
        assert!(bind(&base, true, None).unwrap().recursive_readonly);
        let slave = MountPropagation::PropagationHostToContainer.into();
        let bad = [
            (Asked { readonly: false, ..base.clone() }, true),
            (Asked { propagation: slave, ..base.clone() }, true),
            (base, false),
        ];
        for (mount, kernel_can) in bad {
            let error = bind(&mount, kernel_can, None).unwrap_err().to_string();
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
        assert_eq!(bind(&mount, true, None).unwrap().flags, flags.bits());
        mount.mount_options = vec!["suid".into()];
        assert!(bind(&mount, true, None).is_err());
    }

    #[test]
    fn mapped_ids_are_those_of_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let map = vec![IdMap { inside: 0, outside: 1000, length: 10 }];
        let ids = IdMaps { uids: map.clone(), gids: map };
        let mut mount = asked(dir.path(), MountPropagation::PropagationPrivate);
        assert!(!bind(&mount, true, Some(&ids)).unwrap().idmapped);
        mount.uid_mappings = vec![IdMapping { container_id: 0, host_id: 1000, length: 10 }];
        mount.gid_mappings.clone_from(&mount.uid_mappings);
        assert!(bind(&mount, true, Some(&ids)).unwrap().idmapped);
        assert!(bind(&mount, true, None).unwrap_err().to_string().contains("no user namespace"));
        mount.gid_mappings[0].host_id = 2000;
        assert!(bind(&mount, true, Some(&ids)).unwrap_err().to_string().contains("mapped otherwise"));
    }

    #[test]
    fn an_image_is_shown_read_only_and_as_far_as_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("layer/etc")).unwrap();
        let layers = Rootfs {
            lower: vec![dir.path().join("layer")],
            upper: "/u".into(),
            work: "/w".into(),
            container_dir: "/c".into(),
        };
        let volume = |readonly, sub_path: &str, host_path: &str| {
            let asked = Asked {
                container_path: "/vol".into(),
                host_path: host_path.into(),
                readonly,
                image_sub_path: sub_path.into(),
                ..Asked::default()
            };
            image_volume(&asked, Some(&layers)).map_err(|error| error.to_string())
        };
        let mount = volume(true, "etc", "").unwrap();
        let image = mount.image.unwrap();
        assert_eq!((image.upper.as_str(), image.target.as_str(), mount.sub_path.as_str()), ("", "/c/merged", "etc"));
        for (readonly, sub_path, host_path) in
            [(false, "", ""), (true, "none", ""), (true, "../x", ""), (true, "/etc", ""), (true, "", "/etc")]
        {
            let error = volume(readonly, sub_path, host_path).unwrap_err();
            assert!(error.starts_with("ImageVolumeMountFailed: mount /vol"), "{error}");
        }
    }
}
