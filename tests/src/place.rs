//! Namespaces for a whole suite: links, addresses, firewall rules, mounts and processes of a run are its own and end with it.
//!
//! ```text
//! suite ─exec─► unshare(1) ─fork─► process 1 of the new PID namespace (reaps) ─► the suite itself
//! ```
//! `unshare` is killed with us and takes process 1 with it (`--kill-child`), and the kernel everything below that.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, Uid};

use crate::outside::run;

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
