//! Making a container, and removing it. What fails half way is undone by the same steps that remove one.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nodeagent_cri_api::ContainerConfig;
use nodeagent_shim::protocol::{LaunchSpec, PidNamespace, Placement};

use super::spec::{self, Inputs, SpecError};
use super::update::limits;
use super::{ContainerError, ContainerRecord, Outside, Phase, User, apparmor, cdi, hooks, seccomp, volumes};
use crate::cgroup::Resources;
use crate::handler::{self, Handler};
use crate::image::{Image, Rootfs};
use crate::sandbox::{PodError, PodHandle, PodView, Shared, Shim};
use crate::selinux;
use crate::state::Kind;
use crate::telemetry::chain;
use crate::{clock, id};

/// Makes a container in a pod and gives its id. The same request again gives the same container while it is not
/// started; one of that name that is, or was asked for differently, is removed first.
pub async fn create(environment: Shared, pod: PodHandle, config: ContainerConfig) -> Result<String, ContainerError> {
    check(&config)?;
    for named in pod.view().containers.iter().filter(|container| container.record.is_named(&config)) {
        let record = &named.record;
        if record.phase == Phase::Created && record.config == config {
            return Ok(record.id.clone());
        }
        log::info!(id = record.id.as_str(); "removing a stale container that is asked for anew");
        pod.remove(&record.id).await?;
    }
    let view = pod.view();
    if !view.sandbox.ready() {
        return Err(PodError::NotReady { id: view.sandbox.id.clone() }.into());
    }
    let name = config.image.as_ref().map(|image| image.image.clone()).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ContainerError::Invalid("the container names no image".to_owned()))?;
    let image = environment.images.find(&name).ok_or(ContainerError::NoImage { image: name })?;
    let record = plan(&environment, &view, config, &image)?;
    let made = make(&environment, &view, record.clone(), &image).await;
    let added = match made {
        Ok((record, launch)) => pod.add(record, launch).await,
        Err(error) => Err(error),
    };
    match added {
        Ok(()) => Ok(record.id),
        Err(error) => {
            if let Err(undone) = erase(&environment, &record, None).await {
                // the record is still there: the next start of the daemon tries again
                log::error!(id = record.id.as_str(); "cannot undo a container: {}", chain(&undone));
            }
            Err(error)
        }
    }
}

/// Refuses what cannot be, before anything is touched.
fn check(config: &ContainerConfig) -> Result<(), ContainerError> {
    let invalid = |message: String| Err(ContainerError::Invalid(message));
    if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
        return invalid("the container's metadata has no name".to_owned());
    }
    if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return invalid("the container has no image".to_owned());
    }
    // the log is written by root, wherever this leads
    let inside = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
    if !Path::new(&config.log_path).components().all(inside) {
        return invalid(format!("log path `{}` leads out of the pod's log directory", config.log_path));
    }
    Ok(())
}

fn plan(
    environment: &Shared,
    view: &PodView,
    config: ContainerConfig,
    image: &Image,
) -> Result<ContainerRecord, ContainerError> {
    let id = id::random().map_err(ContainerError::Id)?;
    let cgroup = environment.cgroups.path_of(view.sandbox.cgroup_parent(), &id);
    let cgroup = cgroup.map_err(|source| ContainerError::Cgroup { id: id.clone(), source })?;
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    Ok(ContainerRecord {
        id,
        sandbox: view.sandbox.id.clone(),
        handler: view.sandbox.runtime_handler.clone(),
        created_at: clock::now(),
        phase: Phase::Creating,
        image_id: image.id.clone(),
        image_ref: image.digests.first().unwrap_or(&image.id).clone(),
        image_volumes: Vec::new(),
        cgroup,
        resources,
        device_rules: Vec::new(),
        hooks: Outside::default(),
        user: User::default(),
        stop_signal: 0,
        log_path: String::new(),
        pid: 0,
        started_at: 0,
        exit: None,
        config,
    })
}

async fn make(
    environment: &Shared,
    view: &Arc<PodView>,
    mut record: ContainerRecord,
    image: &Arc<Image>,
) -> Result<(ContainerRecord, LaunchSpec), ContainerError> {
    if let Some(kind) = &image.artifact {
        let what = format!("image {} is an artifact of type {kind:?}: it can be mounted, not run", image.id);
        return Err(SpecError::Invalid(what).into());
    }
    save(environment, &record)?;
    let prepared = environment.images.prepare(&image.id, &record.id).await;
    let rootfs =
        prepared.map_err(|source| ContainerError::Rootfs { id: record.id.clone(), source: Box::new(source) })?;
    let images = volumes::prepare(environment, &mut record).await?;
    let profile = apparmor::profile(&record.config).await.map_err(SpecError::from)?;
    let (environment, view, image) = (Arc::clone(environment), Arc::clone(view), Arc::clone(image));
    // looks at files of the image and of the host, which may be slow
    let work = move || {
        let launch = put_together(&environment, &view, &mut record, &image, &rootfs, &images, profile)?;
        record.phase = Phase::Created;
        let written = environment.store.write(Kind::Spec, &record.id, &launch);
        written.map_err(|source| ContainerError::Record { id: record.id.clone(), source })?;
        save(&environment, &record)?;
        Ok((record, launch))
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| ContainerError::Stopping)?
}

fn put_together(
    environment: &Shared,
    view: &PodView,
    record: &mut ContainerRecord,
    image: &Image,
    rootfs: &Rootfs,
    volumes: &[Rootfs],
    apparmor_profile: Option<String>,
) -> Result<LaunchSpec, ContainerError> {
    for path in volumes.iter().chain([rootfs]).map(spec::mount_point) {
        fs::create_dir_all(&path).map_err(|source| ContainerError::Directory { path, source })?;
    }
    let mut built = spec::build(&Inputs {
        id: &record.id,
        config: &record.config,
        pod: &view.sandbox,
        pod_dir: &environment.paths.pod(&view.sandbox.id),
        image: &image.config,
        rootfs,
        cgroup: &record.cgroup,
        cgroups: &environment.cgroups,
        host: &environment.host,
        target: target(view, &record.config),
        volumes,
        apparmor_profile,
    })?;
    let cgroups = &environment.cgroups;
    let failed = |source| ContainerError::Cgroup { id: record.id.clone(), source };
    let limits = limits(&record.resources, &environment.host)?;
    record.device_rules.clone_from(&built.device_rules);
    if cgroups.made_by_systemd() {
        limits.check().map_err(failed)?;
    } else {
        cgroups.create(&record.cgroup).map_err(failed)?;
        cgroups.apply(&record.cgroup, &limits).map_err(failed)?;
        cgroups.restrict_devices(&record.cgroup, &built.device_rules).map_err(failed)?;
    }
    cgroups.expect_move();
    if let Some(label) = &built.file_label {
        relabel(&record.config, label)?;
    }
    if let Some(handler) = environment.host.handlers.find(&record.handler) {
        hand_over(environment, view, record, handler, &mut built, &limits)?;
    } else if !built.hooks.is_empty() {
        let bundle = bundle_of(&built.spec);
        let written = hooks::take_over(record, &mut built.spec, &built.hooks, &bundle);
        written.map_err(|source| ContainerError::Directory { path: bundle, source })?;
    }
    record.user = built.user;
    record.stop_signal = built.stop_signal;
    record.log_path = built.spec.log_path.clone().unwrap_or_default();
    Ok(built.spec)
}

/// Gives volumes the label of the container's files, where kubelet wants that.
fn relabel(config: &ContainerConfig, label: &str) -> Result<(), SpecError> {
    for mount in config.mounts.iter().filter(|mount| mount.selinux_relabel && !mount.host_path.is_empty()) {
        let path = Path::new(&mount.host_path);
        // as it is mounted: links are followed on the host
        let path = fs::canonicalize(path).map_err(|source| SpecError::Source { path: path.to_owned(), source })?;
        selinux::relabel_tree(&path, label)?;
    }
    Ok(())
}

/// Writes down what another runtime is to make of it.
fn hand_over(
    environment: &Shared,
    view: &PodView,
    record: &ContainerRecord,
    handler: &Handler,
    built: &mut spec::Built,
    limits: &Resources,
) -> Result<(), ContainerError> {
    let context = record.config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    let bounding = built.spec.process.capabilities.bounding;
    let profile = seccomp::document(&context, &environment.host.seccomp, bounding);
    let target = match &built.spec.pid_namespace {
        PidNamespace::Container(id) => view.container(id).map(|container| handler.process(id, container.record.pid)),
        _ => None,
    };
    let document = handler::container(
        &built.spec,
        &handler::Inputs {
            config: &record.config,
            pod: &view.sandbox,
            cgroup: &record.cgroup,
            by_systemd: handler.by_systemd(),
            limits,
            devices: &built.device_rules,
            seccomp: profile.map_err(SpecError::Seccomp)?,
            target,
        },
    );
    let mut document = document.map_err(SpecError::Handler)?;
    if !built.hooks.is_empty() {
        document["hooks"] = cdi::document(&built.hooks);
    }
    let bundle = bundle_of(&built.spec);
    let write = |name: &str, text: String| {
        let path = bundle.join(name);
        fs::write(&path, text).map_err(|source| ContainerError::Directory { path, source })
    };
    write("config.json", document.to_string())?;
    if handler.stands_in() {
        let mounts = handler::root_mounts(&mut built.spec).map_err(SpecError::Handler)?;
        write("rootfs.json", mounts.to_string())?;
    }
    built.spec.oci = Some(handler.oci(&bundle));
    // the runtime asks systemd itself
    built.spec.placement = Placement::Attach;
    Ok(())
}

/// The directory of what is said about a container beside its root.
fn bundle_of(spec: &LaunchSpec) -> PathBuf {
    let root = Path::new(&spec.rootfs.target);
    root.parent().unwrap_or(root).to_owned()
}

/// Puts the launcher of a container into its cgroup, where systemd makes that.
pub async fn place(environment: &Shared, record: &ContainerRecord, launcher: i32) -> Result<(), ContainerError> {
    let limits = limits(&record.resources, &environment.host)?;
    let placed = environment.cgroups.place(&record.cgroup, launcher, &limits, &record.device_rules).await;
    placed.map_err(|source| ContainerError::Cgroup { id: record.id.clone(), source })
}

/// The running container whose PID namespace is to be shared.
fn target(view: &PodView, config: &ContainerConfig) -> Option<String> {
    let context = config.linux.as_ref()?.security_context.as_ref()?;
    let wanted = &context.namespace_options.as_ref()?.target_id;
    let running = view.containers.iter().filter(|container| container.record.phase == Phase::Running);
    running.map(|container| container.record.id.clone()).find(|id| id == wanted)
}

fn save(environment: &Shared, record: &ContainerRecord) -> Result<(), ContainerError> {
    let written = environment.store.write(Kind::Container, &record.id, record);
    written.map_err(|source| ContainerError::Record { id: record.id.clone(), source })
}

/// Removes everything of a container that does not run: what the shim remembers, cgroup, files, records, in this
/// order, so that what fails can be tried again. Again and again is fine.
pub async fn erase(environment: &Shared, record: &ContainerRecord, shim: Option<&Shim>) -> Result<(), ContainerError> {
    let id = &record.id;
    if let Some(shim) = shim
        && let Err(error) = shim.forget(id).await
    {
        // costs the shim some memory until its pod ends
        log::warn!(id = id.as_str(); "{}", chain(&error));
    }
    let failed = |source| ContainerError::Cgroup { id: id.clone(), source };
    // empty by now, unless a launcher hung when its start was given up
    environment.cgroups.kill(&record.cgroup).await.map_err(failed)?;
    if let Some(handler) = environment.host.handlers.find(&record.handler) {
        let deleted = handler.delete(id).await;
        deleted.map_err(|source| ContainerError::Runtime { id: id.clone(), source })?;
    }
    environment.cgroups.remove(&record.cgroup).await.map_err(failed)?;
    let released = environment.images.release(id).await;
    released.map_err(|source| ContainerError::Rootfs { id: id.clone(), source: Box::new(source) })?;
    volumes::release(environment, record).await?;
    hooks::after_end(record).await;
    for kind in [Kind::Spec, Kind::Container] {
        let removed = environment.store.remove(kind, id);
        removed.map_err(|source| ContainerError::Record { id: id.clone(), source })?;
    }
    Ok(())
}
