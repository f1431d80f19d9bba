//! The CRI service through a real client, with a real registry, real CNI plugins and nothing of ours in between.
//!
//! Run as root; the suite takes network, mount and PID namespaces of its own. `NODEAGENT_CRI_SOCKET=/run/….sock` puts another
//! runtime's socket under the same tests, in the namespaces it is called in; what looks behind the socket is skipped then.

mod node;
mod suite;
mod world;

mod bad_input;
mod containers;
mod dialects;
mod escapes;
mod exec;
mod handlers;
mod hung_mount;
mod image_volumes;
mod images;
mod inside;
mod killed;
mod logs;
mod metrics;
mod pods;
mod recovery;
mod service;
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
    image_volumes::add(&mut suite);
    user_namespaces::add(&mut suite);
    escapes::add(&mut suite);
    exec::add(&mut suite);
    handlers::add(&mut suite);
    hung_mount::add(&mut suite);
    logs::add(&mut suite);
    metrics::add(&mut suite);
    recovery::add(&mut suite);
    killed::add(&mut suite);
    bad_input::add(&mut suite);
    Ok(suite.run(&arguments))
}
