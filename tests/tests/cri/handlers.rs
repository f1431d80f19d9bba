//! Runtime handlers: Debian's runc and crun make the containers, our shim is their parent; and Debian's shim of containerd's,
//! which is told by ttrpc.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::daemon;
use tonic::Code;

use crate::node::{Node, container, idle, refused, script};
use crate::suite::Suite;

type Shared = Arc<Node>;
type Trial = fn(Shared) -> Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// crun 1.8 refuses hosts where cgroup v2 has a controller beside v1's hierarchies: it is not shown v2 there.
const WITHOUT_V2: &str = "#!/bin/sh\nexec unshare -m /bin/sh -c \
    'umount -l /sys/fs/cgroup/unified 2>/dev/null; exec /usr/bin/crun \"$@\"' crun \"$@\"\n";

/// The handler whose containers are made by a shim of containerd's kind.
const SHIM_V2: &str = "shim-v2";

/// What is installed, by the names that pods ask for.
pub struct Installed {
    pub names: Vec<&'static str>,
    pub settings: &'static str,
    _directory: Option<tempfile::TempDir>,
}

pub static INSTALLED: LazyLock<Installed> = LazyLock::new(|| match installed() {
    Ok(installed) => installed,
    Err(error) => {
        eprintln!("SKIPPED: runtime handlers: {error:#}");
        Installed { names: Vec::new(), settings: "", _directory: None }
    }
});

fn installed() -> Result<Installed> {
    // the first process of their pods is executed where there is no library
    let shim = fs::read(daemon::binaries()?.join("nodeagent-shim"))?;
    let interpreter = b"/lib64/ld-linux";
    ensure!(!shim.windows(interpreter.len()).any(|part| part == interpreter), "the shim is not a static program");
    let directory = tempfile::tempdir()?;
    let (mut names, mut settings) = (Vec::new(), String::new());
    for name in ["runc", "crun"] {
        let mut places = ["/usr/bin", "/usr/sbin"].into_iter().map(|place| Path::new(place).join(name));
        let Some(mut path) = places.find(|path| path.exists()) else { continue };
        if name == "crun" && Path::new("/sys/fs/cgroup/unified").is_dir() {
            path = directory.path().join(name);
            fs::write(&path, WITHOUT_V2)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        settings.push_str(&format!("[runtimes.{name}]\npath = {path:?}\n"));
        names.push(name);
    }
    ensure!(!names.is_empty(), "neither runc nor crun is installed");
    let path = Path::new("/usr/bin/containerd-shim-runc-v2");
    match path.exists() && names.contains(&"runc") {
        true => {
            settings.push_str(&format!("[runtimes.{SHIM_V2}]\nkind = \"shim-v2\"\npath = {path:?}\n"));
            names.push(SHIM_V2);
        }
        false => eprintln!("SKIPPED: runtime handlers: {} or runc is not installed", path.display()),
    }
    Ok(Installed { names, settings: Box::leak(settings.into_boxed_str()), _directory: Some(directory) })
}

pub fn add(suite: &mut Suite) {
    let mut add = |name: &str, test: Trial| {
        suite.add_own_with(name, INSTALLED.settings, test);
    };
    add("handlers: another runtime's container runs, logs, answers and ends as ours do", |node| Box::pin(life(node)));
    add("handlers: what is asked for is what another runtime gives", |node| Box::pin(inside(node)));
    add("handlers: a program that is not there is a StartError that says so", |node| Box::pin(no_program(node)));
    add("handlers: containers of a pod share its PID namespace, whose first process is the reaper", |node| {
        Box::pin(shared_pid(node))
    });
    add("handlers: an exec's timeout ends everything that the command started", |node| Box::pin(timeout(node)));
    add("handlers: a terminal is one in another runtime's container too", |node| Box::pin(terminal(node)));
    add("handlers: pods go on while the daemon is dead, and changed limits arrive", |node| Box::pin(survival(node)));
    add("handlers: the shim of another runtime serves a pod, and goes with it", |node| Box::pin(shim_of_pod(node)));
    add("handlers: a pod whose other shim is killed ends, and nothing of it is left", |node| {
        Box::pin(shim_killed(node))
    });
    add("handlers: a pod of another shim ends with our shim", |node| Box::pin(own_shim_killed(node)));
    add("handlers: what a container of another shim wrote last is in its log", |node| Box::pin(last_words(node)));
    add("handlers: a container of another shim that takes too much memory is OOMKilled", |node| Box::pin(memory(node)));
    add("handlers: unknown ones are refused with a list of those that are known", |node| Box::pin(unknown(node)));
}

/// A pod by another runtime, with its configuration and the image of its containers.
async fn pod(node: &Node, handler: &str) -> Result<(String, PodSandboxConfig, String)> {
    let config = node.pod(&format!("by-{handler}"));
    let image = node.busybox().await?;
    let pod = node.run_by(&config, handler).await.with_context(|| format!("RunPodSandbox by {handler}"))?;
    Ok((pod, config, image))
}

async fn life(node: Shared) -> Result<()> {
    for handler in &INSTALLED.names {
        let (pod, config, image) = pod(&node, handler).await?;
        let status = node.pod_status(&pod).await?;
        ensure!(status.runtime_handler == *handler, "{status:?}");
        let wanted = script("short", &image, "echo to-out; echo to-err >&2; exit 3");
        let short = node.launch(&pod, &config, &wanted).await.with_context(|| format!("{handler}: short"))?;
        let status = node.exited(&short).await?;
        ensure!((status.exit_code, status.reason.as_str()) == (3, "Error"), "{handler}: {status:?}");
        ensure!(status.started_at > 0 && status.finished_at >= status.started_at, "{handler}: {status:?}");
        for line in [" stdout F to-out", " stderr F to-err"] {
            let log = node.log_with(&status.log_path, line).await.with_context(|| format!("by {handler}"))?;
            ensure!(log.iter().any(|written| written.ends_with(line)), "{handler}: {log:?}");
        }

        let long = node.launch(&pod, &config, &idle("long", &image)).await?;
        let answer = node.exec(&long, &["sh", "-c", "echo out; echo err >&2; exit 42"], 10).await?;
        ensure!(&answer.stdout[..] == b"out\n" && &answer.stderr[..] == b"err\n", "{handler}: {answer:?}");
        ensure!(answer.exit_code == 42, "{handler}: {answer:?}");
        // the pod's network, by the pod's address
        let address = node.output(&long, &["sh", "-c", "ip -4 addr show dev eth0"]).await?;
        ensure!(address.contains(&node.pod_ip(&pod).await?), "{handler}: {address}");
        ensure!(node.output(&long, &["hostname"]).await?.trim() == config.hostname, "{handler}: host name");
        node.stop_container(&long, 10).await?;
        let status = node.exited(&long).await?;
        ensure!((status.exit_code, status.reason.as_str()) == (0, "Completed"), "{handler}: {status:?}");

        let killed = node.launch(&pod, &config, &script("killed", &image, "trap '' TERM; sleep 1000")).await?;
        node.stop_container(&killed, 0).await?;
        ensure!(node.exited(&killed).await?.exit_code == 137, "{handler}");
        node.stop_pod(&pod).await?;
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

async fn inside(node: Shared) -> Result<()> {
    let folder = node.pods().join("volume");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("file"), "from the host\n")?;
    for handler in &INSTALLED.names {
        let (pod, config, image) = pod(&node, handler).await?;
        let mut wanted = idle("c", &image);
        wanted.envs = vec![KeyValue { key: "ASKED".into(), value: "for".into() }];
        wanted.mounts = vec![Mount {
            host_path: folder.display().to_string(),
            container_path: "/volume".into(),
            readonly: true,
            ..Default::default()
        }];
        let linux = wanted.linux.get_or_insert_default();
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_shares: 512,
            oom_score_adj: 500,
            ..Default::default()
        });
        let context = linux.security_context.get_or_insert_default();
        context.run_as_user = Some(Int64Value { value: 1000 });
        context.run_as_group = Some(Int64Value { value: 2000 });
        context.supplemental_groups = vec![3000];
        context.no_new_privs = true;
        context.seccomp = Some(SecurityProfile {
            profile_type: security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        });
        context.masked_paths = vec!["/proc/interrupts".into()];
        let id = node.launch(&pod, &config, &wanted).await.with_context(|| format!("{handler}: launch"))?;
        let said = "id -u; id -g; id -G; echo $ASKED; cat /volume/file; cat /proc/1/oom_score_adj; \
            grep -E '^(Seccomp|NoNewPrivs):' /proc/1/status; cat /proc/interrupts; echo x 2>/dev/null > /volume/new || echo read-only";
        let text = node.output(&id, &["sh", "-c", said]).await?;
        let lines: Vec<&str> = text.lines().collect();
        let expected = [
            "1000",
            "2000",
            "2000 3000 50000",
            "for",
            "from the host",
            "500",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "read-only",
        ];
        ensure!(lines == expected, "{handler}: {lines:?}");
        let limit = Path::new("/sys/fs/cgroup/memory").join(node.cgroup_parent().trim_matches('/'));
        let limit = limit.join(format!("crio-{id}/memory.limit_in_bytes"));
        if limit.exists() {
            ensure!(fs::read_to_string(&limit)?.trim() == (64 << 20).to_string(), "{handler}: the limit of memory");
        }
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

async fn no_program(node: Shared) -> Result<()> {
    for handler in &INSTALLED.names {
        let (pod, config, image) = pod(&node, handler).await?;
        let id = node.create(&pod, &config, &container("c", &image, &["/no/such/program"])).await?;
        let error = node.start_container(&id).await.err().with_context(|| format!("{handler}: it was started"))?;
        ensure!(error.message().contains("/no/such/program"), "{handler}: {}", error.message());
        let status = node.exited(&id).await?;
        ensure!((status.exit_code, status.reason.as_str()) == (127, "StartError"), "{handler}: {status:?}");
        ensure!(status.message.contains("/no/such/program"), "{handler}: {}", status.message);
        node.remove_container(&id).await?;
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

async fn shared_pid(node: Shared) -> Result<()> {
    for handler in &INSTALLED.names {
        let mut config = node.pod(&format!("shared-{handler}"));
        let options = NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() };
        if let Some(context) = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
            context.namespace_options = Some(options.clone());
        }
        let image = node.busybox().await?;
        let pod = node.run_by(&config, handler).await?;
        let mut ids = Vec::new();
        for name in ["one", "other"] {
            let mut wanted = script(name, &image, &format!("exec sleep 77{}", name.len()));
            if let Some(context) = wanted.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
                context.namespace_options = Some(options.clone());
            }
            ids.push(node.launch(&pod, &config, &wanted).await.with_context(|| format!("{handler}: {name}"))?);
        }
        let first = node.output(&ids[0], &["cat", "/proc/1/cmdline"]).await?;
        ensure!(first.contains("nodeagent-reaper"), "{handler}: process 1 is {first:?}");
        let all = node.output(&ids[0], &["ps"]).await?;
        ensure!(all.contains("sleep 773") && all.contains("sleep 775"), "{handler}: {all}");
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

async fn timeout(node: Shared) -> Result<()> {
    for handler in &INSTALLED.names {
        let (pod, config, image) = pod(&node, handler).await?;
        let id = node.launch(&pod, &config, &idle("c", &image)).await?;
        let call = node.exec(&id, &["sh", "-c", "sleep 7777 & setsid sleep 7777 & sleep 7777"], 1).await;
        refused(call, Code::DeadlineExceeded).with_context(|| format!("by {handler}"))?;
        let processes = node.output(&id, &["ps"]).await?;
        ensure!(!processes.contains("sleep 7777"), "{handler}: still there: {processes}");
        match node.exec(&id, &["no-such-program"], 10).await {
            Ok(answer) => ensure!([126, 127].contains(&answer.exit_code), "{handler}: {answer:?}"),
            Err(status) => ensure!(status.message().contains("no-such-program"), "{handler}: {}", status.message()),
        }
        ensure!(node.status(&id).await?.state() == ContainerState::ContainerRunning, "{handler}: it has ended");
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

async fn terminal(node: Shared) -> Result<()> {
    for handler in &INSTALLED.names {
        let (pod, config, image) = pod(&node, handler).await?;
        let mut wanted = script("c", &image, "tty; test -t 0 && test -t 1 && test -t 2 && echo three; sleep 0.1");
        (wanted.tty, wanted.stdin) = (true, true);
        let id = node.launch(&pod, &config, &wanted).await.with_context(|| format!("by {handler}"))?;
        let status = node.exited(&id).await?;
        let log = node.log_with(&status.log_path, "three").await.with_context(|| format!("by {handler}"))?;
        ensure!(log.iter().any(|line| line.contains("/dev/")), "{handler}: {log:?}");
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

async fn survival(node: Shared) -> Result<()> {
    for handler in &INSTALLED.names {
        let (pod, config, image) = pod(&node, handler).await?;
        let id = node.launch(&pod, &config, &idle("c", &image)).await?;
        {
            let mut daemon = node.own()?.lock().await;
            daemon.kill()?;
            daemon.resume()?;
        }
        ensure!(node.pod_status(&pod).await?.state() == PodSandboxState::SandboxReady, "{handler}: the pod is gone");
        ensure!(node.output(&id, &["echo", "still"]).await? == "still\n", "{handler}");
        let limits = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
        let request =
            UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(limits), ..Default::default() };
        node.cri().runtime.update_container_resources(request).await.with_context(|| format!("{handler}: update"))?;
        let limit = Path::new("/sys/fs/cgroup/memory").join(node.cgroup_parent().trim_matches('/'));
        let limit = limit.join(format!("crio-{id}/memory.limit_in_bytes"));
        if limit.exists() {
            ensure!(fs::read_to_string(&limit)?.trim() == (96 << 20).to_string(), "{handler}: the limit of memory");
        }
        node.stop_pod(&pod).await?;
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

async fn unknown(node: Shared) -> Result<()> {
    let error = refused(node.try_run_by(&node.pod("unknown"), "kata").await, Code::InvalidArgument)?;
    for name in INSTALLED.names.iter().chain(&["kata"]) {
        ensure!(error.message().contains(name), "{}", error.message());
    }
    let answer = node.cri().runtime.status(StatusRequest::default()).await?.into_inner();
    let mut names: Vec<&str> = answer.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    names.sort_unstable();
    let mut expected: Vec<&str> = INSTALLED.names.iter().copied().chain([""]).collect();
    expected.sort_unstable();
    ensure!(names == expected, "{names:?}");
    for handler in answer.runtime_handlers.iter().filter(|handler| !handler.name.is_empty()) {
        let features = handler.features.context("a handler without features")?;
        ensure!(!features.user_namespaces, "{} offers user namespaces", handler.name);
    }
    Ok(())
}

/// The process of a pod's other shim, by what is kept of it.
async fn other_shim(node: &Node, pod: &str) -> Result<(i32, PathBuf)> {
    let root = node.own()?.lock().await.directory().join("state/runtimes").join(SHIM_V2);
    let text = fs::read_to_string(root.join(pod).join("shim.json")).context("what is kept of the other shim")?;
    let kept: serde_json::Value = serde_json::from_str(&text)?;
    let pid = kept["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context(text.clone())?;
    let socket = kept["address"].as_str().and_then(|address| address.strip_prefix("unix://")).context(text.clone())?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).context("the other shim does not run")?;
    ensure!(String::from_utf8_lossy(&line).contains("containerd-shim-runc-v2"), "process {pid} is another one");
    Ok((pid, socket.into()))
}

/// Waits until it is so; what is waited for tells nobody.
async fn eventually(what: &str, mut so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !so() {
        ensure!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn has_shim_v2() -> bool {
    let has = INSTALLED.names.contains(&SHIM_V2);
    if !has {
        eprintln!("SKIPPED: there is no shim of containerd's");
    }
    has
}

async fn shim_of_pod(node: Shared) -> Result<()> {
    if !has_shim_v2() {
        return Ok(());
    }
    let (pod, config, image) = pod(&node, SHIM_V2).await?;
    let (pid, socket) = other_shim(&node, &pod).await?;
    let one = node.launch(&pod, &config, &idle("one", &image)).await?;
    let other = node.launch(&pod, &config, &idle("other", &image)).await?;
    for id in [&one, &other] {
        ensure!(other_shim(&node, id).await?.0 == pid, "it has a shim of its own");
    }
    // the containers are the other shim's children, and what it mounts for them is nobody else's
    let root = node.own()?.lock().await.directory().join("state/runtimes").join(SHIM_V2);
    let task = fs::read_to_string(root.join(&one).join("task.pid"))?;
    let stat = fs::read_to_string(format!("/proc/{task}/stat"))?;
    let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).context("its parent")?;
    ensure!(parent == pid.to_string(), "its parent is {parent}");
    let mounted = |mounts: &str| mounts.contains(&format!("{SHIM_V2}/{one}/rootfs"));
    ensure!(mounted(&fs::read_to_string(format!("/proc/{pid}/mountinfo"))?), "its root is not mounted");
    ensure!(!mounted(&fs::read_to_string("/proc/self/mountinfo")?), "the host sees its root");
    node.stop_container(&one, 10).await?;
    node.remove_container(&one).await?;
    ensure!(!root.join(&one).exists(), "what was kept of it is still there");
    ensure!(node.output(&other, &["echo", "still"]).await? == "still\n", "the other one is gone too");
    node.remove_pod(&pod).await?;
    let left: Vec<_> = fs::read_dir(&root)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.iter().all(|name| name == "events" || name == "runc"), "left: {left:?}");
    ensure!(fs::read_dir(root.join("events"))?.next().is_none(), "left: a socket for events");
    ensure!(!socket.exists(), "left: {}", socket.display());
    ensure!(!Path::new(&format!("/proc/{pid}/cmdline")).exists(), "the other shim still runs");
    Ok(())
}

async fn shim_killed(node: Shared) -> Result<()> {
    if !has_shim_v2() {
        return Ok(());
    }
    let (pod, config, image) = pod(&node, SHIM_V2).await?;
    let (pid, socket) = other_shim(&node, &pod).await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    let root = node.own()?.lock().await.directory().join("state/runtimes").join(SHIM_V2);
    let task = fs::read_to_string(root.join(&id).join("task.pid"))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    let status = node.exited(&id).await?;
    ensure!(status.exit_code == 255, "{status:?}");
    eventually("the container's process has ended", || !Path::new(&format!("/proc/{task}")).exists()).await?;
    let mut ready = true;
    for _ in 0..1500 {
        ready = node.pod_status(&pod).await?.state() == PodSandboxState::SandboxReady;
        if !ready {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(!ready, "the pod is ready without its shim");
    ensure!(node.try_create(&pod, &config, &idle("again", &image)).await.is_err(), "it takes containers");
    node.remove_pod(&pod).await?;
    ensure!(!root.join(&pod).exists() && !root.join(&id).exists() && !socket.exists(), "something is left");
    // a pod of the same name gets a new one
    let again = node.run_by(&config, SHIM_V2).await.context("another pod")?;
    ensure!(other_shim(&node, &again).await?.0 != pid, "the same shim");
    Ok(())
}

async fn own_shim_killed(node: Shared) -> Result<()> {
    if !has_shim_v2() {
        return Ok(());
    }
    let (pod, config, image) = pod(&node, SHIM_V2).await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    let root = node.own()?.lock().await.directory().join("state/runtimes").join(SHIM_V2);
    let task = fs::read_to_string(root.join(&id).join("task.pid"))?;
    let mut killed = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("--sandbox") && line.contains(&pod) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
            killed += 1;
        }
    }
    ensure!(killed == 1, "{killed} shims of pod {pod}");
    let status = node.exited(&id).await?;
    ensure!((status.exit_code, status.reason.as_str()) == (255, "ShimLost"), "{status:?}");
    eventually("the container's process has ended", || !Path::new(&format!("/proc/{task}")).exists()).await?;
    node.remove_pod(&pod).await?;
    ensure!(!root.join(&pod).exists() && !root.join(&id).exists(), "something is left");
    Ok(())
}

async fn last_words(node: Shared) -> Result<()> {
    if !has_shim_v2() {
        return Ok(());
    }
    let (pod, config, image) = pod(&node, SHIM_V2).await?;
    let lines = 20_000;
    for (name, end) in [("ends", "exit 0"), ("is-killed", "kill -9 $$")] {
        let text = format!("i=0; while [ $i -lt {lines} ]; do echo line-$i; i=$((i+1)); done; echo the-last; {end}");
        // not process 1, which would kill itself in vain
        let wanted = script(name, &image, &format!("exec 2>/dev/null; sh -c '{text}'; exit $?"));
        let id = node.launch(&pod, &config, &wanted).await?;
        let status = node.exited(&id).await?;
        let log = fs::read_to_string(&status.log_path)?;
        ensure!(log.lines().count() == lines + 1, "{name}: {} lines", log.lines().count());
        ensure!(log.ends_with(" stdout F the-last\n"), "{name}: the last line is missing");
    }
    Ok(())
}

async fn memory(node: Shared) -> Result<()> {
    if !has_shim_v2() {
        return Ok(());
    }
    let (pod, config, image) = pod(&node, SHIM_V2).await?;
    let mut wanted = script("eater", &image, "exec tail /dev/zero");
    let linux = wanted.linux.get_or_insert_default();
    linux.resources = Some(LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() });
    let id = node.launch(&pod, &config, &wanted).await?;
    let status = node.exited(&id).await?;
    ensure!((status.exit_code, status.reason.as_str()) == (137, "OOMKilled"), "{status:?}");
    Ok(())
}
