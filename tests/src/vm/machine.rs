//! A running machine: commands, reboot, power cut. Dropping it is a power cut.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use std::os::fd::AsFd;
use tempfile::TempDir;

use super::build::tail;
use super::cache::Image;
use super::channel::{Answer, Channel};
use super::hardware::{Hardware, Places};
use super::monitor::Monitor;
use super::{process, qcow2};

/// For a command of which nothing else is said.
pub const COMMAND_WITHIN: Duration = Duration::from_secs(300);

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    channel: Channel,
    monitor: Monitor,
    folder: TempDir,
    shared: bool,
    boots_within: Duration,
}

/// How a machine comes to life.
pub(super) enum Life<'a> {
    /// By booting.
    Boot,
    /// By booting, with memory in a file from which it can be continued.
    BootInto(&'a Path),
    /// By going on from memory and devices in files.
    Continue(&'a Path, &'a Path),
}

impl Machine {
    /// Boots a throwaway copy of an image.
    pub fn boot(image: &Image, hardware: &Hardware) -> Result<Self> {
        Self::start(image, hardware, None, &Life::Boot)
    }

    /// Boots from a disk that keeps what is written to it; it is made of the image when it does not exist.
    pub fn boot_disk(image: &Image, hardware: &Hardware, disk: &Path) -> Result<Self> {
        if !disk.exists() {
            qcow2::overlay(&image.file("root.img"), disk)?;
        }
        Self::start(image, hardware, Some(disk), &Life::Boot)
    }

    pub(super) fn start(image: &Image, hardware: &Hardware, disk: Option<&Path>, life: &Life<'_>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("nodeagent-vm-").tempdir().context("create a temporary folder")?;
        let at = folder.path();
        fs::create_dir(at.join("nothing"))?;
        let throwaway = at.join("disk");
        if disk.is_none() {
            qcow2::overlay(&image.file("root.img"), &throwaway)?;
        }
        let memory = match life {
            Life::Boot => None,
            Life::BootInto(memory) => Some((*memory, true)),
            Life::Continue(memory, _) => Some((*memory, false)),
        };
        let incoming = matches!(life, Life::Continue(..));
        let places = Places { folder: at, disk: disk.unwrap_or(&throwaway), memory, incoming };
        let control = UnixListener::bind(at.join("control")).context("make the control socket")?;
        let monitor = UnixListener::bind(at.join("monitor")).context("make the monitor socket")?;
        let mut command = process::tied("qemu-system-x86_64");
        let messages = fs::File::create(at.join("messages"))?;
        command
            .args(hardware.arguments(image, &places))
            .stdin(Stdio::null())
            .stdout(messages.try_clone()?)
            .stderr(messages);
        let mut qemu = process::spawn(command)?;
        let connected =
            accept(&control, &mut qemu, at).and_then(|control| Ok((control, accept(&monitor, &mut qemu, at)?)));
        let (control, monitor) = connected.inspect_err(|_| end(&mut qemu))?;
        let monitor = Monitor::new(monitor).inspect_err(|_| end(&mut qemu))?;
        let mut machine = Self {
            qemu,
            channel: Channel::new(control),
            monitor,
            folder,
            shared: hardware.share.is_some(),
            boots_within: hardware.boots_within,
        };
        match life {
            Life::Continue(_, devices) => {
                machine.monitor.migrate("migrate-incoming", devices)?;
                machine.monitor.execute("cont", json!({}))?;
            }
            _ => machine.wait_ready()?,
        }
        Ok(machine)
    }

    /// Waits until nothing of the boot is left to be done, and says how the system is (`running`, `degraded`).
    pub fn wait_booted(&mut self) -> Result<String> {
        let limit = self.boots_within;
        Ok(self.run_within("systemctl is-system-running --wait", limit)?.text.trim().to_owned())
    }

    /// Runs a script in the guest's bash, as root.
    pub fn run(&mut self, script: &str) -> Result<Answer> {
        self.run_within(script, COMMAND_WITHIN)
    }

    /// Runs a script that may take longer.
    pub fn run_within(&mut self, script: &str, limit: Duration) -> Result<Answer> {
        let mut text = Vec::new();
        let status = self.run_into(script, limit, &mut |piece| text.extend(piece))?;
        Ok(Answer { status, text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Runs a script and gives its output away as it comes; its exit status.
    pub fn run_into(&mut self, script: &str, limit: Duration, sink: &mut dyn FnMut(&[u8])) -> Result<i32> {
        let run = self.channel.run(script, self.shared, limit, sink);
        run.with_context(|| format!("in the guest: {script}\n{}", self.last_words()))
    }

    /// Output of a script that has to exit with 0.
    pub fn ok(&mut self, script: &str) -> Result<String> {
        self.run(script)?.ok().with_context(|| format!("in the guest: {script}"))
    }

    /// Writes a small file.
    pub fn write(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let content = STANDARD.encode(content);
        self.ok(&format!("mkdir -p \"$(dirname '{path}')\" && base64 -d > '{path}' <<'END'\n{content}\nEND")).map(drop)
    }

    /// Restarts it in an orderly way and waits until it takes commands again.
    pub fn reboot(&mut self) -> Result<()> {
        self.channel.send_off("systemctl reboot")?;
        self.wait_ready()
    }

    /// Stops it in an orderly way: what is written is on the disk.
    pub fn power_off(mut self) -> Result<()> {
        self.channel.send_off("systemctl poweroff")?;
        let ended = self.channel.wait_end(self.boots_within);
        ended.with_context(|| format!("the machine does not switch itself off\n{}", self.last_words()))
    }

    /// Pulls the plug: what is not on the disk is gone.
    pub fn power_cut(self) {
        drop(self);
    }

    /// Where its console's text is.
    pub fn console(&self) -> PathBuf {
        self.folder.path().join("console")
    }

    /// The socket of its root shell.
    pub fn shell(&self) -> PathBuf {
        self.folder.path().join("shell")
    }

    pub(super) fn monitor(&mut self) -> &mut Monitor {
        &mut self.monitor
    }

    fn wait_ready(&mut self) -> Result<()> {
        let ready = self.channel.wait_ready(self.boots_within);
        ready.with_context(|| format!("the machine did not come up\n{}", self.last_words()))
    }

    /// The end of what its console and QEMU said.
    fn last_words(&self) -> String {
        last_words(self.folder.path())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.qemu);
    }
}

fn end(qemu: &mut Child) {
    // it may have ended by itself
    let _ = qemu.kill();
    let _ = qemu.wait();
}

fn last_words(folder: &Path) -> String {
    let read = |name: &str| fs::read(folder.join(name)).map(|text| String::from_utf8_lossy(&text).into_owned());
    let (console, messages) = (read("console").unwrap_or_default(), read("messages").unwrap_or_default());
    format!("QEMU: {}\nits console ends with:\n{}", tail(&messages, 2000), tail(&console, 3000))
}

/// Waits for QEMU to connect, or to end.
fn accept(listener: &UnixListener, qemu: &mut Child, folder: &Path) -> Result<UnixStream> {
    loop {
        let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(100_u8)).unwrap_or(0) > 0 {
            return Ok(listener.accept().context("accept QEMU's connection")?.0);
        }
        if let Some(status) = qemu.try_wait().context("wait for QEMU")? {
            bail!("QEMU ended: {status}\n{}", last_words(folder));
        }
    }
}
