//! The D-Bus client against a manager that misbehaves, on a message bus and on a socket of its own.

// a test may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bus;
mod firewall;
mod mock;

use std::time::{Duration, Instant};

use bus::{PrivateBus, spoof};
use mock::{Behaviour, Mock, Unit};
use nodeagent::host::Ledger;
use nodeagent::host::systemd::bus::Bus;
use nodeagent::host::systemd::{JobKind, JobResult, Systemd, SystemdError, Timer, Transient, UnitFileState};
use tempfile::TempDir;

/// A mock on a bus, a client of it, and what keeps them alive.
struct Scene {
    mock: Mock,
    client: Bus,
    bus: PrivateBus,
    _connection: zbus::Connection,
    _dir: TempDir,
}

/// None, and a line that says so, where there is no dbus-daemon.
async fn scene(units: &[(&str, Unit)]) -> Option<Scene> {
    let dir = TempDir::new().unwrap();
    let Some(bus) = PrivateBus::start(dir.path()) else {
        eprintln!("SKIPPED: dbus-daemon is not installed");
        return None;
    };
    let mock = Mock::new(units);
    let connection = mock.on_bus(&bus).await;
    let client = Bus::on_bus(&bus.address, Ledger::default()).with_job_deadline(Duration::from_secs(20));
    Some(Scene { mock, client, bus, _connection: connection, _dir: dir })
}

#[tokio::test]
async fn a_start_is_done_when_the_unit_is_up_and_stays_up() {
    for behaviour in [Behaviour::Normal, Behaviour::EndFirst, Behaviour::Storm] {
        let Some(scene) = scene(&[("x.service", Unit::new(behaviour))]).await else { return };
        let started = Instant::now();
        scene.client.run_job(JobKind::Start, "x.service").await.unwrap_or_else(|e| panic!("{behaviour:?}: {e:?}"));
        assert!(started.elapsed() >= Duration::from_secs(2), "{behaviour:?}: not watched");
        assert!(started.elapsed() < Duration::from_secs(10), "{behaviour:?}: the signal was missed");
        assert_eq!(scene.mock.calls(), ["subscribe", "start x.service replace"], "{behaviour:?}");
    }
}

#[tokio::test]
async fn a_job_that_fails_says_what_the_unit_says() {
    let Some(scene) = scene(&[("x.service", Unit::new(Behaviour::Fails))]).await else { return };
    let error = scene.client.run_job(JobKind::Restart, "x.service").await.unwrap_err();
    assert!(matches!(error, SystemdError::Job { result: JobResult::Failed, .. }), "{error:?}");
    assert!(error.to_string().contains("result exit-code, exit status 3"), "{error}");
}

#[tokio::test]
async fn a_job_that_never_ends_is_cancelled_at_the_deadline() {
    let Some(scene) = scene(&[("x.service", Unit::new(Behaviour::Stalls))]).await else { return };
    let client = scene.client.with_job_deadline(Duration::from_millis(300));
    let error = client.run_job(JobKind::Start, "x.service").await.unwrap_err();
    assert!(matches!(error, SystemdError::Deadline { .. }), "{error:?}");
    assert!(scene.mock.calls().contains(&"cancel 1".to_owned()), "{:?}", scene.mock.calls());
}

#[tokio::test]
async fn a_unit_that_dies_after_its_job_is_not_up() {
    let Some(scene) = scene(&[("x.service", Unit::new(Behaviour::Crashes))]).await else { return };
    let error = scene.client.run_job(JobKind::Start, "x.service").await.unwrap_err();
    assert!(matches!(error, SystemdError::Unhealthy { .. }), "{error:?}");
    assert!(error.to_string().contains("1 restarts"), "{error}");
}

#[tokio::test]
async fn an_end_that_nobody_signals_is_noticed() {
    let Some(scene) = scene(&[("x.service", Unit::new(Behaviour::Silent))]).await else { return };
    scene.client.run_job(JobKind::Start, "x.service").await.unwrap();
}

#[tokio::test]
async fn only_systemd_itself_ends_jobs() {
    let Some(scene) = scene(&[("x.service", Unit::new(Behaviour::Stalls))]).await else { return };
    let client = scene.client.with_job_deadline(Duration::from_secs(1));
    let job = client.run_job(JobKind::Start, "x.service");
    let liar = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            spoof(&scene.bus, 1, "done").await;
        }
    };
    let (result, ()) = tokio::join!(job, liar);
    assert!(matches!(result, Err(SystemdError::Deadline { .. })), "{result:?}");
}

#[tokio::test]
async fn a_unit_that_is_not_up_is_not_restarted() {
    for active in ["inactive", "failed", "activating"] {
        let unit = Unit { active, ..Unit::new(Behaviour::Fails) };
        let Some(scene) = scene(&[("x.service", unit)]).await else { return };
        scene.client.run_job(JobKind::TryRestart, "x.service").await.unwrap();
        assert_eq!(scene.mock.calls(), ["subscribe"], "{active}");
    }
}

#[tokio::test]
async fn jobs_of_the_boot_are_not_thrown_out() {
    let Some(scene) = scene(&[("x.service", Unit::new(Behaviour::Normal))]).await else { return };
    scene.mock.state().system = "starting".into();
    scene.client.enqueue(JobKind::Start, "x.service").await.unwrap();
    assert_eq!(scene.mock.calls(), ["subscribe", "start x.service fail"]);
}

#[tokio::test]
async fn enabling_what_is_enabled_is_no_failure_and_what_cannot_be_says_why() {
    let state = |file_state| Unit { file_state, ..Unit::new(Behaviour::Normal) };
    let units = [
        ("off.service", state("disabled")),
        ("on.service", state("enabled")),
        ("static.service", state("static")),
        ("masked.service", state("masked")),
    ];
    let Some(scene) = scene(&units).await else { return };
    let client = &scene.client;
    assert!(client.enable("off.service").await.unwrap());
    assert!(!client.enable("off.service").await.unwrap());
    assert!(!client.enable("on.service").await.unwrap());
    assert!(matches!(client.enable("static.service").await, Err(SystemdError::NotInstallable { .. })));
    assert!(matches!(client.enable("masked.service").await, Err(SystemdError::Masked { .. })));
    assert!(matches!(client.enable("none.service").await, Err(SystemdError::NotFound { .. })));
    assert!(matches!(client.run_job(JobKind::Start, "masked.service").await, Err(SystemdError::Masked { .. })));
    assert!(matches!(client.run_job(JobKind::Start, "none.service").await, Err(SystemdError::NotFound { .. })));
    let status = client.unit("on.service").await.unwrap();
    assert_eq!(
        (status.unit_file_state, status.need_daemon_reload, status.drop_ins.len()),
        (UnitFileState::Enabled, true, 1)
    );
    assert!(!client.unit("none.service").await.unwrap().exists());
}

#[tokio::test]
async fn a_slow_reload_is_waited_for() {
    let Some(scene) = scene(&[]).await else { return };
    scene.mock.state().reload_takes = Duration::from_secs(1);
    scene.client.daemon_reload().await.unwrap();
    assert_eq!(scene.mock.calls(), ["subscribe", "reload"]);
}

#[tokio::test]
async fn a_program_in_a_unit_of_its_own_hands_back_its_exit_status() {
    let unit = Unit { kind: "oneshot", ..Unit::new(Behaviour::Normal) };
    let failing = Unit { kind: "oneshot", ..Unit::new(Behaviour::Fails) };
    let Some(scene) = scene(&[("t.service", unit), ("f.service", failing)]).await else { return };
    let mut transient = Transient {
        name: "t.service".into(),
        description: "test".into(),
        command: vec!["/usr/bin/dnf".into(), "-y".into()],
        env: vec![("A".into(), "b".into())],
        output: "/run/out".into(),
        errors: "/run/err".into(),
        deadline: Duration::from_secs(5),
    };
    assert_eq!(scene.client.run_transient(&transient).await.unwrap(), 0);
    let properties: Vec<String> = scene.mock.state().transient.keys().cloned().collect();
    let expected = [
        "Description",
        "Environment",
        "ExecStart",
        "RemainAfterExit",
        "StandardErrorFile",
        "StandardOutputFile",
        "TimeoutStartUSec",
        "Type",
    ];
    assert_eq!(properties, expected);
    let start = scene.mock.state().transient["ExecStart"].try_clone().unwrap();
    assert_eq!(start.value_signature().to_string(), "a(sasb)");
    transient.name = "f.service".into();
    assert_eq!(scene.client.run_transient(&transient).await.unwrap(), 3);
    assert!(scene.mock.calls().contains(&"reset-failed f.service".to_owned()));
}

#[tokio::test]
async fn a_timer_that_is_armed_brings_the_service_that_it_starts() {
    let unit = Unit { kind: "", ..Unit::new(Behaviour::Normal) };
    let Some(scene) = scene(&[("later.timer", unit)]).await else { return };
    let timer = Timer {
        name: "later".into(),
        description: "test".into(),
        after: Duration::from_secs(600),
        command: vec!["/usr/bin/agent".into(), "rollback".into()],
    };
    scene.client.start_timer(&timer).await.unwrap();
    {
        let state = scene.mock.state();
        // as bus_timer_set_transient_property() of systemd reads them
        assert_eq!(state.transient["TimersMonotonic"].value_signature().to_string(), "a(st)");
        assert_eq!(u64::try_from(state.transient["AccuracyUSec"].try_clone().unwrap()).unwrap(), 1_000_000);
        let service = &state.auxiliary["later.service"];
        assert_eq!(service["ExecStart"].value_signature().to_string(), "a(sasb)");
    }
    assert!(scene.client.unit("later.timer").await.unwrap().is_active());
    scene.client.stop_timer("later").await.unwrap();
    assert!(scene.mock.calls().contains(&"stop later.timer replace".to_owned()), "{:?}", scene.mock.calls());
    scene.client.stop_timer("never").await.unwrap();
}

#[tokio::test]
async fn systemds_own_socket_needs_no_bus_and_a_reexec_is_survived() {
    for behaviour in [Behaviour::Normal, Behaviour::EndFirst, Behaviour::Reexec] {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("private");
        let mock = Mock::new(&[("x.service", Unit::new(behaviour))]);
        mock.on_socket(&socket);
        let client = Bus::on_socket(&socket, Ledger::default()).with_job_deadline(Duration::from_secs(20));
        client.run_job(JobKind::Start, "x.service").await.unwrap_or_else(|e| panic!("{behaviour:?}: {e:?}"));
        let connections = mock.calls().iter().filter(|call| *call == "subscribe").count();
        assert_eq!(connections, if behaviour == Behaviour::Reexec { 2 } else { 1 }, "{behaviour:?}");
        assert!(client.unit("x.service").await.unwrap().is_active());
    }
}

#[tokio::test]
async fn no_systemd_at_all_is_said_at_once() {
    let client = Bus::on_socket(std::path::Path::new("/nonexistent/private"), Ledger::default());
    let error = client.unit("x.service").await.unwrap_err();
    assert!(matches!(error, SystemdError::Connect { .. }), "{error:?}");
}
