//! The least that a runtime pays which has an OCI runtime make its containers: crun's command line and nothing else.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};

use super::figures::Durations;
use super::report::Column;
use super::workload::{START, script};
use crate::outside::{collect, run};

/// Makes containers of the workload's program with crun, one after the other, in the network of this process: a pod has
/// made its namespaces before. Nothing where it is not installed. The unified hierarchy is not there any more afterwards.
pub fn crun(count: usize, parent: &str) -> Result<Option<Column>> {
    let Ok(version) = run("crun", ["--version"]) else { return Ok(None) };
    let version = version.text.split_whitespace().nth(2).unwrap_or_default().to_owned();
    // it refuses hosts where cgroup v2 has a controller beside v1's hierarchies
    if Path::new("/sys/fs/cgroup/memory").is_dir() {
        match umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(error) => return Err(error).context("unmount /sys/fs/cgroup/unified"),
        }
    }
    let place = tempfile::Builder::new().prefix("nat-").tempdir_in("/tmp")?;
    let bundle = place.path();
    fs::create_dir_all(bundle.join("rootfs/bin"))?;
    fs::copy("/bin/busybox", bundle.join("rootfs/bin/busybox")).context("copy /bin/busybox")?;
    for name in ["sh", "sleep"] {
        std::os::unix::fs::symlink("busybox", bundle.join("rootfs/bin").join(name))?;
    }
    collect(Command::new("crun").arg("spec").current_dir(bundle))?.ok("crun spec")?;
    let mut config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sh", "-c", script()]);
    config["root"]["readonly"] = json!(false);
    let of_container =
        |namespace: &Value| ["pid", "mount", "cgroup"].iter().any(|kind| namespace["type"] == json!(kind));
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(of_container);
    }
    // these need namespaces of their own
    if let Some(whole) = config.as_object_mut() {
        whole.remove("hostname");
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != json!("/sys"));
    }
    let mut started = Durations::default();
    for number in 0..count {
        let id = format!("bench-{}-{number}", std::process::id());
        config["linux"]["cgroupsPath"] = json!(format!("{parent}/{id}"));
        fs::write(bundle.join("config.json"), config.to_string())?;
        let log = bundle.join(&id);
        let crun = |command: &[&str]| -> Result<()> {
            let out = File::options().create(true).append(true).open(&log)?;
            let mut call = Command::new("crun");
            call.arg("--root").arg(bundle.join("state")).args(command).current_dir(bundle);
            // a container keeps what it is started with: nobody must wait for that to be closed
            let status =
                call.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).status().context("start crun")?;
            if !status.success() {
                bail!("crun {}: {}", command.join(" "), fs::read_to_string(&log).unwrap_or_default());
            }
            Ok(())
        };
        let began = Instant::now();
        crun(&["create", &id])?;
        crun(&["start", &id])?;
        started.add(began.elapsed());
        crun(&["delete", "--force", &id])?;
    }
    let figures = started.figures(&format!("{START}, alone")).into();
    Ok(Some(Column { subject: format!("crun {version} alone"), figures }))
}
