//! Pods with a user namespace: who is root inside is nobody outside, and owns what is the pod's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::leaks;
use tonic::Code;

use crate::containers::{run, security};
use crate::node::{Node, idle, namespaces, refused, script};
use crate::suite::Suite;

/// Nobody on this host has these ids.
const OUTSIDE: u32 = 700_000;
const LENGTH: u32 = 65_536;

pub fn add(suite: &mut Suite) {
    suite.add("user namespace: root inside is somebody else outside and owns the container's files", root_inside);
    suite.add("user namespace: other users, supplementary groups and terminals work in it", users);
    suite.add("user namespace: a mapped volume has the same owners inside as on the host", volume);
    suite.add("user namespace: the pod's network, IPC and host name belong to it", capabilities);
    suite.add("user namespace: containers with a shared PID namespace see each other", shared_pid);
    suite.add("user namespace: what is mounted cannot be taken off to see what is below", locked);
    suite.add("user namespace: mappings that cannot be are refused", refusals);
}

type Shared = Arc<Node>;

fn mapping() -> Vec<IdMapping> {
    vec![IdMapping { host_id: OUTSIDE, container_id: 0, length: LENGTH }]
}

fn mapped(mode: NamespaceMode, mappings: Vec<IdMapping>) -> UserNamespace {
    UserNamespace { mode: mode.into(), uids: mappings.clone(), gids: mappings }
}

fn options() -> NamespaceOption {
    NamespaceOption { userns_options: Some(mapped(NamespaceMode::Pod, mapping())), ..namespaces() }
}

/// Asks for a pod like this one in a user namespace.
fn with(mut config: PodSandboxConfig, options: NamespaceOption) -> PodSandboxConfig {
    if let Some(context) = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        context.namespace_options = Some(options);
    }
    config
}

fn inside(mut wanted: ContainerConfig) -> Result<ContainerConfig> {
    security(&mut wanted)?.namespace_options = Some(options());
    Ok(wanted)
}

async fn pod(node: &Node, name: &str) -> Result<(String, PodSandboxConfig, String)> {
    let config = with(node.pod(name), options());
    let image = node.busybox().await?;
    Ok((node.run(&config).await?, config, image))
}

/// Users that the processes of a container have outside.
fn users_outside(node: &Node, container: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for cgroup in leaks::cgroups(node.cgroup_parent())? {
        // as a directory, or as a scope; what is below is of execs
        if !cgroup.file_name().is_some_and(|name| name.to_string_lossy().contains(container)) {
            continue;
        }
        for pid in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("no Uid")?;
            found.push(uid.split_whitespace().next().unwrap_or_default().to_owned());
        }
    }
    Ok(found)
}

async fn root_inside(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "root").await?;
    let text = "echo $(cat /proc/self/uid_map) $(cat /proc/self/gid_map); id -u; \
                stat -c '%u:%g' / /etc/passwd /bin /dev /dev/null /dev/shm /etc/resolv.conf /etc/hostname; \
                touch /own /dev/shm/own && stat -c '%u:%g' /own /dev/shm/own && rm /www/index.html && echo changed; \
                mkdir /tmp/d && chown 33:33 /tmp/d && stat -c '%u:%g' /tmp/d; echo x > /dev/null && echo devices";
    let (status, text) = run(&node, &pod, &config, &inside(script("c", &image, text))?).await?;
    let map = format!("0 {OUTSIDE} {LENGTH}");
    let mut expected = vec![format!("{map} {map}"), "0".to_owned()];
    expected.extend(vec!["0:0".to_owned(); 10]);
    expected.extend(["changed", "33:33", "devices"].map(str::to_owned));
    ensure!(status.exit_code == 0 && text.lines().eq(&expected), "{text}");
    let id = node.launch(&pod, &config, &inside(idle("outside", &image))?).await?;
    let outside = users_outside(&node, &id)?;
    ensure!(!outside.is_empty() && outside.iter().all(|uid| *uid == OUTSIDE.to_string()), "{outside:?}");
    let map_of_exec = node.output(&id, &["cat", "/proc/self/uid_map"]).await?;
    ensure!(map_of_exec.split_whitespace().eq(map.split(' ')), "an exec has {map_of_exec:?}");
    // the image is as it was for a pod without
    let plain = node.pod("plain");
    let other = node.run(&plain).await?;
    let (_, text) = run(&node, &other, &plain, &script("c", &image, "stat -c '%u:%g' / /www/index.html")).await?;
    ensure!(text == "0:0\n0:0\n", "{text}");
    Ok(())
}

async fn users(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "users").await?;
    let text = "id -u; id -g; id -G; touch /tmp/x && stat -c '%u:%g' /tmp/x; touch /no 2>&1; pwd; stat -c '%u' /work";
    let mut wanted = inside(script("user", &image, text))?;
    wanted.working_dir = "/work/here".into();
    let context = security(&mut wanted)?;
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.run_as_group = Some(Int64Value { value: 33 });
    context.supplemental_groups = vec![1234];
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text.starts_with("1000\n33\n33 1234 50000\n1000:33\n"), "{text}");
    ensure!(text.contains("/no: Permission denied") && text.ends_with("/work/here\n0\n"), "{text}");
    let mut terminal = inside(script("tty", &image, "tty && stat -c '%u' $(tty) && echo typed > $(tty)"))?;
    terminal.tty = true;
    let (status, text) = run(&node, &pod, &config, &terminal).await?;
    ensure!(status.exit_code == 0 && text.contains("/dev/pts/0") && text.contains("typed"), "{text}");
    let mut unmapped = inside(script("unmapped", &image, "true"))?;
    security(&mut unmapped)?.run_as_user = Some(Int64Value { value: 70_000 });
    let error = node.launch(&pod, &config, &unmapped).await.err().context("an id that is not mapped")?;
    ensure!(format!("{error:#}").contains("id 70000 is not mapped"), "{error:#}");
    Ok(())
}

async fn volume(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "volume").await?;
    let folder = node.pods().join("mapped");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("secret"), "of root\n")?;
    fs::set_permissions(folder.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let mount = |inside: &str, mappings: Vec<IdMapping>| Mount {
        container_path: inside.into(),
        host_path: folder.display().to_string(),
        uid_mappings: mappings.clone(),
        gid_mappings: mappings,
        ..Default::default()
    };
    let text = "cat /mapped/secret; stat -c '%u:%g' /mapped/secret; echo new > /mapped/new; \
                stat -c '%u' /plain/secret; cat /plain/secret 2>&1";
    let mut wanted = inside(script("c", &image, text))?;
    // the second is mounted below the first, where nothing is yet
    wanted.mounts = vec![mount("/mapped", mapping()), mount("/plain", Vec::new()), mount("/mapped/sub", mapping())];
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text.starts_with("of root\n0:0\n65534\n"), "{text}");
    ensure!(text.contains("/plain/secret': Permission denied"), "{text}");
    for made in ["new", "sub"] {
        let owner = fs::metadata(folder.join(made))?.uid();
        ensure!(owner == 0, "{made} belongs to {owner}");
    }
    let other = vec![IdMapping { host_id: OUTSIDE + 1, container_id: 0, length: LENGTH }];
    wanted.mounts = vec![mount("/mapped", other)];
    let status = refused(node.try_create(&pod, &config, &wanted).await, Code::InvalidArgument)?;
    ensure!(status.message().contains("mapped otherwise"), "{status}");
    Ok(())
}

async fn capabilities(node: Shared) -> Result<()> {
    let mut config = with(node.pod("caps"), options());
    if let Some(linux) = config.linux.as_mut() {
        linux.sysctls = [("net.ipv4.ip_local_port_range".to_owned(), "20000 30000".to_owned())].into();
    }
    let (image, pod) = (node.busybox().await?, node.run(&config).await?);
    let text = "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu && hostname other && hostname && \
                cat /proc/sys/net/ipv4/ip_local_port_range && mount -t tmpfs none /mnt 2>/dev/null || mkdir /mnt && \
                mount -t tmpfs none /mnt && echo mounted";
    let mut wanted = inside(script("c", &image, text))?;
    let add = ["NET_ADMIN", "SYS_ADMIN"].map(str::to_owned).to_vec();
    security(&mut wanted)?.capabilities = Some(Capability { add_capabilities: add, ..Default::default() });
    let (status, text) = run(&node, &pod, &config, &wanted).await?;
    let words: Vec<&str> = text.split_whitespace().collect();
    ensure!(status.exit_code == 0 && words == ["1400", "other", "20000", "30000", "mounted"], "{text}");
    Ok(())
}

async fn shared_pid(node: Shared) -> Result<()> {
    let all = NamespaceOption { pid: NamespaceMode::Pod.into(), ..options() };
    let config = with(node.pod("pids"), all.clone());
    let (image, pod) = (node.busybox().await?, node.run(&config).await?);
    let mut first = idle("first", &image);
    security(&mut first)?.namespace_options = Some(all.clone());
    node.launch(&pod, &config, &first).await?;
    let mut second = script("second", &image, "ps -o args | grep -c 'sleep 100[0]'; kill -9 1; ls /proc/1/root 2>&1");
    security(&mut second)?.namespace_options = Some(all);
    let (_, text) = run(&node, &pod, &config, &second).await?;
    // whether the shell of the first has come to its sleep by now is not what this is about
    ensure!(text.contains("Permission denied") && !text.contains("etc"), "{text}");
    Ok(())
}

async fn locked(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "locked").await?;
    // one stream: two have no order between them
    let text = "exec 2>&1; umount /proc/version; umount /etc/hostname; umount /proc; \
                mount -o remount,bind,rw /proc/sys; echo x > /proc/sys/kernel/hostname; head -c1 /proc/version | wc -c";
    let mut wanted = inside(script("c", &image, text))?;
    let context = security(&mut wanted)?;
    context.masked_paths = vec!["/proc/version".into()];
    context.readonly_paths = vec!["/proc/sys".into()];
    context.capabilities = Some(Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    let refused = text.lines().filter(|line| line.contains("Invalid argument") || line.contains("denied")).count();
    ensure!(refused == 4 && text.contains("Read-only file system") && text.ends_with("0\n"), "{text}");
    Ok(())
}

async fn refusals(node: Shared) -> Result<()> {
    let two = [mapping(), mapping()].concat();
    let late = vec![IdMapping { host_id: OUTSIDE, container_id: 1, length: LENGTH }];
    for (wrong, expected) in [
        (mapped(NamespaceMode::Pod, two), "2 uid mappings"),
        (mapped(NamespaceMode::Pod, Vec::new()), "0 uid mappings"),
        (mapped(NamespaceMode::Pod, late), "begins at 1"),
        (mapped(NamespaceMode::Container, mapping()), "CONTAINER"),
        (mapped(NamespaceMode::Target, mapping()), "TARGET"),
    ] {
        let options = NamespaceOption { userns_options: Some(wrong), ..namespaces() };
        let status = refused(node.try_run(&with(node.pod("refused"), options)).await, Code::InvalidArgument)?;
        ensure!(status.message().contains(expected), "{expected}: {status}");
    }
    // a container cannot have another one than its pod
    let plain = node.pod("plain");
    let (image, pod) = (node.busybox().await?, node.run(&plain).await?);
    let wanted = inside(script("c", &image, "true"))?;
    let status = refused(node.try_create(&pod, &plain, &wanted).await, Code::InvalidArgument)?;
    ensure!(status.message().contains("another user namespace"), "{status}");
    Ok(())
}
