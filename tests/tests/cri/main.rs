//! The CRI service through a real client, with a real registry, real CNI plugins and nothing of ours in between.
//!
//! Run as root; the suite takes network, mount and PID namespaces of its own. The environment can change what it is about:
//!
//! - `NODEAGENT_CRI_SOCKET=/run/….sock`: another runtime's socket, or that of an installed one of ours, in the namespaces that
//!   the suite is called in. What looks behind the socket is skipped then.
//! - `NODEAGENT_REGISTRY=127.0.0.1:5000`: a registry that is there already and takes pushes, in the place of one of our own.
//! - `NODEAGENT_CRI_ONLY=FILE`: only the trials of these names, one in each line. A name that no trial has is an error.
//!
//! Trials of what only some hosts have (limits of cgroup v2, scopes of systemd, SELinux, AppArmor) exist only there.

mod node;
mod suite;
mod world;

mod apparmor;
mod bad_input;
mod containers;
mod dialects;
mod escapes;
mod events;
mod exec;
mod handlers;
mod hooks;
mod hung_mount;
mod image_volumes;
mod images;
mod inside;
mod killed;
mod logs;
mod metrics;
mod pods;
mod recovery;
mod resources;
#[path = "../scopes/scopes.rs"]
mod scopes;
mod seccomp;
mod selinux;
mod service;
mod stats;
mod user_namespaces;

use std::process::ExitCode;

use libtest_mimic::Arguments;
use nodeagent_tests::place;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cri: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::from_args();
    if !arguments.list
        && node::peer().is_none()
        && let Some(code) = place::enter()?
    {
        return Ok(code);
    }
    let mut suite = suite::Suite::new(node::Driver::Cgroupfs)?;
    service::add(&mut suite);
    dialects::add(&mut suite);
    images::add(&mut suite);
    pods::add(&mut suite);
    containers::add(&mut suite);
    inside::add(&mut suite);
    resources::add(&mut suite);
    seccomp::add(&mut suite);
    selinux::add(&mut suite);
    apparmor::add(&mut suite);
    if suite.driver() == node::Driver::Systemd {
        scopes::add(&mut suite);
    }
    image_volumes::add(&mut suite);
    user_namespaces::add(&mut suite);
    escapes::add(&mut suite);
    exec::add(&mut suite);
    handlers::add(&mut suite);
    hooks::add(&mut suite);
    hung_mount::add(&mut suite);
    logs::add(&mut suite);
    metrics::add(&mut suite);
    stats::add(&mut suite);
    events::add(&mut suite);
    recovery::add(&mut suite);
    killed::add(&mut suite);
    bad_input::add(&mut suite);
    suite.run(&arguments)
}
