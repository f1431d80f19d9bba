//! Whole configs in, settings or golden error texts out.

use super::settings::{KubeletMode, Role, SelinuxMode, SysctlWant};
use super::*;

fn source(file: &str, text: &str) -> Source {
    Source { file: file.to_owned(), text: Ok(text.to_owned()) }
}

fn errors(files: &[(&str, &str)]) -> Vec<String> {
    let sources: Vec<_> = files.iter().map(|(file, text)| source(file, text)).collect();
    let errors = resolve(&sources, &Facts::default()).expect_err("config with errors");
    errors.0.iter().map(ToString::to_string).collect()
}

/// Errors of one file called `c`.
fn errors_in(text: &str) -> Vec<String> {
    errors(&[("c", text)])
}

#[test]
fn the_built_in_layer_alone_is_a_valid_config() {
    let settings = from_text("").unwrap();
    assert_eq!(settings.node.role, Role::Worker);
    assert_eq!(settings.selinux, SelinuxMode::Permissive);
    assert_eq!(settings.kernel.modules.len(), 2);
    assert!(settings.kubernetes.is_none());
}

#[test]
fn the_sample_of_the_readme_is_a_valid_config() {
    let settings = from_text(
        r#"
        schema = 1
        [node]
        role = "standalone"
        [kernel.sysctl]
        "fs.inotify.max_user_instances" = { min = 8192 }
        "net.ipv4.ip_local_port_range" = "32768 60999"
        "user.max_user_namespaces" = { value = 15000, optional = true }
        [kubernetes]
        version = "1.36"
        [kubernetes.kubelet]
        maxPods = 110
        evictionHard = { "memory.available" = "100Mi" }
        [[file]]
        path = "/etc/crictl.yaml"
        content = "timeout: 30\n"
        [[unit]]
        name = "chronyd.service"
        enabled = true
        state = "running"
        [[repo]]
        name = "local"
        baseurl = "http://192.0.2.1/repo"
        gpgcheck = false
        "#,
    )
    .unwrap();
    let sysctl = |key: &str| settings.kernel.sysctl[&key.parse().unwrap()].clone();
    assert_eq!(sysctl("fs.inotify.max_user_instances").want, SysctlWant::Min(8192));
    assert_eq!(sysctl("net.ipv4.ip_local_port_range").want, SysctlWant::Value("32768 60999".into()));
    assert!(sysctl("user.max_user_namespaces").optional);
    assert_eq!(sysctl("net.ipv4.ip_forward").want, SysctlWant::Value("1".into()), "built-in keys stay");
    let kubernetes = settings.kubernetes.unwrap();
    assert_eq!(kubernetes.kubelet_mode, KubeletMode::Agent, "a standalone node has no kubeadm");
    assert_eq!(kubernetes.kubelet["evictionHard"]["memory.available"], "100Mi");
}

#[test]
fn errors_within_a_file_name_place_key_and_the_nearest_choice() {
    let table: &[(&str, &[&str])] = &[
        ("[selinux]\nmod = \"keep\"", &["c:2:1: selinux.mod: unknown key \"mod\"; did you mean \"mode\"?"]),
        ("[kernle]", &["c:1:2: kernle: unknown key \"kernle\"; did you mean \"kernel\"?"]),
        ("[swap]\nzzzzzz = 1", &["c:2:1: swap.zzzzzz: unknown key \"zzzzzz\"; known here: policy"]),
        (
            "[selinux]\nmode = \"permisive\"",
            &[
                "c:2:1: selinux.mode: unknown value \"permisive\", want one of \"permissive\", \"enforcing\", \"keep\"; \
               did you mean \"permissive\"?",
            ],
        ),
        (
            "[selinux]\nmode = true",
            &["c:2:1: selinux.mode: wrong type: a boolean, want one of \"permissive\", \"enforcing\", \"keep\""],
        ),
        (
            "[kubernetes]\nversion = 1.36",
            &["c:2:1: kubernetes.version: wrong type: the float 1.36, want a version in quotes, such as \"1.36\""],
        ),
        (
            "[runtime]\nready_timeout = \"10\"",
            &["c:2:1: runtime.ready_timeout: \"10\" has no unit; write one of ms, s, m, h or d, such as \"10s\""],
        ),
        (
            "[runtime]\nready_timeout = 10",
            &[
                "c:2:1: runtime.ready_timeout: wrong type: the integer 10, want a number with its unit in quotes, such as \
               \"90s\"",
            ],
        ),
        (
            "[runtime]\nready_timeout = \"10 parsec\"",
            &[
                "c:2:1: runtime.ready_timeout: \"10 parsec\" has the unknown unit \" parsec\"; write one of ms, s, m, h \
               or d",
            ],
        ),
        (
            "[[file]]\npath = \"/etc/x\"\ncontent = \"\"\nmode = 644",
            &["c:4:1: file[1].mode: wrong type: the integer 644, want octal digits in quotes, such as \"0644\""],
        ),
        (
            "[[file]]\npath = \"/etc/../x\"\ncontent = \"\"",
            &["c:2:1: file[1].path: \"/etc/../x\" must be a plain path: no empty parts, no . and no .."],
        ),
        (
            "[[file]]\npath = \"/etc/x\"\ncontent = \"a\\n\"\nblock = \"remark\"",
            &["c:4:1: file[/etc/x].block: \"remark\" is no comment sign of a file, such as \"#\", \";\" or \"//\""],
        ),
        ("[[file]]\ncontent = \"\"", &["c:1:1: file[1]: the key \"path\" is missing"]),
        (
            "[kernel.sysctl]\n\"net..x\" = 1",
            &["c:2:1: kernel.sysctl.\"net..x\": \"net..x\" is no kernel parameter; want a name such as \
               net.ipv4.ip_forward"],
        ),
        (
            "[kernel.sysctl]\n\"vm.x\" = { mn = 1 }",
            &["c:2:12: kernel.sysctl.\"vm.x\".mn: unknown key \"mn\"; did you mean \"min\"?"],
        ),
        (
            "[kernel.sysctl]\n\"vm.x\" = [1]",
            &["c:2:1: kernel.sysctl.\"vm.x\": wrong type: an array, want an integer, a string, { min = N } or \
               { value = V, optional = true }"],
        ),
        (
            "[[unit]]\nname = \"kubelet\"\nenabled = true",
            &["c:2:1: unit[1].name: \"kubelet\" has no type; did you mean \"kubelet.service\"?"],
        ),
        ("[node]\nip = \"1.2.3\"", &["c:2:1: node.ip: invalid IP address syntax"]),
        ("x = 1979-05-27", &["c:1:5: x: dates and times are not used here; a text needs quotes"]),
        ("x = 99999999999999999999", &["c:1:5: x: 99999999999999999999 is outside the range of 64-bit integers"]),
        (
            "[node]\nname = \"${hostnme}\"",
            &[
                "c:2:1: node.name: unknown name ${hostnme}; did you mean \"hostname\"?; write $${hostnme} for a literal",
                "c:2:1: node.name: \"${hostnme}\" is no node name: want a lower-case DNS name (letters, digits, - and \
               dots, at most 253)",
            ],
        ),
        (
            "[[unit]]\nname = \"a.service\"\nmasked = true\n[[unit]]\nname = \"a.service\"\nmasked = false",
            &["c:4:1: unit[a.service]: is given twice in this file, first at c:1:1"],
        ),
    ];
    for (text, want) in table {
        assert_eq!(errors_in(text), *want, "{text}");
    }
}

#[test]
fn all_errors_of_all_files_come_at_once() {
    let found =
        errors(&[("a", "[selinux]\nmode = 1\n[swap]\npolicy = \"of\"\nx = 1"), ("b", "[node\nrole = \"worker\"")]);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found[3].starts_with("b:1:"), "{found:#?}");
    assert!(found[3].contains("not TOML"), "{found:#?}");
}

#[test]
fn an_unreadable_file_is_an_error_that_names_it() {
    let unreadable = Source { file: "/etc/nodeagent/config.toml".into(), text: Err("permission denied".into()) };
    let errors = resolve(&[unreadable], &Facts::default()).expect_err("unreadable");
    assert_eq!(errors.to_string(), "/etc/nodeagent/config.toml: permission denied");
}

#[test]
fn values_that_contradict_each_other_name_both_files() {
    let table: &[(&[(&str, &str)], &str)] = &[
        (
            &[
                ("a", "[node]\nrole = \"standalone\""),
                ("b", "[kubernetes]\nversion = \"1.30\"\nkubelet_mode = \"kubeadm\""),
            ],
            "b:3:1: kubernetes.kubelet_mode: contradicts node.role at a:2:1: a standalone node has no cluster for kubeadm \
             to join",
        ),
        (
            &[("a", "[kernel.sysctl]\n\"vm.x\" = { min = 1 }"), ("b", "[kernel.sysctl]\n\"vm.x\" = { value = 2 }")],
            "a:2:12: kernel.sysctl.\"vm.x\".min: contradicts kernel.sysctl.\"vm.x\".value at b:2:12: a parameter has \
             either an exact value or a minimum",
        ),
        (
            &[
                ("a", "[[unit]]\nname = \"x.service\"\nmasked = true"),
                ("b", "[[unit]]\nname = \"x.service\"\nenabled = true"),
            ],
            "b:3:1: unit[x.service].enabled: contradicts unit[x.service].masked at a:3:1: a masked unit cannot be started",
        ),
        (
            &[
                ("a", "[kubernetes]\nversion = \"1.30\"\nkubelet_mode = \"external\""),
                ("b", "[kubernetes.kubelet]\nmaxPods = 3"),
            ],
            "b:1:13: kubernetes.kubelet: contradicts kubernetes.kubelet_mode at a:3:1: an external kubelet is not \
             configured from here",
        ),
        (
            &[
                ("a", "[swap]\npolicy = \"limited\""),
                ("b", "[kubernetes]\nversion = \"1.21\"\nrepo_baseurl = \"http://x/\""),
            ],
            "b:2:1: kubernetes.version: contradicts swap.policy at a:2:1: a kubelet can limit swap from 1.22 on",
        ),
    ];
    for (files, want) in table {
        assert_eq!(errors(files), [*want]);
    }
}

#[test]
fn an_old_kubernetes_needs_an_address_for_its_packages() {
    let found = errors_in("[kubernetes]\nversion = \"1.23\"");
    assert_eq!(
        found,
        ["c:2:1: kubernetes.version: packages of 1.23 are not on pkgs.k8s.io (that begins with 1.24); give \
          kubernetes.repo_baseurl"]
    );
    assert!(from_text("[kubernetes]\nversion = \"1.24\"").is_ok());
}

#[test]
fn a_later_file_wins_per_key_and_tables_of_arrays_merge_by_name() {
    let sources = [
        source(
            "a",
            "[kernel]\nmodules = [\"overlay\", \"vxlan\"]\n[[file]]\npath = \"/etc/x\"\ncontent = \"a\"\nmode = \"0600\"",
        ),
        source(
            "b",
            "[kernel]\nmodules = [\"overlay\"]\n[[file]]\npath = \"/etc/x\"\ncontent = \"b\"\n[[file]]\npath = \"/etc/y\"\ncontent = \"\"",
        ),
    ];
    let config = resolve(&sources, &Facts::default()).unwrap();
    assert_eq!(config.settings.kernel.modules.len(), 1, "plain arrays are replaced");
    let files = &config.settings.files;
    assert_eq!(files.len(), 2);
    assert_eq!((files[0].content.reveal(), files[0].mode.bits()), ("b", 0o600));
    assert_eq!(config.tree.at(&["kernel", "modules"]).unwrap().origin.to_string(), "b:2:1");
    assert_eq!(config.tree.at(&["selinux", "mode"]).unwrap().origin.file.as_ref(), BUILT_IN_FILE);
}

#[test]
fn names_of_the_host_are_filled_in() {
    let facts = Facts { hostname: Some("n1".into()), ..Facts::default() };
    let sources = [source("a", "[node]\nname = \"${hostname}.example\"")];
    let config = resolve(&sources, &facts).unwrap();
    assert_eq!(config.settings.node.name.unwrap().as_str(), "n1.example");
}

#[test]
fn no_error_text_repeats_the_line_it_is_about() {
    for text in
        ["[[file]]\npath = \"/etc/x\"\ncontent = \"hunter2", "token = \"hunter2\"\n", "[swap]\npolicy = [\"hunter2\"]"]
    {
        let found = errors_in(text).join("\n");
        assert!(!found.contains("hunter2"), "{found}");
    }
}

#[test]
fn a_secret_never_prints() {
    let settings = from_text("[[file]]\npath = \"/etc/x\"\ncontent = \"hunter2\"\nsecret = true").unwrap();
    assert_eq!(settings.files[0].mode.bits(), 0o600, "a secret is private by default");
    let shown = format!("{settings:?}{}", serde_json::to_string(&settings).unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_config_or_an_error(text in "\\PC{0,200}") {
        drop(from_text(&text));
    }

    #[test]
    fn merging_the_same_file_again_changes_nothing(min in 1i64..1000, module in "[a-z]{1,10}") {
        let text = format!("[kernel]\nmodules = [\"{module}\"]\n[kernel.sysctl]\n\"vm.x\" = {{ min = {min} }}");
        let once = resolve(&[source("a", &text)], &Facts::default()).unwrap();
        let twice = resolve(&[source("a", &text), source("a", &text)], &Facts::default()).unwrap();
        proptest::prop_assert_eq!(once.settings, twice.settings);
        proptest::prop_assert_eq!(once.tree, twice.tree);
    }
}
