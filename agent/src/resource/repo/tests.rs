use super::super::owned_file::Found;
use super::*;
use crate::plan::Action;

fn kubernetes(version: &str, baseurl: Option<&str>) -> Desired {
    Desired::kubernetes(&KubernetesSettings {
        version: version.parse().unwrap(),
        kubelet_mode: crate::config::settings::KubeletMode::Agent,
        repo_baseurl: baseurl.map(|url| url.parse().unwrap()),
        kubelet: serde_json::Map::new(),
        kubelet_args: Vec::new(),
    })
}

fn file(text: &str) -> Observed {
    let found = Found::File { text: Some(text.to_owned()), mode: 0o644, uid: 0, gid: 0 };
    Observed { file: FileNow { missing_directories: vec![], found: Some(found) }, also_in: None, offline: false }
}

fn decide(desired: &Desired, observed: &Observed) -> Outcome {
    plan(&ResourceId::new("repo", "kubernetes"), desired, observed, &Past::Unknown)
}

#[test]
fn the_kubernetes_repository_follows_the_minor() {
    let text = kubernetes("1.36", None).render();
    assert!(text.contains("baseurl=https://pkgs.k8s.io/core:/stable:/v1.36/rpm/\n"), "{text}");
    assert!(text.contains("gpgkey=https://pkgs.k8s.io/core:/stable:/v1.36/rpm/repodata/repomd.xml.key\n"), "{text}");
    assert!(text.contains("gpgcheck=1\n") && text.contains("exclude=kubelet kubeadm kubectl"), "{text}");
    let mirror = kubernetes("1.20.15", Some("http://mirror/k8s")).render();
    assert!(mirror.contains("baseurl=http://mirror/k8s/\n"), "{mirror}");
}

#[test]
fn a_file_that_means_the_same_is_left_alone() {
    let desired = kubernetes("1.36", None);
    let mut lines: Vec<String> = desired.render().lines().skip(2).map(|line| line.replacen('=', " = ", 1)).collect();
    lines.reverse();
    let shuffled = format!("# by hand\n[kubernetes]\n; comment\n{}\n", lines.join("\n\n"));
    assert_eq!(decide(&desired, &file(&shuffled)), Outcome::converged());
}

#[test]
fn any_difference_that_dnf_sees_is_repaired() {
    let desired = kubernetes("1.36", None);
    let text = desired.render();
    for wrong in [
        text.replace("v1.36", "v1.35"),
        text.replace("gpgcheck=1", "gpgcheck=0"),
        text.replace("enabled=1", "enabled=0"),
        text.replace("[kubernetes]", "[other]"),
        format!("{text}sslverify=0\n"),
        format!("{text}[second]\nbaseurl=http://x\n"),
        "<html>404</html>\n".to_owned(),
        String::new(),
    ] {
        let outcome = decide(&desired, &file(&wrong));
        let change = outcome.change().unwrap_or_else(|| panic!("{wrong}"));
        assert!(
            matches!(&change.actions[..], [Action::WriteFile { content, .. }, Action::ProbeRepository { repo }]
                if *content == text && repo == "kubernetes"),
            "{:?}",
            change.actions
        );
    }
}

#[test]
fn a_second_definition_elsewhere_is_named() {
    let observed = Observed { also_in: Some("/etc/yum.repos.d/k8s.repo".into()), ..file("") };
    let Outcome::Blocked { reason, .. } = decide(&kubernetes("1.36", None), &observed) else { panic!() };
    assert!(reason.contains("/etc/yum.repos.d/k8s.repo"), "{reason}");
}

#[test]
fn several_urls_survive_a_round_trip() {
    let repo = RepoSettings {
        name: "local".parse().unwrap(),
        title: "Local = one".into(),
        baseurl: vec!["http://a/x".parse().unwrap(), "https://b/$basearch/".parse().unwrap()],
        gpgkey: vec![],
        gpgcheck: false,
        repo_gpgcheck: false,
        enabled: true,
        exclude: vec!["a*".into(), "b".into()],
        priority: Some(10),
    };
    let desired = Desired::configured(&repo);
    let (sections, junk) = ini::parse(&desired.render());
    assert!(!junk);
    assert_eq!(sections[0].list("baseurl"), ["http://a/x", "https://b/$basearch/"]);
    assert_eq!(sections[0].get("name"), Some("Local = one"));
    assert!(desired.same_meaning(&desired.render()));
}

#[test]
fn only_a_repository_that_the_agent_installs_from_is_asked() {
    let missing =
        Observed { file: FileNow { missing_directories: vec![], found: None }, also_in: None, offline: false };
    let asks = |desired: &Desired, observed: &Observed| {
        let outcome = decide(desired, observed);
        outcome.change().unwrap().actions.iter().any(|action| matches!(action, Action::ProbeRepository { .. }))
    };
    let desired = kubernetes("1.36", None);
    assert!(asks(&desired, &missing));
    assert!(!asks(&desired, &Observed { offline: true, ..missing.clone() }), "a tree has no network of its own");
    assert!(!asks(&desired.unused(), &missing), "an image that has its packages");
}
