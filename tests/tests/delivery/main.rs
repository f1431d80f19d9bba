//! What reaches a machine besides the programs: units, presets, kickstart, cloud-init user-data, judged by the tools of those
//! who will read them.

mod boot;
mod directives;
mod install;
mod post;
mod trees;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    trials.extend(boot::trials());
    trials.extend(directives::trials());
    trials.extend(install::trials());
    trials.extend(post::trials());
    libtest_mimic::run(&arguments, trials).exit();
}

/// A trial from a function that says why it failed.
fn trial(name: &str, run: fn() -> anyhow::Result<()>) -> Trial {
    Trial::test(name, move || run().map_err(|error| format!("{error:#}").into()))
}
