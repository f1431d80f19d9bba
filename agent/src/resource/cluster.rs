//! What joining a cluster and beginning one have in common: kubeadm's config, the secrets in it, and where they come from.

use serde_json::{Value, json};

use super::ResourceError;
use super::file::FileResource;
use super::owned_file::{HEADER, OwnedFile};
use crate::config::join::TokenSource;
use crate::config::settings::Settings;
use crate::host::Platform;
use crate::plan::{Notify, ResourceId, Stage};

/// Stands in the rendered config where the token belongs: the token is only read when kubeadm is about to run.
pub const TOKEN: &str = "${token}";

/// Likewise, the key of the cluster's certificates.
pub const CERTIFICATE_KEY: &str = "${certificate-key}";

/// Likewise, the version of the kubeadm that is installed by then.
pub const VERSION: &str = "${version}";

/// There while an init is going on, and after one that ended badly; `kubeadm reset` clears the directory.
pub const BEGAN: &str = "/etc/kubernetes/pki/.nodeagent-init-began";

/// The API server, which makes a host a control plane.
pub const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";

/// systemd that hands credentials to units.
const CREDENTIALS_SINCE: u32 = 247;

/// Units in which kubeadm is run.
const UNITS: [&str; 2] = ["nodeagent-activate.service", "nodeagent-reconcile.service"];

/// How far the node is, as its files tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is a member.
    Member {
        /// Something worth saying all the same.
        note: Option<String>,
    },
    /// kubeadm began and did not end.
    Half {
        /// How that is seen.
        reason: String,
    },
    /// kubeadm has not begun.
    Outside,
}

/// kubeadm's API by minor: v1beta2, v1beta3 from 1.22, v1beta4 from 1.31.
pub fn api_version(minor: u32) -> &'static str {
    match minor {
        ..22 => "kubeadm.k8s.io/v1beta2",
        22..31 => "kubeadm.k8s.io/v1beta3",
        31.. => "kubeadm.k8s.io/v1beta4",
    }
}

/// Who the node is. The runtime's socket is always named: with two live sockets kubeadm refuses to guess.
pub fn registration(settings: &Settings) -> Value {
    let mut registration = json!({"criSocket": format!("unix://{}", settings.runtime.socket)});
    if let Some(name) = &settings.node.name {
        registration["name"] = name.as_str().into();
    }
    registration
}

/// The address that a control plane tells the others; none leaves it to kubeadm, which takes that of the default route.
pub fn local_endpoint(settings: &Settings) -> Option<Value> {
    settings.node.ip.map(|ip| json!({"advertiseAddress": ip.to_string()}))
}

/// YAML documents, in one text.
pub fn documents(key: &str, documents: &[Value]) -> Result<String, ResourceError> {
    let mut text = String::new();
    for document in documents {
        let one = serde_saphyr::to_string(document)
            .map_err(|error| ResourceError::Setting { key: key.to_owned(), problem: error.to_string() })?;
        text.push_str(if text.is_empty() { "" } else { "---\n" });
        text.push_str(&one);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

/// What kubeadm's preflight looks at, and what must not be missing when pods arrive.
pub fn needs(settings: &Settings) -> Vec<ResourceId> {
    ["package/kubernetes", "kubelet/config", "swap", "repositories", "sysctl-file", "time"]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("unit/{}", settings.runtime.kind.unit())])
        .chain(settings.kernel.modules.iter().map(|module| format!("kernel-module/{module}")))
        .filter_map(|text| text.parse().ok())
        .collect()
}

/// Drop-ins by which systemd hands the units the credentials that the config names. The first stage of the boot writes them
/// for the second one.
pub fn credentials(settings: &Settings, platform: &Platform) -> Result<Vec<FileResource>, ResourceError> {
    let join = settings.join.as_ref();
    let init = settings.init.as_ref();
    let sources = [
        ("join.token", join.map(|join| &join.token)),
        ("join.certificate_key", join.and_then(|join| join.certificate_key.as_ref())),
        ("init.token", init.and_then(|init| init.token.as_ref())),
        ("init.certificate_key", init.and_then(|init| init.certificate_key.as_ref())),
    ];
    let named = sources.into_iter().filter_map(|(key, source)| match source {
        Some(TokenSource::Credential(name)) => Some((key, name.as_str())),
        _ => None,
    });
    let named: Vec<(&str, &str)> = named.collect();
    let Some((key, _)) = named.first() else { return Ok(Vec::new()) };
    if let Some(version) = platform.systemd.filter(|version| *version < CREDENTIALS_SINCE) {
        let problem = format!(
            "credentials came with systemd {CREDENTIALS_SINCE}, and this is {version}; use {{ file = \"PATH\" }}, mode 0600"
        );
        return Err(ResourceError::Setting { key: (*key).to_owned(), problem });
    }
    // one that does not exist is no error to systemd: a node that has joined needs it no more
    let lines: String = named.iter().map(|(_, name)| format!("LoadCredential={name}\n")).collect();
    let drop_in = |unit: &str| {
        let path = format!("/etc/systemd/system/{unit}.d/50-credentials.conf");
        let file = OwnedFile::public(&path, format!("{HEADER}[Service]\n{lines}"));
        let purpose = "so that systemd hands it the credentials that the config names";
        FileResource::new(file, vec![Notify::DaemonReload], Stage::Prepare, purpose)
    };
    Ok(UNITS.into_iter().map(drop_in).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::host::platform::CgroupMode;

    fn settings(token: &str) -> Settings {
        let pin = "a".repeat(64);
        config::from_text(&format!(
            "[kubernetes]\nversion = \"1.31\"\n[join]\nmethod = \"kubeadm\"\nendpoint = \"10.0.0.1:6443\"\n\
             ca_hashes = [\"sha256:{pin}\"]\ntoken = {token}\n"
        ))
        .unwrap()
    }

    #[test]
    fn a_credential_is_handed_to_every_unit_that_runs_kubeadm() {
        let platform = Platform::example("9", CgroupMode::V2);
        let files = credentials(&settings("{ credential = \"join-token\" }"), &platform).unwrap();
        let paths: Vec<&str> = files.iter().map(|file| file.desired().file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/etc/systemd/system/nodeagent-activate.service.d/50-credentials.conf",
                "/etc/systemd/system/nodeagent-reconcile.service.d/50-credentials.conf"
            ]
        );
        for file in &files {
            let desired = file.desired();
            assert!(
                desired.file.content.ends_with("[Service]\nLoadCredential=join-token\n"),
                "{}",
                desired.file.content
            );
            assert_eq!(desired.notify, [Notify::DaemonReload]);
        }
        assert!(credentials(&settings("{ file = \"/etc/nodeagent/join.token\" }"), &platform).unwrap().is_empty());
    }

    #[test]
    fn a_systemd_without_credentials_is_said_by_the_name_of_the_setting() {
        let platform = Platform { systemd: Some(239), ..Platform::example("8", CgroupMode::V1) };
        let error = credentials(&settings("{ credential = \"join-token\" }"), &platform).err().unwrap().to_string();
        assert!(error.contains("join.token") && error.contains("247") && error.contains("file ="), "{error}");
    }
}
