//! What becomes of a resource that leaves the config, and of a repository that does not answer.
// tests may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::collections::BTreeMap;
use std::path::Path;

use bench::{Bench, state_of};
use nodeagent::config;
use nodeagent::exit::Exit;
use nodeagent::host::fake::{FakeUnit, Repository};
use nodeagent::reconcile::journal::CrashPoint;
use nodeagent::reconcile::{Engine, Options, ResourceState};
use nodeagent::resource::registry;

const MORE: &str = r#"
[kernel.sysctl]
"kernel.panic" = 10
[[file]]
path = "/etc/one/two.conf"
content = "two\n"
[[file]]
path = "/etc/was/there"
content = "ours\n"
mode = "0600"
[[unit]]
name = "chronyd.service"
enabled = true
state = "running"
"#;

const REMOVED: [&str; 4] =
    ["file//etc/one/two.conf", "file//etc/was/there", "sysctl/kernel.panic", "unit/chronyd.service"];

/// A host with a unit and a file of somebody else's.
fn host() -> Bench {
    let bench = Bench::new(&["chronyd.service"]);
    bench.fake.edit("/etc/was/there", "theirs\n").unwrap();
    bench
}

/// All that the longer config is about, as it was before.
fn is_as_before(bench: &Bench) -> bool {
    bench.text("/etc/one/two.conf").is_none()
        && !bench.dir.path().join("etc/one").exists()
        && bench.text("/etc/was/there").as_deref() == Some("theirs\n")
        && bench.text("/proc/sys/kernel/panic").unwrap().trim() == "0"
        && bench.fake.systemd.get("chronyd.service").is_some_and(|unit| !unit.active)
}

fn removed(policy: &str) -> String {
    format!("[reconcile]\nremoved = \"{policy}\"\n")
}

#[tokio::test]
async fn a_resource_that_leaves_the_config_is_reported_until_somebody_decides() {
    let bench = host();
    bench.apply(MORE).await;
    bench.writes();
    for _ in 0..2 {
        let report = bench.apply("").await;
        assert_eq!(report.exit(), Exit::Differences, "{report:#?}");
        for id in REMOVED {
            assert_eq!(state_of(&report, id), Some(ResourceState::Conflict), "{id}: {report:#?}");
        }
        // the file of all parameters follows the config; what is live is only told about
        let touched: Vec<String> = bench.writes().into_iter().filter(|write| write.contains("/etc/one")).collect();
        assert_eq!(touched, Vec::<String>::new());
    }
    assert_eq!(bench.text("/etc/one/two.conf").as_deref(), Some("two\n"));
}

#[tokio::test]
async fn undoing_what_left_the_config_gives_the_host_as_it_was_and_forgets_it() {
    let bench = host();
    bench.apply(MORE).await;
    // repaired drift does not become what was there before
    bench.fake.edit("/etc/was/there", "drifted\n").unwrap();
    bench.apply(MORE).await;
    let report = bench.apply(&removed("undo")).await;
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    assert!(is_as_before(&bench), "{report:#?}");
    bench.writes();
    let again = bench.apply(&removed("report")).await;
    assert_eq!(again.exit(), Exit::Converged, "{again:#?}");
    assert!(REMOVED.iter().all(|id| state_of(&again, id).is_none()), "{again:#?}");
    assert_eq!(bench.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_crash_while_it_is_undone_is_gone_on_with() {
    let mut crashes = 0;
    for record in 1..40 {
        let bench = host();
        bench.apply(MORE).await;
        if bench
            .run(&removed("undo"), Options { crash: CrashPoint::after(record), ..Options::new("apply") })
            .await
            .is_ok()
        {
            break;
        }
        crashes += 1;
        let report = bench.apply(&removed("undo")).await;
        assert_eq!(report.exit(), Exit::Converged, "after record {record}: {report:#?}");
        assert!(is_as_before(&bench), "after record {record}: {report:#?}");
    }
    assert!(crashes > 8, "{crashes}");
}

#[tokio::test]
async fn what_is_kept_stays_and_is_not_the_agents_any_more() {
    let bench = host();
    bench.apply(MORE).await;
    let report = bench.apply(&removed("keep")).await;
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    let report = bench.apply(&removed("undo")).await;
    assert!(REMOVED.iter().all(|id| state_of(&report, id).is_none()), "{report:#?}");
    assert_eq!(bench.text("/etc/one/two.conf").as_deref(), Some("two\n"));
    assert!(bench.fake.systemd.get("chronyd.service").unwrap().active);
}

#[tokio::test]
async fn what_somebody_else_has_changed_since_is_a_conflict_and_stays() {
    let bench = host();
    bench.apply(MORE).await;
    bench.fake.edit("/etc/one/two.conf", "mine now\n").unwrap();
    let report = bench.apply(&removed("undo")).await;
    assert_eq!(state_of(&report, "file//etc/one/two.conf"), Some(ResourceState::Conflict), "{report:#?}");
    assert_eq!(state_of(&report, "unit/chronyd.service"), Some(ResourceState::Changed), "the others go");
    assert_eq!(bench.text("/etc/one/two.conf").as_deref(), Some("mine now\n"));
}

#[tokio::test]
async fn a_rollback_takes_the_record_of_what_was_there_with_it() {
    let bench = host();
    bench.apply("").await;
    bench.apply(MORE).await;
    let settings = config::from_text(MORE).unwrap();
    let platform = bench.fake.platform();
    let engine = |settings| {
        Engine::new(
            &bench.fake.host,
            &platform,
            settings,
            registry(&config::from_text(MORE).unwrap(), &platform).unwrap(),
        )
    };
    nodeagent::reconcile::rollback::rollback(&engine(&settings.reconcile).unwrap(), None, &Options::new("rollback"))
        .await
        .unwrap();
    assert!(is_as_before(&bench));
    let report = bench.apply("").await;
    assert!(REMOVED.iter().all(|id| state_of(&report, id).is_none()), "{report:#?}");
}

const REPOSITORY: &str = r#"
[packages]
install = ["socat"]
[[repo]]
name = "extra"
baseurl = "http://127.0.0.1:1/extra/"
gpgcheck = false
"#;

fn offering_socat(dead: bool) -> Repository {
    Repository { dead, packages: BTreeMap::from([("socat".to_owned(), "1.7-1".to_owned())]) }
}

#[tokio::test]
async fn a_repository_that_does_not_answer_is_named_its_file_goes_and_its_packages_wait() {
    let bench = host();
    bench.fake.programs.repository("extra", offering_socat(true));
    let report = bench.apply(REPOSITORY).await;
    assert_eq!(report.exit(), Exit::Degraded, "{report:#?}");
    let entry = |id: &str| report.resources.iter().find(|entry| entry.id.as_str() == id).unwrap();
    let repo = entry("repo/extra");
    assert_eq!(repo.state, ResourceState::Failed);
    assert!(repo.detail.contains("repository extra cannot be used"), "{}", repo.detail);
    let package = entry("package/host");
    assert_eq!((package.state, package.detail.as_str()), (ResourceState::Skipped, "not tried: it needs repo/extra"));
    assert!(!Path::new(&bench.dir.path().join("etc/yum.repos.d/extra.repo")).exists());
    assert_eq!(bench.fake.programs.installed("socat"), None);

    bench.fake.programs.repository("extra", offering_socat(false));
    let report = bench.apply(REPOSITORY).await;
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    assert!(bench.fake.programs.installed("socat").is_some());
    let before = bench.fake.programs.runs().len();
    bench.apply(REPOSITORY).await;
    let dnf = bench.fake.programs.runs()[before..].iter().filter(|run| run.program.ends_with("dnf")).count();
    assert_eq!(dnf, 0, "a run that finds nothing to do starts no dnf");
}

#[tokio::test]
async fn a_reset_makes_the_node_the_host_that_it_was_and_nobody_but_a_person_makes_it_a_node_again() {
    use nodeagent::config::settings::RemovedPolicy;
    use nodeagent::plan::Stage;
    use nodeagent::reconcile::confirm;
    use nodeagent::reconcile::reset::ClusterReset;

    let bench = host();
    bench.fake.systemd.set("kubelet.service", FakeUnit::running());
    bench.apply(MORE).await;
    for path in
        ["/etc/kubernetes/kubelet.conf", "/etc/kubernetes/pki/ca.crt", "/var/lib/kubelet/pods/a/b", "/usr/bin/crictl"]
    {
        bench.fake.edit(path, "x\n").unwrap();
    }
    // a link in what is deleted is deleted, not followed
    std::os::unix::fs::symlink(bench.dir.path().join("etc/hostname"), bench.dir.path().join("var/lib/kubelet/link"))
        .unwrap();
    let platform = bench.fake.platform();
    let mut settings = config::from_text(MORE).unwrap();
    settings.reconcile.removed = RemovedPolicy::Undo;
    let reset = async || {
        let cluster = Box::new(ClusterReset::new("/run/nodeagent/cri.sock"));
        let engine = Engine::new(&bench.fake.host, &platform, &settings.reconcile, vec![cluster]).unwrap();
        confirm::hold_after_reset(&bench.fake.host).unwrap();
        engine.run(&Options { keep_hold: true, ..Options::new("reset") }).await.unwrap()
    };
    let report = reset().await;
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    assert!(is_as_before(&bench), "{report:#?}");
    for gone in ["etc/kubernetes/kubelet.conf", "etc/kubernetes/pki", "var/lib/kubelet", "etc/crictl.yaml"] {
        assert!(!bench.dir.path().join(gone).exists(), "{gone}");
    }
    assert!(bench.text("/etc/hostname").is_some());
    assert!(!bench.fake.systemd.get("kubelet.service").unwrap().active);
    let pods = bench.fake.programs.runs().into_iter().filter(|run| run.program == "/usr/bin/crictl").count();
    assert_eq!(pods, 1);

    for options in [
        Options { obey_policy: true, ..Options::new("reconcile") },
        Options { in_boot: true, stage: Stage::Prepare, ..Options::new("apply") },
    ] {
        let engine =
            Engine::new(&bench.fake.host, &platform, &settings.reconcile, registry(&settings, &platform).unwrap());
        let held = engine.unwrap().run(&options).await.unwrap();
        assert_eq!(held.exit(), Exit::Differences, "{held:#?}");
        assert!(is_as_before(&bench));
    }
    bench.apply(MORE).await;
    assert_eq!(bench.text("/etc/one/two.conf").as_deref(), Some("two\n"));
}
