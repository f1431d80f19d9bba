use super::*;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn it_is_called_as_runtimes_are() {
    let text = "--log /b/l --log-format json --shim-v2 /usr/bin/s --root /r --systemd-cgroup create --bundle /b --pid-file /b/p --console-socket /c c1";
    let runtime = parse(&words(text)).unwrap();
    let expected = Runtime {
        shim: "/usr/bin/s".into(),
        root: "/r".into(),
        systemd_cgroup: true,
        log: Some("/b/l".into()),
        bundle: "/b".into(),
        pid_file: "/b/p".into(),
        console: Some("/c".into()),
        command: "create".into(),
        id: "c1".into(),
        ..Runtime::default()
    };
    assert_eq!(runtime, expected);
    for (text, why) in [
        ("--shim-v2 /s --root /r creat c1", "known are create, start"),
        ("--shim-v2", "--shim-v2 needs a value"),
        ("--shim-v2 /s --rooot /r delete c1", "--rooot: no such option"),
        ("--shim-v2 /s delete c1 c2", "c2: too many words"),
    ] {
        let error = parse(&words(text)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(run(["nodeagent-shim", "--sandbox", "abc"].map(OsString::from).into_iter()).is_none());
}

#[test]
fn what_a_shim_is_told_besides_depends_on_its_kind() {
    let home = Home::new(Path::new("/r"), "p1").unwrap();
    let of = |shim: &str, config: Option<&str>| {
        let config_path = config.map(str::to_owned);
        let runtime = Runtime { shim: shim.into(), systemd_cgroup: true, config_path, ..Runtime::default() };
        program::options(&runtime, &home).map(wire::Writer::done)
    };
    let bytes = of("/usr/bin/containerd-shim-runc-v2", None).unwrap();
    let message = wire::Message::parse(&bytes).unwrap();
    assert_eq!(message.text(1), "containerd.runc.v1.Options");
    let options = wire::Message::parse(message.bytes(2)).unwrap();
    assert_eq!((options.text(7).as_str(), options.number(9)), ("/r/runc", 1));
    let bytes = of("/opt/kata/bin/containerd-shim-kata-v2", Some("/etc/kata.toml")).unwrap();
    let message = wire::Message::parse(&bytes).unwrap();
    assert_eq!(message.text(1), "runtimeoptions.v1.Options");
    assert_eq!(wire::Message::parse(message.bytes(2)).unwrap().text(2), "/etc/kata.toml");
    assert!(of("/opt/kata/bin/containerd-shim-kata-v2", None).is_none());
}
