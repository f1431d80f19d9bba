//! What a container finds inside: its image, its user, its mounts, its rights and its limits.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::image::Image;
use serde_json::json;
use tonic::Code;

use crate::containers::{pod, run, security};
use crate::node::{Node, container, idle, refused, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add(
        "container: the image's entrypoint, environment, directory and user apply until the config says otherwise",
        image_config,
    );
    suite.add("container: users, groups and supplementary groups are those asked for", users);
    suite.add("container: mounts bring files and directories, read-only where asked, through symlinks too", mounts);
    suite.add("container: writes stay in the container and do not reach the image", own_layer);
    suite.add("container: a layer that hides a file of a lower one hides it", whiteout);
    suite.add("container: a read-only root cannot be written to, its mounts can", read_only_root);
    suite.add("container: capabilities and no_new_privs are those asked for, and privileged has them all", privileges);
    suite.add("container: masked and read-only paths of /proc hold", masked);
    suite.add("container: limits arrive in the container's own cgroup", limits);
    suite.add("container: more memory than its limit is OOMKilled, with 137", oom);
    suite.add("container: a terminal is one", terminal);
}

type Shared = Arc<Node>;

/// Fields of /proc/self/status.
fn field<'a>(text: &'a str, name: &str) -> Result<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {name} in {text:?}"))?.trim())
}

async fn image_config(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    Image::busybox()?
        .set("Entrypoint", json!(["sh", "-c"]))
        .set("Cmd", json!(["echo default; pwd; id -u; echo $FROM_IMAGE $BOTH"]))
        .set("Env", json!(["PATH=/bin", "FROM_IMAGE=yes", "BOTH=image"]))
        .set("WorkingDir", json!("/www"))
        .set("User", json!("tester"))
        .push(&registry, "configured", "1")?;
    let image = node.pull(&registry.reference("configured:1")).await?;
    let config = node.pod("imageconfig");
    let pod = node.run(&config).await?;
    let (_, text) = run(&node, &pod, &config, &container("image", &image, &[])).await?;
    ensure!(text == "default\n/www\n1000\nyes image\n", "the image's own: {text:?}");
    // args replace Cmd, and keep the entrypoint
    let mut wanted = container("args", &image, &[]);
    wanted.args = vec!["echo args; pwd; echo $FROM_IMAGE $BOTH".into()];
    wanted.working_dir = "/made/on/the/way".into();
    wanted.envs = vec![KeyValue { key: "BOTH".into(), value: "config".into() }];
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text == "args\n/made/on/the/way\nyes config\n", "args: {text:?}");
    // a command replaces both
    let (_, text) = run(&node, &pod, &config, &container("command", &image, &["echo", "command"])).await?;
    ensure!(text == "command\n", "command: {text:?}");
    Ok(())
}

async fn users(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "users").await?;
    let mut wanted = script("numbers", &image, "id -u; id -g; id -G");
    let context = security(&mut wanted)?;
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.run_as_group = Some(Int64Value { value: 33 });
    context.supplemental_groups = vec![1234];
    let (status, text) = run(&node, &pod, &config, &wanted).await?;
    // 50000 is the image's own: /etc/group has the user in it
    ensure!(text == "1000\n33\n33 1234 50000\n", "{text:?}");
    if let Some(user) = status.user.and_then(|user| user.linux) {
        ensure!((user.uid, user.gid) == (1000, 33), "status says {user:?}");
    }
    let mut wanted = script("name", &image, "id -un; id -gn");
    security(&mut wanted)?.run_as_username = "www-data".into();
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text == "www-data\nwww-data\n", "{text:?}");
    let mut wanted = script("nobody", &image, "true");
    security(&mut wanted)?.run_as_username = "no-such-user".into();
    let error = node.launch(&pod, &config, &wanted).await;
    ensure!(error.is_err_and(|e| format!("{e:#}").contains("no-such-user")), "a user that the image does not know");
    let mut wanted = script("group", &image, "true");
    security(&mut wanted)?.run_as_group = Some(Int64Value { value: 5 });
    refused(node.try_create(&pod, &config, &wanted).await, Code::InvalidArgument).context("a group without a user")?;
    Ok(())
}

async fn mounts(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "mounts").await?;
    let folder = node.pods().join("mounts");
    fs::create_dir_all(folder.join("dir"))?;
    fs::write(folder.join("dir/in"), "from the host\n")?;
    fs::write(folder.join("file"), "a file\n")?;
    symlink("dir", folder.join("link"))?;
    let mount = |host: &str, inside: &str, readonly: bool| Mount {
        container_path: inside.into(),
        host_path: folder.join(host).display().to_string(),
        readonly,
        ..Default::default()
    };
    let mut wanted = script(
        "c",
        &image,
        "cat /rw/in /ro/in /linked/in /etc/one-file; echo back > /rw/out; touch /ro/no 2>&1; echo more >> /etc/one-file",
    );
    wanted.mounts = vec![
        mount("dir", "/rw", false),
        mount("dir", "/ro", true),
        mount("link", "/linked", true),
        mount("file", "/etc/one-file", false),
    ];
    let (status, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(status.exit_code == 0, "{text}");
    ensure!(text.starts_with("from the host\nfrom the host\nfrom the host\na file\n"), "{text:?}");
    ensure!(text.contains("Read-only file system"), "{text:?}");
    ensure!(fs::read_to_string(folder.join("dir/out"))? == "back\n", "what the container wrote");
    ensure!(fs::read_to_string(folder.join("file"))? == "a file\nmore\n", "what it added to a file");
    let mut wanted = script("missing", &image, "true");
    wanted.mounts = vec![mount("not-there", "/x", false)];
    // Docker makes a directory of it and others have followed; an error is as good when it says which
    match node.launch(&pod, &config, &wanted).await {
        Ok(_) => ensure!(folder.join("not-there").is_dir(), "mounted from where?"),
        Err(error) => ensure!(format!("{error:#}").contains("not-there"), "which source? {error:#}"),
    }
    Ok(())
}

async fn own_layer(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "layer").await?;
    let (status, text) =
        run(&node, &pod, &config, &script("writer", &image, "rm /www/index.html && echo mine > /made && ls /www"))
            .await?;
    ensure!(status.exit_code == 0 && text.is_empty(), "{text:?}");
    let (_, text) = run(&node, &pod, &config, &script("reader", &image, "cat /www/index.html; ls /made 2>&1")).await?;
    ensure!(text.starts_with("hello from the pod\n") && text.contains("No such file"), "{text:?}");
    Ok(())
}

async fn whiteout(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    Image::busybox()?
        .layer(&[("opt/", ""), ("opt/kept", "old"), ("opt/gone", "x"), ("opt/dir/", ""), ("opt/dir/low", "x")])?
        .layer(&[
            ("opt/.wh.gone", ""),
            ("opt/kept", "new"),
            ("opt/dir/", ""),
            ("opt/dir/.wh..wh..opq", ""),
            ("opt/dir/high", "y"),
        ])?
        .push(&registry, "whiteout", "1")?;
    let image = node.pull(&registry.reference("whiteout:1")).await?;
    let config = node.pod("whiteout");
    let pod = node.run(&config).await?;
    let (_, text) = run(&node, &pod, &config, &script("c", &image, "cd /opt; find . | sort; cat kept")).await?;
    ensure!(text == ".\n./dir\n./dir/high\n./kept\nnew\n", "{text:?}");
    Ok(())
}

async fn read_only_root(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "rofs").await?;
    let folder = node.pods().join("writable");
    fs::create_dir_all(&folder)?;
    let mut wanted =
        script("c", &image, "touch /x 2>&1; touch /data/y && echo written; echo z > /dev/null && echo null");
    wanted.mounts =
        vec![Mount { container_path: "/data".into(), host_path: folder.display().to_string(), ..Default::default() }];
    security(&mut wanted)?.readonly_rootfs = true;
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text.contains("Read-only file system") && text.ends_with("written\nnull\n"), "{text:?}");
    Ok(())
}

async fn privileges(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "caps").await?;
    let look = "cat /proc/self/status";
    let mut wanted = script("changed", &image, look);
    let context = security(&mut wanted)?;
    context.no_new_privs = true;
    context.capabilities = Some(Capability {
        add_capabilities: vec!["SYS_TIME".into()],
        drop_capabilities: vec!["CHOWN".into()],
        ..Default::default()
    });
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    let bits = u64::from_str_radix(field(&text, "CapEff")?, 16)?;
    ensure!(bits & (1 << 25) != 0 && bits & 1 == 0, "CapEff {bits:x}: SYS_TIME added, CHOWN dropped");
    ensure!(field(&text, "NoNewPrivs")? == "1", "NoNewPrivs");
    let mut wanted = script("dropped", &image, look);
    security(&mut wanted)?.capabilities =
        Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    for set in ["CapEff", "CapBnd", "CapPrm"] {
        ensure!(u64::from_str_radix(field(&text, set)?, 16)? == 0, "{set} after dropping ALL: {text:?}");
    }
    let (_, text) = run(&node, &pod, &config, &script("default", &image, look)).await?;
    let default = u64::from_str_radix(field(&text, "CapEff")?, 16)?;
    ensure!(default & (1 << 21) == 0 && default & 1 == 1, "CapEff {default:x}: CHOWN, but not SYS_ADMIN");
    let mut wanted = script("privileged", &image, look);
    security(&mut wanted)?.privileged = true;
    let mut pod_config = node.pod("privileged");
    if let Some(context) = pod_config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        context.privileged = true;
    }
    let privileged = node.run(&pod_config).await?;
    let (_, text) = run(&node, &privileged, &pod_config, &wanted).await?;
    let all = u64::from_str_radix(field(&text, "CapEff")?, 16)?;
    ensure!(all & (1 << 21) != 0 && all.count_ones() > default.count_ones(), "CapEff {all:x} of a privileged one");
    Ok(())
}

async fn masked(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "masked").await?;
    let mut wanted =
        script("c", &image, "wc -c < /proc/interrupts; ls /proc/fs | wc -l; echo 1 > /proc/sys/kernel/panic");
    let context = security(&mut wanted)?;
    context.masked_paths = vec!["/proc/interrupts".into(), "/proc/fs".into(), "/proc/not-there".into()];
    context.readonly_paths = vec!["/proc/sys".into()];
    let (status, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text.starts_with("0\n0\n") && text.contains("Read-only file system"), "{text:?}");
    ensure!(status.exit_code != 0, "/proc/sys was written to");
    Ok(())
}

async fn limits(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "limits").await?;
    let mut wanted = idle("c", &image);
    if let Some(linux) = wanted.linux.as_mut() {
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            oom_score_adj: 500,
            ..Default::default()
        });
    }
    let id = node.launch(&pod, &config, &wanted).await?;
    ensure!(node.output(&id, &["cat", "/proc/1/oom_score_adj"]).await?.trim() == "500", "oom_score_adj");
    let inside = node.output(&id, &["cat", "/proc/self/cgroup"]).await?;
    if node.daemon().is_none() {
        return Ok(());
    }
    let name = format!("crio-{id}");
    let place = |controller: &str| {
        let path = Path::new("/sys/fs/cgroup").join(controller).join(node.cgroup_parent().trim_start_matches('/'));
        path.join(&name)
    };
    let read = |path: std::path::PathBuf| {
        fs::read_to_string(&path).map(|t| t.trim().to_owned()).with_context(|| path.display().to_string())
    };
    // v1 or hybrid, else v2
    if place("memory").exists() {
        ensure!(read(place("memory").join("memory.limit_in_bytes"))? == (64 << 20).to_string(), "memory");
        ensure!(read(place("cpu").join("cpu.shares"))? == "512", "shares");
        ensure!(read(place("cpu").join("cpu.cfs_quota_us"))? == "50000", "quota");
        ensure!(inside.contains(&name), "the container is elsewhere: {inside}");
    } else {
        ensure!(read(place("").join("memory.max"))? == (64 << 20).to_string(), "memory");
        ensure!(read(place("").join("cpu.max"))? == "50000 100000", "quota");
    }
    Ok(())
}

async fn oom(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "oom").await?;
    let mut wanted = script("c", &image, "exec dd if=/dev/zero of=/dev/null bs=60M");
    if let Some(linux) = wanted.linux.as_mut() {
        linux.resources = Some(LinuxContainerResources { memory_limit_in_bytes: 15 << 20, ..Default::default() });
    }
    let id = node.launch(&pod, &config, &wanted).await?;
    let status = node.exited(&id).await?;
    ensure!(status.exit_code == 137 && status.reason == "OOMKilled", "{} {}", status.exit_code, status.reason);
    Ok(())
}

async fn terminal(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "tty").await?;
    let mut wanted = script("c", &image, "tty; test -t 0 && test -t 1 && test -t 2 && echo three; echo to-stderr >&2");
    wanted.tty = true;
    wanted.stdin = true;
    let (status, text) = run(&node, &pod, &config, &wanted).await?;
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    ensure!(lines.first().is_some_and(|l| l.starts_with("/dev/pts/")) && lines.get(1) == Some(&"three"), "{lines:?}");
    let log = fs::read_to_string(&status.log_path)?;
    ensure!(log.lines().all(|line| line.split(' ').nth(1) == Some("stdout")), "a terminal has one stream: {log:?}");
    Ok(())
}
