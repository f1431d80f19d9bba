//! Programs that a device's description wants to be run, by our launcher and by other runtimes alike.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use serde_json::{Value, json};
use tonic::Code;

use crate::handlers::INSTALLED;
use crate::node::{Node, PATIENCE, idle, refused, script};
use crate::suite::Suite;

/// Says its name, keeps what it reads, and makes a link in the root if it is told to.
const PROGRAM: &str = r#"#!/bin/sh
PATH=/usr/bin:/bin
cd "$(dirname "$0")" || exit 1
state=$(cat)
id=$(echo "$state" | sed 's/.*"id":"\([^"]*\)".*/\1/')
echo "$1" >> "order-$id"
echo "$state" > "$1-$id"
[ "$1" = createContainer ] || exit 0
bundle=$(echo "$state" | sed 's/.*"bundle":"\([^"]*\)".*/\1/')
root=$(sed 's/.*"root":{"path":"\([^"]*\)".*/\1/' "$bundle/config.json")
case $root in /*) ;; *) root=$bundle/$root ;; esac
ln -s "$2" "$root/library"
"#;

/// Descriptions of devices, and what their programs write.
struct Described {
    directory: tempfile::TempDir,
    settings: &'static str,
}

static DESCRIBED: LazyLock<Result<Described, String>> =
    LazyLock::new(|| Described::make().map_err(|error| format!("{error:#}")));

impl Described {
    fn make() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let program = directory.path().join("program");
        fs::write(&program, PROGRAM)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let hook = |stage: &str| json!({"hookName": stage, "path": program, "args": ["program", stage, "lib.so.1"]});
        let inside = "id=$(sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/'); echo startContainer >> /told/order-$id";
        let start = json!({
            "hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", inside], "env": ["PATH=/bin"],
        });
        // the order in a description is not that of their moments
        let stages = ["poststop", "poststart", "createContainer", "createRuntime", "prestart"];
        let all: Vec<Value> = stages.into_iter().map(hook).chain([start]).collect();
        let fails = |stage: &str, text: &str, timeout: Option<u64>| {
            let mut hook = json!({"hookName": stage, "path": "/bin/sh", "args": ["sh", "-c", text]});
            if let Some(timeout) = timeout {
                hook["timeout"] = json!(timeout);
            }
            json!([hook])
        };
        let told = json!([{"hostPath": directory.path(), "containerPath": "/told", "options": ["rw", "bind"]}]);
        let device =
            |name: &str, hooks: Value| json!({"name": name, "containerEdits": {"hooks": hooks, "mounts": told}});
        let twice = format!("[ -e {0}/twice ] && exit 0; echo > {0}/twice; sleep 3", directory.path().display());
        let description = json!({"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "devices": [
            device("all", json!(all)),
            device("create-fails", fails("createContainer", "echo no driver >&2; exit 3", None)),
            device("runtime-fails", fails("createRuntime", "echo no driver >&2; exit 3", None)),
            device("hangs", fails("prestart", "sleep 1000", Some(1))),
            device("start-fails", fails("startContainer", "echo no driver >&2; exit 3", None)),
            device("later-fails", fails("poststart", "exit 3", None)),
            device("twice", fails("createRuntime", &twice, None)),
        ]});
        fs::write(directory.path().join("vendor.json"), description.to_string())?;
        let settings = format!("[containers]\ncdi_dirs = [{:?}]\n{}", directory.path(), INSTALLED.settings);
        Ok(Self { directory, settings: Box::leak(settings.into_boxed_str()) })
    }

    fn get() -> Result<&'static Self> {
        DESCRIBED.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn told(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

pub fn add(suite: &mut Suite) {
    let settings = Described::get().map_or("", |described| described.settings);
    suite.add_own_with("hooks: a device's programs run in their order, and see what they should", settings, order);
    suite.add_own_with("hooks: one that fails or hangs is a StartError with its words", settings, failures);
    suite.add_own_with("hooks: a start that a killed daemon left among them is finished by the next", settings, killed);
}

fn with_device(mut config: ContainerConfig, name: &str) -> ContainerConfig {
    config.cdi_devices = vec![CdiDevice { name: format!("vendor.com/gpu={name}") }];
    config
}

async fn order(node: Arc<Node>) -> Result<()> {
    let described = Described::get()?;
    let image = node.busybox().await?;
    for handler in [""].iter().chain(&INSTALLED.names) {
        let config = node.pod(&format!("hooks-{handler}"));
        let pod = node.run_by(&config, handler).await?;
        let text = "cd /told; until grep -q poststart order-$NAME; do sleep 0.05; done; readlink /library; echo program >> order-$NAME";
        let mut wanted = with_device(script("c", &image, text), "all");
        wanted.command = vec!["sh".into(), "-c".into(), "NAME=$(cat /told/name); ".to_owned() + text];
        let id = node.create(&pod, &config, &wanted).await?;
        fs::write(described.told("name"), &id)?;
        node.start_container(&id).await.with_context(|| format!("StartContainer by {handler:?}"))?;
        let status = node.exited(&id).await?;
        ensure!(status.exit_code == 0, "{handler}: {status:?}");
        let log = node.log_with(&status.log_path, "lib.so.1").await.with_context(|| format!("by {handler:?}"))?;
        ensure!(log.iter().any(|line| line.ends_with("stdout F lib.so.1")), "{handler}: {log:?}");
        node.remove_container(&id).await?;
        let order = fs::read_to_string(described.told(&format!("order-{id}")))?;
        let mut order: Vec<&str> = order.lines().collect();
        let mut expected =
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "program", "poststop"];
        ensure!(order.last() == expected.last(), "{handler}: {order:?}");
        // another runtime's order is its own: runc does not wait for what is run in the container
        if !handler.is_empty() {
            order.sort_unstable();
            expected.sort_unstable();
        }
        ensure!(order == expected, "{handler}: {order:?}");
        if handler.is_empty() {
            states(described, &id)?;
        }
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

/// What our own gave them to read.
fn states(described: &Described, id: &str) -> Result<()> {
    let state = |stage: &str| -> Result<Value> {
        let text = fs::read_to_string(described.told(&format!("{stage}-{id}")))?;
        serde_json::from_str(&text).with_context(|| format!("{stage} read {text:?}"))
    };
    for (stage, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
    ] {
        let state = state(stage)?;
        ensure!(state["status"] == status && state["id"] == id, "{stage}: {state}");
        ensure!(state["pid"].as_i64().is_some_and(|pid| (pid > 1) == (stage != "createContainer")), "{stage}: {state}");
        ensure!(state["bundle"].as_str().is_some_and(|path| Path::new(path).is_absolute()), "{stage}: {state}");
    }
    let last = state("poststop")?;
    ensure!(last["status"] == "stopped" && last.get("pid").is_none(), "{last}");
    Ok(())
}

async fn failures(node: Arc<Node>) -> Result<()> {
    let image = node.busybox().await?;
    let config = node.pod("failing");
    let pod = node.run(&config).await?;
    for (device, words) in [
        ("create-fails", "createContainer hook /bin/sh: exit code 3: no driver"),
        ("runtime-fails", "no driver"),
        ("hangs", "no end within 1 s"),
        ("start-fails", "startContainer hook /bin/sh: exit code 3: no driver"),
    ] {
        let id = node.create(&pod, &config, &with_device(idle(device, &image), device)).await?;
        let began = Instant::now();
        let error = refused(node.start_container(&id).await, Code::Internal)?;
        ensure!(error.message().contains(words), "{device}: {}", error.message());
        ensure!(began.elapsed() < PATIENCE, "{device}: {:?}", began.elapsed());
        let status = node.exited(&id).await?;
        ensure!(status.reason == "StartError" && status.message.contains(words), "{device}: {status:?}");
        node.remove_container(&id).await?;
    }
    // what comes after the start does not undo it
    let id = node.launch(&pod, &config, &with_device(idle("later", &image), "later-fails")).await?;
    ensure!(node.output(&id, &["echo", "runs"]).await? == "runs\n", "it does not run");
    Ok(())
}

async fn killed(node: Arc<Node>) -> Result<()> {
    let described = Described::get()?;
    let image = node.busybox().await?;
    let config = node.pod("interrupted");
    let pod = node.run(&config).await?;
    let id = node.create(&pod, &config, &with_device(idle("c", &image), "twice")).await?;
    let starting = tokio::spawn({
        let (node, id) = (node.clone(), id.clone());
        async move { node.start_container(&id).await }
    });
    let deadline = Instant::now() + PATIENCE;
    while !described.told("twice").exists() {
        ensure!(Instant::now() < deadline, "the program is not run");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    {
        let mut daemon = node.own()?.lock().await;
        daemon.kill()?;
        daemon.resume()?;
    }
    ensure!(starting.await?.is_err(), "nobody was there to answer");
    node.start_container(&id).await.context("StartContainer again")?;
    ensure!(node.output(&id, &["echo", "runs"]).await? == "runs\n", "it does not run");
    Ok(())
}
