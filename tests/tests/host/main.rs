//! The whole on a machine: a CentOS-like host with its own kernel, systemd, SELinux, dnf and cloud-init, seen from outside.
//!
//! One first boot is made and kept, and one host with the package installed; trials go on from these moments, each in a copy of
//! its own.

mod boots;
mod cri;
mod drift;
mod firewall;
mod first_boot;
mod fixture;
mod input;
mod kubelet;
mod newer;
mod package;
mod settings;

use std::sync::Arc;
use std::time::Instant;

use libtest_mimic::{Arguments, Trial};

use crate::fixture::Fixture;

type Body = fn(&Fixture) -> anyhow::Result<()>;

fn main() {
    let mut arguments = Arguments::from_args();
    // an emulated machine keeps little more than one processor busy
    arguments.test_threads.get_or_insert(2);
    let fixture = Arc::new(Fixture::default());
    // while the first one makes its first boot, the other thread has hosts that begin with an installed package
    let (first, others) = first_boot::TRIALS.split_at(1);
    let groups = [
        first,
        newer::TRIALS,
        kubelet::TRIALS,
        boots::TRIALS,
        input::TRIALS,
        package::TRIALS,
        others,
        drift::TRIALS,
        firewall::TRIALS,
        settings::TRIALS,
        cri::TRIALS,
    ];
    let root = nix::unistd::geteuid().is_root();
    let trials = groups.concat().into_iter().map(|(name, body)| {
        let fixture = fixture.clone();
        // needs root to unpack the machine's file system: said as a skipped trial, not as success
        let run = move || {
            let started = Instant::now();
            let result = body(&fixture).map_err(|error| format!("{error:#}"));
            // the list of failures comes when all is over: a suite that is cut off should have said what it knew
            eprintln!("{} s  {name}: {}", started.elapsed().as_secs(), result.as_ref().err().map_or("ok", |text| text));
            result.map_err(Into::into)
        };
        Trial::test(name, run).with_ignored_flag(!root)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // the machine's files go before `exit` would forget about them
    drop(fixture);
    conclusion.exit()
}
