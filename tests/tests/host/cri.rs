//! What the calls of the Container Runtime Interface make of a host that the machine of the other tests is not. The suite is that of
//! tests/cri, carried into the machine and run on the installed service in its unit: a few cases of it, since programs start slowly
//! there.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::depot::REGISTRY_IN_GUEST;
use nodeagent_tests::outside::{collect, repository};
use nodeagent_tests::vm::Machine;

use crate::Body;
use crate::fixture::Fixture;

pub const TRIALS: &[(&str, Body)] = &[("AppArmor confines containers on a host that has it", apparmor)];

/// Emulated, on a machine that has other things to do.
const LIMIT: Duration = Duration::from_secs(900);

const APPARMOR: &[&str] = &[
    "apparmor: a profile of the host holds, in commands run later too, in either way of asking",
    DEFAULT,
    "apparmor: a profile that is not loaded is an error that names it, and nothing is started",
];

const DEFAULT: &str = "apparmor: who says nothing gets the runtime's own profile, Unconfined none";
const NO_PARSER: &str = "apparmor: without a parser who asks for the default gets an error, who says nothing none";
const REMOVE_PROFILE: &str = "printf nodeagent-default > /sys/kernel/security/apparmor/.remove";

const POD_NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}"#;

fn apparmor(fixture: &Fixture) -> Result<()> {
    let disk = fixture.disk("apparmor")?;
    let mut host = fixture.installed_on(&disk, "")?;
    // nothing but the runtime is to come up, with plugins for its network
    host.ok("rm /etc/nodeagent/config.toml && mkdir -p /etc/cni/net.d && rpm -i /srv/repo/kubernetes-cni-*.rpm")?;
    host.write("/etc/cni/net.d/10-pods.conflist", POD_NETWORK.as_bytes())?;
    host.ok("systemctl enable nodeagent-runtime && sync")?;
    host.power_cut();
    let mut host = fixture.boot_again_with(&disk, "security=apparmor")?;
    host.wait_booted()?;
    let state = host.ok("systemctl is-active nodeagent-runtime; cat /sys/module/apparmor/parameters/enabled")?;
    ensure!(state == "active\nY\n", "{state}{}", host.run(WHY)?.text);
    bring(&mut host)?;
    pass(&mut host, APPARMOR)?;
    // removed by somebody, it is loaded again
    host.ok(REMOVE_PROFILE)?;
    pass(&mut host, &[DEFAULT])?;
    host.ok(&format!(
        "{REMOVE_PROFILE} && rm \"$(command -v apparmor_parser)\" && systemctl restart nodeagent-runtime"
    ))?;
    pass(&mut host, &[NO_PARSER])
}

/// Brings the suite into the machine.
fn bring(machine: &mut Machine) -> Result<()> {
    let program = std::env::var_os("NODEAGENT_CRI_SUITE")
        .context("NODEAGENT_CRI_SUITE has to be the program of the test `cri` (tests/run-tiers says it)")?;
    let top = repository();
    let folder = tempfile::Builder::new().prefix("cri-suite-").tempdir_in(top.join("target"))?;
    // two thirds of it are for debuggers
    let stripped = folder.path().join("cri");
    collect(Command::new("strip").arg("-o").args([&stripped, Path::new(&program)]))?.ok("strip the suite")?;
    let shared = stripped.strip_prefix(&top)?.display();
    machine.ok(&format!("cp '/share/{shared}' /root/cri")).map(drop)
}

/// Runs those trials in the machine, on the socket of its runtime: each has to pass.
fn pass(machine: &mut Machine, names: &[&str]) -> Result<()> {
    machine.write("/root/names", names.join("\n").as_bytes())?;
    let run = format!(
        "cd /root && NODEAGENT_CRI_SOCKET=/run/nodeagent/cri.sock NODEAGENT_REGISTRY={REGISTRY_IN_GUEST} \
         NODEAGENT_CRI_ONLY=names ./cri --test-threads=2 2>&1"
    );
    let text = machine.run_within(&run, LIMIT)?.text;
    let passed = format!("test result: ok. {} passed; 0 failed; 0 ignored;", names.len());
    ensure!(text.contains(&passed), "not {passed:?}:\n{text}\n{}", machine.run(WHY)?.text);
    Ok(())
}

/// What the runtime said, and what the kernel did not let somebody do.
const WHY: &str = "journalctl -b --no-pager -o cat -n 40 -u nodeagent-runtime
journalctl -b --no-pager -o cat _TRANSPORT=audit | grep -E 'avc:|apparmor=' | grep -v permissive=1 | tail -n 20";
