//! Changes on probation: confirmed, run out, cut off, rebooted; and not applied again behind anybody's back.
// tests may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::time::Duration;

use bench::{Bench, state_of};
use nodeagent::exit::Exit;
use nodeagent::plan::Stage;
use nodeagent::reconcile::confirm::{self, ConfirmError, Probation, Status, UNIT};
use nodeagent::reconcile::journal::CrashPoint;
use nodeagent::reconcile::{EngineError, Options, Report, ResourceState, rollback};

const CONFIG: &str = "[[file]]\npath = \"/etc/x\"\ncontent = \"new\\n\"\n[kernel.sysctl]\n\"kernel.panic\" = 10\n";
const OTHER: &str = "[[file]]\npath = \"/etc/x\"\ncontent = \"other\\n\"\n";

/// A host that has converged to an empty config.
async fn host() -> Bench {
    let bench = Bench::new(&[]);
    bench.fake.edit("/proc/sys/kernel/random/boot_id", "boot-1\n").unwrap();
    bench.fake.edit("/etc/x", "old\n").unwrap();
    bench.apply("").await;
    bench
}

async fn apply_on_probation(bench: &Bench, config: &str, crash: CrashPoint) -> Result<Report, EngineError> {
    let command = vec!["/usr/bin/agent".to_owned(), "rollback".to_owned(), "--unconfirmed".to_owned()];
    let probation = Some(Probation { window: Duration::from_secs(600), command });
    bench.run(config, Options { probation, crash, ..Options::new("apply") }).await
}

/// What the timer runs.
async fn timer_goes_off(bench: &Bench) {
    rollback::unconfirmed(&bench.fake.host, &Options::new("rollback")).await.unwrap();
}

fn file(bench: &Bench) -> String {
    bench.text("/etc/x").unwrap()
}

fn panic_after(bench: &Bench) -> String {
    bench.text("/proc/sys/kernel/panic").unwrap().trim().to_owned()
}

#[tokio::test]
async fn confirmed_changes_stay_and_the_timer_is_gone() {
    let bench = host().await;
    let report = apply_on_probation(&bench, CONFIG, CrashPoint::default()).await.unwrap();
    assert!(report.notes.iter().any(|note| note.contains("agent confirm")), "{report:#?}");
    let timer = bench.fake.systemd.timer(UNIT).unwrap();
    assert_eq!((timer.after, timer.command[2].as_str()), (Duration::from_secs(600), "--unconfirmed"));
    let twice = bench.run(OTHER, Options::new("apply")).await;
    assert!(matches!(twice, Err(EngineError::Confirm(ConfirmError::Pending { .. }))), "{twice:?}");

    confirm::confirm(&bench.fake.host).await.unwrap();
    assert_eq!(bench.fake.systemd.timer(UNIT), None);
    timer_goes_off(&bench).await;
    assert_eq!((file(&bench).as_str(), panic_after(&bench).as_str()), ("new\n", "10"));
    assert!(matches!(confirm::confirm(&bench.fake.host).await, Err(ConfirmError::Nothing)));
}

#[tokio::test]
async fn unconfirmed_changes_are_taken_back_and_not_applied_again_until_a_person_or_a_new_config_says_so() {
    let bench = host().await;
    apply_on_probation(&bench, CONFIG, CrashPoint::default()).await.unwrap();
    // drift that is repaired meanwhile is on probation too
    bench.fake.edit("/etc/x", "drifted\n").unwrap();
    assert_eq!(state_of(&bench.reconcile(CONFIG).await, "file//etc/x"), Some(ResourceState::Changed));
    timer_goes_off(&bench).await;
    assert_eq!((file(&bench).as_str(), panic_after(&bench).as_str()), ("old\n", "0"));
    assert_eq!(confirm::read(&bench.fake.host).unwrap().unwrap().status, Status::Rejected);

    for stage in [Stage::Early, Stage::Activate] {
        let boot = Options { stage, in_boot: true, ..Options::new("apply") };
        let report = bench.run(CONFIG, boot).await.unwrap();
        assert_eq!(report.exit(), Exit::Differences, "{report:#?}");
    }
    let held = bench.reconcile(CONFIG).await;
    assert_eq!(state_of(&held, "file//etc/x"), Some(ResourceState::Drifted), "{held:#?}");
    assert!(held.notes.iter().any(|note| note.contains("nobody confirmed")), "{held:#?}");
    assert_eq!(file(&bench), "old\n");

    bench.reconcile(OTHER).await;
    assert_eq!(file(&bench), "other\n", "another config is another decision");
    apply_on_probation(&bench, CONFIG, CrashPoint::default()).await.unwrap();
    timer_goes_off(&bench).await;
    bench.run(CONFIG, Options::new("apply")).await.unwrap();
    assert_eq!(file(&bench), "new\n", "a person has seen what it does");
    assert_eq!(confirm::read(&bench.fake.host).unwrap(), None);
}

#[tokio::test]
async fn the_timer_takes_back_what_an_agent_that_died_had_done() {
    let mut crashes = 0;
    for record in 1..30 {
        let bench = host().await;
        if apply_on_probation(&bench, CONFIG, CrashPoint::after(record)).await.is_ok() {
            break;
        }
        crashes += 1;
        assert!(bench.fake.systemd.timer(UNIT).is_some(), "armed before the first change");
        timer_goes_off(&bench).await;
        assert_eq!((file(&bench).as_str(), panic_after(&bench).as_str()), ("old\n", "0"), "after record {record}");
    }
    assert!(crashes > 5, "{crashes}");
}

#[tokio::test]
async fn a_reboot_or_a_late_run_ends_the_time_as_the_timer_would() {
    for reboot in [true, false] {
        let bench = host().await;
        apply_on_probation(&bench, CONFIG, CrashPoint::default()).await.unwrap();
        if reboot {
            bench.fake.edit("/proc/sys/kernel/random/boot_id", "boot-2\n").unwrap();
        } else {
            bench.fake.clock.advance(Duration::from_secs(601));
        }
        let report = bench.reconcile(CONFIG).await;
        assert_eq!(file(&bench), "old\n", "reboot {reboot}: {report:#?}");
        assert_eq!(report.exit(), Exit::Differences);
    }
}

#[tokio::test]
async fn without_a_timer_nothing_is_touched_and_without_changes_no_timer_is_armed() {
    let bench = host().await;
    apply_on_probation(&bench, "", CrashPoint::default()).await.unwrap();
    assert_eq!((bench.fake.systemd.timer(UNIT), confirm::read(&bench.fake.host).unwrap()), (None, None));
    // files alone are looked at without systemd
    let files = "[[file]]\npath = \"/etc/x\"\ncontent = \"new\\n\"\n";
    bench.fake.systemd.die(true);
    let refused = apply_on_probation(&bench, files, CrashPoint::default()).await;
    assert!(matches!(refused, Err(EngineError::Confirm(ConfirmError::Arm(_)))), "{refused:?}");
    assert_eq!((file(&bench).as_str(), confirm::read(&bench.fake.host).unwrap()), ("old\n", None));
}
