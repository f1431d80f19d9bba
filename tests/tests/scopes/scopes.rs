//! Containers in scopes.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::outside::run;

use crate::node::{Node, idle, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add(
        "scope: RuntimeConfig says systemd, and a container's processes are in a scope in its pod's slice",
        placed,
    );
    suite.add("scope: a command run in a container is in the container's scope", exec);
    suite.add("scope: nothing is left of a container that ended, was stopped or was killed", gone);
    suite.add("scope: a program that does not exist is an error like any other, and leaves nothing", no_program);
    suite.add("scope: devices beyond the usual ones are closed, also to who may make nodes", devices);
    suite.add("scope: systemd that executes itself anew is found again", reexecuted);
    suite.add("scope: twenty containers started at once are each in their own", many);
    suite.add_own("scope: pods survive the daemon, and go on being started and stopped after it", survived);
}

type Shared = Arc<Node>;

async fn pod(node: &Node, name: &str) -> Result<(String, PodSandboxConfig, String)> {
    let config = node.pod(name);
    let image = node.busybox().await?;
    Ok((node.run(&config).await?, config, image))
}

fn scope(container: &str) -> String {
    format!("crio-{container}.scope")
}

fn show(unit: &str, property: &str) -> Result<String> {
    let shown = run("systemctl", ["show", "--value", "-p", property, unit])?.ok("systemctl show")?;
    Ok(shown.trim().to_owned())
}

/// What systemd still knows of a container's scope.
fn left(container: &str) -> Result<String> {
    let listed = run("systemctl", ["list-units", "--all", "--plain", "--no-legend", &scope(container)])?;
    listed.ok("systemctl list-units").map(|text| text.trim().to_owned())
}

async fn placed(node: Shared) -> Result<()> {
    let config = node.cri().runtime.runtime_config(RuntimeConfigRequest {}).await?.into_inner();
    let driver = config.linux.context("no linux part")?.cgroup_driver();
    ensure!(driver == CgroupDriver::Systemd, "{driver:?}");
    let (pod, config, image) = pod(&node, "placed").await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    let unit = scope(&id);
    ensure!(show(&unit, "ActiveState")? == "active", "{}", show(&unit, "ActiveState")?);
    ensure!(show(&unit, "Delegate")? == "yes", "not delegated");
    let slice = node.cgroup_parent().trim_start_matches('/').to_owned();
    ensure!(show(&unit, "Slice")? == slice, "in slice {}", show(&unit, "Slice")?);
    let group = show(&unit, "ControlGroup")?;
    ensure!(group == format!("/{slice}/{unit}"), "at {group}");
    let inside = fs::read_to_string(format!("/sys/fs/cgroup{group}/cgroup.procs"))?;
    ensure!(inside.lines().count() >= 1, "nobody is in {group}");
    Ok(())
}

async fn exec(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "exec").await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    // with a cgroup namespace of its own, its scope is its root
    let own = node.output(&id, &["cat", "/proc/1/cgroup"]).await?;
    ensure!(own.lines().any(|line| line == "0::/"), "{own:?}");
    let execs = node.output(&id, &["cat", "/proc/self/cgroup"]).await?;
    ensure!(execs.lines().any(|line| line.starts_with("0::/")) && !execs.contains(".."), "{execs:?}");
    Ok(())
}

async fn gone(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "gone").await?;
    let ended = node.launch(&pod, &config, &script("ended", &image, "exit 3")).await?;
    ensure!(node.exited(&ended).await?.exit_code == 3, "exit code");
    let stopped = node.launch(&pod, &config, &idle("stopped", &image)).await?;
    node.stop_container(&stopped, 10).await?;
    let killed =
        node.launch(&pod, &config, &script("killed", &image, "trap '' TERM; while :; do sleep 1; done")).await?;
    node.stop_container(&killed, 0).await?;
    ensure!(node.exited(&killed).await?.exit_code == 137, "killed");
    for id in [&ended, &stopped, &killed] {
        node.remove_container(id).await?;
    }
    let created = node.create(&pod, &config, &idle("never-started", &image)).await?;
    node.remove_container(&created).await?;
    node.stop_pod(&pod).await?;
    node.remove_pod(&pod).await?;
    for id in [&ended, &stopped, &killed, &created, &pod] {
        ensure!(left(id)?.is_empty(), "{}", left(id)?);
    }
    Ok(())
}

async fn no_program(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "none").await?;
    let mut wanted = idle("c", &image);
    wanted.command = vec!["/no/such/program".into()];
    let id = node.create(&pod, &config, &wanted).await?;
    let error = node.start_container(&id).await.err().context("started what is not there")?;
    ensure!(error.message().contains("/no/such/program"), "{error}");
    let status = node.exited(&id).await?;
    ensure!((status.exit_code, status.reason.as_str()) == (127, "StartError"), "{status:?}");
    node.remove_container(&id).await?;
    ensure!(left(&id)?.is_empty(), "{}", left(&id)?);
    Ok(())
}

async fn devices(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "devices").await?;
    let text = "mknod /tmp/mem c 1 1 && mknod /tmp/zero c 1 5 && head -c1 /tmp/zero | wc -c; head -c1 /tmp/mem 2>&1; echo x > /dev/null && echo null";
    let mut wanted = script("c", &image, text);
    let context = wanted.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).context("no context")?;
    let add_capabilities = ["MKNOD", "SYS_RAWIO"].map(str::to_owned).to_vec();
    context.capabilities = Some(Capability { add_capabilities, ..Default::default() });
    let id = node.launch(&pod, &config, &wanted).await?;
    let status = node.exited(&id).await?;
    let log = fs::read_to_string(&status.log_path)?;
    ensure!(log.contains(" F 1\n") && log.contains("Operation not permitted") && log.contains("F null"), "{log}");
    Ok(())
}

async fn reexecuted(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "reexec").await?;
    let first = node.launch(&pod, &config, &idle("first", &image)).await?;
    run("systemctl", ["daemon-reexec"])?.ok("systemctl daemon-reexec")?;
    let second = node.launch(&pod, &config, &idle("second", &image)).await?;
    for id in [&first, &second] {
        ensure!(show(&scope(id), "ActiveState")? == "active", "{id}");
        node.output(id, &["true"]).await?;
    }
    Ok(())
}

async fn many(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "many").await?;
    let (pod, config) = (Arc::new(pod), Arc::new(config));
    let calls: Vec<_> = (0..20)
        .map(|number| {
            let (node, pod, config, image) = (node.clone(), pod.clone(), config.clone(), image.clone());
            tokio::spawn(async move {
                let id = node.launch(&pod, &config, &idle(&format!("c{number}"), &image)).await?;
                ensure!(show(&scope(&id), "ActiveState")? == "active", "{id}");
                Ok::<_, anyhow::Error>(id)
            })
        })
        .collect();
    for call in calls {
        let id = call.await??;
        node.stop_container(&id, 10).await?;
    }
    Ok(())
}

async fn survived(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "survived").await?;
    let before = node.launch(&pod, &config, &idle("before", &image)).await?;
    let created = node.create(&pod, &config, &idle("created", &image)).await?;
    {
        let mut daemon = node.own()?.lock().await;
        daemon.kill()?;
        daemon.resume()?;
    }
    node.start_container(&created).await?;
    for id in [&before, &created] {
        ensure!(show(&scope(id), "ActiveState")? == "active", "{id}");
        node.stop_container(id, 10).await?;
    }
    Ok(())
}
