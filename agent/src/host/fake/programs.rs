//! modprobe, rpm, dnf and udevadm in small.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::host::command::{Command, CommandError, CommandRunner, Output};
use crate::host::kernel::normal_module_name;
use crate::host::ledger::Ledger;
use crate::host::root::Root;

/// A repository that dnf knows.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    /// It does not answer.
    pub dead: bool,
    /// What it offers: name to `VERSION-RELEASE`.
    pub packages: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    installed: BTreeMap<String, String>,
    repositories: BTreeMap<String, Repository>,
    history: Vec<BTreeMap<String, String>>,
    runs: Vec<Command>,
}

/// The programs of a fake host.
pub struct FakePrograms {
    root: Root,
    ledger: Ledger,
    state: Mutex<State>,
}

impl FakePrograms {
    pub(super) fn new(root: Root, ledger: Ledger) -> FakePrograms {
        FakePrograms { root, ledger, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Installs a package as somebody else would.
    pub fn install(&self, name: &str, evr: &str) {
        self.state().installed.insert(name.to_owned(), evr.to_owned());
    }

    /// Removes a package as somebody else would.
    pub fn remove(&self, name: &str) {
        self.state().installed.remove(name);
    }

    /// Adds a repository or replaces it.
    pub fn repository(&self, id: &str, repository: Repository) {
        self.state().repositories.insert(id.to_owned(), repository);
    }

    /// Version and release of an installed package.
    pub fn installed(&self, name: &str) -> Option<String> {
        self.state().installed.get(name).cloned()
    }

    /// Every program that was started, those that only look included.
    pub fn runs(&self) -> Vec<Command> {
        self.state().runs.clone()
    }

    fn modprobe(&self, args: &[String]) -> Result<Output, std::io::Error> {
        let name = normal_module_name(args.last().map_or("", String::as_str));
        let list = format!("/lib/modules/{}/modules.dep", super::KERNEL);
        let known = self.root.read_text(&list).ok().flatten().unwrap_or_default().contains(&format!("/{name}.ko"));
        if !known {
            return Ok(failed(1, &format!("modprobe: FATAL: Module {name} not found in directory /lib/modules/")));
        }
        let files = self.root.drop_ins(&crate::host::kernel::MODPROBE_DIRS, ".conf").unwrap_or_default();
        if files.iter().any(|(_, text)| text.contains(&format!("install {name} "))) {
            return Ok(done(""));
        }
        let dir = self.root.path().to_owned();
        std::fs::create_dir_all(dir.join("sys/module").join(&name))?;
        if name == "overlay" {
            let path = dir.join("proc/filesystems");
            let text = std::fs::read_to_string(&path)? + "nodev\toverlay\n";
            std::fs::write(path, text)?;
        }
        if name == "br_netfilter" {
            let bridge = dir.join("proc/sys/net/bridge");
            std::fs::create_dir_all(&bridge)?;
            for key in ["iptables", "ip6tables", "arptables"] {
                std::fs::write(bridge.join(format!("bridge-nf-call-{key}")), "1\n")?;
            }
        }
        Ok(done(""))
    }

    /// Joins when it is told a token that the cluster knows, and leaves what a join leaves.
    fn kubeadm(&self, args: &[String]) -> Result<Output, std::io::Error> {
        let dir = self.root.path();
        let verb = args.first().map(String::as_str);
        if verb == Some("version") {
            return Ok(done("v1.31.4\n"));
        }
        let config = std::fs::read_to_string(dir.join("run/nodeagent/kubeadm.yaml"))?;
        if verb == Some("init") {
            return self.kubeadm_init(args, &config);
        }
        if !config.contains("abcdef.0123456789abcdef") {
            let token = config.lines().find_map(|line| line.trim().strip_prefix("token: ")).unwrap_or_default();
            return Ok(failed(1, &format!("error execution phase preflight: couldn't validate token {token}")));
        }
        std::fs::create_dir_all(dir.join("etc/kubernetes"))?;
        std::fs::write(
            dir.join("etc/kubernetes/kubelet.conf"),
            "clusters:\n- cluster:\n    server: https://10.0.0.1:6443\n",
        )?;
        Ok(done(""))
    }

    /// Refuses a version that is not its own, and breaks off half-way when the network of the pods is 0.0.0.0/0.
    fn kubeadm_init(&self, args: &[String], config: &str) -> Result<Output, std::io::Error> {
        let dir = self.root.path().join("etc/kubernetes");
        if !config.contains("kubernetesVersion: \"v1.31.4\"") {
            return Ok(failed(1, "this kubeadm cannot begin a cluster of another version"));
        }
        let has_key = config.contains("certificateKey");
        if has_key != args.iter().any(|arg| arg == "--upload-certs") {
            return Ok(failed(1, "a certificate key without --upload-certs, or the other way round"));
        }
        std::fs::create_dir_all(dir.join("manifests"))?;
        std::fs::write(dir.join("manifests/kube-apiserver.yaml"), "kind: Pod\n")?;
        std::fs::write(dir.join("admin.conf"), "kind: Config\n")?;
        if config.contains("0.0.0.0/0") {
            let keys = config.lines().filter(|line| line.contains("certificateKey")).collect::<String>();
            return Ok(failed(1, &format!("error execution phase wait-control-plane: timed out {keys}")));
        }
        std::fs::write(dir.join("kubelet.conf"), "clusters:\n- cluster:\n    server: https://10.0.0.5:6443\n")?;
        Ok(done(""))
    }

    fn rpm(&self, args: &[String]) -> Output {
        let state = self.state();
        let names = args.iter().skip_while(|arg| *arg != "--").skip(1);
        let mut missing = 0;
        let mut out = String::new();
        for name in names {
            match state.installed.get(name).and_then(|evr| evr.split_once('-')) {
                Some((version, release)) => out += &format!("{name}\t{version}\t{release}\tx86_64\n"),
                None => {
                    missing += 1;
                    out += &format!("package {name} is not installed\n");
                }
            }
        }
        Output { code: Some(missing), stdout: out, stderr: String::new() }
    }

    fn dnf(&self, args: &[String]) -> Output {
        let options: BTreeSet<&str> = args.iter().map(String::as_str).filter(|arg| arg.starts_with('-')).collect();
        let words: Vec<&str> = args.iter().map(String::as_str).filter(|arg| !arg.starts_with('-')).collect();
        match words[..] {
            ["upgrade"] => {
                // of what is installed, and not excluded: as the repository of Kubernetes has it
                let excluded = ["kubelet", "kubeadm", "kubectl"];
                let installed: Vec<String> = self.state().installed.keys().cloned().collect();
                let offered =
                    |name: &&str| self.state().repositories.values().any(|it| it.packages.contains_key(*name));
                let names = installed.iter().map(String::as_str).filter(|name| !excluded.contains(name));
                self.dnf_install(&names.filter(offered).collect::<Vec<_>>())
            }
            ["install" | "upgrade", ref specs @ ..] => self.dnf_install(specs),
            ["makecache"] => {
                let only = options.iter().find_map(|option| option.strip_prefix("--enablerepo="));
                self.state()
                    .repositories
                    .iter()
                    .find(|(id, repository)| repository.dead && only.is_none_or(|only| only == id.as_str()))
                    .map_or_else(|| done(""), |(id, _)| dead(id))
            }
            ["history", "info"] => done(&format!("Transaction ID : {}\n", self.state().history.len())),
            ["history", "undo", number] => {
                let mut state = self.state();
                let before = number.parse::<usize>().ok().and_then(|n| state.history.get(n.checked_sub(1)?).cloned());
                match before {
                    Some(before) => {
                        state.installed = before;
                        done("")
                    }
                    None => failed(1, "Error: no such transaction"),
                }
            }
            ["clean", ..] => done(""),
            _ => failed(1, &format!("fake dnf: no such command: {words:?}")),
        }
    }

    fn dnf_install(&self, specs: &[&str]) -> Output {
        let mut state = self.state();
        if let Some((id, _)) = state.repositories.iter().find(|(_, repository)| repository.dead) {
            return dead(id);
        }
        let mut wanted = BTreeMap::new();
        for spec in specs {
            let offer = state.repositories.values().flat_map(|repository| &repository.packages).find(|(name, evr)| {
                spec == name
                    || format!("{name}-{evr}").starts_with(spec.trim_end_matches('*'))
                        && spec.starts_with(name.as_str())
            });
            match offer {
                Some((name, evr)) => wanted.insert(name.clone(), evr.clone()),
                None => {
                    let mut output = failed(1, &format!("Error: Unable to find a match: {spec}"));
                    output.stdout = format!("No match for argument: {spec}\n");
                    return output;
                }
            };
        }
        let before = state.installed.clone();
        state.installed.extend(wanted);
        if state.installed == before {
            return done("Nothing to do.\n");
        }
        state.history.push(before);
        done("Complete!\n")
    }

    /// Of the rules those whose pattern is a path, with or without what is below it; the last one counts.
    fn restorecon(&self, paths: &[String]) -> std::io::Result<Output> {
        let files = "/etc/selinux/targeted/contexts/files/file_contexts";
        let rules = ["", ".local"].map(|end| self.root.read_text(&format!("{files}{end}")));
        let rules: Vec<String> = rules.into_iter().filter_map(|text| text.ok().flatten()).collect();
        for path in paths.iter().filter(|path| path.starts_with('/')) {
            let covers = |pattern: &str| match pattern.strip_suffix("(/.*)?") {
                Some(top) => *path == top || path.starts_with(&format!("{top}/")),
                None => path == pattern,
            };
            let label = |line: &str| {
                let mut fields = line.split_whitespace();
                fields.next().filter(|pattern| covers(pattern)).and_then(|_| fields.next_back().map(str::to_owned))
            };
            if let Some(label) = rules.iter().flat_map(|text| text.lines()).filter_map(label).next_back() {
                self.root.set_selinux_label(path, &label).map_err(std::io::Error::other)?;
            }
        }
        Ok(done(""))
    }
}

#[async_trait]
impl CommandRunner for FakePrograms {
    async fn run(&self, command: &Command) -> Result<Output, CommandError> {
        self.state().runs.push(command.clone());
        if !command.reads_only {
            self.ledger.note(format!("run {}", command.line()));
        }
        let program = command.program.clone();
        match command.program.as_str() {
            "/usr/sbin/modprobe" => {
                self.modprobe(&command.args).map_err(|source| CommandError::Start { program, source })
            }
            "/usr/bin/rpm" => Ok(self.rpm(&command.args)),
            "/usr/bin/dnf" => Ok(self.dnf(&command.args)),
            "/usr/sbin/setsebool" => {
                let [_, name, value] = &command.args[..] else { return Ok(failed(1, "usage")) };
                let path = self.root.path().join("sys/fs/selinux/booleans").join(name);
                let written = std::fs::write(path, format!("{value} {value}"));
                written.map(|()| done("")).map_err(|source| CommandError::Start { program, source })
            }
            "/usr/sbin/restorecon" => {
                self.restorecon(&command.args).map_err(|source| CommandError::Start { program, source })
            }
            "/usr/bin/kubeadm" => self.kubeadm(&command.args).map_err(|source| CommandError::Start { program, source }),
            "/usr/bin/udevadm" | "/usr/bin/crictl" => Ok(done("")),
            _ => Err(CommandError::Start { program, source: std::io::ErrorKind::NotFound.into() }),
        }
    }
}

fn done(stdout: &str) -> Output {
    Output { code: Some(0), stdout: stdout.to_owned(), stderr: String::new() }
}

fn failed(code: i32, stderr: &str) -> Output {
    Output { code: Some(code), stdout: String::new(), stderr: stderr.to_owned() }
}

fn dead(id: &str) -> Output {
    failed(1, &format!("Error: Failed to download metadata for repo '{id}': Cannot download repomd.xml"))
}
