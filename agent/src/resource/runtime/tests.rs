use super::*;
use crate::config;
use crate::resource::registry;

fn settings(kind: &str, rest: &str) -> Settings {
    config::from_text(&format!("[kubernetes]\nversion = \"1.36\"\n[runtime]\nkind = \"{kind}\"\n{rest}")).unwrap()
}

fn refused(text: &str) -> String {
    config::from_text(text).unwrap_err().to_string()
}

#[test]
fn cri_o_has_the_minor_of_kubernetes_and_listens_where_cadvisor_looks() {
    let settings = settings("crio", "");
    let repo = repository(&settings, &Platform::example("9", CgroupMode::V2)).unwrap().render();
    let base = "https://download.opensuse.org/repositories/isv:/cri-o:/stable:/v1.36/rpm/";
    assert!(repo.contains(&format!("baseurl={base}\n")), "{repo}");
    assert!(repo.contains(&format!("gpgkey={base}repodata/repomd.xml.key\n")), "{repo}");
    assert_eq!(package(&settings).unwrap().spec, "cri-o-1.36.*");
    let conf = crio_conf(&settings.runtime, &Platform::example("9", CgroupMode::V2));
    let read: toml::Table = conf.content.parse().unwrap();
    assert_eq!(read["crio"]["api"]["listen"].as_str(), Some("/var/run/crio/crio.sock"));
    assert_eq!(read["crio"]["runtime"]["cgroup_manager"].as_str(), Some("systemd"));
    let conf = crio_conf(&settings.runtime, &Platform::example("8", CgroupMode::V1));
    assert!(conf.content.contains("cgroup_manager = \"cgroupfs\""), "{}", conf.content);
}

#[test]
fn containerd_is_told_what_its_package_leaves_out() {
    let registries = "[[registries]]\nprefix = \"docker.io\"\nmirrors = [\"mirror:5000\", \"other/team\"]\n";
    let settings = settings("containerd", registries);
    let platform = Platform::example("10", CgroupMode::V2);
    let repo = repository(&settings, &platform).unwrap().render();
    assert!(repo.contains("baseurl=https://download.docker.com/linux/centos/10/$basearch/stable/\n"), "{repo}");
    assert!(repo.contains("gpgkey=https://download.docker.com/linux/centos/gpg\n"), "{repo}");
    let read: toml::Table = containerd_conf(&settings.runtime, &platform).content.parse().unwrap();
    let cri = &read["plugins"]["io.containerd.grpc.v1.cri"];
    assert_eq!(cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"].as_bool(), Some(true));
    assert_eq!(cri["registry"]["config_path"].as_str(), Some(CERTS_D));
    assert_eq!(read["grpc"]["address"].as_str(), Some("/run/containerd/containerd.sock"));

    let hosts = hosts_toml(&settings.host.registries[0]);
    assert_eq!(hosts.path, "/etc/containerd/certs.d/docker.io/hosts.toml");
    let read: toml::Table = hosts.content.parse().unwrap();
    assert_eq!(read["server"].as_str(), Some("https://registry-1.docker.io"));
    assert!(read["host"]["https://mirror:5000"].get("override_path").is_none());
    assert_eq!(read["host"]["https://other/v2/team"]["override_path"].as_bool(), Some(true));
}

#[test]
fn a_mirror_of_the_packages_has_its_own_key() {
    let settings = settings("containerd", "repo_baseurl = \"http://mirror/docker\"\n");
    let repo = repository(&settings, &Platform::example("9", CgroupMode::V2)).unwrap().render();
    assert!(repo.contains("gpgkey=http://mirror/docker/repodata/repomd.xml.key\n"), "{repo}");
}

#[test]
fn the_resources_of_a_node_follow_its_runtime() {
    let ids = |kind: &str| {
        let all = registry(&settings(kind, ""), &Platform::example("9", CgroupMode::V2)).unwrap();
        all.iter().map(|resource| (resource.id().to_string(), resource.needs())).collect::<Vec<_>>()
    };
    let has = |all: &[(String, Vec<crate::plan::ResourceId>)], id: &str| all.iter().any(|(name, _)| name == id);
    let embedded = ids("embedded");
    assert!(has(&embedded, "unit/nodeagent-runtime.service") && !has(&embedded, "package/runtime"), "{embedded:?}");
    for (kind, unit, file) in
        [("crio", "unit/crio.service", CRIO_CONF), ("containerd", "unit/containerd.service", CONTAINERD_CONF)]
    {
        let all = ids(kind);
        for id in [unit, "package/runtime", "unit/nodeagent-runtime.service", &format!("file/{file}")] {
            assert!(has(&all, id), "{kind}: {id} is missing in {all:?}");
        }
        assert!(!has(&all, "file//etc/nodeagent/runtime.toml"), "{all:?}");
        let kubelet = all.iter().find(|(name, _)| name == "unit/kubelet.service").unwrap();
        assert!(kubelet.1.iter().any(|need| need.as_str() == unit), "{kubelet:?}");
        let runtime = all.iter().find(|(name, _)| name == unit).unwrap();
        for need in ["package/runtime", &format!("file/{file}")] {
            assert!(runtime.1.iter().any(|id| id.as_str() == need), "{runtime:?}");
        }
    }
}

#[test]
fn settings_of_another_runtime_are_refused() {
    let text = refused("[runtime]\nkind = \"crio\"\nroot = \"/data\"\n");
    assert!(text.contains("runtime.root") && text.contains("embedded"), "{text}");
    assert!(text.contains("kubernetes.version"), "{text}");
    let text = refused("[kubernetes]\nversion = \"1.30\"\n[runtime]\nkind = \"crio\"\n");
    assert!(text.contains("CRI-O 1.30") && text.contains("runtime.repo_baseurl"), "{text}");
    let text = refused("[runtime]\nrepo_baseurl = \"http://x/\"\n");
    assert!(text.contains("comes with this agent"), "{text}");
    let text = refused("[runtime]\nkind = \"containerd\"\n[[registries]]\nprefix = \"quay.io/team\"\nblocked = true\n");
    assert!(text.contains("by their host alone") && text.contains("cannot block"), "{text}");
    let text = refused("[runtime]\nkind = \"docker\"\n");
    assert!(text.contains("crio") && text.contains("containerd"), "{text}");
}
