use super::*;

fn desired(want: SysctlWant, optional: bool) -> Desired {
    Desired { parameter: Parameter::parse("net.ipv4.ip_forward").unwrap(), rule: SysctlRule { want, optional } }
}

fn one() -> Desired {
    desired(SysctlWant::Value("1".into()), false)
}

fn live(value: &str) -> Observed {
    Observed { live: Some(value.into()), ..Observed::default() }
}

fn at_boot(file: &str, value: &str) -> Option<Winner> {
    Some(Winner { file: file.into(), value: value.into() })
}

fn decide(desired: &Desired, observed: &Observed, past: Past) -> Outcome {
    plan(&ResourceId::new("sysctl", "net.ipv4.ip_forward"), desired, observed, &past)
}

#[test]
fn a_value_is_set_when_it_differs_and_left_alone_when_not() {
    assert_eq!(decide(&one(), &live("1"), Past::Unknown), Outcome::converged());
    let outcome = decide(&one(), &live("0"), Past::Unknown);
    let change = outcome.change().unwrap();
    assert_eq!(change.actions, [Action::WriteSysctl { key: "net.ipv4.ip_forward".into(), value: "1".into() }]);
    assert_eq!(change.reason, Reason::Different);
    let drifted = decide(&one(), &live("0"), Past::AsDesired);
    assert_eq!(drifted.change().unwrap().reason, Reason::Drifted { last: Some("1".into()) });
}

#[test]
fn blanks_between_numbers_do_not_count() {
    let range = desired(SysctlWant::Value("32768 60999".into()), false);
    assert_eq!(decide(&range, &live("32768\t60999"), Past::Unknown), Outcome::converged());
}

#[test]
fn a_minimum_never_lowers() {
    let min = desired(SysctlWant::Min(8192), false);
    for value in ["8192", "9000", "9223372036854775807"] {
        assert_eq!(decide(&min, &live(value), Past::Unknown), Outcome::converged(), "{value}");
    }
    for value in ["128", "no number"] {
        assert!(decide(&min, &live(value), Past::Unknown).change().is_some(), "{value}");
    }
}

#[test]
fn a_parameter_that_the_kernel_lacks_blocks_unless_optional_or_on_its_way() {
    assert!(matches!(decide(&one(), &Observed::default(), Past::Unknown), Outcome::Blocked { .. }));
    let optional = desired(SysctlWant::Value("1".into()), true);
    assert!(matches!(decide(&optional, &Observed::default(), Past::Unknown), Outcome::Converged { note: Some(_) }));
    let pending = Observed { module_pending: true, ..Observed::default() };
    assert_eq!(decide(&one(), &pending, Past::Unknown).change().unwrap().reason, Reason::Missing);
}

#[test]
fn the_file_that_wins_over_ours_is_named() {
    let overridden = Observed { at_boot: at_boot("/etc/sysctl.d/99-zzz.conf", "0"), ..live("1") };
    let Outcome::Conflict { reason } = decide(&one(), &overridden, Past::Unknown) else { panic!() };
    assert!(reason.contains("/etc/sysctl.d/99-zzz.conf"), "{reason}");
    let both = Observed { at_boot: at_boot("/etc/sysctl.d/99-zzz.conf", "0"), ..live("0") };
    let by = "/etc/sysctl.d/99-zzz.conf".to_owned();
    assert_eq!(decide(&one(), &both, Past::AsDesired).change().unwrap().reason, Reason::Overridden { by });
    // one that says the same is nobody's enemy
    let agreeing = Observed { at_boot: at_boot("/etc/sysctl.d/99-zzz.conf", "1"), ..live("1") };
    assert_eq!(decide(&one(), &agreeing, Past::Unknown), Outcome::converged());
    let ours = Observed { at_boot: at_boot(file::SYSCTL_FILE, "0"), ..live("1") };
    assert_eq!(decide(&one(), &ours, Past::Unknown), Outcome::converged());
}

#[test]
fn sysctl_conf_is_worth_a_note_where_only_a_person_would_apply_it() {
    let observed = Observed { sysctl_conf: Some("0".into()), ..live("1") };
    let Outcome::Converged { note: Some(note) } = decide(&one(), &observed, Past::Unknown) else { panic!() };
    assert!(note.contains("/etc/sysctl.conf"), "{note}");
}
