//! The `agent` command on trees that do not run: what it prints, what it exits with, what it leaves alone.
// tests may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A small CentOS-like tree with a config.
struct Tree {
    dir: TempDir,
}

impl Tree {
    fn new(config: &str) -> Tree {
        let tree = Tree { dir: tempfile::tempdir().unwrap() };
        tree.write("/etc/os-release", "ID=centos\nVERSION_ID=9\nPRETTY_NAME=\"CentOS Stream 9\"\n");
        // the package brings it
        tree.write(
            "/usr/lib/systemd/system/nodeagent-runtime.service",
            "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
        );
        tree.write("/etc/nodeagent/config.toml", config);
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn agent(&self, args: &[&str]) -> Output {
        agent(&[&["--root", self.dir.path().to_str().unwrap()], args].concat())
    }

    /// Every file with its content and mode.
    fn snapshot(&self) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
        let mut files = BTreeMap::new();
        collect(self.dir.path(), &mut files);
        files
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<PathBuf, (Vec<u8>, u32)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            collect(&path, files);
        } else if metadata.is_symlink() {
            files.insert(path.clone(), (fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(), 0));
        } else {
            files.insert(path.clone(), (fs::read(&path).unwrap(), metadata.permissions().mode()));
        }
    }
}

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agent")).args(args).env_clear().output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Only files, so that nothing is left for a running system.
const FILES: &str = r#"
[kernel]
modules = []
[selinux]
mode = "keep"
[swap]
policy = "keep"
[packages]
source = "preinstalled"
[[file]]
path = "/etc/crictl.yaml"
content = "timeout: 30\n"
[[file]]
path = "/etc/secret"
content = "hunter2\n"
secret = true
"#;

#[test]
fn plan_shows_apply_does_and_the_second_run_writes_nothing() {
    let tree = Tree::new(FILES);
    let before = tree.snapshot();
    let plan = tree.agent(&["plan"]);
    assert_eq!(code(&plan), 2, "{plan:?}");
    assert!(stdout(&plan).contains("+timeout: 30"), "{}", stdout(&plan));
    assert!(!stdout(&plan).contains("hunter2"), "{}", stdout(&plan));
    assert_eq!(tree.snapshot(), before, "plan must not write");

    let apply = tree.agent(&["apply", "--yes"]);
    assert_eq!(code(&apply), 0, "{apply:?}");
    assert_eq!(tree.read("/etc/crictl.yaml"), "timeout: 30\n");
    // the live values of kernel parameters are sealed, once
    assert_eq!(code(&tree.agent(&["bake"])), 0);
    let after = tree.snapshot();
    assert_eq!(after[&tree.path("/etc/secret")].1 & 0o777, 0o600);

    for command in [["apply", "--yes"].as_slice(), &["reconcile"], &["bake"], &["plan"]] {
        let again = tree.agent(command);
        assert_eq!(code(&again), 0, "{command:?}: {again:?}");
        assert_eq!(without_lock(&tree, tree.snapshot()), without_lock(&tree, after.clone()), "{command:?} wrote");
    }
}

/// The lock says who held it last.
fn without_lock(tree: &Tree, mut files: BTreeMap<PathBuf, (Vec<u8>, u32)>) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
    files.remove(&tree.path("/var/lib/nodeagent/agent.lock"));
    files
}

#[test]
fn drift_is_found_and_repaired_or_only_reported() {
    let tree = Tree::new(FILES);
    assert_eq!(code(&tree.agent(&["apply", "--yes"])), 0);
    tree.write("/etc/crictl.yaml", "timeout: 1\n");
    let plan = tree.agent(&["plan"]);
    assert_eq!(code(&plan), 2, "{plan:?}");
    assert!(stdout(&plan).contains("-timeout: 1"), "{}", stdout(&plan));

    tree.write("/etc/nodeagent/config.d/50-policy.toml", "[reconcile]\npolicy = \"report\"\n");
    let report = tree.agent(&["reconcile"]);
    assert_eq!(code(&report), 2, "{report:?}");
    assert_eq!(tree.read("/etc/crictl.yaml"), "timeout: 1\n", "only reported");

    tree.write(
        "/etc/nodeagent/config.d/60-override.toml",
        "[reconcile.overrides]\n\"file//etc/crictl.yaml\" = \"repair\"\n",
    );
    let repair = tree.agent(&["reconcile"]);
    assert_eq!(code(&repair), 0, "{repair:?}");
    assert_eq!(tree.read("/etc/crictl.yaml"), "timeout: 30\n");
}

#[test]
fn what_a_person_adopts_stays_until_it_changes_again_or_the_config_does() {
    let tree = Tree::new(FILES);
    let id = "file//etc/crictl.yaml";
    assert_eq!(code(&tree.agent(&["apply", "--yes"])), 0);
    let nothing = tree.agent(&["adopt", id]);
    assert!(code(&nothing) == 0 && stdout(&nothing).contains("nothing to adopt"), "{nothing:?}");
    tree.write("/etc/crictl.yaml", "timeout: 1\n");
    let adopted = tree.agent(&["adopt", id]);
    assert!(code(&adopted) == 0 && stdout(&adopted).contains("stays as it is"), "{adopted:?}");
    for command in [&["plan"] as &[&str], &["reconcile"], &["apply", "--yes"], &["plan"]] {
        let run = tree.agent(command);
        assert_eq!(code(&run), 0, "{command:?}: {run:?}");
    }
    assert_eq!(tree.read("/etc/crictl.yaml"), "timeout: 1\n");
    let said = stdout(&tree.agent(&["reconcile", "--json"]));
    assert!(said.contains("adopted"), "{said}");

    // another difference is drift
    tree.write("/etc/crictl.yaml", "timeout: 2\n");
    assert_eq!(code(&tree.agent(&["plan"])), 2);
    tree.write("/etc/crictl.yaml", "timeout: 1\n");
    assert_eq!(code(&tree.agent(&["plan"])), 0);
    // and the config counts again when that is asked for
    assert_eq!(code(&tree.agent(&["adopt", "--undo", id])), 0);
    assert_eq!(code(&tree.agent(&["plan"])), 2);
    assert_eq!(code(&tree.agent(&["adopt", id])), 0);
    tree.write("/etc/nodeagent/config.toml", &FILES.replace("timeout: 30", "timeout: 31"));
    assert_eq!(code(&tree.agent(&["reconcile"])), 0);
    assert_eq!(tree.read("/etc/crictl.yaml"), "timeout: 31\n", "the config is newer");

    let unknown = tree.agent(&["adopt", "file//etc/crictl.yml"]);
    assert_eq!(code(&unknown), 11, "{unknown:?}");
    assert!(stderr(&unknown).contains("did you mean"), "{unknown:?}");
}

#[test]
fn what_is_to_be_kept_stays_as_others_made_it_until_the_config_changes() {
    let keep = "[reconcile.overrides]\n\"file//etc/crictl.yaml\" = \"keep\"\n";
    let tree = Tree::new(&format!("{FILES}\n{keep}"));
    tree.write("/etc/crictl.yaml", "timeout: 1\n");
    assert_eq!(code(&tree.agent(&["apply", "--yes"])), 0);
    assert_eq!(tree.read("/etc/crictl.yaml"), "timeout: 30\n", "what was there before is no change of ours");
    for text in ["timeout: 2\n", "timeout: 3\n"] {
        tree.write("/etc/crictl.yaml", text);
        for command in [&["plan"] as &[&str], &["reconcile"], &["apply", "--yes"]] {
            assert_eq!(code(&tree.agent(command)), 0, "{command:?}");
        }
        assert_eq!(tree.read("/etc/crictl.yaml"), text);
    }
    tree.write("/etc/nodeagent/config.toml", &format!("{FILES}\n{keep}").replace("timeout: 30", "timeout: 31"));
    assert_eq!(code(&tree.agent(&["reconcile"])), 0);
    assert_eq!(tree.read("/etc/crictl.yaml"), "timeout: 31\n", "the config is newer");
}

#[test]
fn what_is_changed_back_again_and_again_is_left_alone() {
    let tree = Tree::new(&format!("{FILES}\n[reconcile]\nmax_repairs_per_hour = 2\n"));
    assert_eq!(code(&tree.agent(&["apply", "--yes"])), 0);
    for _ in 0..2 {
        tree.write("/etc/crictl.yaml", "other\n");
        assert_eq!(code(&tree.agent(&["reconcile"])), 0);
    }
    tree.write("/etc/crictl.yaml", "other\n");
    let third = tree.agent(&["reconcile", "--json"]);
    assert_eq!(code(&third), 3, "{third:?}");
    assert_eq!(tree.read("/etc/crictl.yaml"), "other\n");
    assert!(stdout(&third).contains("repaired 2 times within an hour"), "{}", stdout(&third));
    assert_eq!(code(&tree.agent(&["apply", "--yes"])), 0, "apply does not count");
    assert_eq!(tree.read("/etc/crictl.yaml"), "timeout: 30\n");
}

#[test]
fn rollback_takes_the_last_transaction_back() {
    let tree = Tree::new(FILES);
    tree.write("/etc/crictl.yaml", "mine\n");
    fs::set_permissions(tree.path("/etc/crictl.yaml"), fs::Permissions::from_mode(0o640)).unwrap();
    let before = tree.snapshot();
    assert_eq!(code(&tree.agent(&["apply", "--yes"])), 0);

    let shown = tree.agent(&["rollback"]);
    assert_eq!(code(&shown), 2, "{shown:?}");
    assert!(stdout(&shown).contains("put /etc/crictl.yaml back"), "{}", stdout(&shown));
    assert_eq!(tree.read("/etc/crictl.yaml"), "timeout: 30\n", "only shown");

    let done = tree.agent(&["rollback", "--yes"]);
    assert_eq!(code(&done), 0, "{done:?}");
    let own = |path: &PathBuf| !path.starts_with(tree.path("/var/lib/nodeagent"));
    let after: BTreeMap<_, _> = tree.snapshot().into_iter().filter(|(path, _)| own(path)).collect();
    assert_eq!(after, before, "the tree is as it was");
    assert_eq!(code(&tree.agent(&["rollback", "--yes"])), 11, "there is nothing more to take back");
}

#[test]
fn a_config_that_is_not_valid_touches_nothing() {
    let tree = Tree::new("[selinux]\nmod = \"keep\"\n[runtime]\nready_timeout = \"10\"\n");
    let before = tree.snapshot();
    for command in [["plan"].as_slice(), &["apply", "--yes"], &["reconcile"], &["bake"], &["config", "check"]] {
        let output = tree.agent(command);
        assert_eq!(code(&output), 10, "{command:?}: {output:?}");
        let text = stderr(&output);
        assert!(
            text.contains("/etc/nodeagent/config.toml:2:1: selinux.mod: unknown key \"mod\"; did you mean"),
            "{text}"
        );
        assert!(text.contains("/etc/nodeagent/config.toml:4:1: runtime.ready_timeout: \"10\" has no unit"), "{text}");
    }
    assert_eq!(tree.snapshot(), before);
    let output = tree.agent(&["--json", "plan"]);
    assert_eq!(json(&output)["exit_code"], 10);
    assert_eq!(json(&output)["config_errors"][0]["line"], 2);
}

#[test]
fn a_config_file_that_cannot_be_read_is_named_and_touches_nothing() {
    let tree = Tree::new(FILES);
    fs::create_dir_all(tree.path("/etc/nodeagent/config.d/50-dir.toml")).unwrap();
    tree.write("/etc/nodeagent/config.d/60-bytes.toml", "");
    fs::write(tree.path("/etc/nodeagent/config.d/60-bytes.toml"), [0xff, 0xfe]).unwrap();
    let before = tree.snapshot();
    let output = tree.agent(&["apply", "--yes"]);
    assert_eq!(code(&output), 10, "{output:?}");
    let text = stderr(&output);
    assert!(text.contains("/etc/nodeagent/config.d/50-dir.toml: cannot be read"), "{text}");
    assert!(text.contains("/etc/nodeagent/config.d/60-bytes.toml: not UTF-8 at byte 0"), "{text}");
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn config_check_needs_no_host_and_config_show_names_origins() {
    let tree = Tree::new(FILES);
    tree.write("/etc/nodeagent/config.d/50-x.toml", "[node]\nrole = \"control-plane\"\n");
    let file = tree.path("/etc/nodeagent/config.toml");
    let check = agent(&["config", "check", file.to_str().unwrap()]);
    assert_eq!(code(&check), 0, "{check:?}");

    let show = tree.agent(&["config", "show"]);
    let text = stdout(&show);
    assert!(text.contains("\"control-plane\"  # /etc/nodeagent/config.d/50-x.toml:2"), "{text}");
    assert!(text.contains("# built-in:"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let shown = json(&tree.agent(&["--json", "config", "show"]));
    assert!(shown.as_array().unwrap().iter().any(|entry| entry["key"] == "selinux.mode"), "{shown}");
    assert_eq!(code(&agent(&["config", "check", "/nonexistent.toml"])), 10);
}

#[test]
fn a_tree_without_config_or_of_another_system_is_refused_untouched() {
    let tree = Tree::new("");
    fs::remove_file(tree.path("/etc/nodeagent/config.toml")).unwrap();
    let before = tree.snapshot();
    assert_eq!(code(&tree.agent(&["apply", "--yes"])), 10);
    assert_eq!(tree.snapshot(), before);

    let tree = Tree::new("");
    tree.write("/etc/os-release", "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n");
    let before = tree.snapshot();
    let output = tree.agent(&["apply", "--yes"]);
    assert_eq!(code(&output), 13, "{output:?}");
    assert!(stderr(&output).contains("Debian GNU/Linux 12 is not supported"), "{output:?}");
    assert_eq!(tree.snapshot(), before);
    assert_eq!(code(&agent(&["--root", "/nonexistent", "plan"])), 11);
}

#[test]
fn without_a_terminal_apply_needs_yes() {
    let tree = Tree::new(FILES);
    let output = tree.agent(&["apply"]);
    assert_eq!(code(&output), 11, "{output:?}");
    assert!(stderr(&output).contains("--yes"), "{output:?}");
    assert!(!tree.path("/etc/crictl.yaml").exists());
}

#[test]
fn a_second_run_at_the_same_time_is_told_who_holds_the_lock() {
    let tree = Tree::new(FILES);
    assert_eq!(code(&tree.agent(&["apply", "--yes"])), 0);
    let lock = fs::File::open(tree.path("/var/lib/nodeagent/agent.lock")).unwrap();
    let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let output = tree.agent(&["apply", "--yes"]);
    assert_eq!(code(&output), 12, "{output:?}");
    assert!(stderr(&output).contains("agent apply --stage activate"), "{output:?}");
}

#[test]
fn json_is_what_the_schemas_say() {
    let tree = Tree::new(FILES);
    let plan = json(&tree.agent(&["plan", "--json"]));
    assert!(plan["changes"].as_u64().unwrap() >= 2, "{plan}");
    assert!(!plan.to_string().contains("hunter2"));
    let report = json(&tree.agent(&["apply", "--yes", "--json"]));
    assert_eq!(report["exit_code"], 0, "{report}");
    for (value, subject) in [(&plan, "plan"), (&report, "status")] {
        let schema = json(&agent(&["schema", subject]));
        let required = schema["required"].as_array().unwrap();
        let known = schema["properties"].as_object().unwrap();
        for key in value.as_object().unwrap().keys() {
            assert!(known.contains_key(key), "{subject}: {key} is not in the schema");
        }
        for key in required {
            assert!(value.get(key.as_str().unwrap()).is_some(), "{subject}: {key} is required");
        }
    }
}

#[test]
fn completions_man_pages_and_help_name_every_command_and_exit_code() {
    let help = stdout(&agent(&["--help"]));
    for code in [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))), "{code}: {help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&agent(&["completions", shell])).contains("reconcile"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(code(&agent(&["man", dir.path().to_str().unwrap()])), 0);
    let page = fs::read_to_string(dir.path().join("agent.1")).unwrap();
    assert!(
        page.contains("EXIT STATUS") && page.contains("UNSUPPORTED") | page.contains("unsupported platform"),
        "{page}"
    );
    assert!(dir.path().join("agent-apply.1").exists());
}

#[test]
fn explain_says_how_to_look_by_hand_and_status_needs_a_run() {
    let tree = Tree::new(FILES);
    let all = tree.agent(&["explain"]);
    assert_eq!(code(&all), 0);
    assert!(stdout(&all).contains("file//etc/crictl.yaml"), "{all:?}");
    let unknown = tree.agent(&["explain", "file//etc/crictl.yml"]);
    assert_eq!(code(&unknown), 11);
    assert!(stderr(&unknown).contains("did you mean \"file//etc/crictl.yaml\"?"), "{unknown:?}");
    assert_eq!(code(&tree.agent(&["status"])), 11);
}

#[test]
fn every_path_that_the_readme_names_exists_and_its_exit_codes_are_the_real_ones() {
    let readme = include_str!("../README.md");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let paths = readme.split('`').filter(|text| text.starts_with("src/") || text.starts_with("tests/"));
    let missing: Vec<_> = paths.filter(|path| !here.join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for (exit, _) in nodeagent::exit::ALL {
        assert!(readme.contains(&format!("\n| {} | ", exit.code())), "{exit:?}");
    }
}

#[test]
fn a_bake_seals_what_only_a_running_system_can_do() {
    let tree = Tree::new("[packages]\nsource = \"preinstalled\"\n[kernel.sysctl]\n\"kernel.panic\" = 10\n");
    let baked = tree.agent(&["bake"]);
    assert_eq!(code(&baked), 0, "{}", stderr(&baked));
    let sealed: Value = serde_json::from_str(&tree.read("/var/lib/nodeagent/sealed-plan.json")).unwrap();
    let ids: Vec<&str> = sealed["steps"].as_array().unwrap().iter().filter_map(|step| step["id"].as_str()).collect();
    assert!(ids.contains(&"sysctl/kernel.panic") && ids.contains(&"kernel-module/overlay"), "{ids:?}");
    assert!(!ids.contains(&"sysctl-file"), "that was done: {ids:?}");
    assert!(sealed["steps"].as_array().unwrap().iter().all(|step| !step["desired"].is_null()), "{sealed}");
    let before = tree.snapshot();
    assert_eq!(code(&tree.agent(&["bake"])), 0);
    assert_eq!(without_lock(&tree, tree.snapshot()), without_lock(&tree, before), "the second bake writes nothing");
}
