//! A node of a test's own: network and mount namespace, so that the machine's links and mounts stay as they are.

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use nodeagent_runtime::network::{Network, NetworkConfig, PodNetwork};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Debian's reference plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

/// Runs a test inside new namespaces. As root only: says loudly when it cannot.
pub fn isolated<F, T>(test: T)
where
    T: FnOnce() -> F + Send,
    F: Future<Output = ()>,
{
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root for namespaces of its own");
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>).unwrap();
            // the processes started below live in the namespaces of the thread that starts them: this one
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Who makes the network of a [`Node`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Debian's reference plugins
    Executables,
    /// the program itself
    Itself,
}

/// Runs a test with either, each in namespaces of its own.
pub fn with_both<F, T>(test: T)
where
    T: Fn(By) -> F + Sync,
    F: Future<Output = ()>,
{
    if reference_plugins() {
        isolated(|| test(By::Executables));
        isolated(|| test(By::Itself));
    }
}

/// Whether the reference plugins are there; says loudly when not.
fn reference_plugins() -> bool {
    let there = Path::new(PLUGINS).join("bridge").exists();
    if !there {
        eprintln!("SKIPPED: needs the reference CNI plugins in {PLUGINS}");
    }
    there
}

/// Runs a program, which must succeed, and returns what it wrote.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {error}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// Inside [`isolated`]: a directory, a network in it, and pods with namespaces.
pub struct Node {
    directory: tempfile::TempDir,
    pub network: Network,
}

impl Node {
    /// `plugins` is the list's content; `DIR` in it stands for the address store of this node alone.
    pub fn new(by: By, version: &str, plugins: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // plugins find namespaces of others here: hide the machine's
        fs::create_dir_all("/run/netns").unwrap();
        mount(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        fs::create_dir(path.join("net.d")).unwrap();
        let plugins = plugins.replace("DIR", &path.join("addresses").display().to_string());
        let list = format!(r#"{{"cniVersion":"{version}","name":"pods","plugins":[{plugins}]}}"#);
        fs::write(path.join("net.d/10-pods.conflist"), list).unwrap();
        let network = network(path, by);
        Self { directory, network }
    }

    /// The same node with another setting.
    pub fn with(&self, by: By) -> Network {
        network(self.directory.path(), by)
    }

    /// A pod with a new namespace.
    pub fn pod(&self, id: &str) -> PodNetwork {
        run("ip", &["netns", "add", &format!("nodeagent-{id}")]);
        PodNetwork {
            sandbox_id: id.into(),
            namespace: "default".into(),
            name: format!("pod-{id}"),
            uid: format!("uid-{id}"),
            netns: format!("/run/netns/nodeagent-{id}").into(),
            ..PodNetwork::default()
        }
    }

    /// Everything in host-local's store, by file.
    pub fn store(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.directory.path().join("addresses/pods")).into_iter().flatten();
        let file =
            |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap());
        entries.map(|entry| file(entry.unwrap().path())).collect()
    }

    /// Addresses that host-local has given out.
    pub fn addresses(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path().join("addresses/pods")).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> =
            names.filter(|name| name.starts_with(|first: char| first.is_ascii_hexdigit())).collect();
        names.sort();
        names
    }
}

fn network(directory: &Path, by: By) -> Network {
    Network::new(NetworkConfig {
        conf_dir: directory.join("net.d"),
        plugin_dirs: vec![PLUGINS.into()],
        cache_dir: directory.join("cache"),
        builtin: by == By::Itself,
        ..NetworkConfig::default()
    })
}

/// `ip -j addr` of one interface in a pod: its global addresses with prefix.
pub fn addresses(pod: &PodNetwork, interface: &str) -> Vec<String> {
    let name = pod.netns.file_name().unwrap().to_str().unwrap();
    let text = run("ip", &["-n", name, "-j", "addr", "show", "dev", interface]);
    let value: Value = serde_json::from_str(&text).unwrap();
    let list = value[0]["addr_info"].as_array().unwrap();
    let global = list.iter().filter(|address| address["scope"] == "global");
    global.map(|address| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"])).collect()
}

/// Names of all links of this node.
pub fn links() -> Vec<String> {
    let value: Value = serde_json::from_str(&run("ip", &["-j", "link"])).unwrap();
    value.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

/// Runs something in a pod's namespace, on a thread of its own.
pub fn inside<T: Send + 'static>(
    netns: PathBuf,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        setns(fs::File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}
