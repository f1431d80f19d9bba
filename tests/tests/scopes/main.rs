//! The systemd cgroup driver on a real systemd: process 1 of namespaces made for it, with a cgroup v2 tree of its own.
//!
//! Where the host's tree is a hybrid one it has no controllers, so limits are not what this is about; the host tier has them.

#![allow(dead_code)] // of the modules shared with the suite of the service

#[path = "../cri/node.rs"]
mod node;
#[path = "../cri/suite.rs"]
mod suite;
#[path = "../cri/world.rs"]
mod world;

mod scopes;

use std::process::ExitCode;

use libtest_mimic::Arguments;
use nodeagent_tests::place;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scopes: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // one after the other: in one trial the systemd of all executes itself anew
    arguments.test_threads = Some(1);
    if !arguments.list
        && let Some(code) = place::enter_with_systemd()?
    {
        return Ok(code);
    }
    let mut suite = suite::Suite::new(node::Driver::Systemd)?;
    scopes::add(&mut suite);
    suite.run(&arguments)
}
