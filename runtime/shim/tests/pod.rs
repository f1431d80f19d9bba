//! The pod around the containers: namespaces, daemons that come and go, the end. Needs root.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nodeagent_shim::protocol::*;
use support::*;

#[test]
fn the_pods_namespaces_are_made_and_shared() {
    if !root() {
        return;
    }
    let netns = std::env::temp_dir().join(format!("nodeagent-shim-test-netns-{}", unique())).join("pod");
    let mut pod = Pod::with(PodSetup {
        new_net: true,
        new_ipc: true,
        new_uts: true,
        netns_path: Some(netns.to_str().unwrap().into()),
        hostname: Some("web-0".into()),
        sysctls: vec![
            ("net.ipv4.ip_unprivileged_port_start".into(), "80".into()),
            ("kernel.shm_rmid_forced".into(), "1".into()),
        ],
        ..PodSetup::default()
    });
    let script = "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; \
                  ip -o addr show lo | grep -c 'inet 127.0.0.1'; readlink /proc/self/ns/net";
    let (one, two) = (pod.container(script), pod.container(script));
    pod.run(&one);
    pod.run(&two);
    let output = pod.output(&one);
    assert!(output.starts_with("web-0\n80\n1\n1\nnet:["), "{output}");
    assert_eq!(output, pod.output(&two));
    // the bound file is that namespace
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&netns).unwrap());
    assert!(output.contains(&inode.to_string()), "{output}");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), "web-0\n");
    let shim = format!("/proc/{}/ns/net", pod.child.id());
    assert!(fs::read_link(&shim).unwrap().to_str().unwrap().contains(&inode.to_string()));
    pod.daemon.done(Call::StopPod);
    assert_eq!(
        fs::read_link(&shim).unwrap(),
        fs::read_link("/proc/self/ns/net").unwrap(),
        "it has left the pod's network"
    );
    nix::mount::umount(&netns).unwrap();
    fs::remove_dir_all(netns.parent().unwrap()).unwrap();
    pod.end();
}

#[test]
fn without_namespaces_of_its_own_a_pod_has_the_hosts() {
    if !root() {
        return;
    }
    let mut pod = Pod::with(PodSetup::default());
    let mut spec = pod.container("for n in net ipc uts pid; do readlink /proc/self/ns/$n; done");
    spec.pid_namespace = PidNamespace::Host;
    pod.run(&spec);
    let host: String = ["net", "ipc", "uts", "pid"]
        .iter()
        .map(|n| format!("{}\n", fs::read_link(format!("/proc/self/ns/{n}")).unwrap().display()))
        .collect();
    assert_eq!(pod.output(&spec), host);
    pod.end();
}

#[test]
fn a_sysctl_of_the_host_is_refused_before_anything_is_made() {
    if !root() {
        return;
    }
    let mut pod = Pod::bare();
    for (setup, name) in [
        (PodSetup { new_net: true, ..PodSetup::default() }, "kernel.panic"),
        (PodSetup::default(), "net.ipv4.ip_forward"),
    ] {
        let setup = PodSetup { sysctls: vec![(name.into(), "1".into())], ..setup };
        match pod.daemon.call(Call::Setup(setup)) {
            Answer::Error { message, .. } => assert!(message.contains(name), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    let net = fs::read_link(format!("/proc/{}/ns/net", pod.child.id())).unwrap();
    assert_eq!(net, fs::read_link("/proc/self/ns/net").unwrap());
    pod.daemon.done(Call::Exit);
    assert!(pod.child.wait().unwrap().success());
}

#[test]
fn a_container_can_join_the_process_namespace_of_another() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let target = pod.container("exec sleep 4321");
    pod.daemon.start(&target);
    let mut debug = pod.container("ps -o pid,args | grep -v grep | grep -c 'sleep 4321'; echo $$");
    debug.pid_namespace = PidNamespace::Container(target.container.clone());
    assert_eq!(pod.run(&debug).exit_code, Some(0));
    let output = pod.output(&debug);
    assert!(output.starts_with("1\n") && !output.ends_with("\n1\n"), "{output}");
    // the shim itself still makes processes of its own namespace
    let next = pod.container("echo $$");
    pod.run(&next);
    assert_eq!(pod.output(&next), "1\n");
    let mut lost = pod.container("true");
    lost.pid_namespace = PidNamespace::Container("nobody".into());
    assert!(matches!(pod.daemon.call(Call::Start(Box::new(lost))), Answer::Error { kind: ErrorKind::NotFound, .. }));
    pod.end();
}

#[test]
fn the_shim_outlives_its_daemon_and_tells_the_next_one() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut lives = pod.container("cat; exit 5");
    lives.stdin = true;
    let dies = pod.container("exit 6");
    let pid = pod.daemon.start(&lives);
    pod.run(&dies);
    let next = pod.reconnect();
    assert_eq!((next.hello.version, &next.hello.sandbox), (VERSION, &pod.sandbox));
    assert_eq!(next.hello.pid, pod.child.id().cast_signed());
    // the old one goes, its connection with it
    pod.daemon = next;
    let containers = pod.daemon.list();
    assert_eq!(containers.len(), 2);
    assert_eq!(
        (&containers[0].container, containers[0].pid, containers[0].exit_code),
        (&lives.container, Some(pid), None)
    );
    assert_eq!((&containers[1].container, containers[1].exit_code), (&dies.container, Some(6)));
    assert!(containers[1].finished_at >= containers[1].started_at && containers[1].started_at > 0);
    // both hear of what happens from now on
    let mut third = pod.reconnect();
    pod.daemon.done(Call::Signal { container: lives.container.clone(), signal: libc::SIGKILL, all: true });
    assert_eq!(pod.daemon.exited(&lives.container), third.exited(&lives.container));
    drop(third);
    pod.end();
}

#[test]
fn what_a_dying_daemon_asked_for_last_is_done() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("exec sleep 1000");
    let mut dying = pod.reconnect();
    dying.ask(Call::Start(Box::new(spec.clone())));
    drop(dying);
    eventually("it runs", || pod.daemon.list().first().is_some_and(|container| container.pid.is_some()));
    pod.end();
}

#[test]
fn a_launcher_waits_for_its_cgroup_when_told_to() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("cat /proc/self/cgroup");
    spec.placement = Placement::Wait;
    pod.cgroup(&mut spec, &["memory"]);
    let seq = pod.daemon.ask(Call::Start(Box::new(spec.clone())));
    let Event::Launched { container, pid } = pod.daemon.event() else { panic!() };
    assert_eq!(container, spec.container);
    let procs = format!("{}/cgroup.procs", spec.cgroups[0]);
    assert_eq!(fs::read_to_string(&procs).unwrap(), "", "it has not gone there itself");
    assert_eq!(pod.daemon.list()[0].pid, None, "its program does not run");
    // a daemon that takes over asks again, and is told again
    let second = pod.daemon.ask(Call::Start(Box::new(spec.clone())));
    assert!(matches!(pod.daemon.event(), Event::Launched { pid: same, .. } if same == pid));
    fs::write(&procs, pid.to_string()).unwrap();
    pod.daemon.done(Call::Continue { container: container.clone() });
    for seq in [seq, second] {
        assert!(matches!(pod.daemon.answer(seq), Answer::Started { pid: started, .. } if started == pid));
    }
    assert_eq!(pod.daemon.exited(&container).exit_code, Some(0));
    assert!(pod.output(&spec).contains(&format!("crio-{container}")));
    let again = pod.daemon.call(Call::Continue { container });
    assert!(matches!(again, Answer::Error { kind: ErrorKind::WrongState, .. }));
    pod.end();
}

#[test]
fn a_held_launcher_can_be_killed() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("true");
    spec.placement = Placement::Wait;
    let seq = pod.daemon.ask(Call::Start(Box::new(spec.clone())));
    let Event::Launched { .. } = pod.daemon.event() else { panic!() };
    pod.daemon.done(Call::Signal { container: spec.container.clone(), signal: libc::SIGKILL, all: true });
    assert!(matches!(pod.daemon.answer(seq), Answer::Error { kind: ErrorKind::System, .. }));
    let state = pod.daemon.exited(&spec.container);
    assert_eq!((state.exit_code, state.started_at), (Some(137), 0));
    pod.end();
}

#[test]
fn stopping_the_pod_ends_everything_and_nothing_starts_afterwards() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut specs = Vec::new();
    for namespace in [PidNamespace::New, PidNamespace::Host] {
        let mut spec = pod.container("trap '' TERM; setsid sleep 1000 & sleep 1000 & while :; do wait; done");
        spec.pid_namespace = namespace;
        pod.cgroup(&mut spec, &["memory", "freezer"]);
        pod.daemon.start(&spec);
        specs.push(spec);
    }
    eventually("all run", || {
        specs
            .iter()
            .all(|spec| fs::read_to_string(format!("{}/cgroup.procs", spec.cgroups[0])).unwrap().lines().count() >= 3)
    });
    let running = pod.daemon.ask(Call::Exec(Box::new(exec(&specs[0].container, "exec sleep 2000"))));
    eventually("the exec runs", || {
        pod.daemon.exec(&specs[0].container, "ps -o args | grep -c '^sleep 2000'").1 == "1\n"
    });
    pod.daemon.done(Call::StopPod);
    for spec in &specs {
        assert_eq!(fs::read_to_string(format!("{}/cgroup.procs", spec.cgroups[0])).unwrap(), "");
        assert_eq!(pod.daemon.exited(&spec.container).exit_code, Some(137));
    }
    assert!(matches!(pod.daemon.answer(running), Answer::Executed { exit_code: 137, .. }));
    pod.daemon.done(Call::StopPod);
    let spec = pod.container("true");
    let refused = pod.daemon.call(Call::Start(Box::new(spec)));
    assert!(matches!(refused, Answer::Error { kind: ErrorKind::WrongState, .. }));
    pod.end();
}

#[test]
fn the_shim_does_not_end_while_a_container_runs_nor_by_a_signal() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("exec sleep 1000");
    pod.daemon.start(&spec);
    let shim = nix::unistd::Pid::from_raw(pod.child.id().cast_signed());
    for signal in
        [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGHUP]
    {
        nix::sys::signal::kill(shim, signal).unwrap();
    }
    assert!(matches!(pod.daemon.call(Call::Exit), Answer::Error { kind: ErrorKind::WrongState, .. }));
    let forget = Call::Forget { container: spec.container.clone() };
    assert!(matches!(pod.daemon.call(forget), Answer::Error { kind: ErrorKind::WrongState, .. }));
    pod.end();
}

#[test]
fn a_hung_launch_stops_nothing_else() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    // held at its first step as it would be by a mount that does not answer
    let mut hung = pod.container("true");
    hung.placement = Placement::Wait;
    pod.daemon.ask(Call::Start(Box::new(hung.clone())));
    let spec = pod.container("echo still here");
    assert_eq!(pod.run(&spec).exit_code, Some(0));
    assert_eq!(pod.output(&spec), "still here\n");
    pod.end();
}

#[test]
fn strange_requests_are_answered_and_strange_frames_end_the_connection() {
    if !root() {
        return;
    }
    let mut pod = Pod::bare();
    pod.daemon.write_raw(br#"{"seq":900,"call":{"call":"levitate","height":3}}"#);
    assert!(matches!(pod.daemon.answer(900), Answer::Error { kind: ErrorKind::Unsupported, .. }));
    pod.daemon.write_raw(br#"{"seq":901,"call":{"call":"signal","container":7}}"#);
    assert!(matches!(pod.daemon.answer(901), Answer::Error { kind: ErrorKind::Invalid, .. }));
    pod.daemon.write_raw(br#"{"seq":902,"call":{"call":"list","later":"field"},"more":1}"#);
    assert!(matches!(pod.daemon.answer(902), Answer::Containers { .. }));
    let gone = pod.daemon.call(Call::ReopenLog { container: "nobody".into() });
    assert!(matches!(gone, Answer::Error { kind: ErrorKind::NotFound, .. }));

    let closed = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&pod.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut rest = Vec::new();
        // reset or orderly, but closed by the shim
        let ended = stream.read_to_end(&mut rest);
        assert!(!matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{bytes:?}");
    };
    closed(&[0xff; 4]);
    closed(b"\x02\0\0\0{}");
    closed(b"\x04\0\0\0nope");
    let wrong = br#"{"version":1,"sandbox":"other","pid":1}"#;
    closed(&[&u32::try_from(wrong.len()).unwrap().to_le_bytes()[..], wrong].concat());
    assert_eq!(pod.daemon.list(), vec![]);
    pod.daemon.done(Call::Exit);
    assert!(pod.child.wait().unwrap().success());
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut relative = pod.container("true");
    relative.log_path = Some("0.log".into());
    let mut foreign = pod.container("true");
    foreign.cgroups = vec!["/sys/fs/cgroup/memory".into()];
    let mut odd = pod.container("true");
    odd.container = "../../x".into();
    for spec in [relative, foreign, odd] {
        match pod.daemon.call(Call::Start(Box::new(spec))) {
            Answer::Error { kind: ErrorKind::Invalid, .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let spec = pod.container("exec sleep 1000");
    pod.daemon.start(&spec);
    // asked again, by a daemon that does not know that it came to that
    let again = pod.daemon.call(Call::Start(Box::new(spec.clone())));
    let state = pod.daemon.list().into_iter().find(|state| state.container == spec.container).unwrap();
    assert!(
        matches!(again, Answer::Started { pid, started_at, .. } if Some(pid) == state.pid && started_at == state.started_at)
    );
    for signal in [0, -1, 65] {
        let answer = pod.daemon.call(Call::Signal { container: spec.container.clone(), signal, all: false });
        assert!(matches!(answer, Answer::Error { kind: ErrorKind::Invalid, .. }));
    }
    pod.end();
}

#[test]
fn nothing_leaks_over_many_containers_and_execs() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let shim = format!("/proc/{}", pod.child.id());
    let open = || fs::read_dir(format!("{shim}/fd")).unwrap().count();
    let round = |pod: &mut Pod| {
        let mut spec = pod.container("cat");
        spec.stdin = true;
        pod.cgroup(&mut spec, &["memory", "freezer"]);
        pod.daemon.start(&spec);
        pod.daemon.exec(&spec.container, "echo x");
        pod.daemon.done(Call::Signal { container: spec.container.clone(), signal: libc::SIGKILL, all: true });
        pod.daemon.exited(&spec.container);
        let mut bad = pod.container("true");
        bad.process.args = vec!["nope".into()];
        pod.daemon.call(Call::Start(Box::new(bad.clone())));
        drop(pod.reconnect());
        for container in [spec.container, bad.container] {
            pod.daemon.done(Call::Forget { container });
        }
    };
    round(&mut pod);
    let before = open();
    for _ in 0..20 {
        round(&mut pod);
    }
    eventually("closed connections are closed", || open() == before);
    let children = fs::read_to_string(format!("{shim}/task/{}/children", pod.child.id())).unwrap();
    assert_eq!(children, "");
    pod.end();
}
