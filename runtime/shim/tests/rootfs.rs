//! What a container sees of file systems, and what it must not. Needs root.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nodeagent_shim::protocol::*;
use support::*;

#[test]
fn the_image_stays_as_it_is_and_the_writable_layer_takes_changes() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("echo x > /new; rm /etc/passwd");
    assert_eq!(pod.run(&spec).exit_code, Some(0));
    assert!(pod.dir.path().join("image/etc/passwd").exists() && !pod.dir.path().join("image/new").exists());
    assert_eq!(fs::read(Path::new(&spec.rootfs.upper).join("new")).unwrap(), b"x\n");
    pod.end();
}

#[test]
fn as_many_layers_as_overlayfs_takes_with_long_and_odd_names() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("cat /layer-0 /layer-1 /layer-123; cat /top");
    for n in 0..124 {
        let layer = pod.dir.path().join(format!("layer,with:odd\\name-{n}-{}", "x".repeat(64)));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join(format!("layer-{n}")), format!("{n}\n")).unwrap();
        fs::write(layer.join("top"), format!("{n}\n")).unwrap();
        spec.rootfs.lower.insert(n, layer.to_str().unwrap().into());
    }
    assert_eq!(pod.run(&spec).exit_code, Some(0), "{}", pod.log(&spec));
    assert_eq!(pod.output(&spec), "0\n1\n123\n0\n");
    pod.end();
}

#[test]
fn one_layer_without_a_writable_one_is_read_only() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("touch /x || echo refused");
    (spec.rootfs.upper, spec.rootfs.work) = (String::new(), String::new());
    pod.run(&spec);
    assert!(pod.output(&spec).ends_with("refused\n"), "{}", pod.log(&spec));
    pod.end();
}

#[test]
fn a_read_only_root_has_writable_mounts() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let volume = pod.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let mut spec = pod.container("touch /x; touch /data/deep/y && touch /dev/shm/z && echo fine");
    spec.readonly_rootfs = true;
    spec.process.cwd = "/made/for/it".into();
    spec.mounts.push(bind(&volume, "/data/deep"));
    spec.mounts.push(file_system("tmpfs", "/dev/shm", "mode=1777,size=64k"));
    pod.run(&spec);
    assert_eq!(pod.output(&spec), "touch: /x: Read-only file system\nfine\n");
    assert!(volume.join("y").exists());
    pod.end();
}

#[test]
fn mounts_are_read_only_as_deep_as_asked() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    // a mount inside the volume
    let volume = pod.dir.path().join("volume");
    fs::create_dir_all(volume.join("inner")).unwrap();
    let inner = Some("tmpfs");
    nix::mount::mount(inner, &volume.join("inner"), inner, nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    let script = "touch /v/a || echo outer; touch /v/inner/a || echo inner";
    let mut flat = pod.container(script);
    flat.mounts.push(Mount { readonly: true, ..bind(&volume, "/v") });
    let mut deep = pod.container(script);
    deep.mounts.push(Mount { recursive_readonly: true, ..bind(&volume, "/v") });
    let mut bare = pod.container("touch /v/a && ls /v/inner");
    bare.mounts.push(Mount { recursive: false, ..bind(&volume, "/v") });
    for spec in [&flat, &deep, &bare] {
        pod.run(spec);
    }
    nix::mount::umount(&volume.join("inner")).unwrap();
    let (flat, deep) = (pod.output(&flat), pod.output(&deep));
    assert!(flat.contains("outer") && !flat.contains("inner\n"), "{flat}");
    assert!(deep.contains("outer") && deep.contains("inner\n"), "{deep}");
    assert_eq!(pod.output(&bare), "", "the inner mount's file is not seen without rbind");
    pod.end();
}

#[test]
fn a_bind_keeps_the_restrictions_of_its_source() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let volume = pod.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let flags = nix::mount::MsFlags::MS_NOEXEC | nix::mount::MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), &volume, Some("tmpfs"), flags, None::<&str>).unwrap();
    let mut spec = pod.container("grep ' /v ' /proc/mounts");
    spec.mounts.push(Mount { readonly: true, flags: 2, ..bind(&volume, "/v") });
    pod.run(&spec);
    nix::mount::umount(&volume).unwrap();
    let line = pod.output(&spec);
    for option in ["ro,", "noexec", "nodev", "nosuid"] {
        assert!(line.contains(option), "{option} in {line}");
    }
    pod.end();
}

#[test]
fn single_files_are_mounted_over_files() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let file = pod.dir.path().join("hosts");
    fs::write(&file, "127.0.0.1 me\n").unwrap();
    let mut spec = pod.container("cat /etc/hosts /var/run/new/resolv.conf");
    spec.mounts.push(bind(&file, "/etc/hosts"));
    spec.mounts.push(bind(&file, "/var/run/new/resolv.conf"));
    pod.run(&spec);
    assert_eq!(pod.output(&spec), "127.0.0.1 me\n127.0.0.1 me\n");
    pod.end();
}

#[test]
fn links_in_an_image_lead_nowhere_on_the_host() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let (image, outside) = (pod.dir.path().join("image"), pod.dir.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    // absolute, climbing, dangling, through each other
    symlink(&outside, image.join("absolute")).unwrap();
    symlink("../../../../../../../../..".to_owned() + outside.to_str().unwrap(), image.join("climbing")).unwrap();
    symlink("absolute", image.join("twice")).unwrap();
    symlink("/run/elsewhere/resolv.conf", image.join("etc/resolv.conf")).unwrap();
    symlink("loop", image.join("loop")).unwrap();
    let file = pod.dir.path().join("file");
    fs::write(&file, "content\n").unwrap();
    let mut spec = pod.container(
        "exec 2>&1; cat /etc/resolv.conf; cat /absolute/a/f /climbing/b/f /twice/c/f; ls /run/elsewhere 2>&1",
    );
    for target in ["/absolute/a/f", "/climbing/b/f", "/twice/c/f", "/etc/resolv.conf"] {
        spec.mounts.push(bind(&file, target));
    }
    spec.process.cwd = "/climbing/work/here".into();
    spec.masked_paths = vec!["/twice/c".into()];
    spec.readonly_paths = vec!["/climbing/b".into()];
    pod.run(&spec);
    let output = pod.output(&spec);
    assert!(output.starts_with("content\ncontent\ncontent\n"), "{output}");
    assert!(output.contains("'/twice/c/f': No such file"), "masked: {output}");
    assert!(output.ends_with("resolv.conf\n"), "{output}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside of the container");

    let mut spec = pod.container("true");
    spec.mounts.push(bind(&file, "/loop/x"));
    let (kind, message) = pod.daemon.refused(&spec);
    assert!(kind == ErrorKind::System && message.contains("/loop/x") && message.contains("ELOOP"), "{message}");
    pod.end();
}

#[test]
fn masked_and_read_only_paths() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container(
        "cat /proc/timer_list | wc -c; ls /proc/acpi /sys/firmware /etc/secret | grep -v :; cat /etc/passwd | wc -c; \
         echo 1 > /proc/sys/kernel/panic; touch /etc/x",
    );
    fs::create_dir(pod.dir.path().join("image/etc/secret")).unwrap();
    fs::write(pod.dir.path().join("image/etc/secret/key"), "key").unwrap();
    let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    spec.masked_paths = paths(&[
        "/proc/timer_list",
        "/proc/acpi",
        "/sys/firmware",
        "/etc/secret",
        "/etc/passwd",
        "/not/there",
        "/etc/passwd/x",
    ]);
    spec.readonly_paths = paths(&["/proc/sys", "/etc", "/not/there"]);
    pod.run(&spec);
    let output = pod.output(&spec);
    assert!(output.starts_with("0\n"), "{output}");
    assert!(!output.contains("key"), "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 2, "{output}");
    pod.end();
}

#[test]
fn devices_are_made_and_links_to_streams() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let script = "stat -c '%n %A %t:%T %u:%g' /dev/null /dev/fuse; readlink /dev/fd; readlink /dev/ptmx; \
                  echo to-stdout > /dev/stdout; echo x > /dev/null && head -c 3 /dev/zero | wc -c; ls /dev | wc -l";
    let mut spec = pod.container(script);
    spec.devices.push(Device {
        path: "/dev/fuse".into(),
        kind: "c".into(),
        major: 10,
        minor: 229,
        mode: 0o640,
        uid: 7,
        gid: 8,
    });
    pod.run(&spec);
    let output = pod.output(&spec);
    let expected =
        "/dev/null crw-rw-rw- 1:3 0:0\n/dev/fuse crw-r----- a:e5 7:8\n/proc/self/fd\npts/ptmx\nto-stdout\n3\n";
    assert!(output.starts_with(expected), "{output}");
    let mut bad = pod.container("true");
    bad.devices.push(Device { path: "/dev/x".into(), kind: "p".into(), ..Device::default() });
    assert_eq!(pod.daemon.refused(&bad).0, ErrorKind::Invalid);
    pod.end();
}

#[test]
fn nothing_of_the_host_is_mounted_or_open_in_a_container() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let script =
        "cat /proc/self/mountinfo; echo --; ls /proc/self/fd; echo --; readlink /proc/self/cwd; ls /proc; true";
    let spec = pod.container(script);
    let other = pod.container("exec sleep 1000");
    pod.daemon.start(&other);
    pod.run(&spec);
    let output = pod.output(&spec);
    let mut parts = output.split("--\n");
    let mounts = parts.next().unwrap();
    // the root, the five of every container, nothing else
    assert_eq!(mounts.lines().count(), 6, "{mounts}");
    // ls itself opens the directory
    assert_eq!(parts.next().unwrap(), "0\n1\n2\n3\n");
    let rest = parts.next().unwrap();
    assert!(rest.starts_with("/\n"), "{rest}");
    let processes = rest.lines().filter(|line| line.parse::<u32>().is_ok()).count();
    assert_eq!(processes, 2, "process 1 and ls: {rest}");
    pod.end();
}

#[test]
fn the_host_sees_no_mount_of_a_container() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let spec = pod.container("exec sleep 1000");
    pod.daemon.start(&spec);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(pod.dir.path().to_str().unwrap()), "{mounts}");
    pod.end();
}

#[test]
fn propagation_is_as_asked() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let volume = pod.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let (tmpfs, none) = (Some("tmpfs"), None::<&str>);
    let flags = nix::mount::MsFlags::MS_SHARED;
    nix::mount::mount(tmpfs, &volume, tmpfs, nix::mount::MsFlags::empty(), none).unwrap();
    nix::mount::mount(none, &volume, none, flags, none).unwrap();
    for dir in ["from-host", "from-shared", "from-slave", "from-private"] {
        fs::create_dir(volume.join(dir)).unwrap();
    }
    let mut specs = Vec::new();
    for (name, propagation) in
        [("private", Propagation::Private), ("slave", Propagation::Slave), ("shared", Propagation::Shared)]
    {
        let mut spec = pod.container("exec sleep 1000");
        spec.process.capabilities = Capabilities { bounding: !0, effective: !0, permitted: !0, ..Default::default() };
        spec.mounts.push(Mount { propagation, ..bind(&volume, "/v") });
        pod.daemon.start(&spec);
        let mut exec = exec(&spec.container, &format!("mount -t tmpfs x /v/from-{name} && touch /v/from-{name}/seen"));
        exec.process.capabilities = spec.process.capabilities;
        assert!(matches!(pod.daemon.call(Call::Exec(Box::new(exec))), Answer::Executed { exit_code: 0, .. }));
        specs.push(spec);
    }
    let inner = volume.join("from-host");
    nix::mount::mount(tmpfs, &inner, tmpfs, nix::mount::MsFlags::empty(), none).unwrap();
    fs::write(inner.join("seen"), "").unwrap();
    let host_sees: Vec<bool> =
        ["private", "slave", "shared"].iter().map(|n| volume.join(format!("from-{n}/seen")).exists()).collect();
    let sees_host: Vec<i32> =
        specs.iter().map(|spec| pod.daemon.exec(&spec.container, "test -e /v/from-host/seen").0).collect();
    nix::mount::umount2(&inner, nix::mount::MntFlags::MNT_DETACH).unwrap();
    for spec in specs {
        pod.daemon.done(Call::Signal { container: spec.container, signal: libc::SIGKILL, all: true });
    }
    while nix::mount::umount2(&volume, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    assert_eq!(host_sees, [false, false, true]);
    assert_eq!(sees_host, [1, 0, 0]);
    pod.end();
}

#[test]
fn a_missing_source_is_named() {
    if !root() {
        return;
    }
    let mut pod = Pod::new();
    let mut spec = pod.container("true");
    spec.mounts.push(bind(Path::new("/nowhere/at/all"), "/v"));
    let (kind, message) = pod.daemon.refused(&spec);
    assert!(
        kind == ErrorKind::System && message.contains("/nowhere/at/all") && message.contains("ENOENT"),
        "{message}"
    );
    let state = pod.daemon.exited(&spec.container);
    assert_eq!((state.exit_code, state.message), (Some(128), message));
    assert_eq!(fs::read_to_string(spec.log_path.unwrap()).unwrap(), "");
    pod.end();
}
