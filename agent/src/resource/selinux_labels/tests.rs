use super::*;

const POLICY: &str = "/usr/.*\tsystem_u:object_r:usr_t:s0\n\
    /usr/bin/crun\t--\tsystem_u:object_r:container_runtime_exec_t:s0\n\
    /var/lib/containers(/.*)?\tsystem_u:object_r:container_var_lib_t:s0\n\
    /var/lib/containers/overlay(/.*)?\tsystem_u:object_r:container_ro_file_t:s0\n\
    /var/run/crio(/.*)?\tsystem_u:object_r:container_var_run_t:s0\n\
    /var/lib/kubelet(/.*)?\tsystem_u:object_r:container_var_lib_t:s0\n";

const ROOT: &str = "/var/lib/nodeagent/containers";

fn observed(labels: &[(&str, &str)]) -> Observed {
    let file = |path: &str| RuleFile { path: path.to_owned(), text: None, ownership: (0o644, 0, 0) };
    Observed {
        policy: Some(POLICY.to_owned()),
        aliases: parse_aliases("# as EL has it\n/run /var/run\n/lib /usr/lib\n"),
        local: vec![file("/store"), file("/used")],
        on: true,
        labels: labels
            .iter()
            .map(|(path, kind)| ((*path).to_owned(), format!("system_u:object_r:{kind}:s0")))
            .collect(),
    }
}

fn decide(observed: &Observed) -> Outcome {
    plan(&SelinuxLabels::resource_id(), &Desired::new(ROOT), observed, &Past::Unknown)
}

fn written(outcome: &Outcome) -> Vec<(String, String)> {
    let actions = outcome.change().map(|change| change.actions.clone()).unwrap_or_default();
    let write = |action| match action {
        Action::WriteFile { path, content, .. } => Some((path, content)),
        _ => None,
    };
    actions.into_iter().filter_map(write).collect()
}

/// The host after the change.
fn after(before: &Observed, outcome: &Outcome) -> Observed {
    let mut now = before.clone();
    for (path, content) in written(outcome) {
        let file = now.local.iter_mut().find(|file| file.path == path).unwrap();
        file.text = Some(content);
    }
    for rule in Desired::new(ROOT).rules {
        now.labels.insert(rule.path, format!("system_u:object_r:{}:s0", rule.kind));
    }
    now.labels.insert(format!("{ROOT}/images"), "system_u:object_r:container_var_lib_t:s0".to_owned());
    now.labels.insert("/var/lib/kubelet".to_owned(), "system_u:object_r:container_var_lib_t:s0".to_owned());
    now
}

#[test]
fn rules_are_added_to_both_files_and_what_exists_is_labelled() {
    let before = observed(&[
        ("/usr/libexec/nodeagent/nodeagent-runtime", "bin_t"),
        ("/usr/libexec/nodeagent/nodeagent-shim", "bin_t"),
        ("/run/nodeagent", "var_run_t"),
        ("/var/lib/kubelet", "var_lib_t"),
    ]);
    let outcome = decide(&before);
    let files = written(&outcome);
    assert_eq!(files.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["/store", "/used"]);
    assert_eq!(
        files[0].1,
        "/usr/libexec/nodeagent/nodeagent-runtime\t--\tsystem_u:object_r:container_runtime_exec_t:s0\n\
         /usr/libexec/nodeagent/nodeagent-shim\t--\tsystem_u:object_r:container_runtime_exec_t:s0\n\
         /var/run/nodeagent(/.*)?\tsystem_u:object_r:container_var_run_t:s0\n\
         /var/lib/nodeagent/containers(/.*)?\tsystem_u:object_r:container_var_lib_t:s0\n\
         /var/lib/nodeagent/containers/images/tmp(/.*)?\tsystem_u:object_r:container_ro_file_t:s0\n\
         /var/lib/nodeagent/containers/images/snapshots(/.*)?\tsystem_u:object_r:container_ro_file_t:s0\n"
    );
    let actions = &outcome.change().unwrap().actions;
    let Some(Action::Relabel { paths }) = actions.last() else { panic!("{actions:?}") };
    for path in ["/usr/libexec/nodeagent/nodeagent-shim", "/run/nodeagent", ROOT, "/var/lib/kubelet"] {
        assert!(paths.iter().any(|labelled| labelled == path), "{path} is not in {paths:?}");
    }
    let made = actions.iter().filter(|action| matches!(action, Action::MakeDirectory { .. })).count();
    assert_eq!(made, 4, "{actions:?}");
    assert!(paths.contains(&format!("{ROOT}/images")), "it is made before its parent has its label: {paths:?}");
    assert_eq!(decide(&after(&before, &outcome)), Outcome::converged());
}

#[test]
fn only_what_has_another_type_is_labelled_again() {
    let right = after(&observed(&[]), &decide(&observed(&[])));
    let mut drifted = right.clone();
    let path = "/usr/libexec/nodeagent/nodeagent-runtime";
    drifted.labels.insert(path.to_owned(), "unconfined_u:object_r:bin_t:s0".to_owned());
    let outcome = decide(&drifted);
    assert_eq!(outcome.change().unwrap().actions, [Action::Relabel { paths: vec![path.to_owned()] }]);
    // user and level are nobody's business here
    drifted.labels.insert(path.to_owned(), "unconfined_u:object_r:container_runtime_exec_t:s0:c1".to_owned());
    assert_eq!(decide(&drifted), Outcome::converged());
}

#[test]
fn a_policy_without_the_types_is_said_and_nothing_is_done() {
    let mut without = observed(&[("/usr/libexec/nodeagent/nodeagent-runtime", "bin_t")]);
    without.policy = Some("/usr/.*\tsystem_u:object_r:usr_t:s0\n".to_owned());
    let Outcome::Converged { note: Some(note) } = decide(&without) else { panic!("{:?}", decide(&without)) };
    assert!(note.contains("container_runtime_exec_t") && note.contains("container-selinux"), "{note}");
    assert!(matches!(decide(&Observed::default()), Outcome::Converged { note: Some(_) }));
}

#[test]
fn where_selinux_is_off_the_rules_are_written_and_nothing_is_labelled() {
    let off = Observed { on: false, ..observed(&[("/run/nodeagent", "var_run_t")]) };
    let outcome = decide(&off);
    assert!(outcome.change().unwrap().actions.iter().all(|action| matches!(action, Action::WriteFile { .. })));
    let now = Observed { on: false, ..after(&off, &outcome) };
    assert!(matches!(decide(&now), Outcome::Converged { note: Some(_) }));
}

#[test]
fn lines_of_others_stay_and_a_rule_that_overrides_ours_goes() {
    let lines = ["/a(/.*)?\tsystem_u:object_r:x_t:s0".to_owned()];
    let others = "# by hand\n/srv(/.*)? system_u:object_r:y_t:s0";
    let text = with_lines(others, &lines).unwrap();
    assert_eq!(text, format!("{others}\n{}\n", lines[0]));
    assert_eq!(with_lines(&text, &lines), None);
    assert_eq!(with_lines(&text.replace('\t', "    "), &lines), None, "as semanage writes it");
    let overridden = format!("{text}/a(/.*)? system_u:object_r:z_t:s0\n");
    assert_eq!(with_lines(&overridden, &lines), Some(text));
}

#[test]
fn a_path_is_escaped_and_named_as_the_policy_names_it() {
    assert_eq!(escape("/srv/a.b+c"), "/srv/a\\.b\\+c");
    let aliases = parse_aliases("/run /var/run # moved\n\n/lib /usr/lib\n");
    assert_eq!(canonical("/run/nodeagent", &aliases), "/var/run/nodeagent");
    assert_eq!(canonical("/runner", &aliases), "/runner");
    assert_eq!(canonical("/run", &aliases), "/var/run");
}
