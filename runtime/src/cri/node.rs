//! Calls about the node as a whole: `Version`, `Status`, `RuntimeConfig`, `UpdateRuntimeConfig`.

use std::collections::HashMap;

use nodeagent_cri_api::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigRequest, RuntimeConfigResponse,
    RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest, StatusResponse,
    UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse, VersionResponse,
};
use serde_json::json;
use tonic::Status;

use super::Cri;
use crate::cgroup::Driver;
use crate::server::ApiVersion;

/// What kubelet insists on in [`VersionResponse::version`].
const KUBELET_API_VERSION: &str = "0.1.0";

pub(super) async fn version(api: ApiVersion) -> Result<VersionResponse, Status> {
    Ok(VersionResponse {
        version: KUBELET_API_VERSION.to_owned(),
        runtime_name: "nodeagent".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: api.as_str().to_owned(),
    })
}

pub(super) async fn status(cri: &Cri, request: StatusRequest) -> Result<StatusResponse, Status> {
    let node = &cri.node;
    let conditions =
        vec![condition("RuntimeReady", node.runtime_ready()), condition("NetworkReady", node.network_ready())];
    let features = RuntimeHandlerFeatures {
        recursive_read_only_mounts: node.kernel.mount_setattr,
        user_namespaces: node.kernel.mapped_layers,
    };
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info: if request.verbose { info(cri) } else { HashMap::new() },
        runtime_handlers: handlers(cri, features),
        features: Some(RuntimeFeatures { supplemental_groups_policy: true, ..RuntimeFeatures::default() }),
    })
}

/// Ours, which has no name, and the others.
fn handlers(cri: &Cri, own: RuntimeHandlerFeatures) -> Vec<RuntimeHandler> {
    let others = cri.node.pods.environment().host.handlers.features().map(|(name, features)| RuntimeHandler {
        name: name.to_owned(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: features.recursive_read_only_mounts && cri.node.kernel.mount_setattr,
            user_namespaces: false,
        }),
    });
    [RuntimeHandler { name: String::new(), features: Some(own) }].into_iter().chain(others).collect()
}

fn condition(kind: &str, ready: Result<(), (String, String)>) -> RuntimeCondition {
    let (reason, message) = ready.as_ref().err().cloned().unwrap_or_default();
    RuntimeCondition { r#type: kind.to_owned(), status: ready.is_ok(), reason, message }
}

fn info(cri: &Cri) -> HashMap<String, String> {
    let config = &cri.node.config;
    let shown = json!({
        // there is no pause process, hence no image for it; clients ask for the key
        "sandboxImage": "",
        "stateDir": config.state,
        "rootDir": config.root,
        "netnsDir": config.netns_dir,
        "cniConfDir": config.network.conf_dir,
        "cniPluginDirs": config.network.plugin_dirs,
        "cgroupDriver": cri.node.cgroups.driver().name(),
        "cgroupVersion": cri.node.cgroups.version(),
    });
    let pulls = json!(cri.node.images.progress());
    HashMap::from([("config".to_owned(), shown.to_string()), ("imagePulls".to_owned(), pulls.to_string())])
}

pub(super) async fn runtime_config(cri: &Cri, _: RuntimeConfigRequest) -> Result<RuntimeConfigResponse, Status> {
    let driver = match cri.node.cgroups.driver() {
        Driver::Cgroupfs => CgroupDriver::Cgroupfs,
        Driver::Systemd => CgroupDriver::Systemd,
    };
    Ok(RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) })
}

/// The node's pod CIDR. Networks are configured by conf lists, which know it already.
pub(super) async fn update_runtime_config(
    _: &Cri,
    _: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    Ok(UpdateRuntimeConfigResponse {})
}
