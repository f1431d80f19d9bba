//! Logs and cgroups of a container: memory, kills, what is left behind. Needs root.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use nodeagent_shim::protocol::*;
use support::*;

#[test]
fn a_container_out_of_memory_is_reported_as_such() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    // the first process itself, and one of its children that it survives
    for (script, code) in [("exec tail /dev/zero", 137), ("tail /dev/zero; echo survived; exit 0", 0)] {
        let mut spec = pod.container(script);
        pod.cgroup(&mut spec, &["memory"]);
        fs::write(format!("{}/memory.limit_in_bytes", spec.cgroups[0]), "16M").unwrap();
        let state = pod.run(&spec);
        assert_eq!((state.exit_code, state.oom_killed), (Some(code), true), "{script}");
    }
    let mut spec = pod.container("kill -9 $$");
    pod.cgroup(&mut spec, &["memory"]);
    assert!(!pod.run(&spec).oom_killed);
    pod.end();
}

#[test]
fn processes_that_leave_the_first_one_behind_end_with_it() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("setsid sleep 1000 & echo last words; exit 9");
    spec.pid_namespace = PidNamespace::Host;
    pod.cgroup(&mut spec, &["memory", "pids"]);
    let state = pod.run(&spec);
    assert_eq!(state.exit_code, Some(9));
    assert_eq!(pod.output(&spec), "last words\n");
    for cgroup in &spec.cgroups {
        assert_eq!(fs::read_to_string(format!("{cgroup}/cgroup.procs")).unwrap(), "");
        fs::remove_dir(cgroup).unwrap();
    }
    pod.end();
}

#[test]
fn a_signal_can_go_to_all_processes() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container(
        "trap 'echo first' USR1; sh -c 'trap \"echo second; exit\" USR1; echo ready; while :; do sleep 0.01; done' & wait; wait",
    );
    pod.cgroup(&mut spec, &["memory"]);
    pod.daemon.start(&spec);
    eventually("both run", || pod.output(&spec) == "ready\n");
    pod.daemon.done(Call::Signal { container: spec.container.clone(), signal: libc::SIGUSR1, all: true });
    assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(0));
    let output = pod.output(&spec);
    assert!(output.contains("first") && output.contains("second"), "{output}");
    pod.end();
}

#[test]
fn on_v2_a_container_is_born_into_its_cgroup_and_killed_by_it() {
    if !root() {
        return;
    }
    let base = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .iter()
        .map(Path::new)
        .find(|path| path.join("cgroup.controllers").exists());
    let Some(base) = base else {
        eprintln!("skipped: needs cgroup v2");
        return;
    };
    let mut pod = Pod::new();
    let mut spec = pod.container("setsid sleep 1000 & cat /proc/self/cgroup; exec sleep 1000");
    let hierarchy = PathBuf::from(base);
    pod.cgroup(&mut spec, &[hierarchy.strip_prefix("/sys/fs/cgroup").unwrap().to_str().unwrap()]);
    spec.new_cgroup_namespace = true;
    pod.daemon.start(&spec);
    eventually("it says where it is", || pod.output(&spec).contains("0::/\n"));
    let (_, out, _) = pod.daemon.exec(&spec.container, "grep ^0: /proc/self/cgroup");
    assert!(out.starts_with("0::/exec-"), "{out}");
    let mut slow = exec(&spec.container, "setsid sleep 1000 & sleep 1000");
    slow.timeout_ms = 100;
    assert!(matches!(pod.daemon.call(Call::Exec(Box::new(slow))), Answer::Executed { timed_out: true, .. }));
    assert_eq!(fs::read_to_string(format!("{}/cgroup.procs", spec.cgroups[0])).unwrap().lines().count(), 2);
    pod.daemon.done(Call::Signal { container: spec.container.clone(), signal: libc::SIGKILL, all: true });
    assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(137));
    fs::remove_dir(&spec.cgroups[0]).unwrap();
    pod.end();
}

#[test]
fn logs_are_reopened_and_long_lines_cut() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("echo one; cat /proc/self/fd/3 3</tmp/go > /dev/null; echo two; exit 0");
    spec.process.args[2] = "mkdir -p /tmp; echo one; until test -e /tmp/go; do :; done; echo two".into();
    pod.daemon.start(&spec);
    eventually("first line", || pod.output(&spec) == "one\n");
    let log = spec.log_path.clone().unwrap();
    let rotated = format!("{log}.20260822");
    fs::rename(&log, &rotated).unwrap();
    pod.daemon.done(Call::ReopenLog { container: spec.container.clone() });
    assert_eq!(fs::metadata(&log).unwrap().len(), 0, "the new file is there when the answer is");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&log).unwrap().permissions()) & 0o777, 0o640);
    pod.daemon.exec(&spec.container, "touch /tmp/go");
    pod.daemon.exited(&spec.container);
    assert_eq!(pod.output(&spec), "two\n");
    assert!(fs::read_to_string(rotated).unwrap().ends_with("stdout F one\n"));
    // of one that has ended there is nothing to reopen, and no file is made
    fs::remove_file(&log).unwrap();
    let again = pod.daemon.call(Call::ReopenLog { container: spec.container.clone() });
    assert!(matches!(again, Answer::Error { kind: ErrorKind::WrongState, .. }) && !Path::new(&log).exists());

    let long = pod.container("yes | head -c 40000 | tr -d '\\n'; head -c 16384 /dev/zero | tr '\\000' z; printf end");
    pod.run(&long);
    let log = pod.log(&long);
    let pieces: Vec<(&str, usize)> =
        log.lines().map(|line| (line.split(' ').nth(2).unwrap(), line.splitn(4, ' ').nth(3).unwrap().len())).collect();
    assert_eq!(pieces, [("P", 16384), ("P", 16384), ("F", 20000 + 16384 + 3 - 2 * 16384)]);
    pod.end();
}

#[test]
fn a_full_disk_loses_output_and_nothing_else() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let logs = pod.dir.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let tmpfs = Some("tmpfs");
    nix::mount::mount(tmpfs, &logs, tmpfs, nix::mount::MsFlags::empty(), Some("size=64k")).unwrap();
    let mut spec =
        pod.container("seq 1 20000; touch /tmp/past; until test -e /tmp/go; do :; done; echo again; echo more; exit 3");
    spec.log_path = Some(logs.join("0.log").to_str().unwrap().into());
    fs::write(logs.join("ballast"), vec![0; 8 << 10]).unwrap();
    pod.daemon.start(&spec);
    // the container went on past the loss
    eventually("it is past the numbers", || pod.daemon.exec(&spec.container, "test -e /tmp/past").0 == 0);
    assert!(fs::metadata(logs.join("0.log")).unwrap().len() >= 48 << 10, "the log is full");
    // the shim's loop reads 16 of the pipe's 64 KiB in a turn; an exec takes several turns
    for _ in 0..4 {
        pod.daemon.exec(&spec.container, "true");
    }
    fs::remove_file(logs.join("ballast")).unwrap();
    pod.daemon.exec(&spec.container, "touch /tmp/go");
    assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(3));
    let log = fs::read_to_string(logs.join("0.log")).unwrap();
    nix::mount::umount(&logs).unwrap();
    assert!(log.ends_with(" stdout F more\n"), "{}", &log[log.len() - 200..]);
    let again = log.lines().rev().nth(1).unwrap();
    assert!(again.ends_with(" stdout F again") && again.starts_with("20"), "its own line: {again}");
    pod.end();
}

/// A container that runs in a cgroup of the v2 hierarchy beside v1.
fn on_unified() -> Option<(Pod, LaunchSpec)> {
    if !root() {
        return None;
    }
    if !Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists() {
        eprintln!("skipped: needs cgroup v2 beside v1");
        return None;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("exec sleep 1000");
    pod.cgroup(&mut spec, &["unified"]);
    pod.daemon.start(&spec);
    Some((pod, spec))
}

#[test]
fn on_cgroup_v2_an_exec_has_one_of_its_own_in_its_containers() {
    let Some((mut pod, spec)) = on_unified() else { return };
    let own = format!("/crio-{}/exec-", spec.container);
    // a shell that has forked: both are in it
    let (_, out, _) = pod.daemon.exec(&spec.container, "grep ^0: /proc/self/cgroup; grep ^0: /proc/$$/cgroup");
    assert_eq!(out.lines().filter(|line| line.contains(&own)).count(), 2, "{out}");
    let left = fs::read_dir(&spec.cgroups[0]).unwrap().flatten().filter(|e| e.path().is_dir()).count();
    assert_eq!(left, 0);
    pod.end();
}

#[test]
fn an_exec_finds_a_place_in_a_container_with_threaded_cgroups() {
    let Some((mut pod, spec)) = on_unified() else { return };
    // from here on a cgroup made below takes no processes
    let threaded = Path::new(&spec.cgroups[0]).join("threads");
    fs::create_dir(&threaded).unwrap();
    fs::write(threaded.join("cgroup.type"), "threaded").unwrap();
    let (_, out, _) = pod.daemon.exec(&spec.container, "grep ^0: /proc/self/cgroup");
    assert!(out.ends_with(&format!("/crio-{}\n", spec.container)), "{out}");
    pod.end();
}
