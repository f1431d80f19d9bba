//! Programs that devices want to be run while a container is made and when it has ended: hooks of the OCI runtime
//! specification. NVIDIA's toolkit gives containers the links and the cache of its driver's libraries so.
//!
//! Those in the container's namespaces are the launcher's to run, the others are run here: `prestart` and `createRuntime` while
//! the launcher waits with everything mounted, `poststart` before the start is answered, `poststop` when all but the record
//! is gone. Before the container runs a failure is that of its start; later it is only told. Another runtime runs all of
//! them itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nodeagent_shim::protocol::{self, LaunchSpec};
use serde_json::{Value, json};
use tokio::process::Command;

use super::cdi::{self, Hook, Stage};
use super::record::Outside;
use super::{ContainerError, ContainerRecord};
use crate::handler::{CommandError, OCI_VERSION, finish_command};
use crate::telemetry::chain;

/// For those that have no timeout of their own: a start is given up after two minutes.
const LIMIT: Duration = Duration::from_secs(60);

/// Divides them between launcher and daemon, and writes `config.json` into `bundle`: programs look up there where the root is.
pub fn take_over(record: &mut ContainerRecord, spec: &mut LaunchSpec, hooks: &[Hook], bundle: &Path) -> io::Result<()> {
    let state = json!({
        "ociVersion": OCI_VERSION,
        "id": record.id,
        "bundle": bundle,
        "annotations": record.config.annotations,
    });
    let config = json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "args": spec.process.args,
            "cwd": if spec.process.cwd.is_empty() { "/" } else { &spec.process.cwd },
            "user": {"uid": spec.process.uid, "gid": spec.process.gid, "additionalGids": spec.process.groups},
        },
        "root": {"path": spec.rootfs.target, "readonly": spec.readonly_rootfs},
        "hooks": cdi::document(hooks),
        "annotations": record.config.annotations,
        "linux": {},
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    let of_launcher = |stage: Stage| hooks.iter().filter(|hook| hook.stage == stage).map(for_launcher).collect();
    spec.hooks = Some(Box::new(protocol::Hooks {
        outside: hooks.iter().any(|hook| matches!(hook.stage, Stage::Prestart | Stage::CreateRuntime)),
        create: of_launcher(Stage::CreateContainer),
        start: of_launcher(Stage::StartContainer),
        state: state.to_string(),
    }));
    let of_host = hooks.iter().filter(|hook| !matches!(hook.stage, Stage::CreateContainer | Stage::StartContainer));
    record.hooks = Outside { hooks: of_host.cloned().collect(), state: state.as_object().cloned().unwrap_or_default() };
    Ok(())
}

fn limit(hook: &Hook) -> Duration {
    hook.timeout.map_or(LIMIT, Duration::from_secs).min(LIMIT)
}

fn for_launcher(hook: &Hook) -> protocol::Hook {
    protocol::Hook {
        path: hook.path.clone(),
        args: hook.args.clone(),
        env: hook.env.clone(),
        timeout_ms: u64::try_from(limit(hook).as_millis()).unwrap_or(u64::MAX),
    }
}

/// Those that come before the container's root becomes the root. The first that fails ends the start.
pub async fn before_start(record: &ContainerRecord, launcher: i32) -> Result<(), ContainerError> {
    for stage in [Stage::Prestart, Stage::CreateRuntime] {
        for hook in of_stage(record, stage) {
            run(record, hook, "creating", Some(launcher)).await.map_err(|source| ContainerError::Hook {
                id: record.id.clone(),
                stage: stage.name(),
                source,
            })?;
        }
    }
    Ok(())
}

/// Those that come after its program has begun.
pub async fn after_start(record: &ContainerRecord, pid: i32) {
    all(record, Stage::Poststart, "running", Some(pid)).await;
}

/// Those that come when it is gone.
pub async fn after_end(record: &ContainerRecord) {
    all(record, Stage::Poststop, "stopped", None).await;
}

/// Each of them, whatever becomes of the others.
async fn all(record: &ContainerRecord, stage: Stage, status: &str, pid: Option<i32>) {
    for hook in of_stage(record, stage) {
        if let Err(error) = run(record, hook, status, pid).await {
            log::warn!(id = record.id.as_str(); "{} hook: {}", stage.name(), chain(&error));
        }
    }
}

fn of_stage(record: &ContainerRecord, stage: Stage) -> impl Iterator<Item = &Hook> {
    record.hooks.hooks.iter().filter(move |hook| hook.stage == stage)
}

async fn run(record: &ContainerRecord, hook: &Hook, status: &str, pid: Option<i32>) -> Result<(), CommandError> {
    let mut state = record.hooks.state.clone();
    state.insert("status".to_owned(), json!(status));
    if let Some(pid) = pid {
        state.insert("pid".to_owned(), json!(pid));
    }
    let program = PathBuf::from(&hook.path);
    let mut command = Command::new(&program);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|variable| variable.split_once('=')));
    // the bundle may be gone when this is run
    command.current_dir("/");
    let words = hook.args.get(1..).unwrap_or_default().join(" ");
    finish_command(command, &program, &words, Some(Value::Object(state).to_string()), limit(hook)).await.map(drop)
}
