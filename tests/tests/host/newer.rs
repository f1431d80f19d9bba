//! The same on a host as new as EL 10: systemd 257, kernel 6.12, cloud-init 25. One machine, one boot; what does not hang on
//! these is left to the trials of the older host.

use anyhow::{Context, Result, ensure};
use nodeagent_tests::vm::{Machine, Suite};

use crate::Body;
use crate::drift::{LIVE, drift};
use crate::first_boot::{all_converged, no_failed_unit};
use crate::fixture::Fixture;
use crate::package::units_verified;

pub const TRIALS: &[(&str, Body)] =
    &[("systemd 257: a first boot converges, its units are in order, and drift is found and repaired", systemd_257)];

fn systemd_257(fixture: &Fixture) -> Result<()> {
    let (_base, mut node) = fixture.first_boot_of(Suite::Trixie)?;
    let said = node.ok("systemctl --version | head -n 1; . /etc/os-release; echo $VERSION_ID
         systemctl is-enabled nodeagent-{early,prepare,activate,runtime}.service nodeagent-reconcile.timer kubelet | sort -u")?;
    ensure!(said.starts_with("systemd 257 ") && said.ends_with("\n10\nenabled\n"), "{said}");
    all_converged(&mut node)?;
    no_failed_unit(&mut node)?;
    units_verified(&mut node)?;
    labels(&mut node).context("SELinux's labels")?;
    drift(&mut node, LIVE)
}

/// This policy has the types of containers and of their files, as EL's has. The judge is SELinux's own: restorecon finds nothing
/// to change.
fn labels(node: &mut Machine) -> Result<()> {
    let said = node.ok("cd /var/lib/nodeagent/containers
         stat -c '%n %C' . images/snapshots | sed 's/ [^:]*:[^:]*:/ /; s/:s0$//'
         restorecon -nv . images images/snapshots /var/lib/kubelet /opt/cni")?;
    ensure!(said == ". container_var_lib_t\nimages/snapshots container_ro_file_t\n", "{said}");
    let container = node.ok("cat /proc/$(pgrep -f 'httpd -f -p 8080' | head -n 1)/attr/current")?;
    ensure!(container.contains(":container_t:s0:c"), "the container is not confined: {container}");
    Ok(())
}
