//! kubeadm's outside, for the test host: `version`, and a `join` that leaves the files which a real one leaves.

use std::process::ExitCode;

use anyhow::{Context, bail};

/// Where the package says which version it is.
const VERSION_FILE: &str = "/usr/share/standin-kubelet/version";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<String>) -> anyhow::Result<()> {
    let version = std::fs::read_to_string(VERSION_FILE).with_context(|| format!("read {VERSION_FILE}"))?;
    let version = version.trim();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["version", "-o", "short"] | ["version", "-o=short"] => println!("v{version}"),
        ["version"] => println!("kubeadm version: &version.Info{{GitVersion:\"v{version}\"}}"),
        ["join", endpoint, options @ ..] => join(endpoint, options)?,
        _ => bail!("unknown command {words:?}: version or join"),
    }
    Ok(())
}

/// Refuses what is there already, as kubeadm's preflight does, then writes what a join leaves behind.
fn join(endpoint: &str, options: &[&str]) -> anyhow::Result<()> {
    let option = |name: &str| options.iter().position(|word| *word == name).and_then(|at| options.get(at + 1)).copied();
    let token = option("--token").context("--token is missing")?;
    if token.len() != 23 || token.find('.') != Some(6) {
        bail!("the bootstrap token is not of the form [a-z0-9]{{6}}.[a-z0-9]{{16}}");
    }
    if option("--discovery-token-ca-cert-hash").is_none_or(|hash| !hash.starts_with("sha256:")) {
        bail!("--discovery-token-ca-cert-hash sha256:… is missing");
    }
    let kubeconfig = "/etc/kubernetes/kubelet.conf";
    if std::path::Path::new(kubeconfig).exists() {
        bail!(
            "[preflight] Some fatal errors occurred: [ERROR FileAvailable--etc-kubernetes-kubelet.conf]: {kubeconfig} already exists"
        );
    }
    let socket = option("--cri-socket").unwrap_or("unix:///run/containerd/containerd.sock");
    for (path, content) in [
        ("/etc/kubernetes/pki/ca.crt", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned()),
        (
            "/var/lib/kubelet/config.yaml",
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nclusterDNS: [10.96.0.10]\ncgroupDriver: systemd\n"
                .to_owned(),
        ),
        (
            "/var/lib/kubelet/kubeadm-flags.env",
            format!("KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint={socket}\"\n"),
        ),
        (kubeconfig, format!("apiVersion: v1\nkind: Config\nclusters: [{{cluster: {{server: \"https://{endpoint}\"}}, name: default}}]\n")),
    ] {
        let path = std::path::Path::new(path);
        path.parent().map(std::fs::create_dir_all).transpose()?;
        std::fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    }
    println!("This node has joined the cluster.");
    Ok(())
}
