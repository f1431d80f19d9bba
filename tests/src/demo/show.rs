//! The demonstration itself.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{guard, journal, summary};
use crate::depot::{self, Depot};
use crate::first_boot;
use crate::outside::repository;
use crate::registry::Registry;
use crate::vm::hardware::Accelerator;
use crate::vm::{Hardware, Image, Machine, Suite};

/// Emulated, on a busy machine.
const CONVERGES_WITHIN: Duration = Duration::from_secs(1800);
const POD_ANSWERS_WITHIN: Duration = Duration::from_secs(600);

/// Finds the pod's address where the network plugin notes it, and asks its web server until that answers. By bash itself: the
/// guest has no curl, and the wget of a static busybox dies of glibc's name service.
pub const ASK_POD: &str = r#"
get() { timeout 5 bash -c 'exec 3<>"/dev/tcp/$1/8080" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && cat <&3' get "$1" 2>/dev/null; }
for _ in $(seq 100); do
  ip=$(ls /var/lib/cni/networks/pods 2>/dev/null | grep -m1 '^10\.')
  if [ -n "$ip" ] && answer=$(get "$ip") && [[ $answer == *" 200 OK"* ]]; then
    echo "http://$ip:8080/: ${answer##*$'\n'}"
    exit 0
  fi
  sleep 1
done
echo "no pod answers"
exit 1
"#;

/// What keeps a demonstration going.
pub struct Node {
    /// The machine.
    pub machine: Machine,
    _registry: Registry,
    _image: Image,
}

/// Prints lines with the time since the start.
#[derive(Debug)]
pub struct Progress(Instant);

impl Progress {
    /// Starts the clock.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// One line.
    pub fn say(&self, text: &str) {
        println!("{:6.1} s  {text}", self.0.elapsed().as_secs_f64());
    }
}

/// From nothing to a node whose pod answers.
pub fn run(suite: Suite, folder: &Path, progress: &Progress) -> Result<Node> {
    let mut say = |text: &str| progress.say(text);
    let image = Image::ready(suite, &mut say)?;
    let depot = Depot::ready(&mut say)?;
    let registry = depot::registry().context("start the registry")?;
    progress.say(&format!("a registry listens on {}, with the image web:1", registry.address()));

    let seed = folder.join("seed");
    let path = repository().join("tests/run/config.toml");
    let config = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    first_boot::seed(&seed, &config, &[])?;
    let hardware = Hardware {
        seed: Some(seed),
        offers: vec![depot.offer(), depot::offer_registry(&registry)],
        ..Hardware::default()
    };
    let name = Accelerator::here().name();
    progress.say(&format!("first boot of a machine like CentOS Stream {}, by {name}", suite.release()));
    let machine = Machine::boot_disk(&image, &hardware, &folder.join("disk"))?;
    let mut node = Node { machine, _registry: registry, _image: image };
    progress.say("systemd is up; cloud-init installs nodeagent and its configuration");
    let journal = converge(&mut node.machine, &mut |text| progress.say(text))?;
    let answer = node.machine.run_within(ASK_POD, POD_ANSWERS_WITHIN)?;
    let status = node.machine.run("agent status --json")?;
    let status: Value =
        serde_json::from_str(&status.text).with_context(|| format!("agent status said {}", status.text))?;
    println!("\n{}", summary::table(&status, &journal.durations)?);
    if answer.status != 0 {
        let why = node.machine.run("journalctl -b --no-pager -n 30 -u kubelet -u nodeagent-runtime")?.text;
        bail!("the host has converged, but {}\n{why}", answer.text.trim());
    }
    progress.say(&format!("the pod answers on {}", answer.text.trim()));
    Ok(node)
}

/// Waits for the end of a first boot, and says what is done meanwhile.
pub fn converge(machine: &mut Machine, say: &mut dyn FnMut(&str)) -> Result<journal::Reader> {
    let mut reader = journal::Reader::default();
    machine.run_into(journal::FOLLOW, CONVERGES_WITHIN, &mut |piece| {
        reader.take(piece, &mut |who, what| say(&format!("{who:>12}: {what}")));
    })?;
    match reader.result.as_deref() {
        Some("done") => Ok(reader),
        Some(result) => {
            let status = machine.run("agent status; systemctl --failed --no-legend")?.text;
            bail!("the first boot has failed: the job of nodeagent-activate.service is {result}\n{status}")
        }
        None => {
            let log = machine.run("tail -n 40 /var/log/cloud-init-output.log")?.text;
            bail!("the first boot did not get to nodeagent's units; cloud-init says\n{log}")
        }
    }
}

/// Tells people what they can do with it.
pub fn explain(machine: &Machine) -> Result<()> {
    guard::offer_shell(&machine.shell())?;
    println!(
        "\nThe node runs. In another terminal:\n  \
         make shell    a root shell in it: try `agent status`, `agent plan`, `journalctl -u 'nodeagent-*'`\n  \
         make stop     ends it; so does Ctrl-C here\n"
    );
    Ok(())
}
