use super::*;

fn running(name: &str) -> Desired {
    Desired {
        name: name.into(),
        enabled: Some(true),
        masked: None,
        state: Some(UnitState::Running),
        answers_on: None,
        after_join: false,
        while_empty: None,
        starts: None,
    }
}

fn unit(state: UnitFileState, active: &str) -> Observed {
    let unit = UnitStatus {
        load_state: if state == UnitFileState::Masked { "masked".into() } else { "loaded".into() },
        active_state: active.into(),
        sub_state: "x".into(),
        unit_file_state: state,
        ..UnitStatus::absent("x.service")
    };
    Observed { unit, offline: false, arriving: false, answers: None, joined: false, in_use: false, started_by: None }
}

fn decide(desired: &Desired, observed: &Observed) -> Outcome {
    plan(&ResourceId::new("unit", "x.service"), desired, observed, &Past::Unknown)
}

fn ops(outcome: &Outcome) -> Vec<UnitOp> {
    let op = |action: &Action| match action {
        Action::Unit { op, .. } => *op,
        other => panic!("{other:?}"),
    };
    outcome.change().unwrap_or_else(|| panic!("{outcome:?}")).actions.iter().map(op).collect()
}

#[test]
fn a_unit_is_enabled_and_started_only_where_it_is_not() {
    use UnitFileState::{Disabled, Enabled, EnabledRuntime, Linked};
    let desired = running("x.service");
    assert_eq!(decide(&desired, &unit(Enabled, "active")), Outcome::converged());
    assert_eq!(ops(&decide(&desired, &unit(Disabled, "inactive"))), [UnitOp::Enable, UnitOp::Start]);
    assert_eq!(ops(&decide(&desired, &unit(Enabled, "failed"))), [UnitOp::Start]);
    // enabled until the next boot is not enabled
    assert_eq!(ops(&decide(&desired, &unit(EnabledRuntime, "active"))), [UnitOp::Enable]);
    assert_eq!(ops(&decide(&desired, &unit(Linked, "active"))), [UnitOp::Enable]);
}

#[test]
fn a_unit_is_stopped_disabled_and_masked_on_demand() {
    use UnitFileState::{Disabled, Enabled, Masked};
    let stopped = Desired { enabled: Some(false), state: Some(UnitState::Stopped), ..running("x.service") };
    assert_eq!(ops(&decide(&stopped, &unit(Enabled, "active"))), [UnitOp::Disable, UnitOp::Stop]);
    assert_eq!(decide(&stopped, &unit(Disabled, "inactive")), Outcome::converged());
    let masked = Desired { enabled: None, masked: Some(true), state: None, ..running("x.service") };
    assert_eq!(ops(&decide(&masked, &unit(Enabled, "active"))), [UnitOp::Stop, UnitOp::Mask]);
    assert_eq!(decide(&masked, &unit(Masked, "inactive")), Outcome::converged());
    let unmasked = Desired { masked: Some(false), ..running("x.service") };
    assert_eq!(ops(&decide(&unmasked, &unit(Masked, "inactive"))), [UnitOp::Unmask, UnitOp::Enable, UnitOp::Start]);
}

#[test]
fn what_somebody_masked_is_a_conflict_and_not_undone() {
    let outcome = decide(&running("x.service"), &unit(UnitFileState::Masked, "inactive"));
    assert!(matches!(outcome, Outcome::Conflict { .. }), "{outcome:?}");
}

#[test]
fn a_unit_whose_file_is_in_the_way_of_its_mask_is_not_even_stopped() {
    let masked = Desired { enabled: None, masked: Some(true), state: None, ..running("x.service") };
    let mut observed = unit(UnitFileState::Disabled, "active");
    observed.unit.fragment = "/etc/systemd/system/x.service".into();
    let outcome = decide(&masked, &observed);
    assert!(matches!(&outcome, Outcome::Blocked { reason, .. } if reason.contains("/etc/systemd/system/x.service")));
}

#[test]
fn units_that_cannot_be_enabled_say_why() {
    use UnitFileState::{Bad, Generated, Indirect, Static, Transient};
    for (state, word) in
        [(Static, "[Install]"), (Generated, "generated"), (Transient, "run time"), (Indirect, "Also="), (Bad, "read")]
    {
        let Outcome::Blocked { reason, .. } = decide(&running("x.service"), &unit(state, "active")) else {
            panic!("{state}")
        };
        assert!(reason.contains(word), "{reason}");
    }
}

#[test]
fn a_unit_that_its_package_is_about_to_bring_is_planned_for() {
    let absent = Observed { unit: UnitStatus::absent("x.service"), ..unit(UnitFileState::Absent, "inactive") };
    assert!(matches!(decide(&running("x.service"), &absent), Outcome::Blocked { .. }));
    let arriving = Observed { arriving: true, ..absent };
    assert_eq!(ops(&decide(&running("x.service"), &arriving)), [UnitOp::Enable, UnitOp::Start]);
}

#[test]
fn a_kubelet_that_has_not_joined_is_enabled_and_then_waited_for() {
    let desired = Desired { after_join: true, ..running(KUBELET) };
    assert_eq!(ops(&decide(&desired, &unit(UnitFileState::Disabled, "inactive"))), [UnitOp::Enable]);
    let crashing = unit(UnitFileState::Enabled, "activating");
    let Outcome::Waiting { reason } = decide(&desired, &crashing) else { panic!() };
    assert!(reason.starts_with("waiting for join"), "{reason}");
    let joined = Observed { joined: true, ..unit(UnitFileState::Enabled, "inactive") };
    assert_eq!(ops(&decide(&desired, &joined)), [UnitOp::Start]);
}

#[test]
fn a_unit_that_is_active_but_does_not_answer_is_restarted() {
    let desired = running(RUNTIME);
    let deaf = Observed { answers: Some(false), ..unit(UnitFileState::Enabled, "active") };
    let outcome = decide(&desired, &deaf);
    assert_eq!(ops(&outcome), [UnitOp::Restart]);
    assert_eq!(outcome.change().unwrap().reason, Reason::Stale);
}

#[test]
fn files_that_systemd_has_not_read_yet_are_a_reload_and_no_restart() {
    let mut observed = unit(UnitFileState::Enabled, "active");
    observed.unit.need_daemon_reload = true;
    let outcome = decide(&running("x.service"), &observed);
    let change = outcome.change().unwrap();
    assert_eq!((change.actions.len(), &change.notify), (0, &vec![Notify::DaemonReload]));
    assert_eq!(change.reason, Reason::Stale);
}

#[test]
fn offline_only_the_boot_is_decided() {
    let offline = Observed { offline: true, ..unit(UnitFileState::Disabled, "inactive") };
    let outcome = decide(&running("x.service"), &offline);
    assert_eq!(ops(&outcome), [UnitOp::Enable]);
    assert!(outcome.change().unwrap().notify.is_empty());
}

#[test]
fn a_runtime_with_pods_is_not_stopped_for_another_one() {
    let desired =
        Desired { enabled: Some(false), state: Some(UnitState::Stopped), ..running("nodeagent-runtime.service") };
    let mut observed = unit(UnitFileState::Enabled, "active");
    assert_eq!(ops(&decide(&desired, &observed)), [UnitOp::Disable, UnitOp::Stop]);
    observed.in_use = true;
    let outcome = decide(&desired, &observed);
    assert!(matches!(&outcome, Outcome::Blocked { fix: Some(fix), .. } if fix.contains("drain")), "{outcome:?}");
    observed.unit.active_state = "inactive".into();
    assert_eq!(ops(&decide(&desired, &observed)), [UnitOp::Disable], "its pods are lost already");
}

#[test]
fn a_drop_in_of_others_that_starts_something_else_is_a_conflict() {
    let theirs = "/etc/systemd/system/x.service.d/90-site.conf".to_owned();
    let observed = Observed { started_by: Some(theirs.clone()), ..unit(UnitFileState::Enabled, "active") };
    let outcome = decide(&running("x.service"), &observed);
    assert!(matches!(&outcome, Outcome::Conflict { reason } if reason.contains(&theirs)), "{outcome:?}");
}
