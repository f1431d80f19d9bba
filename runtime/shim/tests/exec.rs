//! Programs run beside a container's own. Needs root.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use nodeagent_shim::protocol::*;
use support::*;

/// Hierarchies of cgroup v1 that this needs.
const V1: &[&str] = &["memory", "freezer"];

#[test]
fn an_exec_has_the_containers_namespaces_and_cgroups() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("exec sleep 1000");
    spec.new_cgroup_namespace = true;
    pod.cgroup(&mut spec, V1);
    pod.daemon.start(&spec);
    let script = "for n in mnt net ipc uts pid cgroup; do readlink /proc/self/ns/$n; readlink /proc/1/ns/$n; done; \
                  cat /proc/1/cgroup; echo; cat /proc/self/cgroup; echo; cat /proc/self/mountinfo | wc -l; ls /proc/self/fd";
    let (code, out, err) = pod.daemon.exec(&spec.container, script);
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<&str> = out.lines().take(12).collect();
    for pair in lines.chunks(2) {
        assert_eq!(pair[0], pair[1], "{out}");
    }
    assert!(!lines[10].contains(&fs::read_link("/proc/self/ns/cgroup").unwrap().to_str().unwrap().to_owned()));
    let mut parts = out.split("\n\n");
    let first = parts.next().unwrap();
    assert!(first.contains(":memory:/\n") && first.contains(":freezer:/\n"), "{out}");
    let own = parts.next().unwrap();
    assert!(own.contains(":memory:/\n") && own.contains(":freezer:/exec-"), "{out}");
    assert_eq!(parts.next().unwrap(), "6\n0\n1\n2\n3\n");
    // the cgroup made for it is gone
    let left = fs::read_dir(&spec.cgroups[1]).unwrap().flatten().filter(|e| e.path().is_dir()).count();
    assert_eq!(left, 0);
    pod.end();
}

#[test]
fn a_program_that_cannot_be_executed_is_told_apart() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("exec sleep 1000");
    pod.daemon.start(&spec);
    let mut exec = exec(&spec.container, "");
    exec.process.args = vec!["no-such-program".into()];
    match pod.daemon.call(Call::Exec(Box::new(exec))) {
        Answer::Error { kind: ErrorKind::CannotExecute, message } => assert!(message.contains("no-such-program")),
        other => panic!("{other:?}"),
    }
    pod.end();
}

#[test]
fn at_the_timeout_everything_it_started_is_killed_and_nothing_else() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("sleep 4321 & exec sleep 1234");
    pod.cgroup(&mut spec, V1);
    pod.daemon.start(&spec);
    // children, one of which leaves the session, and output from before
    let mut exec = exec(&spec.container, "echo begun; sleep 2345 & setsid sleep 3456 & sleep 4567");
    exec.timeout_ms = 500;
    let begin = Instant::now();
    let (code, out, _, timed_out) = pod.daemon.run_exec(exec);
    assert!(begin.elapsed() >= Duration::from_millis(500));
    assert_eq!((code, out.as_str(), timed_out), (137, "begun\n", true));
    let (_, out, _) = pod.daemon.exec(&spec.container, "ps -o args | grep '^sleep' | sort");
    assert_eq!(out, "sleep 1234\nsleep 4321\n");
    pod.end();
}

#[test]
fn what_an_exec_leaves_running_neither_delays_its_answer_nor_is_killed() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("exec sleep 1234");
    pod.cgroup(&mut spec, V1);
    pod.daemon.start(&spec);
    // it keeps the pipes open
    let (code, out, _) = pod.daemon.exec(&spec.container, "sleep 2345 & echo done");
    assert_eq!((code, out.as_str()), (0, "done\n"));
    eventually("it still runs", || pod.daemon.exec(&spec.container, "ps -o args | grep -c '^sleep 2345'").1 == "1\n");
    // but it ends with the container
    pod.daemon.done(Call::Signal { container: spec.container.clone(), signal: libc::SIGKILL, all: true });
    assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(137));
    eventually("the exec's cgroup is gone", || {
        pod.daemon.list();
        !fs::read_dir(&spec.cgroups[1]).unwrap().flatten().any(|entry| entry.path().is_dir())
    });
    pod.end();
}

#[test]
fn output_is_kept_up_to_the_limit_and_the_rest_does_not_block() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("exec sleep 1000");
    pod.daemon.start(&spec);
    let mut exec = exec(&spec.container, "seq 1 100000; seq 1 100000 >&2; exit 7");
    exec.output_limit = 1000;
    let (code, out, err, _) = pod.daemon.run_exec(exec.clone());
    assert_eq!((code, out.len(), err.len()), (7, 1000, 1000));
    assert!(out.starts_with("1\n2\n"));
    // and all of it when there is room
    exec.output_limit = 16 << 20;
    exec.process.args[2] = "dd if=/dev/zero bs=1M count=16 | tr '\\000' x; echo end >&2".into();
    let (_, out, err, _) = pod.daemon.run_exec(exec);
    assert_eq!(out.len(), 16 << 20);
    assert!(err.ends_with("end\n"), "{err}");
    pod.end();
}

#[test]
fn execs_run_side_by_side() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("exec sleep 1000");
    pod.cgroup(&mut spec, V1);
    pod.daemon.start(&spec);
    // each waits for the next one's file
    let count = 20;
    let seqs: Vec<u64> = (0..count)
        .map(|n| {
            let wait =
                if n + 1 == count { String::new() } else { format!("until test -e /tmp/{}; do :; done;", n + 1) };
            let exec = exec(&spec.container, &format!("touch /tmp/{n}; {wait} echo {n}"));
            pod.daemon.ask(Call::Exec(Box::new(exec)))
        })
        .collect();
    for (n, seq) in seqs.into_iter().enumerate() {
        assert_eq!(pod.daemon.executed(seq).1, format!("{n}\n"));
    }
    pod.end();
}

#[test]
fn when_the_container_ends_its_execs_end_and_are_answered() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("exec sleep 1000");
    pod.cgroup(&mut spec, V1);
    pod.daemon.start(&spec);
    let seq = pod.daemon.ask(Call::Exec(Box::new(exec(&spec.container, "echo here; exec sleep 1000"))));
    eventually("it runs", || pod.daemon.exec(&spec.container, "ps -o args | grep -c '^sleep 1000'").1 == "2\n");
    pod.daemon.done(Call::Signal { container: spec.container.clone(), signal: libc::SIGKILL, all: false });
    let (code, out, _, timed_out) = pod.daemon.executed(seq);
    assert_eq!((code, out.as_str(), timed_out), (137, "here\n", false));
    match pod.daemon.call(Call::Exec(Box::new(exec(&spec.container, "true")))) {
        Answer::Error { kind: ErrorKind::WrongState, .. } => {}
        other => panic!("{other:?}"),
    }
    pod.end();
}

#[test]
fn a_working_directory_in_the_host_is_out_of_reach() {
    if !root() {
        return;
    }
    // CVE-2024-21626: a descriptor of the host's file system, inherited, as working directory
    let mut pod = Pod::new();
    let spec = pod.container("exec sleep 1000");
    pod.daemon.start(&spec);
    for fd in 0..32 {
        let mut exec = exec(&spec.container, "ls ../../../../../../proc/1/root/bin/busybox && pwd");
        exec.process.cwd = format!("/proc/self/fd/{fd}");
        match pod.daemon.call(Call::Exec(Box::new(exec.clone()))) {
            Answer::Error { kind: ErrorKind::System, message } => {
                assert!(message.contains(&exec.process.cwd), "{message}")
            }
            other => panic!("fd {fd}: {other:?}"),
        }
        let mut spec = pod.container("true");
        spec.process.cwd = format!("/proc/self/fd/{fd}");
        match pod.daemon.call(Call::Start(Box::new(spec))) {
            Answer::Error { .. } => {}
            other => panic!("fd {fd}: {other:?}"),
        }
    }
    pod.end();
}

#[test]
fn without_namespace_and_cgroup_an_exec_still_ends_with_its_container() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("exec sleep 1000");
    spec.pid_namespace = PidNamespace::Host;
    pod.daemon.start(&spec);
    let seq = pod.daemon.ask(Call::Exec(Box::new(exec(&spec.container, "touch /tmp/here; exec sleep 1000"))));
    eventually("it runs", || pod.daemon.exec(&spec.container, "test -e /tmp/here").0 == 0);
    pod.daemon.done(Call::Signal { container: spec.container.clone(), signal: libc::SIGTERM, all: false });
    assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(143));
    assert_eq!(pod.daemon.executed(seq).0, 137);
    pod.end();
}
