//! A node whose firewall runs: pods get out and are reached, whatever becomes of firewalld's own rules.

use anyhow::{Context, Result, ensure};
use nodeagent_tests::depot::{Depot, GREETING};
use nodeagent_tests::vm::{Machine, OFFER_ADDRESS};

use crate::Body;
use crate::fixture::{Fixture, expect, pod_answers};
use crate::settings::more;

pub const TRIALS: &[(&str, Body)] = &[(
    "a firewall that runs lets pods out and host ports in, now and after its reload and restart, and closes what left the config",
    firewall,
)];

/// A pod with a host port, on a network whose packets leave under the node's address; and a host outside that reaches this
/// one, and knows no way to pods.
const DOOR: &str = r#"
cat > /etc/cni/net.d/05-doors.conflist <<'END'
{"cniVersion": "1.0.0", "name": "doors", "plugins": [
  {"type": "bridge", "bridge": "doors0", "isGateway": true, "ipMasq": true, "ipam": {
    "type": "host-local", "ranges": [[{"subnet": "10.245.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
cat > /etc/kubernetes/manifests/door.yaml <<'END'
apiVersion: v1
kind: Pod
metadata: {name: door}
spec:
  containers:
    - name: door
      image: 127.0.0.1:5000/web:1
      command: [httpd, -f, -p, "8081", -h, /www]
      ports: [{containerPort: 8081, hostPort: 18081}]
END
set -e
ip netns add world
ip link add world0 type veth peer name eth0 netns world
ip addr add 192.0.2.1/24 dev world0
ip link set world0 up
ip -n world addr add 192.0.2.2/24 dev eth0
ip -n world link set eth0 up
cat > /run/get <<'END'
exec 3<>"/dev/tcp/$1/$2" && printf 'GET %s HTTP/1.0\r\n\r\n' "$3" >&3 && timeout 60 cat <&3
END
for _ in $(seq 300); do
  timeout 10 bash /run/get 127.0.0.1 18081 / 2>/dev/null && exit 0
  sleep 1
done
journalctl -b --no-pager -n 40 -u kubelet -u nodeagent-runtime
exit 1
"#;

/// The word to firewalld.
const CALL: &str = "busctl call --timeout=200 org.fedoraproject.FirewallD1 /org/fedoraproject/FirewallD1";

/// What firewalld itself says, and what it has kept: a network is trusted in both, or in neither.
fn trusts(node: &mut Machine, network: &str, wanted: bool) -> Result<()> {
    let said = node.ok(&format!(
        "{CALL} org.fedoraproject.FirewallD1.zone querySource ss trusted {network}
         grep -c 'address=\"{network}\"' /etc/firewalld/zones/trusted.xml || true"
    ))?;
    let expected = if wanted { "b true\n1\n" } else { "b false\n0\n" };
    ensure!(said == expected, "{network}: {said}");
    Ok(())
}

/// firewalld's rules are in the kernel, and refuse what is not let through; pods get out, and host ports lead to them.
fn passes(node: &mut Machine) -> Result<()> {
    let closed = node.run("timeout 60 ip netns exec world bash /run/get 192.0.2.1 18999 /")?;
    // a port where nobody listens says another thing
    expect(&closed, 1, &["No route to host"]).context("a closed port, seen from outside")?;
    let inward = node.run("timeout 60 ip netns exec world bash /run/get 192.0.2.1 18081 /")?;
    expect(&inward, 0, &[GREETING.trim()]).context("the host port, seen from outside")?;
    let key = Depot::url("RPM-GPG-KEY");
    let path = key.rsplit('/').next().unwrap_or_default();
    let outward =
        format!("timeout 60 nsenter -n -t $(pgrep -o -f '^httpd -f -p 8081') bash /run/get {OFFER_ADDRESS} 80 /{path}");
    expect(&node.run(&outward)?, 0, &[" 200 OK", "PGP PUBLIC KEY"]).context("a host outside, seen from the pod")
}

fn firewall(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.unwatched_node()?;
    node.ok("systemctl is-active firewalld").context("firewalld does not run")?;
    let config = |network: &str| format!("[firewall]\nmode = \"manage\"\npod_cidrs = [\"{network}\"]\n");
    more(&mut node, &config("10.244.0.0/24"))?;
    expect(&node.run("agent apply --yes")?, 0, &["firewall"])?;
    trusts(&mut node, "10.244.0.0/24", true)?;
    // somebody takes it out of what runs only
    node.ok(&format!("{CALL} org.fedoraproject.FirewallD1.zone removeSource ss trusted 10.244.0.0/24"))?;
    expect(&node.run("agent reconcile")?, 0, &["firewall"])?;
    trusts(&mut node, "10.244.0.0/24", true)?;
    more(&mut node, &config("10.245.0.0/16"))?;
    expect(&node.run("agent apply --yes")?, 0, &["firewall"])?;
    trusts(&mut node, "10.244.0.0/24", false)?;

    node.run_within(DOOR, std::time::Duration::from_secs(400)).and_then(|answer| expect(&answer, 0, &[]))?;
    passes(&mut node).context("as it was made")?;
    node.ok(&format!("{CALL} org.fedoraproject.FirewallD1 reload"))?;
    passes(&mut node).context("after a reload of firewalld")?;
    node.ok("systemctl restart firewalld")?;
    // answered when its rules are in place
    trusts(&mut node, "10.245.0.0/16", true)?;
    passes(&mut node).context("after a restart of firewalld")?;
    expect(&node.run("agent plan")?, 0, &[])?;
    pod_answers(&mut node)
}
