//! The systemd drop-in that makes the kubelet start after the runtime and with our settings.

use super::super::owned_file::HEADER;
use super::config::Input;
use super::version::Minor;
use super::{CONFIG, FRAGMENTS};
use crate::config::settings::{KubeletMode, Role};

/// Sorts after kubeadm's 10-kubeadm.conf, so that ours counts.
pub const PATH: &str = "/etc/systemd/system/kubelet.service.d/50-nodeagent.conf";

/// The text, with these flags for the kubelet.
pub fn render(input: &Input<'_>, flags: &[String]) -> String {
    let minor = Minor::from(input.kubernetes.version);
    let mut text = HEADER.to_owned();
    // Wants and not BindsTo: a restart of the runtime must not stop the kubelet
    let runtime = input.settings.runtime.kind.unit();
    text.push_str(&format!("[Unit]\nWants={runtime}\nAfter={runtime}\n\n[Service]\nSlice=runtime.slice\n"));
    let mut words = vec![format!("--config={CONFIG}")];
    match input.kubernetes.kubelet_mode {
        KubeletMode::Kubeadm => {
            if minor.has_config_dir() {
                words.push(format!("--config-dir={FRAGMENTS}"));
                text.extend(minor.config_dir_variable().map(|variable| format!("Environment={variable}\n")));
            }
            words.extend_from_slice(flags);
            // not KUBELET_EXTRA_ARGS: the packages' EnvironmentFile sets that after us, to nothing
            text.push_str(&format!("Environment=\"KUBELET_CONFIG_ARGS={}\"\n", escape(&words)));
        }
        KubeletMode::Agent | KubeletMode::External => {
            if input.settings.node.role != Role::Standalone {
                words.push("--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf".to_owned());
                words.push("--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned());
            }
            words.extend_from_slice(flags);
            // the empty one takes away what the packages' unit or drop-in starts
            text.push_str(&format!("ExecStart=\nExecStart=/usr/bin/kubelet {}\n", escape(&words)));
        }
    }
    text
}

/// systemd takes % for a specifier everywhere. Words have no blanks, quotes, $ or backslashes: those are refused before.
fn escape(words: &[String]) -> String {
    words.join(" ").replace('%', "%%")
}
