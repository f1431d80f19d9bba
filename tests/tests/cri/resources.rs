//! Limits of running containers: as the container itself sees them in its cgroup, and what an update makes of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::outside::run as outside;

use crate::containers::pod;
use crate::node::{Driver, Node, idle, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add(
        "limits: an update of a running container holds in its cgroup and in its status, all of it or none",
        updated,
    );
    suite.add("limits: a container that has not started takes an update too", updated_before);
    // elsewhere its tree has no controllers
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !controllers.split_whitespace().any(|controller| controller == "memory") {
        return;
    }
    suite.add("cgroup v2: a container sees its own cgroup alone, and may not write to it", own_view);
    suite.add("cgroup v2: each limit is in its file", files);
    suite.add("cgroup v2: huge pages are limited", hugepages);
    if suite.driver() == Driver::Systemd {
        suite.add("cgroup v2: systemd knows the limits, those of an update too, and keeps them", kept_by_systemd);
    }
}

type Shared = Arc<Node>;

fn with(mut wanted: ContainerConfig, resources: LinuxContainerResources) -> ContainerConfig {
    if let Some(linux) = wanted.linux.as_mut() {
        linux.resources = Some(resources);
    }
    wanted
}

async fn update(node: &Node, id: &str, linux: LinuxContainerResources) -> Result<(), tonic::Status> {
    let request = UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
    node.cri().runtime.update_container_resources(request).await.map(|_| ())
}

/// Memory, CPU quota and CPU weight, as the container sees them.
async fn seen(node: &Node, id: &str) -> Result<[String; 3]> {
    let text = "cd /sys/fs/cgroup; if [ -e memory.max ]; then cat memory.max cpu.max cpu.weight; else \
                cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares; fi";
    let text = node.output(id, &["sh", "-c", text]).await?;
    let lines: Vec<String> = text.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect();
    lines.try_into().map_err(|lines| anyhow::anyhow!("{lines:?}"))
}

/// The last one: the number of shares as cgroup v1 has it, and as v2 has it.
fn expected(memory: i64, quota: i64, shares: (&str, &str)) -> [String; 3] {
    let v1 = Path::new("/sys/fs/cgroup/memory").is_dir();
    [memory.to_string(), quota.to_string(), if v1 { shares.0 } else { shares.1 }.to_owned()]
}

async fn updated(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "updated").await?;
    let first = LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    };
    let id = node.launch(&pod, &config, &with(idle("c", &image), first)).await?;
    ensure!(seen(&node, &id).await? == expected(64 << 20, 50_000, ("512", "59")), "{:?}", seen(&node, &id).await?);
    // what is not said stays
    let more = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, cpu_shares: 1024, ..Default::default() };
    update(&node, &id, more).await?;
    let now = expected(96 << 20, 50_000, ("1024", "100"));
    ensure!(seen(&node, &id).await? == now, "{:?}", seen(&node, &id).await?);
    // less quota than the kernel takes: nothing of it holds
    let wrong = LinuxContainerResources { memory_limit_in_bytes: 128 << 20, cpu_quota: 1, ..Default::default() };
    ensure!(update(&node, &id, wrong).await.is_err(), "a quota of one microsecond was taken");
    ensure!(seen(&node, &id).await? == now, "after a refusal: {:?}", seen(&node, &id).await?);
    let resources = node.status(&id).await?.resources.and_then(|resources| resources.linux).context("no resources")?;
    ensure!((resources.memory_limit_in_bytes, resources.cpu_quota) == (96 << 20, 50_000), "{resources:?}");
    ensure!(resources.cpu_shares == 1024, "{resources:?}");
    Ok(())
}

async fn updated_before(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "early").await?;
    let limits = |memory_limit_in_bytes| LinuxContainerResources { memory_limit_in_bytes, ..Default::default() };
    let id = node.create(&pod, &config, &with(idle("c", &image), limits(64 << 20))).await?;
    update(&node, &id, limits(80 << 20)).await?;
    node.start_container(&id).await?;
    let memory = seen(&node, &id).await?[0].clone();
    ensure!(memory == (80 << 20).to_string(), "{memory}");
    Ok(())
}

async fn own_view(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "view").await?;
    let id = node.launch(&pod, &config, &idle("c", &image)).await?;
    ensure!(node.output(&id, &["cat", "/proc/1/cgroup"]).await? == "0::/\n", "not the root of what it sees");
    let text = "exec 2>&1; cd /sys/fs/cgroup; echo 5 > pids.max; mkdir below; cat cgroup.procs | grep -c '^1$'; ls ..";
    let said = node.exec(&id, &["sh", "-c", text], 20).await?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(said.matches("Read-only file system").count() == 2 && said.contains("\n1\n"), "{said}");
    let mounted = node.output(&id, &["grep", "-c", " - cgroup2 ", "/proc/self/mountinfo"]).await?;
    ensure!(mounted == "1\n", "{mounted} mounts of cgroup2");
    Ok(())
}

async fn files(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "files").await?;
    let unified =
        [("memory.high", "50331648"), ("memory.low", "4194304"), ("pids.max", "77"), ("memory.oom.group", "1")];
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 80 << 20,
        cpu_quota: 33_000,
        cpu_period: 50_000,
        cpu_shares: 2048,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        unified: unified.map(|(file, value)| (file.to_owned(), value.to_owned())).into(),
        ..Default::default()
    };
    let id = node.launch(&pod, &config, &with(idle("c", &image), resources)).await?;
    let wanted = [
        ("memory.max", "67108864"),
        ("memory.swap.max", "16777216"),
        ("cpu.max", "33000 50000"),
        ("cpu.weight", "174"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
    ];
    for (file, value) in wanted.iter().chain(&unified) {
        let found = node.output(&id, &["cat", &format!("/sys/fs/cgroup/{file}")]).await?;
        ensure!(found.trim() == *value, "{file}: {found:?}, not {value}");
    }
    // a limit that is felt: three processes are there, and one more than the limit cannot be
    let fewer =
        LinuxContainerResources { unified: [("pids.max".to_owned(), "8".to_owned())].into(), ..Default::default() };
    update(&node, &id, fewer).await?;
    let text = "for i in 1 2 3 4 5 6 7 8 9; do sleep 30 & done; wait";
    let answer = node.exec(&id, &["sh", "-c", text], 20).await?;
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    ensure!(answer.exit_code != 0 && said.contains("fork"), "{} {said:?}", answer.exit_code);
    Ok(())
}

async fn hugepages(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "huge").await?;
    let limit = HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 };
    let resources = LinuxContainerResources { hugepage_limits: vec![limit], ..Default::default() };
    let id = node.launch(&pod, &config, &with(idle("c", &image), resources)).await?;
    let found = node.output(&id, &["cat", "/sys/fs/cgroup/hugetlb.2MB.max"]).await?;
    ensure!(found.trim() == (4 << 20).to_string(), "{found:?}");
    Ok(())
}

async fn kept_by_systemd(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "kept").await?;
    let limits = |memory_limit_in_bytes, cpu_quota| LinuxContainerResources {
        memory_limit_in_bytes,
        cpu_quota,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    };
    let wanted = with(script("c", &image, "trap 'exit 0' TERM; sleep 1000 & wait $!"), limits(64 << 20, 50_000));
    let id = node.launch(&pod, &config, &wanted).await?;
    let unit = format!("crio-{id}.scope");
    let show = |property: &str| -> Result<String> {
        let shown = outside("systemctl", ["show", "--value", "-p", property, &unit])?.ok("systemctl show")?;
        Ok(shown.trim().to_owned())
    };
    ensure!(show("MemoryMax")? == (64 << 20).to_string(), "MemoryMax={}", show("MemoryMax")?);
    ensure!(show("CPUQuotaPerSecUSec")? == "500ms", "CPUQuotaPerSecUSec={}", show("CPUQuotaPerSecUSec")?);
    update(&node, &id, limits(96 << 20, 25_000)).await?;
    ensure!(show("MemoryMax")? == (96 << 20).to_string(), "MemoryMax={}", show("MemoryMax")?);
    // it writes what it knows into the files again
    outside("systemctl", ["daemon-reload"])?.ok("systemctl daemon-reload")?;
    let now = seen(&node, &id).await?;
    ensure!(now == expected(96 << 20, 25_000, ("512", "59")), "after daemon-reload: {now:?}");
    // refused by the kernel: systemd does not keep what does not hold
    ensure!(update(&node, &id, limits(128 << 20, 1)).await.is_err(), "a quota of one microsecond was taken");
    ensure!(show("MemoryMax")? == (96 << 20).to_string(), "after a refusal: MemoryMax={}", show("MemoryMax")?);
    Ok(())
}
