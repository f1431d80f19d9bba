//! The agent's part in the files that people install with: it accepts their configurations, and does `%post` in a new system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nodeagent_tests::daemon::binaries;
use nodeagent_tests::outside::{collect, repository, run};
use tempfile::{NamedTempFile, tempdir};

use crate::install::post;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("kickstart and cloud-init: the agent accepts the configurations that they write", configurations),
        trial(
            "kickstart: %post, run in the root of a new system, makes it a node that waits for its first boot",
            run_post,
        ),
    ]
}

/// What stands between two lines, without the indentation of the first.
fn between(text: &str, first: &str, last: &str) -> Result<String> {
    let (_, rest) = text.split_once(first).with_context(|| format!("no {first:?}"))?;
    let (inner, _) = rest.split_once(last).with_context(|| format!("no {last:?} after {first:?}"))?;
    let indent = inner.len() - inner.trim_start_matches(' ').len();
    Ok(inner.lines().map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect())
}

fn configurations() -> Result<()> {
    let agent = agent()?;
    let kickstart = fs::read_to_string(repository().join("kickstart/el9.ks"))?;
    let user_data = fs::read_to_string(repository().join("kickstart/cloud-init/user-data"))?;
    for (file, text) in [
        ("el9.ks", between(&kickstart, "<<'CONFIG'\n", "\nCONFIG\n")?),
        ("user-data", between(&user_data, "content: |\n", "\n\npackages:")?),
    ] {
        let config = NamedTempFile::with_suffix(".toml")?;
        fs::write(config.path(), &text)?;
        let verdict = run(&agent.to_string_lossy(), ["config".as_ref(), "check".as_ref(), config.path().as_os_str()])?;
        verdict.ok(&format!("the configuration in {file}"))?;
        ensure!(text.contains("kubelet_mode"), "that is not all of it: {text}");
    }
    Ok(())
}

fn agent() -> Result<PathBuf> {
    let agent = binaries()?.join("agent");
    ensure!(agent.exists(), "{} is not built: cargo build -p nodeagent", agent.display());
    Ok(agent)
}

/// Makes the new system's root: this machine's, under an overlay, with the identity of EL and what the RPM brings. Then does what
/// the installer does. Everything is mounted in a namespace of its own and gone with it; what was written is copied out before.
const INSTALLER: &str = r#"
set -eu
top=$1 agent=$2 units=$3 script=$4 out=$5
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
root=$top/root
rm -f "$root/etc/os-release"
printf '%s\n' 'NAME="CentOS Stream"' 'ID="centos"' 'ID_LIKE="rhel fedora"' 'VERSION_ID="9"' 'PLATFORM_ID="platform:el9"' > "$root/etc/os-release"
cp "$agent" "$root/usr/bin/agent"
cp -a "$units/system/." "$root/usr/lib/systemd/system/"
mkdir -p "$root/usr/lib/systemd/system-preset" "$root/etc/selinux"
cp "$units/system-preset/90-nodeagent.preset" "$root/usr/lib/systemd/system-preset/"
printf '%s\n' SELINUX=enforcing SELINUXTYPE=targeted > "$root/etc/selinux/config"
cp "$script" "$root/post"
mount -t proc proc "$root/proc"
status=0
chroot "$root" /bin/bash /post 2>&1 || status=$?
umount "$root/proc"
cp -a "$top/upper/." "$out/"
exit "$status"
"#;

fn run_post() -> Result<()> {
    let (_, script) = post()?;
    let file = NamedTempFile::new()?;
    fs::write(file.path(), script)?;
    let (top, out) = (tempdir()?, tempdir()?);
    let mut installer = Command::new("unshare");
    installer.args(["--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", INSTALLER, "sh"]);
    installer.args([top.path(), &agent()?, &repository().join("units"), file.path(), out.path()]);
    let said = collect(&mut installer)?.ok("%post in the root of a new system")?;
    let written = |path: &str| {
        fs::read_to_string(out.path().join(path))
            .with_context(|| format!("read {path} of the new system, where %post said\n{said}"))
    };
    ensure!(written("etc/modules-load.d/90-nodeagent.conf")?.lines().any(|l| l == "br_netfilter"), "br_netfilter");
    ensure!(written("etc/sysctl.d/99-zz-nodeagent.conf")?.contains("net.ipv4.ip_forward = 1"), "ip_forward");
    ensure!(written("etc/selinux/config")?.lines().any(|l| l == "SELINUX=permissive"), "SELinux");
    ensure!(written("etc/yum.repos.d/kubernetes.repo")?.contains("[kubernetes]"), "the repository");
    ensure!(written("etc/nodeagent/config.toml")?.contains("schema = 1"), "the configuration");
    let runtime = out.path().join("etc/systemd/system/multi-user.target.wants/nodeagent-runtime.service");
    ensure!(runtime.is_symlink(), "the runtime is not enabled:\n{said}");
    // what only a running system can do is left, and said
    ensure!(said.contains("first boot"), "nothing is left for the first boot? {said}");
    let stray = ["run", "sys", "dev"].iter().filter(|folder| has_files(&out.path().join(folder))).count();
    ensure!(stray == 0, "files under /run, /sys or /dev were written");
    Ok(())
}

fn has_files(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}
