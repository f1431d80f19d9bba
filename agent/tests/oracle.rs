//! What we do compared with the programs whose rules we follow: procps' sysctl, systemctl --root, Python's configparser.

// a test may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nodeagent::config;
use nodeagent::host::root::Root;
use nodeagent::host::systemd::Systemd;
use nodeagent::host::systemd::offline::Offline;
use nodeagent::host::{Ledger, Platform};
use nodeagent::resource::repo;
use nodeagent::resource::sysctl::conf;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tempfile::TempDir;

/// Runs it; none, and a line that says so, where it is not installed.
fn run(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).env("LC_ALL", "C").output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// What procps would set, in order: name with dots, value.
fn by_procps(text: &str) -> Option<Vec<(String, String)>> {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("test.conf");
    std::fs::write(&file, text).unwrap();
    let output = run("sysctl", &["--dry-run", "-p", file.to_str().unwrap()])?;
    let line = |line: &str| line.split_once(" = ").map(|(key, value)| (key.to_owned(), value.to_owned()));
    let stdout = String::from_utf8(output.stdout).unwrap();
    // values may be empty, and the line then ends after the sign
    Some(
        stdout
            .lines()
            .filter_map(|each| {
                line(each).or_else(|| each.strip_suffix(" =").map(|key| (key.to_owned(), String::new())))
            })
            .collect(),
    )
}

fn by_us(text: &str) -> Vec<(String, String)> {
    let dotted = |path: &str| -> String {
        path.chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect()
    };
    conf::parse(text).into_iter().filter_map(|each| Some((dotted(&each.path), each.value?))).collect()
}

/// Parameters that every kernel has, written in all ways.
fn sysctl_line() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("net.ipv4.ip_forward"),
        Just("net/ipv4/ip_forward"),
        Just("kernel.panic"),
        Just("kernel/panic"),
        Just("vm.swappiness"),
        Just("net.ipv4.conf.lo.forwarding"),
        Just("net/ipv4/conf/lo/forwarding"),
        Just("net.ipv4.ip_local_port_range"),
    ];
    let value = prop_oneof!["[0-9]{1,5}", "[0-9]{1,5}[ \t][0-9]{1,5}", "[a-z=.#;/-]{1,8}"];
    let blank = || prop_oneof![Just(""), Just(" "), Just("  "), Just("\t")];
    let setting = (blank(), prop_oneof![4 => Just(""), 1 => Just("-")], key, blank(), blank(), value, blank())
        .prop_map(|(a, dash, key, b, c, value, d)| format!("{a}{dash}{key}{b}={c}{value}{d}"));
    prop_oneof![8 => setting, 1 => "[ \t]{0,2}[#;][ -~]{0,20}", 1 => Just(String::new())]
}

#[test]
fn sysctl_files_are_read_as_procps_reads_them() {
    if by_procps("").is_none() {
        return;
    }
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() });
    let files = proptest::collection::vec(sysctl_line(), 1..8).prop_map(|lines| lines.join("\n") + "\n");
    runner
        .run(&files, |text| {
            prop_assert_eq!(by_us(&text), by_procps(&text).unwrap());
            Ok(())
        })
        .unwrap();
}

/// A tree with these unit files.
fn tree(units: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for sub in ["etc/systemd/system", "usr/lib/systemd/system"] {
        std::fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    for (path, text) in units {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

/// Links below /etc/systemd/system, and directories.
fn links(dir: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(dir: &Path, top: &Path, all: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().to_owned();
            if path.is_symlink() {
                all.insert(name, path.read_link().unwrap().display().to_string());
            } else if path.is_dir() {
                all.insert(name, "directory".into());
                walk(&path, top, all);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(&dir.join("etc/systemd/system"), dir, &mut all);
    all
}

const UNITS: [(&str, &str); 14] = [
    ("usr/lib/systemd/system/plain.service", "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"),
    (
        "usr/lib/systemd/system/many.service",
        "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target graphical.target\nRequiredBy=a.target\nAlias=other.service\n",
    ),
    (
        "usr/lib/systemd/system/also.service",
        "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\nAlso=also.socket missing.socket\n",
    ),
    (
        "usr/lib/systemd/system/also.socket",
        "[Socket]\nListenStream=/run/x\n[Install]\nWantedBy=sockets.target\nAlso=also.service\n",
    ),
    ("usr/lib/systemd/system/static.service", "[Service]\nExecStart=/bin/true\n"),
    ("usr/lib/systemd/system/indirect.service", "[Service]\nExecStart=/bin/true\n[Install]\nAlso=plain.service\n"),
    (
        "usr/lib/systemd/system/tty@.service",
        "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n",
    ),
    ("usr/lib/systemd/system/bare@.service", "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"),
    ("usr/lib/systemd/system/dropped.service", "[Service]\nExecStart=/bin/true\n"),
    ("etc/systemd/system/dropped.service.d/10.conf", "[Install]\nWantedBy=multi-user.target\n"),
    ("etc/systemd/system/local.service", "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"),
    ("usr/lib/systemd/system/spec@.service", "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=%i.target\n"),
    (
        "usr/lib/systemd/system/comment.service",
        "[Service]\nExecStart=/bin/true\n[Install]\n# WantedBy=no.target\nWantedBy=a.target \\\n b.target\n",
    ),
    (
        "usr/lib/systemd/system/reset.service",
        "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=no.target\nWantedBy=\nWantedBy=yes.target\n",
    ),
];

#[tokio::test]
async fn offline_enable_disable_and_mask_make_the_links_that_systemctl_makes() {
    let cases: [&[(&str, &str)]; 17] = [
        &[("enable", "plain.service")],
        &[("enable", "plain.service"), ("enable", "plain.service")],
        &[("enable", "many.service")],
        &[("enable", "many.service"), ("disable", "many.service")],
        &[("enable", "many.service"), ("disable", "other.service")],
        &[("enable", "also.service")],
        &[("enable", "also.service"), ("disable", "also.service")],
        &[("enable", "also.socket")],
        &[("enable", "tty@.service")],
        &[("enable", "tty@tty5.service"), ("enable", "tty@.service"), ("disable", "tty@.service")],
        &[("enable", "bare@one.service"), ("enable", "bare@two.service"), ("disable", "bare@one.service")],
        &[("enable", "dropped.service"), ("enable", "local.service")],
        &[("enable", "spec@here.service")],
        &[("enable", "comment.service"), ("enable", "reset.service")],
        &[("mask", "plain.service"), ("mask", "plain.service")],
        &[("mask", "nonexistent.service"), ("unmask", "nonexistent.service")],
        &[("enable", "plain.service"), ("mask", "plain.service"), ("unmask", "plain.service")],
    ];
    for case in cases {
        let (ours, theirs) = (tree(&UNITS), tree(&UNITS));
        let root = Root::offline(ours.path(), Ledger::default()).unwrap();
        let offline = Offline::new(root);
        for (verb, unit) in case {
            let result = match *verb {
                "enable" => offline.enable(unit).await,
                "disable" => offline.disable(unit).await,
                "mask" => offline.mask(unit).await,
                _ => offline.unmask(unit).await,
            };
            result.unwrap_or_else(|error| panic!("{case:?}: {error:?}"));
            let root = format!("--root={}", theirs.path().display());
            let Some(output) = run("systemctl", &[&root, verb, unit]) else { return };
            assert!(output.status.success(), "{case:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(links(ours.path()), links(theirs.path()), "{case:?}");
        for unit in case.iter().map(|(_, unit)| *unit).collect::<BTreeSet<_>>() {
            same_state(&offline, theirs.path(), unit).await;
        }
    }
}

/// `is-enabled` says the same.
async fn same_state(offline: &Offline, theirs: &Path, unit: &str) {
    let root = format!("--root={}", theirs.display());
    let Some(output) = run("systemctl", &[&root, "is-enabled", unit]) else { return };
    let said = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let ours = offline.unit(unit).await.unwrap().unit_file_state.to_string();
    let said = if said.is_empty() { "not-found".to_owned() } else { said };
    assert_eq!(ours, said, "{unit}");
}

#[tokio::test]
async fn states_of_units_that_nobody_touched_are_those_of_systemctl() {
    let dir = tree(&UNITS);
    let offline = Offline::new(Root::offline(dir.path(), Ledger::default()).unwrap());
    for unit in
        ["plain.service", "static.service", "indirect.service", "dropped.service", "local.service", "none.service"]
    {
        same_state(&offline, dir.path(), unit).await;
    }
    for (unit, verb) in [("static.service", "enable"), ("none.service", "enable")] {
        assert!(offline.enable(unit).await.is_err(), "{verb} {unit}");
    }
}

#[test]
fn repository_files_say_the_same_to_configparser() {
    let script = "import configparser, json, sys\n\
        p = configparser.ConfigParser(interpolation=None)\n\
        p.read_file(open(sys.argv[1]))\n\
        print(json.dumps({s: {k: v.split() for k, v in p[s].items()} for s in p.sections()}))";
    let settings = config::from_text(
        r#"
schema = 1
[kubernetes]
version = "1.36"
[[repo]]
name = "local"
title = "Local: 100% = ours"
baseurl = ["http://a.example/x", "https://b.example/$basearch/"]
gpgcheck = false
exclude = ["kernel*", "dnf"]
priority = 10
"#,
    )
    .unwrap();
    let kubernetes = repo::Desired::kubernetes(settings.kubernetes.as_ref().unwrap());
    for desired in settings.repos.iter().map(repo::Desired::configured).chain([kubernetes]) {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("x.repo");
        std::fs::write(&file, desired.render()).unwrap();
        let Some(output) = run("python3", &["-c", script, file.to_str().unwrap()]) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read: BTreeMap<String, BTreeMap<String, Vec<String>>> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(read.len(), 1);
        let (name, keys) = read.into_iter().next().unwrap();
        assert_eq!(desired.path(), format!("/etc/yum.repos.d/{name}.repo"));
        if name == "local" {
            assert_eq!(keys["baseurl"], ["http://a.example/x", "https://b.example/$basearch/"]);
            assert_eq!(keys["exclude"], ["kernel*", "dnf"]);
            assert_eq!((keys["gpgcheck"][0].as_str(), keys["name"].join(" ").as_str()), ("0", "Local: 100% = ours"));
        } else {
            assert_eq!(keys["baseurl"], ["https://pkgs.k8s.io/core:/stable:/v1.36/rpm/"]);
            assert_eq!((keys["gpgcheck"][0].as_str(), keys["enabled"][0].as_str()), ("1", "1"));
        }
    }
}

/// As systemd reads the list of modules at boot: names, in order, and nothing of the comment.
#[tokio::test]
async fn the_list_of_modules_is_read_by_systemd_as_it_was_meant() {
    let modules = ["nodeagent_a", "nodeagent-b", "nodeagent_c2"];
    let bench = bench::Bench::new(&[]);
    bench.apply(&format!("[kernel]\nmodules = {modules:?}\n[kernel.sysctl]\n")).await;
    let file = bench.dir.path().join("etc/modules-load.d/90-nodeagent.conf");
    // it asks for modules that no kernel has: nothing is loaded
    let output = std::process::Command::new("/lib/systemd/systemd-modules-load")
        .arg(&file)
        .env("SYSTEMD_LOG_LEVEL", "debug")
        .env("SYSTEMD_LOG_TARGET", "console")
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: systemd-modules-load is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let loaded: Vec<&str> =
        said.lines().filter_map(|line| line.split_once("Loading module: ")).map(|(_, name)| name.trim()).collect();
    assert_eq!(loaded, modules, "{said}");
}

/// The types that the other oracles do not use are still part of the face that tests and the CLI see.
#[test]
fn a_platform_of_el_knows_its_major() {
    let platform = |id: &str, version: &str| Platform {
        id: id.into(),
        id_like: vec![],
        name: id.into(),
        version: version.into(),
        systemd: None,
        kernel: String::new(),
        arch: "x86_64",
        cgroups: nodeagent::host::platform::CgroupMode::Unknown,
    };
    for (id, version, major) in
        [("centos", "9", Some(9)), ("rocky", "10.1", Some(10)), ("debian", "12", None), ("rhel", "7.9", None)]
    {
        assert_eq!(platform(id, version).el_major(), major, "{id} {version}");
        assert_eq!(platform(id, version).supported().is_ok(), major.is_some(), "{id} {version}");
    }
}
