//! Pods: their network, their names, and what the lists say of them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::outside::run as outside;
use nodeagent_tests::{http, leaks};
use tonic::Code;

use crate::node::{Node, container, idle, refused, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("sandbox: a web server in a pod answers on the pod's address", web_server);
    suite.add("sandbox: pods reach each other by their addresses", neighbours);
    suite.add("sandbox: a mapped host port leads to the pod", host_port);
    suite.add("sandbox: a resized pod has its limits in its cgroup and in its status, all of them or none", resized);
    suite.add("sandbox: status has what was asked for, and the address", status);
    suite.add("sandbox: lists filter by id, state and labels, newest first", lists);
    suite.add("sandbox: hostname, DNS and sysctls are those of the configuration", environment);
    suite.add("sandbox: a pod's name that is too long for a host name is cut to one", long_name);
    suite.add("sandbox: in the host's network a pod has no address and sees the host's links", host_network);
    suite.add("sandbox: containers share network, IPC and host name, not processes", namespaces);
    suite.add("sandbox: containers of a pod with a shared PID namespace see each other", shared_pid);
    suite.add("sandbox: a stopped pod is NOTREADY, without address and without running containers", stopped);
    suite.add("sandbox: stop and remove may be repeated, for unknown pods too", repeatable);
    suite.add("sandbox: the same request again gives the same pod; after a stop, a new one", same_request);
    suite.add("sandbox: ten requests at once for one pod make one pod", joined);
    suite.add("sandbox: RemovePodSandbox ends what still runs in it", forced);
    suite.add("sandbox: twenty pods at once come and go", many);
    suite.add_own("sandbox: a network namespace that is gone does not keep a pod from being removed", netns_gone);
}

type Shared = Arc<Node>;

/// A pod with a web server on port 8080; its id and its address.
pub async fn serve(node: &Node, config: &PodSandboxConfig) -> Result<(String, String)> {
    let image = node.busybox().await?;
    let pod = node.run(config).await?;
    let server = container("web", &image, &["httpd", "-f", "-p", "8080", "-h", "/www"]);
    let id = node.launch(&pod, config, &server).await?;
    // the server listens a moment after it was executed: asked from inside until it does
    let ask = "until wget -q -O - http://127.0.0.1:8080/ >/dev/null 2>&1; do usleep 10000; done";
    node.output(&id, &["sh", "-c", ask]).await.context("the server does not answer in its own pod")?;
    let ip = node.pod_ip(&pod).await?;
    Ok((pod, ip))
}

async fn web_server(node: Shared) -> Result<()> {
    let (_, ip) = serve(&node, &node.pod("web")).await?;
    let address: SocketAddr = format!("{ip}:8080").parse().with_context(|| format!("address {ip:?}"))?;
    let answer = http::get(address, "/index.html")?.expect_status(200)?;
    ensure!(answer.text() == "hello from the pod\n", "{:?}", answer.text());
    if let Some(daemon) = node.daemon() {
        let prefix = daemon.lock().await.net().prefix();
        ensure!(ip.starts_with(&prefix), "{ip} is not of {prefix}0/24");
    }
    Ok(())
}

async fn neighbours(node: Shared) -> Result<()> {
    let (_, ip) = serve(&node, &node.pod("server")).await?;
    let config = node.pod("client");
    let pod = node.run(&config).await?;
    let client = node.launch(&pod, &config, &idle("client", &node.busybox().await?)).await?;
    let url = format!("http://{ip}:8080/index.html");
    let text = node.output(&client, &["wget", "-q", "-O", "-", &url]).await?;
    ensure!(text == "hello from the pod\n", "{text:?}");
    ensure!(node.pod_ip(&pod).await? != ip, "two pods with one address");
    Ok(())
}

async fn host_port(node: Shared) -> Result<()> {
    let mut config = node.pod("mapped");
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 8080,
        host_port: 18080,
        host_ip: String::new(),
    }];
    serve(&node, &config).await?;
    // from a second pod, as from another machine: the address of the bridge is one of the host's
    let other = node.pod("outside");
    let pod = node.run(&other).await?;
    let client = node.launch(&pod, &other, &idle("client", &node.busybox().await?)).await?;
    let script = "wget -q -O - http://$(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'):18080/index.html";
    let text = node.output(&client, &["sh", "-c", script]).await?;
    ensure!(text == "hello from the pod\n", "{text:?}");
    Ok(())
}

async fn status(node: Shared) -> Result<()> {
    let mut config = node.pod("attributes");
    config.annotations = HashMap::from([("example.com/note".into(), "kept as it is: ä\n".into())]);
    if let Some(metadata) = config.metadata.as_mut() {
        metadata.attempt = 3;
    }
    let id = node.run(&config).await?;
    let status = node.pod_status(&id).await?;
    ensure!(status.id == id && status.metadata == config.metadata, "{status:?}");
    ensure!(status.labels == config.labels && status.annotations == config.annotations, "{status:?}");
    ensure!(status.state() == PodSandboxState::SandboxReady, "{:?}", status.state());
    ensure!(status.created_at > 1_600_000_000_000_000_000, "created_at {} is not in nanoseconds", status.created_at);
    let ip = status.network.context("no network")?.ip;
    ip.parse::<std::net::IpAddr>().with_context(|| format!("address {ip:?}"))?;
    let logs = std::fs::metadata(&config.log_directory).context("the log directory was not made")?;
    ensure!(logs.is_dir(), "{} is no directory", config.log_directory);
    Ok(())
}

async fn lists(node: Shared) -> Result<()> {
    let mut ids = Vec::new();
    for name in ["one", "two", "three"] {
        let mut config = node.pod(name);
        config.labels.insert("tier".into(), if name == "two" { "back" } else { "front" }.into());
        ids.push(node.run(&config).await?);
    }
    node.stop_pod(&ids[2]).await?;
    let filter = |id: &str, state: Option<PodSandboxState>, labels: &[(&str, &str)]| PodSandboxFilter {
        id: id.into(),
        state: state.map(|state| PodSandboxStateValue { state: state.into() }),
        label_selector: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    let ready = Some(PodSandboxState::SandboxReady);
    let (one, two, three) = (ids[0].as_str(), ids[1].as_str(), ids[2].as_str());
    let cases = [
        (filter("", None, &[("tier", "front")]), vec![three, one]),
        (filter("", ready, &[("tier", "front")]), vec![one]),
        (filter(two, None, &[]), vec![two]),
        (filter(&two[..13], None, &[]), vec![two]),
        (filter(two, None, &[("tier", "front")]), vec![]),
        (filter("", None, &[("tier", "none")]), vec![]),
        (filter(&"0".repeat(64), None, &[]), vec![]),
    ];
    for (filter, expected) in cases {
        let found = node.pods_list(Some(filter.clone())).await?;
        let found: Vec<&str> = found.iter().map(|pod| pod.id.as_str()).collect();
        ensure!(found == expected, "{filter:?} gives {found:?}, not {expected:?}");
    }
    let all: Vec<String> =
        node.pods_list(None).await?.into_iter().map(|pod| pod.id).filter(|id| ids.contains(id)).collect();
    ensure!(all == [three, two, one], "not newest first: {all:?}");
    Ok(())
}

async fn environment(node: Shared) -> Result<()> {
    let mut config = node.pod("inside");
    config.hostname = "a-name-of-its-own".into();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.96.0.10".into()],
        searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    if let Some(linux) = config.linux.as_mut() {
        linux.sysctls = HashMap::from([
            ("kernel.shm_rmid_forced".into(), "1".into()),
            ("net.ipv4.ip_local_port_range".into(), "20000 30000".into()),
        ]);
    }
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    ensure!(node.output(&id, &["hostname"]).await?.trim() == config.hostname, "hostname");
    let resolv = node.output(&id, &["cat", "/etc/resolv.conf"]).await?;
    for line in ["nameserver 10.96.0.10", "search default.svc.cluster.local svc.cluster.local", "options ndots:5"] {
        ensure!(resolv.lines().any(|l| l == line), "no {line:?} in {resolv:?}");
    }
    ensure!(node.output(&id, &["cat", "/etc/hostname"]).await?.trim() == config.hostname, "/etc/hostname");
    ensure!(node.output(&id, &["cat", "/proc/sys/kernel/shm_rmid_forced"]).await?.trim() == "1", "an IPC sysctl");
    let range = node.output(&id, &["cat", "/proc/sys/net/ipv4/ip_local_port_range"]).await?;
    ensure!(range.split_whitespace().eq(["20000", "30000"]), "a network sysctl: {range:?}");
    Ok(())
}

async fn long_name(node: Shared) -> Result<()> {
    let mut config = node.pod("long");
    let name = format!("{}-and-more-than-a-host-name-may-have", "x".repeat(62));
    config.hostname.clear();
    config.metadata = config.metadata.map(|metadata| PodSandboxMetadata { name, ..metadata });
    let (image, pod) = (node.busybox().await?, node.run(&config).await?);
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    ensure!(node.output(&id, &["hostname"]).await?.trim() == "x".repeat(62), "cut as kubelet does");
    let mut wrong = node.pod("wrong");
    wrong.hostname = "y".repeat(65);
    let status = refused(node.try_run(&wrong).await, Code::InvalidArgument)?;
    ensure!(status.message().contains("more than 64"), "{status}");
    Ok(())
}

fn with_namespaces(config: &mut PodSandboxConfig, options: NamespaceOption) {
    if let Some(linux) = config.linux.as_mut() {
        linux.security_context =
            Some(LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
    }
}

fn in_namespaces(mut config: ContainerConfig, options: NamespaceOption) -> ContainerConfig {
    config.linux = Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        }),
        ..Default::default()
    });
    config
}

async fn host_network(node: Shared) -> Result<()> {
    let mut config = node.pod("hostnet");
    // the host's UTS namespace comes with its network
    config.hostname.clear();
    let options = NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    };
    with_namespaces(&mut config, options.clone());
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let network = node.pod_status(&pod).await?.network.unwrap_or_default();
    ensure!(network.ip.is_empty() && network.additional_ips.is_empty(), "an address of its own: {network:?}");
    let id = node.launch(&pod, &config, &in_namespaces(idle("c", &image), options)).await?;
    if node.daemon().is_some() {
        let inside = node.output(&id, &["readlink", "/proc/self/ns/net"]).await?;
        let here = std::fs::read_link("/proc/self/ns/net")?.display().to_string();
        ensure!(inside.trim() == here, "{inside:?} inside, {here} outside");
    }
    Ok(())
}

async fn namespaces(node: Shared) -> Result<()> {
    let config = node.pod("shared");
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    let first = node.launch(&pod, &config, &idle("first", &image)).await?;
    let second = node.launch(&pod, &config, &idle("second", &image)).await?;
    for (kind, shared) in [("net", true), ("ipc", true), ("uts", true), ("pid", false), ("mnt", false)] {
        let link = format!("/proc/self/ns/{kind}");
        let (a, b) =
            (node.output(&first, &["readlink", &link]).await?, node.output(&second, &["readlink", &link]).await?);
        ensure!((a == b) == shared, "{kind}: {a:?} and {b:?}");
    }
    let processes = node.output(&first, &["ps"]).await?;
    ensure!(processes.lines().count() < 8, "more processes than its own: {processes}");
    Ok(())
}

async fn shared_pid(node: Shared) -> Result<()> {
    let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() };
    let mut config = node.pod("onepid");
    with_namespaces(&mut config, options.clone());
    let image = node.busybox().await?;
    let pod = node.run(&config).await?;
    node.launch(&pod, &config, &in_namespaces(script("neighbour", &image, "exec sleep 1234"), options.clone())).await?;
    let id = node.launch(&pod, &config, &in_namespaces(idle("c", &image), options)).await?;
    let processes = node.output(&id, &["ps"]).await?;
    ensure!(processes.contains("sleep 1234"), "the neighbour is not seen: {processes}");
    let first = node.output(&id, &["cat", "/proc/1/comm"]).await?;
    ensure!(first.trim() != "sh" && first.trim() != "sleep", "process 1 is a container's: {first:?}");
    Ok(())
}

async fn stopped(node: Shared) -> Result<()> {
    let config = node.pod("stopped");
    let (pod, _) = serve(&node, &config).await?;
    node.stop_pod(&pod).await?;
    let status = node.pod_status(&pod).await?;
    ensure!(status.state() == PodSandboxState::SandboxNotready, "{:?}", status.state());
    for container in
        node.containers(Some(ContainerFilter { pod_sandbox_id: pod.clone(), ..Default::default() })).await?
    {
        ensure!(container.state() == ContainerState::ContainerExited, "{container:?}");
    }
    if node.daemon().is_some() {
        node.network_gone().await?;
    }
    let image = node.busybox().await?;
    let late = node.try_create(&pod, &config, &idle("late", &image)).await;
    refused(late, Code::FailedPrecondition).context("a container for a stopped pod")?;
    Ok(())
}

async fn repeatable(node: Shared) -> Result<()> {
    let pod = node.run(&node.pod("again")).await?;
    for _ in 0..2 {
        node.stop_pod(&pod).await.context("stop")?;
    }
    for _ in 0..2 {
        node.remove_pod(&pod).await.context("remove")?;
    }
    let unknown = "f".repeat(64);
    node.stop_pod(&unknown).await.context("stop of an unknown pod")?;
    node.remove_pod(&unknown).await.context("removal of an unknown pod")?;
    refused(node.pod_status(&pod).await, Code::NotFound)?;
    Ok(())
}

async fn same_request(node: Shared) -> Result<()> {
    let config = node.pod("retry");
    let first = node.run(&config).await?;
    ensure!(node.run(&config).await? == first, "a retry made another pod");
    node.stop_pod(&first).await?;
    let second = node.run(&config).await?;
    ensure!(second != first, "a stopped pod was given out as a new one");
    ensure!(node.pod_status(&second).await?.state() == PodSandboxState::SandboxReady, "the new one is not ready");
    let mut next = config.clone();
    if let Some(metadata) = next.metadata.as_mut() {
        metadata.attempt = 1;
    }
    ensure!(node.run(&next).await? != second, "another attempt is another pod");
    Ok(())
}

async fn joined(node: Shared) -> Result<()> {
    let config = node.pod("joined");
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (node, config) = (node.clone(), config.clone());
            tokio::spawn(async move { node.try_run(&config).await })
        })
        .collect();
    let mut ids = Vec::new();
    for call in calls {
        ids.push(call.await??);
    }
    ids.dedup();
    ensure!(ids.len() == 1, "ten requests made {} pods: {ids:?}", ids.len());
    Ok(())
}

async fn forced(node: Shared) -> Result<()> {
    let (pod, _) = serve(&node, &node.pod("forced")).await?;
    node.remove_pod(&pod).await?;
    ensure!(node.pods_list(None).await?.iter().all(|other| other.id != pod), "still listed");
    let filter = ContainerFilter { pod_sandbox_id: pod, ..Default::default() };
    ensure!(node.containers(Some(filter)).await?.is_empty(), "its containers are still listed");
    Ok(())
}

async fn many(node: Shared) -> Result<()> {
    let image = node.busybox().await?;
    let calls: Vec<_> = (0..20)
        .map(|number| {
            let (node, image) = (node.clone(), image.clone());
            tokio::spawn(async move {
                let config = node.pod(&format!("p{number}"));
                let pod = node.run(&config).await?;
                let id = node.launch(&pod, &config, &idle("c", &image)).await?;
                let ip = node.pod_ip(&pod).await?;
                ensure!(node.output(&id, &["hostname"]).await?.trim() == config.hostname, "pod {number}: host name");
                node.stop_pod(&pod).await?;
                node.remove_pod(&pod).await?;
                Ok::<_, anyhow::Error>(ip)
            })
        })
        .collect();
    for call in calls {
        call.await??;
    }
    Ok(())
}

async fn netns_gone(node: Shared) -> Result<()> {
    let (pod, _) = serve(&node, &node.pod("gone")).await?;
    let folder = node.own()?.lock().await.directory().join("netns");
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).with_context(|| path.display().to_string())?;
        std::fs::remove_file(&path)?;
    }
    node.stop_pod(&pod).await.context("stop")?;
    node.remove_pod(&pod).await.context("remove")?;
    let left = leaks::cgroups(node.cgroup_parent())?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

async fn resized(node: Shared) -> Result<()> {
    let mut config = node.pod("resized");
    // kubelet's part: the pod's own cgroup, with limits
    let systemd = node.cgroup_parent().ends_with(".slice");
    let parent = match node.cgroup_parent().strip_suffix(".slice").filter(|_| systemd) {
        Some(slice) => format!("{slice}.slice{slice}-pod.slice"),
        None => format!("{}/kubepod", node.cgroup_parent()),
    };
    if systemd {
        let slice = parent.rsplit('/').next().unwrap_or_default();
        outside("systemctl", ["start", slice])?.ok("systemctl start")?;
    }
    if let Some(linux) = config.linux.as_mut() {
        linux.cgroup_parent.clone_from(&parent);
    }
    let pod = node.run(&config).await?;
    let limits = |cpu_shares, cpu_quota, memory_limit_in_bytes| {
        Some(LinuxContainerResources {
            cpu_shares,
            cpu_quota,
            cpu_period: 100_000,
            memory_limit_in_bytes,
            ..Default::default()
        })
    };
    let resize = |resources, overhead| {
        let request = UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.clone(), overhead, resources };
        let mut client = node.cri().runtime;
        async move { client.update_pod_sandbox_resources(request).await }
    };
    let unknown = UpdatePodSandboxResourcesRequest { pod_sandbox_id: "0".repeat(64), ..Default::default() };
    let code = node.cri().runtime.update_pod_sandbox_resources(unknown).await.err().map(|status| status.code());
    ensure!(code == Some(Code::NotFound), "an unknown pod: {code:?}");
    let place =
        |controller: &str| std::path::Path::new("/sys/fs/cgroup").join(controller).join(parent.trim_matches('/'));
    let v1 = place("memory").is_dir();
    let file = |name: &str| match (v1, name) {
        (true, "shares") => place("cpu").join("cpu.shares"),
        (true, "quota") => place("cpu").join("cpu.cfs_quota_us"),
        (true, _) => place("memory").join("memory.limit_in_bytes"),
        (false, "shares") => place("").join("cpu.weight"),
        (false, "quota") => place("").join("cpu.max"),
        (false, _) => place("").join("memory.max"),
    };
    let read = |name: &str| {
        let path = file(name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok::<_, anyhow::Error>(text.split_whitespace().next().unwrap_or_default().to_owned())
    };
    let version = node.cri().runtime.version(VersionRequest::default()).await?.into_inner();
    if version.runtime_name != "nodeagent" {
        resize(limits(512, 50_000, 64 << 20), None).await?;
        return Ok(());
    }
    // a pod without limits keeps having none, whatever its limited containers add up to
    let before = read("memory")?;
    resize(limits(512, 50_000, 64 << 20), limits(100, 10_000, 1 << 20)).await?;
    ensure!(read("memory")? == before, "memory was limited: {}", read("memory")?);
    ensure!(read("shares")? == if v1 { "612" } else { "67" }, "shares: {}", read("shares")?);
    for (name, value) in [("memory", (256 << 20).to_string()), ("quota", "90000".to_owned())] {
        std::fs::write(file(name), value).with_context(|| format!("limit {name}"))?;
    }
    resize(limits(512, 50_000, 64 << 20), limits(100, 10_000, 1 << 20)).await?;
    ensure!(read("memory")? == (65 << 20).to_string(), "memory: {}", read("memory")?);
    ensure!(read("quota")? == "60000", "quota: {}", read("quota")?);
    // less quota than the kernel takes: nothing of it holds
    let refused = resize(limits(700, 1, 128 << 20), None).await;
    ensure!(refused.is_err(), "a quota of one microsecond was taken");
    ensure!(read("memory")? == (65 << 20).to_string(), "memory after a refusal: {}", read("memory")?);
    ensure!(read("quota")? == "60000", "quota after a refusal: {}", read("quota")?);
    ensure!(read("shares")? == if v1 { "612" } else { "67" }, "shares after a refusal: {}", read("shares")?);
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
    let info = node.cri().runtime.pod_sandbox_status(request).await?.into_inner().info;
    let info = info.get("info").context("no info")?;
    ensure!(info.contains(r#""memory_limit_in_bytes":67108864"#) && info.contains(r#""cpu_shares":100"#), "{info}");
    node.stop_pod(&pod).await?;
    let code = resize(limits(512, 50_000, 64 << 20), None).await.err().map(|status| status.code());
    ensure!(code == Some(Code::FailedPrecondition), "a stopped pod: {code:?}");
    node.remove_pod(&pod).await?;
    Ok(())
}
