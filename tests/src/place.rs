//! Namespaces for a whole suite: links, addresses, firewall rules, mounts and processes of a run are its own and end with it.
//!
//! ```text
//! suite ─exec─► unshare(1) ─fork─► process 1 of the new PID namespace (reaps) ─► the suite itself
//! ```
//! `unshare` is killed with us and takes process 1 with it (`--kill-child`), and the kernel everything below that.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, Uid};

use crate::outside::run;

/// systemd is there in half a second.
const BOOTS_WITHIN: Duration = Duration::from_secs(60);
/// From the last process's end to an empty cgroup.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Where units of packages are, as far as a systemd of [`enter_with_systemd`] knows; a suite makes it.
pub const VENDOR_UNITS: &str = "/run/nodeagent-test/units";

/// Says to a process which of the three it is.
const STAGE: &str = "NODEAGENT_TEST_STAGE";
/// What tells the names of this run from those of others on the same machine: cgroups are seen by all of them.
pub const RUN: &str = "NODEAGENT_TEST_RUN";

/// Enters new network, mount and PID namespaces. Returns an exit code in the processes that stand around the suite, nothing in the
/// suite.
pub fn enter() -> Result<Option<ExitCode>> {
    let own = env::current_exe().context("find this program")?;
    match env::var(STAGE).ok().as_deref() {
        None => {
            if !Uid::effective().is_root() {
                bail!("this suite needs root: network, mount and PID namespaces, overlayfs, cgroups");
            }
            let error = Command::new("unshare")
                .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
                .arg(own)
                .args(env::args_os().skip(1))
                .env(STAGE, "init")
                // within the namespace, process ids begin anew
                .env(RUN, std::process::id().to_string())
                .exec();
            Err(error).context("execute unshare (package util-linux)")
        }
        Some("init") => {
            run("ip", ["link", "set", "lo", "up"])?.silent("ip link set lo up")?;
            let suite = Command::new(own).args(env::args_os().skip(1)).env(STAGE, "suite").spawn();
            reap(Pid::from_raw(suite.context("start the suite")?.id() as i32)).map(Some)
        }
        Some(_) => Ok(None),
    }
}

/// As [`enter`], with systemd as process 1 and a tree of cgroup v2 of its own.
///
/// ```text
/// suite ─► unshare(1) ─fork─► this program: mounts ─exec─► systemd, process 1
///   └────► nsenter(1) ─► the suite itself, beside it
/// ```
pub fn enter_with_systemd() -> Result<Option<ExitCode>> {
    match env::var(STAGE).ok().as_deref() {
        None => {
            if !Uid::effective().is_root() {
                bail!("this suite needs root: namespaces, overlayfs, cgroups");
            }
            let place = CgroupPlace::enter()?;
            let result = beside_systemd();
            place.leave()?;
            result.map(Some)
        }
        Some("boot") => Err(become_systemd()?).context("execute systemd (package systemd)"),
        Some(_) => Ok(None),
    }
}

/// A cgroup that is to be the root of systemd's tree.
struct CgroupPlace {
    tree: PathBuf,
    own: PathBuf,
}

impl CgroupPlace {
    fn enter() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let tree = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let tree = PathBuf::from(tree.context("no tree of cgroup v2 is mounted")?);
        let own = tree.join(format!("nodeagent-systemd-{}", std::process::id()));
        fs::create_dir(&own).with_context(|| format!("make {}", own.display()))?;
        fs::write(own.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(Self { tree, own })
    }

    fn leave(self) -> Result<()> {
        fs::write(self.tree.join("cgroup.procs"), std::process::id().to_string())?;
        remove_tree(&self.own, Instant::now() + ENDS_WITHIN)
    }
}

/// The kernel takes a moment to let go of a cgroup whose processes were killed, and tells nobody.
#[allow(clippy::disallowed_methods)]
fn remove_tree(tree: &Path, deadline: Instant) -> Result<()> {
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path(), deadline)?;
        }
    }
    while let Err(error) = fs::remove_dir(tree) {
        if Instant::now() > deadline {
            return Err(error).with_context(|| format!("remove {}", tree.display()));
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn beside_systemd() -> Result<ExitCode> {
    let own = env::current_exe().context("find this program")?;
    let mut outer = Command::new("unshare")
        .args([
            "--cgroup",
            "--net",
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .arg(&own)
        // by which it comes here again
        .args(env::args_os().skip(1))
        .env(STAGE, "boot")
        .stdin(Stdio::null())
        .spawn()
        .context("execute unshare (package util-linux)")?;
    let result = in_its_namespaces(&own, outer.id());
    // its child is killed with it, and everything below that
    let _ = outer.kill();
    let _ = outer.wait();
    result
}

// a process of another PID namespace whose parent is not this one: there is nothing to wait on
#[allow(clippy::disallowed_methods)]
fn in_its_namespaces(own: &Path, outer: u32) -> Result<ExitCode> {
    let deadline = Instant::now() + BOOTS_WITHIN;
    let first = loop {
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap_or_default();
        if let Some(child) = children.split_whitespace().next()
            && Path::new(&format!("/proc/{child}/root/run/systemd/private")).exists()
        {
            break child.to_owned();
        }
        if Instant::now() > deadline {
            bail!("systemd does not listen after {BOOTS_WITHIN:?}");
        }
        sleep(Duration::from_millis(20));
    };
    let status = Command::new("nsenter")
        .args(["--target", &first, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
        .arg(own)
        .args(env::args_os().skip(1))
        .env(STAGE, "suite")
        .env(RUN, std::process::id().to_string())
        .status()
        .context("execute nsenter (package util-linux)")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Makes the mounts that systemd expects and becomes it. No unit of the host is in its reach.
fn become_systemd() -> Result<std::io::Error> {
    let units = Path::new("/run/systemd/system");
    let own_units = Path::new("/etc/systemd/system");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cut off the mounts")?;
    run("ip", ["link", "set", "lo", "up"])?.silent("ip link set lo up")?;
    umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH).context("take off the host's cgroups")?;
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none).context("mount cgroup2")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("mount /run")?;
    // what is enabled or masked in here is so in here only
    mount(Some("tmpfs"), own_units, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("mount {}", own_units.display()))?;
    fs::create_dir_all(units)?;
    fs::write(units.join("here.target"), "[Unit]\nDescription=What is tested runs beside this\n")?;
    Ok(Command::new("/lib/systemd/systemd")
        .args(["--unit=here.target", "--show-status=no"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("container", "nodeagent-test")
        .env("SYSTEMD_UNIT_PATH", format!("{}:{}:{VENDOR_UNITS}", own_units.display(), units.display()))
        .env("SYSTEMD_GENERATOR_PATH", "/run/none")
        .env("SYSTEMD_ENVIRONMENT_GENERATOR_PATH", "/run/none")
        .env("SYSTEMD_LOG_TARGET", "null")
        .exec())
}

/// What process 1 is for: orphans (shims whose daemon was killed) become its children. Ends with the suite.
fn reap(suite: Pid) -> Result<ExitCode> {
    loop {
        match wait().context("wait for the suite")? {
            WaitStatus::Exited(pid, code) if pid == suite => return Ok(ExitCode::from(code as u8)),
            WaitStatus::Signaled(pid, signal, _) if pid == suite => bail!("the suite was killed by {signal}"),
            _ => {}
        }
    }
}
