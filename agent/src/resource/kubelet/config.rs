//! The KubeletConfiguration that we write, and the flags for what is no field of it.

use serde_json::{Map, Value, json};

use super::version::Minor;
use crate::config::settings::{KubeletMode, KubernetesSettings, Role, Settings, SwapPolicy};
use crate::host::Platform;
use crate::host::platform::CgroupMode;
use crate::resource::ResourceError;
use crate::resource::runtime::{cgroup_driver, driver_word};

/// Where static pods lie.
pub const MANIFESTS: &str = "/etc/kubernetes/manifests";

/// Fields that other settings decide, with the name of the setting.
const OWNED: [(&str, &str); 11] = [
    ("apiVersion", "nothing: it is always kubelet.config.k8s.io/v1beta1"),
    ("kind", "nothing: it is always KubeletConfiguration"),
    ("containerRuntimeEndpoint", "runtime.socket"),
    ("imageServiceEndpoint", "runtime.socket"),
    ("cgroupDriver", "runtime.cgroup_driver"),
    ("failSwapOn", "swap.policy"),
    ("memorySwap", "swap.policy"),
    ("registerWithTaints", "node.taints"),
    ("providerID", "node.provider_id"),
    ("failCgroupV1", "nothing: it follows the host"),
    ("staticPodPath", "nothing: it is always /etc/kubernetes/manifests"),
];

/// What decides the kubelet's settings.
#[derive(Debug, Clone)]
pub struct Input<'s> {
    /// All settings.
    pub settings: &'s Settings,
    /// `[kubernetes]`
    pub kubernetes: &'s KubernetesSettings,
    /// cgroup v1, v2.
    pub platform: &'s Platform,
    /// /etc/resolv.conf leads to systemd-resolved, which listens on an address that means the pod itself inside a pod.
    pub resolved: bool,
}

impl Input<'_> {
    fn minor(&self) -> Minor {
        self.kubernetes.version.into()
    }

    /// True when kubeadm writes the main config file and there is no way to lay a fragment over it.
    pub fn flags_only(&self) -> bool {
        self.kubernetes.kubelet_mode == KubeletMode::Kubeadm && !self.minor().has_config_dir()
    }

    fn driver(&self) -> &'static str {
        driver_word(cgroup_driver(&self.settings.runtime, self.platform))
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.settings.runtime.socket)
    }
}

/// Everything that is wrong with the kubelet's part of the settings for this version.
pub fn check(input: &Input<'_>) -> Result<(), ResourceError> {
    let minor = input.minor();
    let wrong = |key: String, problem: String| Err(ResourceError::Setting { key, problem });
    for key in input.kubernetes.kubelet.keys() {
        if let Some((_, by)) = OWNED.iter().find(|(name, _)| name == key) {
            return wrong(format!("kubernetes.kubelet.{key}"), format!("this field is decided by {by}"));
        }
    }
    if input.flags_only() && !input.kubernetes.kubelet.is_empty() {
        return wrong(
            "kubernetes.kubelet".to_owned(),
            format!(
                "with kubelet_mode = \"kubeadm\" fields need --config-dir of Kubernetes 1.29 (this is {}); set them in kubeadm's \
                 KubeletConfiguration, or as kubernetes.kubelet_args",
                minor.text()
            ),
        );
    }
    if input.settings.swap == SwapPolicy::Limited && !minor.has_memory_swap() {
        return wrong("swap.policy".to_owned(), format!("\"limited\" needs Kubernetes 1.22, this is {}", minor.text()));
    }
    if input.settings.swap == SwapPolicy::Limited && input.flags_only() && !minor.limits_swap_unasked() {
        let problem = format!(
            "\"limited\" is a field of the kubelet's config file in {}, which is kubeadm's; it needs Kubernetes 1.29 or kubelet_mode = \
             \"agent\"",
            minor.text()
        );
        return wrong("swap.policy".to_owned(), problem);
    }
    if input.settings.swap == SwapPolicy::Limited && input.platform.cgroups == CgroupMode::V1 {
        return wrong("swap.policy".to_owned(), "\"limited\" needs cgroup v2, and this host has v1".to_owned());
    }
    for arg in &input.kubernetes.kubelet_args {
        let key = "kubernetes.kubelet_args".to_owned();
        if !arg.starts_with("--") || arg.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'\\$".contains(c))
        {
            return wrong(
                key,
                format!("{arg:?} must be one flag (--name=value) without blanks, quotes, $ and backslashes"),
            );
        }
        if let Some(gone) = minor.removed(arg) {
            return wrong(
                key,
                format!("{arg} was removed in Kubernetes 1.{gone}: a kubelet of {} does not start", minor.text()),
            );
        }
    }
    Ok(())
}

/// The config file or fragment; none where only flags can be used.
pub fn render(input: &Input<'_>) -> Option<Value> {
    if input.flags_only() {
        return None;
    }
    let minor = input.minor();
    let mut config = Map::new();
    config.insert("apiVersion".into(), json!("kubelet.config.k8s.io/v1beta1"));
    config.insert("kind".into(), json!("KubeletConfiguration"));
    config.insert("cgroupDriver".into(), json!(input.driver()));
    if minor.endpoint_in_file() {
        config.insert("containerRuntimeEndpoint".into(), json!(input.endpoint()));
    }
    if input.platform.cgroups == CgroupMode::V1 && minor.refuses_cgroup_v1() {
        config.insert("failCgroupV1".into(), json!(false));
    }
    swap(input, &mut config);
    if input.resolved {
        config.insert("resolvConf".into(), json!("/run/systemd/resolve/resolv.conf"));
    }
    if input.kubernetes.kubelet_mode == KubeletMode::Agent {
        own_mode(input, &mut config);
    }
    let mut config = Value::Object(config);
    merge(&mut config, &Value::Object(input.kubernetes.kubelet.clone()));
    Some(config)
}

fn swap(input: &Input<'_>, config: &mut Map<String, Value>) {
    config.insert("failSwapOn".into(), json!(input.settings.swap == SwapPolicy::Off));
    if input.settings.swap == SwapPolicy::Limited {
        config.insert("memorySwap".into(), json!({"swapBehavior": "LimitedSwap"}));
        if input.minor().needs_swap_gate() {
            config.insert("featureGates".into(), json!({"NodeSwap": true}));
        }
    }
}

/// Where the whole file is ours and no kubeadm fills in the rest.
fn own_mode(input: &Input<'_>, config: &mut Map<String, Value>) {
    config.insert("staticPodPath".into(), json!(MANIFESTS));
    match input.settings.node.role {
        // there is no API server to ask who may: nobody gets in, and nobody needs to
        Role::Standalone => {
            let authentication = json!({"anonymous": {"enabled": false}, "webhook": {"enabled": false}});
            config.insert("authentication".into(), authentication);
            config.insert("authorization".into(), json!({"mode": "AlwaysAllow"}));
        }
        Role::Worker | Role::ControlPlane => {
            let authentication =
                json!({"anonymous": {"enabled": false}, "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"}});
            config.insert("authentication".into(), authentication);
            config.insert("rotateCertificates".into(), json!(true));
        }
    }
}

/// Tables are merged, everything else is replaced: the user's value counts.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// Flags, in the order in which they are passed. The user's come last, and so win.
pub fn flags(input: &Input<'_>) -> Vec<String> {
    let minor = input.minor();
    let node = &input.settings.node;
    let mut flags = Vec::new();
    if minor.needs_container_runtime_flag() {
        flags.push("--container-runtime=remote".to_owned());
    }
    if !minor.endpoint_in_file() || input.flags_only() {
        flags.push(format!("--container-runtime-endpoint={}", input.endpoint()));
    }
    if input.flags_only() {
        flags.push(format!("--cgroup-driver={}", input.driver()));
        flags.push(format!("--fail-swap-on={}", input.settings.swap == SwapPolicy::Off));
        // no flag says how swap is used, and up to 1.27 an unset swapBehavior is LimitedSwap
        if input.settings.swap == SwapPolicy::Limited {
            flags.push("--feature-gates=NodeSwap=true".to_owned());
        }
    }
    if minor.wants_pause_image() {
        flags.push(format!("--pod-infra-container-image={}", input.settings.runtime.pause_image));
    }
    if let Some(name) = &node.name {
        flags.push(format!("--hostname-override={name}"));
    }
    if let Some(ip) = node.ip {
        flags.push(format!("--node-ip={ip}"));
    }
    if let Some(id) = &node.provider_id {
        flags.push(format!("--provider-id={id}"));
    }
    if !node.labels.is_empty() {
        let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        flags.push(format!("--node-labels={}", labels.join(",")));
    }
    if !node.taints.is_empty() {
        let taints: Vec<String> = node.taints.iter().map(ToString::to_string).collect();
        flags.push(format!("--register-with-taints={}", taints.join(",")));
    }
    flags.extend(input.kubernetes.kubelet_args.iter().cloned());
    flags
}
