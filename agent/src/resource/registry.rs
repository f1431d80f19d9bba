//! Which resources a node has, and what each needs.

use super::block::{self, Block};
use super::cluster;
use super::file::{self, FileResource};
use super::host::firewall::{self, FirewallRules};
use super::host::hostname::Hostname;
use super::host::limits;
use super::host::network::UnmanagedInterfaces;
use super::host::time::TimeSync;
use super::kernel_extra::KernelExtra;
use super::kernel_module::{IN_MODULES_EXTRA, KernelModule, ModulesLoad};
use super::kubelet::KubeletConfig;
use super::membership::Membership;
use super::owned_file::OwnedFile;
use super::package::{Packages, Wanted};
use super::repo::{self, DeadRepositories, Repo};
use super::runtime;
use super::selinux::Selinux;
use super::selinux_boolean::SelinuxBoolean;
use super::selinux_labels::SelinuxLabels;
use super::swap::SwapOff;
use super::sysctl::Sysctl;
use super::sysctl::file::SysctlFile;
use super::unit::{self, Starts, Unit};
use super::update::Updates;
use super::version_lock::{self, VersionLock};
use super::{Resource, ResourceError};
use crate::config::host::FirewallMode;
use crate::config::settings::{FileSettings, KubeletMode, PackageSource, Role, Settings};
use crate::host::Platform;
use crate::host::kernel::normal_module_name;
use crate::plan::{KubeadmVerb, ResourceId, Stage};

type Resources = Vec<Box<dyn Resource>>;

/// Programs that a node with a kubelet needs and a minimal installation lacks: `tc` for bandwidth limits, and the policy that
/// lets containers run under SELinux.
const NODE_PACKAGES: [&str; 2] = ["container-selinux", "iproute-tc"];

/// Every resource of a node with these settings, in an order that reads well; the engine orders by [`Resource::needs`].
pub fn registry(settings: &Settings, platform: &Platform) -> Result<Vec<Box<dyn Resource>>, ResourceError> {
    let mut all: Resources = Vec::new();
    kernel(settings, platform, &mut all)?;
    all.extend(Selinux::new(settings.selinux).map(boxed));
    all.extend(settings.selinux_booleans.iter().map(|(name, on)| boxed(SelinuxBoolean::new(name, *on))));
    all.extend(SelinuxLabels::new(settings).map(boxed));
    all.extend(SwapOff::new(settings.swap).map(boxed));
    host_services(settings, &mut all);
    files(settings, platform, &mut all);
    let repos = repositories(settings, platform, &mut all);
    packages(settings, &repos, &mut all);
    all.extend(KubeletConfig::new(settings, platform)?.map(boxed));
    all.extend(cluster::credentials(settings, platform)?.into_iter().map(boxed));
    all.extend(Membership::new(settings, platform)?.map(boxed));
    units(settings, platform, &mut all);
    Ok(all)
}

fn boxed<R: Resource + 'static>(resource: R) -> Box<dyn Resource> {
    Box::new(resource)
}

fn kernel(settings: &Settings, platform: &Platform, all: &mut Resources) -> Result<(), ResourceError> {
    let kernel = &settings.kernel;
    if !kernel.modules.is_empty() {
        all.push(boxed(ModulesLoad::new(&kernel.modules)));
    }
    // EL 10 has moved some modules into a package of their own
    let moved = platform.el_major().is_some_and(|major| major >= 10) && settings.packages.source == PackageSource::Dnf;
    let is_extra = |name: &str| moved && IN_MODULES_EXTRA.contains(&normal_module_name(name).as_str());
    let extra: Vec<String> =
        kernel.modules.iter().map(|name| name.as_str().to_owned()).filter(|name| is_extra(name)).collect();
    for name in &kernel.modules {
        let needs = if is_extra(name.as_str()) { vec![KernelExtra::resource_id()] } else { Vec::new() };
        all.push(boxed(KernelModule::new(name).after(needs)));
    }
    if !extra.is_empty() {
        all.push(boxed(KernelExtra::new(extra)));
    }
    if kernel.sysctl.is_empty() {
        return Ok(());
    }
    // before the live values: a minimum that is already met would not be written down any more
    all.push(boxed(SysctlFile::new(kernel.sysctl.iter())?));
    for (key, rule) in &kernel.sysctl {
        all.push(boxed(Sysctl::new(key.as_str(), rule)?));
    }
    Ok(())
}

/// Units that take the routes of pod networks away.
const CLOUD_SETUP: [&str; 2] = ["nm-cloud-setup.service", "nm-cloud-setup.timer"];

fn host_services(settings: &Settings, all: &mut Resources) {
    let host = &settings.host;
    all.extend(host.hostname.iter().map(|name| boxed(Hostname::new(name.as_str()))));
    if settings.kubernetes.is_some() {
        all.extend(UnmanagedInterfaces::new(&host.unmanaged).map(boxed));
        let configured = |name: &str| settings.units.iter().any(|unit| unit.name.as_str() == name);
        let off = CLOUD_SETUP.into_iter().filter(|name| host.disable_nm_cloud_setup && !configured(name));
        all.extend(off.map(|name| boxed(Unit::off(name))));
    }
    all.extend(FirewallRules::new(&host.firewall, settings.node.role).map(boxed));
    if host.firewall.mode == FirewallMode::Off {
        all.push(boxed(Unit::off(firewall::UNIT)));
    }
    if host.time_sync {
        all.push(boxed(TimeSync::new(vec![ResourceId::new("package", "host")])));
    }
    let runtime = settings.runtime.kind.unit();
    all.extend(limits::limits(host.limits, runtime, settings.kubernetes.is_some()).into_iter().map(boxed));
}

fn files(settings: &Settings, platform: &Platform, all: &mut Resources) {
    // a [[file]] of the same path is what the user wants there
    let configured = |path: &str| settings.files.iter().any(|file| file.path.as_str() == path);
    let own = runtime::files(settings, platform).into_iter().filter(|file| !configured(file.id().name()));
    all.extend(own.map(boxed));
    let crictl = file::crictl(settings.runtime.socket.as_str());
    if settings.kubernetes.is_some() && !configured(&crictl.path) {
        all.push(boxed(FileResource::new(crictl, Vec::new(), Stage::Prepare, "so that crictl finds the runtime")));
    }
    for file in &settings.files {
        all.push(match &file.block {
            Some(sign) => boxed(Block::new(block::Desired {
                path: file.path.as_str().to_owned(),
                sign: sign.clone(),
                lines: file.content.reveal().to_owned(),
                secret: file.secret,
            })),
            None => boxed(FileResource::configured(owned(file))),
        });
    }
}

fn owned(file: &FileSettings) -> OwnedFile {
    OwnedFile {
        path: file.path.as_str().to_owned(),
        content: file.content.reveal().to_owned(),
        mode: file.mode.bits(),
        uid: file.uid,
        gid: file.gid,
        secret: file.secret,
    }
}

/// The names of all repositories, which packages need.
fn repositories(settings: &Settings, platform: &Platform, all: &mut Resources) -> Vec<ResourceId> {
    let mut wanted: Vec<repo::Desired> = settings.repos.iter().map(repo::Desired::configured).collect();
    let own = settings.repos.iter().any(|repo| repo.name.as_str() == repo::KUBERNETES);
    let from_dnf = settings.packages.source == PackageSource::Dnf;
    if let Some(kubernetes) = &settings.kubernetes
        && kubernetes.kubelet_mode != KubeletMode::External
        && from_dnf
        && !own
    {
        wanted.push(repo::Desired::kubernetes(kubernetes));
    }
    // a [[repo]] of the same name is what the user wants there
    wanted.extend(runtime::repository(settings, platform).filter(|theirs| {
        from_dnf && !settings.repos.iter().any(|repo| theirs.path() == repo::Desired::configured(repo).path())
    }));
    if from_dnf {
        all.push(boxed(DeadRepositories::new(wanted.iter().map(repo::Desired::path).collect())));
    }
    let asked = |desired: repo::Desired| if from_dnf { desired } else { desired.unused() };
    let repos: Vec<Repo> = wanted.into_iter().map(asked).map(Repo::new).collect();
    let ids = repos.iter().map(|repo| repo.id().clone()).collect();
    all.extend(repos.into_iter().map(boxed));
    ids
}

fn packages(settings: &Settings, repos: &[ResourceId], all: &mut Resources) {
    let source = settings.packages.source;
    let mut wanted: Vec<Wanted> =
        settings.packages.install.iter().map(|spec| Wanted::configured(spec.as_str())).collect();
    let kubernetes = settings.kubernetes.as_ref().filter(|it| it.kubelet_mode != KubeletMode::External);
    if kubernetes.is_some() {
        wanted.extend(NODE_PACKAGES.map(Wanted::any));
    }
    let runtime = runtime::package(settings).map(|package| {
        let repo = runtime::repository_name(settings).map(|name| ResourceId::new("repo", name));
        Packages::runtime(package, source, repo.into_iter().collect())
    });
    let kubernetes = kubernetes.and_then(|kubernetes| Packages::kubernetes(kubernetes, source, repos.to_vec()));
    let past_locks = |packages: Packages| if settings.packages.lock { packages.past_locks() } else { packages };
    let (runtime, kubernetes) = (runtime.map(past_locks), kubernetes.map(past_locks));
    if settings.packages.lock {
        wanted.push(Wanted::any(version_lock::PACKAGE));
        let locked = runtime.iter().chain(&kubernetes).flat_map(Packages::packages).collect();
        all.push(boxed(VersionLock::new(locked)));
    }
    all.extend(Updates::new(settings.packages.update, repos).map(boxed));
    all.extend(runtime.map(boxed));
    // the host's own packages do not wait for the repository of Kubernetes
    let host_repos = repos.iter().filter(|id| id.name() != repo::KUBERNETES).cloned().collect();
    all.extend(Packages::host(wanted, source, host_repos).map(boxed));
    all.extend(kubernetes.map(boxed));
}

fn units(settings: &Settings, platform: &Platform, all: &mut Resources) {
    let runtime = settings.runtime.kind.unit();
    // what can bring a unit or its settings
    let before: Vec<ResourceId> = all
        .iter()
        .map(|resource| resource.id().clone())
        .filter(|id| matches!(id.kind(), "package" | "file" | "kubelet"))
        .collect();
    let configured = |name: &str| settings.units.iter().any(|unit| unit.name.as_str() == name);
    if let Some(kubernetes) = &settings.kubernetes
        && kubernetes.kubelet_mode != KubeletMode::External
        && !configured(unit::KUBELET)
    {
        let needs = vec![
            ResourceId::new("kubelet", "config"),
            ResourceId::new("package", "kubernetes"),
            ResourceId::single("swap"),
            Unit::resource_id(runtime),
            Membership::resource_id(KubeadmVerb::Join),
            Membership::resource_id(KubeadmVerb::Init),
        ];
        // without an API server there is nothing to join
        let joins = settings.node.role != Role::Standalone;
        let starts = match kubernetes.kubelet_mode {
            KubeletMode::Kubeadm => Starts::Passing("$KUBELET_CONFIG_ARGS"),
            KubeletMode::Agent | KubeletMode::External => Starts::File(super::kubelet::dropin::PATH.to_owned()),
        };
        all.push(boxed(Unit::kubelet(joins, needs).starting(starts)));
    }
    all.extend(runtime::ours_is_off(settings).filter(|_| !configured(unit::RUNTIME)).map(boxed));
    if !configured(runtime) {
        let needs = settings
            .kernel
            .modules
            .iter()
            .map(|name| ResourceId::new("kernel-module", name.as_str()))
            .chain([ResourceId::single("sysctl-file"), ResourceId::new("package", "runtime")])
            // in which domain it runs is settled when it starts
            .chain([SelinuxLabels::resource_id()])
            .chain(runtime::files(settings, platform).iter().map(|file| file.id().clone()))
            .collect();
        all.push(boxed(Unit::runtime(runtime, settings.runtime.socket.as_str(), needs)));
    }
    all.extend(settings.units.iter().map(|unit| boxed(Unit::configured(unit, before.clone()))));
}
