//! Ways out of a container that other runtimes have had; each must lead nowhere.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::daemon::binaries;
use nodeagent_tests::image::{Image as TestImage, sha256};
use tonic::Code;

use crate::containers::{pod, run, security};
use crate::node::{Node, container, idle, namespaces, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add_own("escape: a program that is /proc/self/exe is no way to ours (CVE-2019-5736)", own_program);
    suite.add("escape: no descriptor and no working directory of the host is left open (CVE-2024-21626)", descriptors);
    suite.add("escape: a null device or console that is a link is not followed (CVE-2025-31133, -52565)", null_device);
    suite.add("escape: a /proc that leads elsewhere gets none of our writes (CVE-2025-52881)", false_proc);
    suite.add("escape: mount targets that are links stay inside", mount_targets);
    suite.add("escape: a passwd that is a link is read inside the image", passwd);
    suite.add("escape: process 1 of a shared PID namespace shows nothing of the host", reaper);
    suite.add("escape: a container that stops and traces what enters it holds up nobody else", hostile_to_exec);
}

type Shared = Arc<Node>;

/// What no container may ever read.
const SECRET: &str = "secret of the host";

async fn own_program(node: Shared) -> Result<()> {
    let shim = binaries()?.join("nodeagent-shim");
    let before = sha256(&fs::read(&shim)?);
    let registry = node.world.open()?;
    // executed as the entrypoint, and as the interpreter of one
    TestImage::busybox()?
        .layer(&[("entry", "#!/proc/self/exe\n")])?
        .set("Entrypoint", serde_json::json!(["/proc/self/exe"]))
        .push(&registry, "self", "1")?;
    let image = node.pull(&registry.reference("self:1")).await?;
    let config = node.pod("self");
    let pod = node.run(&config).await?;
    for (name, command) in
        [("image", &[][..]), ("interpreter", &["/entry"]), ("command", &["/proc/self/exe", "--help"])]
    {
        let wanted = container(name, &image, command);
        let id = node.create(&pod, &config, &wanted).await?;
        // whether it starts is not what this is about
        let _ = node.start_container(&id).await;
        node.exited(&id).await?;
    }
    // what is executed in a running container is looked for and written to all the while
    let write = "while :; do for e in /proc/[0-9]*/exe; do echo x 2>/dev/null >> $e; done; done 2>/dev/null";
    let id = node.launch(&pod, &config, &script("writer", &image, write)).await?;
    for _ in 0..20 {
        node.output(&id, &["true"]).await?;
    }
    ensure!(sha256(&fs::read(&shim)?) == before, "the supervisor's program was written to");
    let other = node.pod("after");
    let pod = node.run(&other).await.context("the supervisor still starts")?;
    run(&node, &pod, &other, &script("c", &image, "true")).await?;
    Ok(())
}

async fn descriptors(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "fds").await?;
    let secret = node.pods().join("secret");
    fs::write(&secret, SECRET)?;
    let up = format!("cat {}{}", "../".repeat(12), secret.display());
    for number in 3..16 {
        for place in ["/proc/self/fd", "/proc/self/cwd/proc/self/fd", "/proc/1/fd"] {
            let mut wanted = script(&format!("fd-{number}-{}", place.len()), &image, &format!("pwd; {up}"));
            wanted.working_dir = format!("{place}/{number}");
            let id = node.create(&pod, &config, &wanted).await?;
            if node.start_container(&id).await.is_err() {
                continue;
            }
            let log = fs::read_to_string(&node.exited(&id).await?.log_path).unwrap_or_default();
            ensure!(!log.contains(SECRET), "descriptor {number} by {place} leads out:\n{log}");
        }
    }
    let count = "ls /proc/self/fd | wc -l";
    let (_, text) = run(&node, &pod, &config, &script("count", &image, count)).await?;
    // three streams, and the directory that is being listed
    ensure!(text.trim() == "4", "a container has {text} descriptors");
    let id = node.launch(&pod, &config, &idle("exec", &image)).await?;
    ensure!(node.output(&id, &["sh", "-c", count]).await?.trim() == "4", "an exec has more descriptors");
    Ok(())
}

async fn null_device(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "null").await?;
    // a /dev of the attacker's own, in which the usual names are links
    let dev = |name: &str, links: &[&str]| -> Result<Mount> {
        let folder = node.pods().join(name);
        fs::create_dir_all(&folder)?;
        for link in links {
            symlink("/etc/group", folder.join(link))?;
        }
        Ok(Mount { container_path: "/dev".into(), host_path: folder.display().to_string(), ..Default::default() })
    };
    let text = "wc -c < /etc/passwd; stat -c %t:%T /etc/passwd; ls -l /etc/group | cut -c1";
    let mut wanted = script("link", &image, text);
    security(&mut wanted)?.masked_paths = vec!["/etc/passwd".into()];
    wanted.mounts = vec![dev("linked", &["null"])?];
    let error = node.launch(&pod, &config, &wanted).await.err().context("a link was taken for the null device")?;
    ensure!(format!("{error:#}").contains("/dev/null"), "{error:#}");
    wanted.mounts = vec![dev("other", &["console", "pts", "ptmx"])?];
    wanted.metadata = Some(ContainerMetadata { name: "masked".into(), attempt: 0 });
    let (status, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(status.exit_code == 0 && text == "0\n1:3\n-\n", "what masks is not the null device: {text:?}");
    wanted.tty = true;
    wanted.metadata = Some(ContainerMetadata { name: "tty".into(), attempt: 0 });
    let id = node.create(&pod, &config, &wanted).await?;
    // no terminal can be made of these: refused, or made elsewhere, but never by way of a link
    if node.start_container(&id).await.is_ok() {
        let log = fs::read_to_string(&node.exited(&id).await?.log_path)?;
        ensure!(!log.lines().any(|line| line.ends_with(" c")), "a terminal is mounted over a file: {log:?}");
    }
    Ok(())
}

async fn false_proc(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    // the image's /proc leads into its /etc: everything written by name lands there, or is refused
    TestImage::busybox()?.link("proc", "etc")?.push(&registry, "proc", "1")?;
    let image = node.pull(&registry.reference("proc:1")).await?;
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    let config = node.pod("proc");
    let pod = node.run(&config).await?;
    let mut wanted = script(
        "c",
        &image,
        "cat /proc/sys/kernel/core_pattern; cat /proc/kcore | wc -c; echo x > /proc/sys/kernel/core_pattern",
    );
    let context = security(&mut wanted)?;
    context.masked_paths = vec!["/proc/kcore".into()];
    context.readonly_paths = vec!["/proc/sys".into()];
    let id = node.create(&pod, &config, &wanted).await?;
    if node.start_container(&id).await.is_ok() {
        let log = fs::read_to_string(&node.exited(&id).await?.log_path)?;
        ensure!(log.contains("Read-only file system") && log.contains(" F 0\n"), "{log}");
    }
    ensure!(fs::read_to_string("/proc/sys/kernel/core_pattern")? == before, "a sysctl of the host was written");
    Ok(())
}

async fn mount_targets(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    let outside = node.pods().join("outside");
    let up = "../".repeat(12);
    TestImage::busybox()?
        .link("climbing", &format!("{up}{}", outside.display()))?
        .link("absolute", &outside.display().to_string())?
        .push(&registry, "targets", "1")?;
    let image = node.pull(&registry.reference("targets:1")).await?;
    let source = node.pods().join("source");
    fs::create_dir_all(&source)?;
    fs::write(source.join("file"), "mounted\n")?;
    let config = node.pod("targets");
    let pod = node.run(&config).await?;
    let mut wanted = script("c", &image, "cat /climbing/a/file /absolute/b/file");
    let mount = |inside: &str| Mount {
        container_path: inside.into(),
        host_path: source.display().to_string(),
        ..Default::default()
    };
    wanted.mounts = vec![mount("/climbing/a"), mount("/absolute/b")];
    wanted.working_dir = "/climbing/made".into();
    let (status, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(status.exit_code == 0 && text == "mounted\nmounted\n", "{text:?}");
    ensure!(!outside.exists(), "{} was made on the host", outside.display());
    Ok(())
}

async fn passwd(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    let outside = node.pods().join("passwd");
    fs::write(&outside, "hostuser:x:4242:4242::/:/bin/sh\n")?;
    TestImage::busybox()?
        .link("etc/passwd", &format!("{}{}", "../".repeat(12), outside.display()))?
        .push(&registry, "passwd", "1")?;
    let image = node.pull(&registry.reference("passwd:1")).await?;
    let config = node.pod("passwd");
    let pod = node.run(&config).await?;
    let mut wanted = script("c", &image, "id -u");
    security(&mut wanted)?.run_as_username = "hostuser".into();
    let error = node.try_create(&pod, &config, &wanted).await.err().context("a user of the host was found")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("hostuser"), "{error}");
    Ok(())
}

async fn reaper(node: Shared) -> Result<()> {
    let mut config = node.pod("reaper");
    let shared = NamespaceOption { pid: NamespaceMode::Pod.into(), ..namespaces() };
    if let Some(context) = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        context.namespace_options = Some(shared.clone());
    }
    let (image, pod) = (node.busybox().await?, node.run(&config).await?);
    // one stream: two have no order between them
    let text = "exec 2>&1; ls -A /proc/1/root/; ls -A /proc/1/cwd/; cat /proc/1/environ; ls -l /proc/1/fd; \
                echo x > /proc/1/mem; echo end";
    for (name, add) in [("plain", &[][..]), ("tracer", &["SYS_PTRACE", "DAC_READ_SEARCH", "SYS_ADMIN"])] {
        let mut wanted = script(name, &image, text);
        let context = security(&mut wanted)?;
        context.namespace_options = Some(shared.clone());
        let add_capabilities = add.iter().map(|each| (*each).to_owned()).collect();
        context.capabilities = Some(Capability { add_capabilities, ..Default::default() });
        let (_, text) = run(&node, &pod, &config, &wanted).await?;
        ensure!(text.ends_with("end\n"), "{text}");
        for host in ["home", "usr", "boot", "nodeagent", "sock"] {
            ensure!(!text.contains(host), "{name} sees the host by process 1:\n{text}");
        }
    }
    Ok(())
}

async fn hostile_to_exec(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "hostile").await?;
    let stop = "while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || [ $p = $$ ] || kill -STOP $p; done; done 2>/dev/null";
    let mut wanted = script("hostile", &image, stop);
    let add_capabilities = vec!["SYS_PTRACE".to_owned(), "KILL".to_owned()];
    security(&mut wanted)?.capabilities = Some(Capability { add_capabilities, ..Default::default() });
    let hostile = node.launch(&pod, &config, &wanted).await?;
    let calm = node.launch(&pod, &config, &idle("calm", &image)).await?;
    for _ in 0..5 {
        // it may get through or be stopped and run out of time; it may not hang
        let _ = node.exec(&hostile, &["true"], 1).await;
        ensure!(node.output(&calm, &["echo", "fine"]).await? == "fine\n", "a neighbour is held up");
    }
    node.stop_container(&hostile, 0).await.context("stop what is hostile")?;
    ensure!(node.exited(&hostile).await?.exit_code == 137, "killed");
    Ok(())
}
