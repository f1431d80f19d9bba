//! SELinux: what tells pods from each other and from the host. Of a host where it is enforcing, with the types of container-selinux.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::outside::run as outside;

use crate::containers::{pod, run, security};
use crate::node::{Node, idle, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    let enforcing = fs::read_to_string("/sys/fs/selinux/enforce").unwrap_or_default().trim() == "1";
    // the kernel takes a label here if the policy has it
    if !enforcing || fs::write("/sys/fs/selinux/context", "system_u:system_r:container_t:s0:c1,c2").is_err() {
        return;
    }
    suite.add("selinux: processes and files of a pod have a pair of categories that no other pod has", categories);
    suite.add("selinux: the level and the type that are asked for are what processes and files get", asked);
    suite.add("selinux: a volume is labelled for its pod when asked, and closed to other pods", volume);
    suite.add("selinux: files of the host stay closed to a container that mounts them", host_files);
    suite.add("selinux: a privileged container is not confined", privileged);
}

type Shared = Arc<Node>;

/// The label of a process, in its four parts.
fn parts(label: &str) -> Result<[String; 4]> {
    let all: Vec<String> = label.trim_end_matches(['\0', '\n']).splitn(4, ':').map(str::to_owned).collect();
    all.try_into().map_err(|all| anyhow::anyhow!("{all:?} is no label"))
}

async fn process(node: &Node, id: &str) -> Result<[String; 4]> {
    parts(&node.output(id, &["cat", "/proc/self/attr/current"]).await?)
}

/// The label that all files of a container's root have.
async fn files(node: &Node, id: &str) -> Result<[String; 4]> {
    let line = node.output(id, &["grep", " / / ", "/proc/self/mountinfo"]).await?;
    let label = line.split("context=").nth(1).with_context(|| format!("no context: {line}"))?;
    // quoted for its comma
    parts(label.trim_start_matches('"').split(['"', ' ', '\n']).next().unwrap_or_default())
}

fn on_host(path: &Path) -> Result<[String; 4]> {
    parts(&outside("stat", ["-c", "%C", &path.display().to_string()])?.ok("stat")?)
}

fn mount(node: &Node, name: &str, selinux_relabel: bool) -> Mount {
    let host_path = node.pods().join(name).display().to_string();
    Mount { container_path: "/data".into(), host_path, selinux_relabel, ..Default::default() }
}

async fn categories(node: Shared) -> Result<()> {
    let (one, one_config, image) = pod(&node, "one").await?;
    let (two, two_config, _) = pod(&node, "two").await?;
    let a = node.launch(&one, &one_config, &idle("a", &image)).await?;
    let b = node.launch(&one, &one_config, &idle("b", &image)).await?;
    let c = node.launch(&two, &two_config, &idle("c", &image)).await?;
    let [user, role, kind, level] = process(&node, &a).await?;
    ensure!((user.as_str(), role.as_str(), kind.as_str()) == ("system_u", "system_r", "container_t"), "{kind}");
    let (s, pair) = level.split_once(':').with_context(|| format!("no categories in {level}"))?;
    ensure!(s == "s0" && pair.split(',').filter(|one| one.starts_with('c')).count() == 2, "{level}");
    // a command run later is in it as well, which is how this was asked; the first process has the same
    let first = parts(&node.output(&a, &["cat", "/proc/1/attr/current"]).await?)?;
    ensure!(first[3] == level && first[2] == kind, "{first:?}");
    ensure!(process(&node, &b).await?[3] == level, "two levels in one pod");
    ensure!(process(&node, &c).await?[3] != level, "two pods with one level");
    let [_, _, kind, of_files] = files(&node, &a).await?;
    ensure!(kind == "container_file_t" && of_files == level, "{kind} {of_files}");
    Ok(())
}

async fn asked(node: Shared) -> Result<()> {
    let options =
        |r#type: &str, level: &str| SeLinuxOption { r#type: r#type.into(), level: level.into(), ..Default::default() };
    let (pod, config, image) = pod(&node, "asked").await?;
    let mut wanted = idle("level", &image);
    security(&mut wanted)?.selinux_options = Some(options("", "s0:c7,c9"));
    let id = node.launch(&pod, &config, &wanted).await?;
    ensure!(process(&node, &id).await?[3] == "s0:c7,c9", "{:?}", process(&node, &id).await?);
    ensure!(files(&node, &id).await?[3] == "s0:c7,c9", "{:?}", files(&node, &id).await?);
    let mut wanted = idle("type", &image);
    security(&mut wanted)?.selinux_options = Some(options("no_such_type_t", ""));
    let error = node.launch(&pod, &config, &wanted).await.err().context("a type that no policy has")?;
    ensure!(format!("{error:#}").contains("no_such_type_t"), "{error:#}");
    Ok(())
}

async fn volume(node: Shared) -> Result<()> {
    let (own, own_config, image) = pod(&node, "owner").await?;
    let folder = node.pods().join("labelled");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("file"), "of the pod\n")?;
    let mut wanted = script("c", &image, "cat /data/file; echo new > /data/new; cat /proc/self/attr/current");
    wanted.mounts = vec![mount(&node, "labelled", true)];
    let (status, text) = run(&node, &own, &own_config, &wanted).await?;
    ensure!(status.exit_code == 0 && text.starts_with("of the pod\n"), "{text}");
    let level = parts(text.lines().nth(1).unwrap_or_default())?[3].clone();
    for name in ["", "file", "new"] {
        let [_, _, kind, found] = on_host(&folder.join(name))?;
        ensure!(kind == "container_file_t" && found == level, "{name}: {kind} {found}, not {level}");
    }
    let (other, other_config, _) = pod(&node, "other").await?;
    let mut wanted = script("c", &image, "cat /data/file 2>&1; echo x 2>/dev/null > /data/file || echo closed");
    wanted.mounts = vec![mount(&node, "labelled", false)];
    let (_, text) = run(&node, &other, &other_config, &wanted).await?;
    ensure!(text.contains("Permission denied") && !text.contains("of the pod"), "{text}");
    ensure!(fs::read_to_string(folder.join("file"))? == "of the pod\n", "another pod has written");
    Ok(())
}

async fn host_files(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "host").await?;
    let mut wanted = script("c", &image, "id -u; cat /data/shadow 2>&1; echo x >> /data/hostname || echo closed");
    wanted.mounts = vec![Mount { host_path: "/etc".into(), ..mount(&node, "", false) }];
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text.starts_with("0\n") && text.contains("Permission denied") && text.contains("closed"), "{text}");
    // nobody relabels the host
    wanted.metadata = Some(ContainerMetadata { name: "relabel".into(), attempt: 0 });
    wanted.mounts = vec![Mount { host_path: "/etc".into(), ..mount(&node, "", true) }];
    let error = node.launch(&pod, &config, &wanted).await.err().context("/etc was relabelled")?;
    ensure!(format!("{error:#}").contains("/etc"), "{error:#}");
    ensure!(on_host(Path::new("/etc"))?[2] == "etc_t", "{:?}", on_host(Path::new("/etc"))?);
    Ok(())
}

async fn privileged(node: Shared) -> Result<()> {
    let mut config = node.pod("privileged");
    if let Some(context) = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        context.privileged = true;
    }
    let (image, pod) = (node.busybox().await?, node.run(&config).await?);
    let mut wanted =
        script("c", &image, "cat /proc/self/attr/current; echo; cat /data/shadow > /dev/null && echo read");
    security(&mut wanted)?.privileged = true;
    wanted.mounts = vec![Mount { host_path: "/etc".into(), ..mount(&node, "", false) }];
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text.contains(":spc_t:") && text.ends_with("read\n"), "{text}");
    Ok(())
}
