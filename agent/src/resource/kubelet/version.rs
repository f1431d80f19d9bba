//! What changed in the kubelet from minor to minor, 1.18 to 1.37, as far as we have to care. The only place that knows.
//!
//! From cmd/kubelet/app/options and the change logs of Kubernetes: a flag that was removed ends a kubelet at its start, and so
//! does a config field that is not there yet.

use crate::config::kubernetes::KubernetesVersion;

/// The questions that rendering asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minor(u32);

impl From<KubernetesVersion> for Minor {
    fn from(version: KubernetesVersion) -> Minor {
        Minor(version.minor())
    }
}

impl Minor {
    /// Until dockershim was removed in 1.24 a kubelet used Docker unless told otherwise; in 1.27 the flag went too.
    pub fn needs_container_runtime_flag(self) -> bool {
        self.0 < 24
    }

    /// `containerRuntimeEndpoint` is a field from 1.27 on, a flag before.
    pub fn endpoint_in_file(self) -> bool {
        self.0 >= 27
    }

    /// `--config-dir` lays fragments over the config file from 1.29 on. 1.28 has the flag too, but lays the defaults of all that a
    /// fragment does not name over kubeadm's file, and takes no `false` and no 0 from a fragment.
    pub fn has_config_dir(self) -> bool {
        self.0 >= 29
    }

    /// While it was alpha, `--config-dir` was refused without this variable.
    pub fn config_dir_variable(self) -> Option<&'static str> {
        (self.0 == 29).then_some("KUBELET_CONFIG_DROPIN_DIR_ALPHA=1")
    }

    /// `memorySwap` is a field from 1.22 on.
    pub fn has_memory_swap(self) -> bool {
        self.0 >= 22
    }

    /// A `swapBehavior` that is not set means `LimitedSwap` up to 1.27, and no limit in 1.28.
    pub fn limits_swap_unasked(self) -> bool {
        self.0 < 28
    }

    /// Its gate is on by default from 1.30 on; before, the field alone is refused.
    pub fn needs_swap_gate(self) -> bool {
        self.0 < 30
    }

    /// From 1.35 on a kubelet does not start on cgroup v1 unless it is told to.
    pub fn refuses_cgroup_v1(self) -> bool {
        self.0 >= 35
    }

    /// The pause image is protected from garbage collection by this flag; from 1.27 on the runtime does that.
    pub fn wants_pause_image(self) -> bool {
        self.0 < 27
    }

    /// The minor in which a flag was gone, if it is gone in this one.
    pub fn removed(self, flag: &str) -> Option<u32> {
        let name = flag.trim_start_matches('-').split('=').next().unwrap_or_default();
        REMOVED.iter().find(|(minor, names)| *minor <= self.0 && names.contains(&name)).map(|(minor, _)| *minor)
    }

    /// As people write it.
    pub fn text(self) -> String {
        format!("1.{}", self.0)
    }
}

/// Flags by the first minor that does not know them any more: of 1.20 to 1.37 as its sources have it.
const REMOVED: [(u32, &[&str]); 12] = [
    (21, &["enable-cadvisor-json-endpoints"]),
    (22, &["chaos-chance", "redirect-container-streaming"]),
    (23, &["experimental-bootstrap-kubeconfig", "seccomp-profile-root"]),
    (
        24,
        &[
            "cni-bin-dir",
            "cni-cache-dir",
            "cni-conf-dir",
            "docker",
            "docker-endpoint",
            "docker-env-metadata-whitelist",
            "docker-only",
            "docker-root",
            "docker-tls",
            "docker-tls-ca",
            "docker-tls-cert",
            "docker-tls-key",
            "dynamic-config-dir",
            "experimental-check-node-capabilities-before-mount",
            "experimental-dockershim-root-directory",
            "experimental-logging-sanitization",
            "image-pull-progress-deadline",
            "network-plugin",
            "network-plugin-mtu",
            "non-masquerade-cidr",
            "really-crash-for-testing",
        ],
    ),
    (25, &["experimental-kernel-memcg-notification"]),
    (
        26,
        &[
            "add-dir-header",
            "alsologtostderr",
            "log-backtrace-at",
            "log-dir",
            "log-file",
            "log-file-max-size",
            "logtostderr",
            "one-output",
            "skip-headers",
            "skip-log-headers",
            "stderrthreshold",
        ],
    ),
    (27, &["container-runtime", "master-service-namespace"]),
    (30, &["azure-container-registry-config"]),
    (31, &["iptables-drop-bit", "iptables-masquerade-bit", "keep-terminated-pod-volumes"]),
    (34, &["cloud-config", "register-schedulable"]),
    (35, &["pod-infra-container-image"]),
    (37, &["experimental-mounter-path", "runonce"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn minor(text: &str) -> Minor {
        Minor::from(text.parse::<KubernetesVersion>().unwrap())
    }

    /// The last minor on which the answer is `false` and the first on which it is `true`, or the other way round.
    #[test]
    fn every_boundary_lies_where_kubernetes_has_it() {
        type Answer = fn(Minor) -> bool;
        let boundaries: [(&str, Answer, &str, &str); 10] = [
            ("docker by default", |m| !m.needs_container_runtime_flag(), "1.23", "1.24"),
            ("endpoint in the file", Minor::endpoint_in_file, "1.26", "1.27"),
            ("--config-dir", Minor::has_config_dir, "1.28", "1.29"),
            (
                "--config-dir without a variable",
                |m| m.has_config_dir() && m.config_dir_variable().is_none(),
                "1.29",
                "1.30",
            ),
            ("memorySwap", Minor::has_memory_swap, "1.21", "1.22"),
            ("memorySwap without a gate", |m| !m.needs_swap_gate(), "1.29", "1.30"),
            ("swap without a limit", |m| !m.limits_swap_unasked(), "1.27", "1.28"),
            ("refuses cgroup v1", Minor::refuses_cgroup_v1, "1.34", "1.35"),
            ("--container-runtime gone", |m| m.removed("--container-runtime=remote").is_some(), "1.26", "1.27"),
            (
                "--pod-infra-container-image gone",
                |m| m.removed("--pod-infra-container-image").is_some(),
                "1.34",
                "1.35",
            ),
        ];
        for (what, answer, before, after) in boundaries {
            assert!(!answer(minor(before)), "{what} on {before}");
            assert!(answer(minor(after)), "{what} on {after}");
            assert!(!answer(minor("1.18")), "{what} on 1.18");
            assert!(answer(minor("1.37")), "{what} on 1.37");
        }
    }

    #[test]
    fn a_flag_is_refused_from_the_first_minor_without_it() {
        for (flag, last, first) in [
            ("--enable-cadvisor-json-endpoints", "1.20", "1.21"),
            ("--chaos-chance=0.1", "1.21", "1.22"),
            ("--redirect-container-streaming", "1.21", "1.22"),
            ("--seccomp-profile-root=/x", "1.22", "1.23"),
            ("--network-plugin=cni", "1.23", "1.24"),
            ("--cni-conf-dir", "1.23", "1.24"),
            ("--image-pull-progress-deadline=1m", "1.23", "1.24"),
            ("--docker-tls", "1.23", "1.24"),
            ("--experimental-kernel-memcg-notification", "1.24", "1.25"),
            ("--logtostderr=true", "1.25", "1.26"),
            ("--master-service-namespace=x", "1.26", "1.27"),
            ("--azure-container-registry-config=/x", "1.29", "1.30"),
            ("--iptables-masquerade-bit=14", "1.30", "1.31"),
            ("--keep-terminated-pod-volumes", "1.30", "1.31"),
            ("--cloud-config=/etc/cloud.conf", "1.33", "1.34"),
            ("--register-schedulable=false", "1.33", "1.34"),
            ("--runonce", "1.36", "1.37"),
        ] {
            assert_eq!(minor(last).removed(flag), None, "{flag} on {last}");
            assert_eq!(minor(first).removed(flag).map(|gone| format!("1.{gone}")).as_deref(), Some(first), "{flag}");
        }
        // deprecated for years, and still known
        for flag in ["--experimental-allocatable-ignore-eviction", "--cloud-provider=external"] {
            assert_eq!(minor("1.36").removed(flag), None, "{flag}");
        }
        assert_eq!(minor("1.37").removed("--node-ip=1.2.3.4"), None);
    }
}
