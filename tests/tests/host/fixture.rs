//! What trials share: the image, the repositories, the registry, and the moment after a first boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nodeagent_tests::demo::show;
use nodeagent_tests::depot::{self, Depot, GREETING};
use nodeagent_tests::first_boot;
use nodeagent_tests::outside::repository;
use nodeagent_tests::registry::Registry;
use nodeagent_tests::vm::{Answer, Hardware, Image, Machine, Saved, Suite, Unsaved};
use tempfile::TempDir;

/// From here on only we look for drift.
const UNWATCH: &str = "systemctl stop nodeagent-reconcile.path nodeagent-reconcile.timer";

/// Made when the first trial asks for it.
#[derive(Default)]
pub struct Fixture {
    base: OnceLock<Result<Base, String>>,
    installed: OnceLock<Result<Node, String>>,
    node: OnceLock<Result<Node, String>>,
}

/// What every machine needs.
pub struct Base {
    pub image: Image,
    pub hardware: Hardware,
    _registry: Registry,
    folder: TempDir,
}

/// A host at a moment from which trials go on.
struct Node {
    saved: Saved,
    hardware: Hardware,
}

impl Fixture {
    /// Image, repositories, registry.
    pub fn base(&self) -> Result<&Base> {
        let base = self.base.get_or_init(|| Base::make(Suite::Bookworm).map_err(|error| format!("{error:#}")));
        base.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// A copy of the host in the moment after its first boot.
    pub fn node(&self) -> Result<Machine> {
        let base = self.base()?;
        let node = self.node.get_or_init(|| base.first_boot().map_err(|error| format!("{error:#}")));
        let node = node.as_ref().map_err(|error| anyhow!("the first boot did not succeed: {error}"))?;
        node.saved.resume(&base.image, &node.hardware)
    }

    /// The same, with nobody but us looking for drift.
    pub fn unwatched_node(&self) -> Result<Machine> {
        let mut machine = self.node()?;
        machine.ok(UNWATCH)?;
        Ok(machine)
    }

    /// A host with the package and a configuration, on which nothing has run yet.
    pub fn installed(&self, config: &str) -> Result<Machine> {
        let (base, node) = self.with_package()?;
        configured(node.saved.resume(&base.image, &node.hardware)?, config)
    }

    /// The same, on a disk that stays, so that it can be booted again.
    pub fn installed_on(&self, disk: &Path, config: &str) -> Result<Machine> {
        let (base, node) = self.with_package()?;
        let mut machine = configured(node.saved.resume_on(&base.image, &node.hardware, disk)?, config)?;
        machine.ok("sync")?;
        Ok(machine)
    }

    fn with_package(&self) -> Result<(&Base, &Node)> {
        let base = self.base()?;
        let node = self.installed.get_or_init(|| base.install().map_err(|error| format!("{error:#}")));
        Ok((base, node.as_ref().map_err(|error| anyhow!("the package cannot be installed: {error}"))?))
    }

    /// The next boot of a disk.
    pub fn boot_again(&self, disk: &Path) -> Result<Machine> {
        let base = self.base()?;
        Machine::boot_disk(&base.image, &base.hardware, disk)
    }

    /// The same with more words on the kernel's command line.
    pub fn boot_again_with(&self, disk: &Path, append: &str) -> Result<Machine> {
        let base = self.base()?;
        let hardware = Hardware { append: append.to_owned(), ..base.hardware.clone() };
        Machine::boot_disk(&base.image, &hardware, disk)
    }

    /// A host of another suite in the moment after its first boot, made for one trial, with nobody looking for drift. Without
    /// what costs time and is the same on each suite: the firewall's daemon, and a transaction of dnf for kubelet's tools.
    pub fn first_boot_of(&self, suite: Suite) -> Result<(Base, Machine)> {
        let base = Base::make(suite)?;
        let hardware = base.with_user_data(&["iproute-tc"])?;
        let hardware = Hardware { append: "systemd.mask=firewalld.service".to_owned(), ..hardware };
        let mut machine = Machine::boot(&base.image, &hardware)?;
        converge(&mut machine)?;
        machine.ok(UNWATCH)?;
        Ok((base, machine))
    }

    /// A path for a new disk.
    pub fn disk(&self, name: &str) -> Result<PathBuf> {
        Ok(self.base()?.folder.path().join(name))
    }
}

impl Base {
    fn make(suite: Suite) -> Result<Self> {
        let mut say = |text: &str| eprintln!("{text}");
        let image = Image::ready(suite, &mut say)?;
        let depot = Depot::ready(&mut say)?;
        let registry = depot::registry()?;
        let share = Some(repository());
        let hardware =
            Hardware { offers: vec![depot.offer(), depot::offer_registry(&registry)], share, ..Hardware::default() };
        let folder =
            tempfile::Builder::new().prefix("nodeagent-host-").tempdir().context("create a temporary folder")?;
        Ok(Self { image, hardware, _registry: registry, folder })
    }

    /// The package by dnf, and no configuration; with a package that kubelet wants, as many hosts have it already: the first
    /// boot's trials have one without.
    fn install(&self) -> Result<Node> {
        let hardware = self.hardware.clone();
        let (mut machine, unsaved) = Unsaved::boot(&self.image, &hardware, &self.folder.path().join("installed"))?;
        machine.wait_booted()?;
        let repo = format!(
            "[nodeagent]\nname=nodeagent\nbaseurl={0}\ngpgcheck=1\ngpgkey={1}\n",
            Depot::url("nodeagent/"),
            Depot::url("RPM-GPG-KEY")
        );
        machine.write("/etc/yum.repos.d/nodeagent.repo", repo.as_bytes())?;
        machine.ok("dnf -q -y install nodeagent iproute-tc && sync")?;
        Ok(Node { saved: unsaved.save(machine)?, hardware })
    }

    fn first_boot(&self) -> Result<Node> {
        let hardware = self.with_user_data(&[])?;
        let (mut machine, unsaved) = Unsaved::boot(&self.image, &hardware, &self.folder.path().join("node"))?;
        converge(&mut machine)?;
        machine.ok("sync")?;
        Ok(Node { saved: unsaved.save(machine)?, hardware })
    }

    /// As users boot it: cloud-init installs the package, others beside it, and its configuration.
    fn with_user_data(&self, packages: &[&str]) -> Result<Hardware> {
        let seed = self.folder.path().join("seed");
        first_boot::seed(&seed, &demo_config()?, packages)?;
        Ok(Hardware { seed: Some(seed), ..self.hardware.clone() })
    }
}

/// Waits for the end of a first boot, with a pod that answers.
fn converge(machine: &mut Machine) -> Result<()> {
    let mut said = String::new();
    let converged = show::converge(machine, &mut |text| said.push_str(&format!("{text}\n")));
    converged.with_context(|| said)?;
    machine.wait_booted()?;
    pod_answers(machine).context("the pod of the first boot")
}

/// The configuration of `make run`.
pub fn demo_config() -> Result<String> {
    let path = repository().join("tests/run/config.toml");
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn configured(mut machine: Machine, config: &str) -> Result<Machine> {
    machine.write("/etc/nodeagent/config.toml", config.as_bytes())?;
    Ok(machine)
}

/// Waits for the web server of the pod, and says what kubelet and runtime said when it does not answer.
pub fn pod_answers(machine: &mut Machine) -> Result<()> {
    let answer = machine.run_within(show::ASK_POD, Duration::from_secs(300))?;
    if answer.status == 0 && answer.text.contains(GREETING.trim()) {
        return Ok(());
    }
    let why = machine.run("journalctl -b --no-pager -n 40 -u kubelet -u nodeagent-runtime")?.text;
    bail!("{}\n{why}", answer.text)
}

/// Fails unless a command ended in this way.
pub fn expect(answer: &Answer, status: i32, words: &[&str]) -> Result<()> {
    ensure!(answer.status == status, "exit {}, not {status}:\n{}", answer.status, answer.text);
    for word in words {
        ensure!(answer.text.contains(word), "{word:?} is not said:\n{}", answer.text);
    }
    Ok(())
}
