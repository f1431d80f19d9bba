//! A root directory as a package would leave it: the machine's own systemd and cloud-init units, ours, and kubelet's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nodeagent_tests::outside::{Verdict, repository, run};
use tempfile::TempDir;

/// Ordering of cloud-init's units, which differs between distributions and versions.
#[derive(Debug, Clone, Copy)]
pub struct CloudInit {
    /// `cloud-init.service` stands before `sysinit.target` (Debian), or not (EL).
    pub network_stage_before_sysinit: bool,
    /// `cloud-final.service` stands after `multi-user.target` (upstream), or not.
    pub final_stage_after_multi_user: bool,
}

impl CloudInit {
    /// All four.
    pub const KINDS: [Self; 4] = [
        Self { network_stage_before_sysinit: true, final_stage_after_multi_user: true },
        Self { network_stage_before_sysinit: true, final_stage_after_multi_user: false },
        Self { network_stage_before_sysinit: false, final_stage_after_multi_user: true },
        Self { network_stage_before_sysinit: false, final_stage_after_multi_user: false },
    ];
}

/// A staged root directory, removed when dropped.
pub struct Tree {
    directory: TempDir,
}

/// The files of `units/system`, by name.
pub fn unit_files() -> Result<Vec<PathBuf>> {
    let folder = repository().join("units/system");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("list {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    Ok(files)
}

/// Last component of a path, as text.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Tree {
    /// Stages everything, and enables our units by preset and cloud-init's and kubelet's by hand.
    pub fn stage(cloud_init: CloudInit) -> Result<Self> {
        let tree = Self { directory: tempfile::tempdir()? };
        for folder in ["usr/lib/systemd/system-preset", "usr/bin", "usr/libexec/nodeagent", "etc/systemd/system"] {
            fs::create_dir_all(tree.path(folder))?;
        }
        for link in ["lib", "bin"] {
            symlink(format!("usr/{link}"), tree.path(link))?;
        }
        fs::create_dir_all(tree.path("usr/lib/systemd/system"))?;
        for package in ["systemd", "dbus", "cloud-init"] {
            tree.put_package(package)?;
        }
        for file in unit_files()? {
            copy(&file, &tree.system(&name(&file)))?;
        }
        copy(
            repository().join("units/system-preset/90-nodeagent.preset"),
            &tree.path("usr/lib/systemd/system-preset/90-nodeagent.preset"),
        )?;
        // what EL puts last: whatever is not named stays off
        fs::write(tree.path("usr/lib/systemd/system-preset/99-default-disable.preset"), "disable *\n")?;
        for program in
            ["usr/bin/agent", "usr/libexec/nodeagent/nodeagent-runtime", "usr/bin/kubelet", "usr/bin/cloud-init"]
        {
            fs::write(tree.path(program), "#!/bin/sh\n")?; // judged for being there, never run
            fs::set_permissions(tree.path(program), fs::Permissions::from_mode(0o755))?;
        }
        tree.put_kubelet()?;
        tree.put_cloud_init(cloud_init)?;
        tree.systemctl(&["preset-all"])?;
        // what the agent and cloud-init's generator add
        tree.systemctl(&["enable", "nodeagent-runtime.service", "kubelet.service"])?;
        tree.systemctl(&["enable", "cloud-init-local.service", "cloud-config.service", "cloud-final.service"])?;
        tree.systemctl(&["enable", "cloud-init.service"])?;
        tree.systemctl(&["add-wants", "multi-user.target", "cloud-init.target"])?;
        Ok(tree)
    }

    /// Top of the tree.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A path in the tree.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root().join(relative)
    }

    /// A vendor unit.
    pub fn system(&self, unit: &str) -> PathBuf {
        self.path("usr/lib/systemd/system").join(unit)
    }

    /// `systemctl` on the tree.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        let root = format!("--root={}", self.root().display());
        run("systemctl", [&[root.as_str()], arguments].concat())?.ok(&format!("systemctl {}", arguments.join(" ")))
    }

    /// `systemd-analyze verify` of one unit and of every job it brings: what it says, nothing when all is well.
    pub fn verify(&self, unit: &str) -> Result<Verdict> {
        run("systemd-analyze", ["verify", &format!("--root={}", self.root().display()), "--man=no", unit])
    }

    /// Replaces text in a unit of the tree; it has to be there.
    pub fn edit(&self, unit: &str, from: &str, to: &str) -> Result<()> {
        let path = self.system(unit);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(text.contains(from), "{unit} has no {from:?}");
        Ok(fs::write(&path, text.replace(from, to))?)
    }

    /// The units of one package only: what else is installed on this machine is not on a node.
    fn put_package(&self, package: &str) -> Result<()> {
        let list = run("dpkg", ["-L", package])?.ok(&format!("dpkg -L {package} (see tests/packages.txt)"))?;
        for path in list.lines().filter(|path| path.contains("/systemd/system/")) {
            let Some((_, relative)) = path.split_once("/systemd/system/") else { continue };
            let target = self.system(relative);
            if Path::new(path).is_dir() && !Path::new(path).is_symlink() {
                fs::create_dir_all(&target)?;
            } else {
                copy(path, &target)?;
            }
        }
        Ok(())
    }

    fn put_kubelet(&self) -> Result<()> {
        fs::write(
            self.system("kubelet.service"),
            "[Unit]\nDescription=kubelet\nWants=network-online.target\nAfter=network-online.target\n\
             [Service]\nExecStart=/usr/bin/kubelet\n[Install]\nWantedBy=multi-user.target\n",
        )?;
        let folder = self.path("etc/systemd/system/kubelet.service.d");
        fs::create_dir_all(&folder)?;
        fs::write(
            folder.join("50-nodeagent.conf"),
            "[Unit]\nWants=nodeagent-runtime.service\nAfter=nodeagent-runtime.service\n",
        )?;
        Ok(())
    }

    fn put_cloud_init(&self, kind: CloudInit) -> Result<()> {
        let set = |unit: &str, line: &str, wanted: bool| -> Result<()> {
            let path = self.system(unit);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("read {} (package cloud-init, see tests/packages.txt)", path.display()))?;
            let without: String = text.lines().filter(|l| *l != line).map(|l| format!("{l}\n")).collect();
            let text = if wanted { without.replacen("[Unit]\n", &format!("[Unit]\n{line}\n"), 1) } else { without };
            Ok(fs::write(&path, text)?)
        };
        set("cloud-init.service", "Before=sysinit.target", kind.network_stage_before_sysinit)?;
        set("cloud-init.service", "DefaultDependencies=no", kind.network_stage_before_sysinit)?;
        set("cloud-final.service", "After=multi-user.target", kind.final_stage_after_multi_user)
    }
}

/// Copies a file; a link stays a link.
fn copy(from: impl AsRef<Path>, to: &Path) -> Result<()> {
    let from = from.as_ref();
    let what = || format!("copy {} to {}", from.display(), to.display());
    if from.is_symlink() {
        symlink(fs::read_link(from)?, to).with_context(what)
    } else {
        fs::copy(from, to).map(|_| ()).with_context(what)
    }
}
