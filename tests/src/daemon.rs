//! The runtime's daemon as a process: started with directories of its own, killed, started again, looked at.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cni::{PLUGIN_DIRS, PodNet};
use crate::leaks;
use crate::outside::repository;

/// Long enough for a loaded machine; a good start takes a tenth of a second.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// How long a daemon that was asked to stop may take.
const STOPS_WITHIN: Duration = Duration::from_secs(30);

/// The daemon and everything that it is given; stopped and removed when dropped.
pub struct Daemon {
    child: Option<Child>,
    directory: TempDir,
    net: PodNet,
    settings: String,
    network_settings: String,
}

/// Folder of the product's binaries: `NODEAGENT_BIN_DIR`, else what `cargo build` made last.
pub fn binaries() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("NODEAGENT_BIN_DIR") {
        return Ok(folder.into());
    }
    let folder = repository().join("target/debug");
    for name in ["nodeagent-runtime", "nodeagent-shim"] {
        if !folder.join(name).exists() {
            bail!("{} is not built: cargo build -p nodeagent-runtime -p nodeagent-shim", folder.join(name).display());
        }
    }
    Ok(folder)
}

impl Daemon {
    /// Starts it; `settings` is TOML that goes to the top of its configuration.
    pub fn start(settings: &str) -> Result<Self> {
        Self::start_with(settings, "")
    }

    /// The same, with TOML for its `[network]` too.
    pub fn start_with(settings: &str, network_settings: &str) -> Result<Self> {
        // short: a socket's path may have 107 bytes
        let directory = tempfile::Builder::new().prefix("nat-").tempdir_in("/tmp")?;
        let net = PodNet::create(&directory.path().join("cni"))?;
        for name in ["root", "state", "netns", "pods"] {
            fs::create_dir(directory.path().join(name))?;
        }
        let mut daemon = Self {
            child: None,
            directory,
            net,
            settings: settings.to_owned(),
            network_settings: network_settings.to_owned(),
        };
        daemon.resume()?;
        Ok(daemon)
    }

    /// Starts the process and waits until it says that it is ready, the way systemd does.
    pub fn resume(&mut self) -> Result<()> {
        let folder = binaries()?;
        let config = self.directory.path().join("runtime.toml");
        fs::write(&config, self.configuration(&folder))?;
        let notify = self.directory.path().join("notify");
        if notify.exists() {
            fs::remove_file(&notify)?;
        }
        let ready = UnixDatagram::bind(&notify).context("bind the notification socket")?;
        let child = Command::new(folder.join("nodeagent-runtime"))
            .arg("--config")
            .arg(&config)
            .env("NOTIFY_SOCKET", &notify)
            .env_remove("INVOCATION_ID")
            .stdin(Stdio::null())
            .stdout(self.log_file()?)
            .stderr(self.log_file()?)
            .spawn()
            .with_context(|| format!("start {}", folder.join("nodeagent-runtime").display()))?;
        self.child = Some(child);
        self.wait_ready(&ready)
    }

    fn configuration(&self, folder: &Path) -> String {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        format!(
            "listen = {:?}\ncompat_socket = \"\"\nroot = {:?}\nstate = {:?}\nnetns_dir = {:?}\nshim = {:?}\nlog_level = \"info\"\n\
             {}\n[network]\nconf_dir = {:?}\nplugin_dirs = {:?}\n{}\n",
            at("cri.sock"),
            at("root"),
            at("state"),
            at("netns"),
            folder.join("nodeagent-shim").display().to_string(),
            self.settings,
            self.net.conf_dir().display().to_string(),
            PLUGIN_DIRS,
            self.network_settings,
        )
    }

    fn wait_ready(&mut self, socket: &UnixDatagram) -> Result<()> {
        let deadline = Instant::now() + STARTS_WITHIN;
        let mut message = [0; 4096];
        // wakes up now and then only to see whether the process has ended
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        while Instant::now() < deadline {
            if let Ok(length) = socket.recv(&mut message)
                && String::from_utf8_lossy(&message[..length]).lines().any(|l| l == "READY=1")
            {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                bail!("the daemon ended with {status}:\n{}", self.log());
            }
        }
        bail!("the daemon is not ready after {STARTS_WITHIN:?}:\n{}", self.log())
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cri.sock")
    }

    /// Directory of everything that it is given.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Directory for pods' logs and volumes.
    pub fn pods(&self) -> PathBuf {
        self.directory.path().join("pods")
    }

    /// Its pod network.
    pub fn net(&self) -> &PodNet {
        &self.net
    }

    /// Process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGKILL: nothing is tidied up, shims and containers go on.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("kill the daemon")?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { bail!("the daemon does not run") };
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        kill(pid, Signal::SIGTERM).context("stop the daemon")?;
        let (ended, end) = channel();
        thread::spawn(move || ended.send(child.wait()));
        match end.recv_timeout(STOPS_WITHIN) {
            Ok(status) => Ok(status?),
            Err(_) => {
                kill(pid, Signal::SIGKILL).context("kill the daemon")?;
                bail!("the daemon did not stop within {STOPS_WITHIN:?}:\n{}", self.log())
            }
        }
    }

    /// What it said, in all its lives; the shims write there too.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("daemon.log")).unwrap_or_default()
    }

    fn log_file(&self) -> Result<File> {
        Ok(OpenOptions::new().create(true).append(true).open(self.directory.path().join("daemon.log"))?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // what runs under it was removed through it, or purged by the test that failed
        let _ = self.kill();
        leaks::unmount_below(self.directory.path());
    }
}
