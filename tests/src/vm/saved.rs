//! A booted machine in files: memory, devices, and the disk it had. Continued any number of times, each time from that moment.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::FlockArg;
use serde_json::json;

use super::cache::{Image, lock};
use super::hardware::Hardware;
use super::machine::{Life, Machine};
use super::qcow2;

/// A saved moment.
#[derive(Debug)]
pub struct Saved {
    folder: PathBuf,
}

impl Saved {
    /// The freshly booted image, for this hardware; booted and saved when it is not there yet.
    pub fn booted(image: &Image, hardware: &Hardware, progress: &mut dyn FnMut(&str)) -> Result<Self> {
        let name = format!("state-{}", hardware.fingerprint()?);
        let folder = image.file(&name);
        let _one = lock(&image.file("state.lock"), FlockArg::LockExclusive)?;
        if !folder.exists() {
            progress("booting the test host once, to start from there later");
            let partial = image.file(&format!("{name}.partial"));
            let _ = fs::remove_dir_all(&partial);
            let (mut machine, unsaved) = Unsaved::boot(image, hardware, &partial)?;
            settle(&mut machine)?;
            unsaved.save(machine)?;
            fs::rename(&partial, &folder).with_context(|| format!("rename to {}", folder.display()))?;
        }
        Ok(Self { folder })
    }

    /// A machine that goes on from that moment, with a disk of its own.
    pub fn resume(&self, image: &Image, hardware: &Hardware) -> Result<Machine> {
        let work = tempfile::Builder::new().prefix("nodeagent-disk-").tempdir().context("create a temporary folder")?;
        // QEMU has opened the disk by the end of this: its name is not needed any longer
        self.resume_on(image, hardware, &work.path().join("disk"))
    }

    /// The same with a disk that stays, to be booted later.
    pub fn resume_on(&self, image: &Image, hardware: &Hardware, disk: &Path) -> Result<Machine> {
        qcow2::overlay(&self.file("disk"), disk)?;
        Machine::start(image, hardware, Some(disk), &Life::Continue(&self.file("memory"), &self.file("devices")))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// A machine's files, while it runs towards the moment that is to be saved.
#[derive(Debug)]
pub struct Unsaved {
    folder: PathBuf,
}

impl Unsaved {
    /// Boots a machine that can be saved later, into a new folder.
    pub fn boot(image: &Image, hardware: &Hardware, folder: &Path) -> Result<(Machine, Self)> {
        fs::create_dir(folder).with_context(|| format!("create {}", folder.display()))?;
        let unsaved = Self { folder: folder.to_path_buf() };
        let (disk, memory) = (folder.join("disk"), folder.join("memory"));
        qcow2::overlay(&image.file("root.img"), &disk)?;
        let machine = Machine::start(image, hardware, Some(&disk), &Life::BootInto(&memory))?;
        Ok((machine, unsaved))
    }

    /// Stops the machine in this moment, and keeps it.
    pub fn save(self, mut machine: Machine) -> Result<Saved> {
        machine.monitor().execute("stop", json!({}))?;
        machine.monitor().migrate("migrate", &self.folder.join("devices"))?;
        drop(machine);
        // QEMU opens it for writing even when it maps it privately
        let memory = self.folder.join("memory");
        fs::set_permissions(&memory, fs::Permissions::from_mode(0o600)).context("set the mode of memory")?;
        Ok(Saved { folder: self.folder })
    }
}

/// Until the last jobs of the boot are done, and nothing but waiting is left.
fn settle(machine: &mut Machine) -> Result<()> {
    // the fourth field of loadavg: running/all
    machine.wait_booted()?;
    let quiet = "for _ in $(seq 40); do
          read -r _ _ _ running _ < /proc/loadavg
          [ -z \"$(systemctl list-jobs --no-legend)\" ] && [ \"${running%/*}\" = 1 ] && break
          sleep 0.25
        done
        sync";
    machine.ok(quiet).map(drop)
}
