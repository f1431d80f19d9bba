//! Containers from start to end, through the shim's socket. Needs root.
#![allow(missing_docs)]

mod support;

use nodeagent_shim::protocol::*;
use support::*;

#[test]
fn a_container_runs_logs_and_exits() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("echo out; echo err >&2; exit 3");
    let pid = pod.daemon.start(&spec);
    let state = pod.daemon.exited(&spec.container);
    assert_eq!(state.exit_code, Some(3));
    assert_eq!(state.pid, None);
    assert!(!state.oom_killed);
    assert!(pid > 1 && state.started_at > 0 && state.finished_at >= state.started_at);
    let log = pod.log(&spec);
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    pod.end();
}

#[test]
fn death_by_signal_is_128_and_the_signal() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("exec sleep 1000");
    pod.daemon.start(&spec);
    // process 1 of a namespace has no default action for SIGTERM
    pod.daemon.done(Call::Signal { container: spec.container.clone(), signal: libc::SIGKILL, all: false });
    assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(137));
    pod.end();
}

#[test]
fn a_program_that_is_not_there_is_127() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    for (program, code) in [("nope", 127), ("/bin/nope", 127), ("/etc/passwd", 126), ("/bin", 126)] {
        let mut spec = pod.container("");
        spec.process.args = vec![program.into()];
        match pod.daemon.call(Call::Start(Box::new(spec.clone()))) {
            Answer::Error { kind: ErrorKind::CannotExecute, message } => {
                assert!(message.contains(program), "{message}")
            }
            other => panic!("{other:?}"),
        }
        let state = pod.daemon.exited(&spec.container);
        assert_eq!(state.exit_code, Some(code), "{program}");
        assert!(state.message.contains(program), "{}", state.message);
        pod.daemon.done(Call::Forget { container: spec.container });
    }
    assert_eq!(pod.daemon.list(), vec![]);
    pod.end();
}

#[test]
fn an_exec_sees_the_container_and_answers_with_its_output() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("echo hello > /file; exec sleep 1000");
    pod.daemon.start(&spec);
    eventually("the file is there", || pod.daemon.exec(&spec.container, "cat /file").1 == "hello\n");
    let (code, out, err) = pod.daemon.exec(&spec.container, "echo $$; ls -d /proc/1; echo no >&2; exit 4");
    assert_eq!((code, err.as_str()), (4, "no\n"));
    assert!(out.ends_with("/proc/1\n"), "{out}");
    pod.end();
}
