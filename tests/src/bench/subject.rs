//! Who is measured: our daemon with its network built in or executed, and Debian's containerd.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nodeagent_cri_api::VersionRequest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use crate::client::Cri;
use crate::cni::PLUGIN_DIRS;
use crate::daemon::Daemon;
use crate::outside::run;

const STARTS_WITHIN: Duration = Duration::from_secs(30);
const BRIDGE: &str = "cnibench";

/// A runtime under measurement; ended when dropped.
pub struct Subject {
    /// For the head of its column.
    pub name: String,
    /// Its daemon's process id.
    pub pid: u32,
    socket: PathBuf,
    life: Life,
}

enum Life {
    Ours { _daemon: Box<Daemon> },
    Peer { child: Child, _directory: TempDir },
}

impl Subject {
    /// Our daemon; `builtin` says whether its bridge network runs in the daemon or as executed plugins.
    pub fn ours(builtin: bool) -> Result<Self> {
        let name = if builtin { "nodeagent" } else { "nodeagent, plugins run" };
        Self::ours_by(name, "cgroupfs", builtin)
    }

    /// Our daemon with its network built in, and systemd makes its cgroups.
    pub fn ours_by_systemd() -> Result<Self> {
        Self::ours_by("nodeagent, systemd driver", "systemd", true)
    }

    fn ours_by(name: &str, driver: &str, builtin: bool) -> Result<Self> {
        let daemon = Daemon::start_with(&format!("cgroup_driver = \"{driver}\""), &format!("builtin = {builtin}"))?;
        daemon.net().write(&bridge(&daemon.directory().join("addresses")))?;
        let pid = daemon.pid().context("the daemon does not run")?;
        Ok(Self { name: name.into(), pid, socket: daemon.socket(), life: Life::Ours { _daemon: Box::new(daemon) } })
    }

    /// Debian's containerd with runc; `pause` is the image of its sandboxes. Nothing where it is not installed.
    pub fn containerd(pause: &str) -> Result<Option<Self>> {
        let Ok(version) = run("containerd", ["--version"]) else { return Ok(None) };
        let version = version.text.split_whitespace().nth(2).unwrap_or_default().to_owned();
        let directory = tempfile::Builder::new().prefix("nat-").tempdir_in("/tmp")?;
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("cni"))?;
        fs::write(at("cni/10-bench.conflist"), bridge(&at("addresses")).to_string())?;
        fs::write(at("config.toml"), containerd_config(directory.path(), pause))?;
        let log = File::create(at("log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        let (pid, socket) = (child.id(), at("cri.sock"));
        let life = Life::Peer { child, _directory: directory };
        Ok(Some(Self { name: format!("containerd {version}"), pid, socket, life }))
    }

    /// A client, once it answers.
    pub fn client(&self, runtime: &Runtime) -> Result<Cri> {
        let _entered = runtime.enter();
        let cri = Cri::new(&self.socket)?;
        let deadline = Instant::now() + STARTS_WITHIN;
        runtime.block_on(async {
            while let Err(error) = cri.clone().runtime.version(VersionRequest::default()).await {
                if Instant::now() > deadline {
                    bail!("{} does not answer: {error}", self.name);
                }
                sleep(Duration::from_millis(20)).await;
            }
            Ok(cri)
        })
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Life::Peer { child, .. } = &mut self.life {
            // it may have ended by itself
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = run("ip", ["link", "delete", BRIDGE]);
    }
}

fn bridge(addresses: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "bench",
        "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "dataDir": addresses, "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }, {"type": "portmap", "capabilities": {"portMappings": true}}],
    })
}

/// Its defaults, but for places, and `restrict_oom_score_adj`: without CAP_SYS_RESOURCE it could not start a pod otherwise.
fn containerd_config(directory: &Path, pause: &str) -> String {
    let directory = directory.display();
    let plugins = PLUGIN_DIRS.into_iter().find(|dir| Path::new(dir).is_dir()).unwrap_or(PLUGIN_DIRS[0]);
    format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
  address = "{directory}/cri.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{directory}/cni"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
"#
    )
}
