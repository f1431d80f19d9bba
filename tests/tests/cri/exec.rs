//! ExecSync: output, ends, timeouts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nodeagent_cri_api::*;
use tonic::Code;

use crate::node::{Node, idle, refused, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("exec: both outputs and the exit code come back", output);
    suite.add("exec: a program that is not there is 127 or an error, and the container goes on", no_program);
    suite.add("exec: a timeout is DeadlineExceeded and ends everything that the command started", timeout);
    suite.add("exec: a background process that holds the output does not hold the call", background);
    suite.add("exec: large output comes back whole", large);
    suite.add("exec: the command has the container's user, environment, directory and cgroup", surroundings);
    suite.add("exec: thirty at once", parallel);
    suite.add("exec: an unknown container is NotFound", unknown);
}

type Shared = Arc<Node>;

async fn container(node: &Node) -> Result<String> {
    let config = node.pod("exec");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    node.launch(&pod, &config, &idle("c", &image)).await
}

async fn output(node: Shared) -> Result<()> {
    let id = container(&node).await?;
    let answer = node.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 42"], 10).await?;
    ensure!(&answer.stdout[..] == b"out\n" && &answer.stderr[..] == b"err\n" && answer.exit_code == 42, "{answer:?}");
    let answer = node.exec(&id, &["sh", "-c", "kill -KILL $$"], 10).await?;
    ensure!(answer.exit_code == 137, "{answer:?}");
    Ok(())
}

async fn no_program(node: Shared) -> Result<()> {
    let id = container(&node).await?;
    match node.exec(&id, &["no-such-program"], 10).await {
        Ok(answer) => ensure!([126, 127].contains(&answer.exit_code), "{answer:?}"),
        Err(status) => ensure!(status.message().contains("no-such-program"), "which program? {}", status.message()),
    }
    ensure!(node.status(&id).await?.state() == ContainerState::ContainerRunning, "the container has ended");
    Ok(())
}

async fn timeout(node: Shared) -> Result<()> {
    let id = container(&node).await?;
    let began = Instant::now();
    let call = node.exec(&id, &["sh", "-c", "sleep 7777 & setsid sleep 7777 & sleep 7777"], 1).await;
    refused(call, Code::DeadlineExceeded)?;
    let took = began.elapsed();
    ensure!(took >= Duration::from_secs(1) && took < Duration::from_secs(15), "after {took:?}");
    let processes = node.output(&id, &["ps"]).await?;
    ensure!(!processes.contains("sleep 7777"), "still there: {processes}");
    ensure!(node.status(&id).await?.state() == ContainerState::ContainerRunning, "the container has ended");
    Ok(())
}

async fn background(node: Shared) -> Result<()> {
    let id = container(&node).await?;
    let began = Instant::now();
    let answer = node.exec(&id, &["sh", "-c", "sleep 600 & echo started"], 60).await?;
    ensure!(began.elapsed() < Duration::from_secs(30), "the call waited for the background: {:?}", began.elapsed());
    ensure!(&answer.stdout[..] == b"started\n" && answer.exit_code == 0, "{answer:?}");
    Ok(())
}

async fn large(node: Shared) -> Result<()> {
    let id = container(&node).await?;
    let answer = node.exec(&id, &["sh", "-c", "yes 0123456789abcde | head -c 4000000"], 60).await?;
    ensure!(answer.exit_code == 0 && answer.stdout.len() == 4_000_000, "{} bytes", answer.stdout.len());
    ensure!(answer.stdout.chunks(16).all(|line| line == b"0123456789abcde\n"), "the output is not what was written");
    Ok(())
}

async fn surroundings(node: Shared) -> Result<()> {
    let config = node.pod("around");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let mut wanted = idle("c", &image);
    wanted.working_dir = "/www".into();
    wanted.envs = vec![KeyValue { key: "GREETING".into(), value: "hello world".into() }];
    if let Some(context) = wanted.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        context.run_as_user = Some(Int64Value { value: 1000 });
        context.no_new_privs = true;
    }
    let id = node.launch(&pod, &config, &wanted).await?;
    let text = node.output(&id, &["sh", "-c", "id -u; pwd; echo $GREETING; grep NoNewPrivs /proc/self/status"]).await?;
    ensure!(text == "1000\n/www\nhello world\nNoNewPrivs:\t1\n", "{text:?}");
    // it may have one of its own below the container's, to be killed by
    let own = node.output(&id, &["cat", "/proc/self/cgroup"]).await?;
    let first = node.output(&id, &["cat", "/proc/1/cgroup"]).await?;
    for (exec, container) in own.lines().zip(first.lines()) {
        ensure!(exec.starts_with(container), "exec is in {exec}, the container in {container}");
    }
    let seccomp = ["grep", "Seccomp:", "/proc/self/status"];
    let one = node.output(&id, &["grep", "Seccomp:", "/proc/1/status"]).await?;
    ensure!(node.output(&id, &seccomp).await? == one, "seccomp differs from {one:?}");
    Ok(())
}

async fn parallel(node: Shared) -> Result<()> {
    let id = container(&node).await?;
    let calls: Vec<_> = (0..30)
        .map(|number| {
            let (node, id) = (node.clone(), id.clone());
            tokio::spawn(async move {
                let text = node.output(&id, &["echo", &number.to_string()]).await?;
                ensure!(text == format!("{number}\n"), "{number}: {text:?}");
                Ok(())
            })
        })
        .collect();
    for call in calls {
        call.await??;
    }
    Ok(())
}

async fn unknown(node: Shared) -> Result<()> {
    refused(node.exec(&"d".repeat(64), &["true"], 1).await, Code::NotFound)?;
    let config = node.pod("late");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let id = node.create(&pod, &config, &script("c", &image, "true")).await?;
    refused(node.exec(&id, &["true"], 1).await, Code::FailedPrecondition)?;
    let id = node.launch(&pod, &config, &idle("running", &image)).await?;
    refused(node.exec(&id, &[], 1).await, Code::InvalidArgument)?;
    Ok(())
}
