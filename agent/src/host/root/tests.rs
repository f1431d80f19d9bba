use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::*;

const OURS: Ownership = Ownership { mode: 0o644, uid: 0, gid: 0 };

/// A tree, and beside it the directory that attacks try to reach.
struct Trap {
    dir: TempDir,
}

impl Trap {
    fn new() -> Trap {
        let trap = Trap { dir: TempDir::new().unwrap() };
        for dir in ["root/etc", "root/usr", "root/proc/sys", "root/run", "outside"] {
            std::fs::create_dir_all(trap.dir.path().join(dir)).unwrap();
        }
        std::fs::write(trap.dir.path().join("outside/secret"), "secret").unwrap();
        trap
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// With openat2, and without it.
    fn roots(&self) -> [Root; 2] {
        let open = || Root::offline(&self.path("root"), Ledger::default()).unwrap();
        [open(), open().without_openat2()]
    }

    fn outside_is_untouched(&self) {
        let names: Vec<_> = std::fs::read_dir(self.path("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(std::fs::read_to_string(self.path("outside/secret")).unwrap(), "secret");
    }
}

#[test]
fn links_are_followed_inside_the_tree_however_they_point() {
    let trap = Trap::new();
    let outside = trap.path("outside");
    let up = "../".repeat(30);
    for (name, target) in [
        ("absolute", outside.to_str().unwrap().to_owned()),
        ("climbing", format!("{up}{}", outside.to_str().unwrap().trim_start_matches('/'))),
        ("sibling", "../../outside".to_owned()),
    ] {
        symlink(&target, trap.path("root/etc").join(name)).unwrap();
    }
    symlink("/", trap.path("root/etc/slash")).unwrap();
    std::fs::write(trap.path("root/usr/inside"), "inside").unwrap();
    for root in trap.roots() {
        for name in ["absolute", "climbing", "sibling"] {
            assert_eq!(root.read(&format!("/etc/{name}/secret")).unwrap(), None, "{name}");
        }
        // `/` of the tree, not of the machine
        assert_eq!(root.read_text("/etc/slash/usr/inside").unwrap().unwrap(), "inside");
        assert_eq!(root.read_text("/etc/slash/../../../usr/inside").unwrap().unwrap(), "inside");
        assert_eq!(root.list("/etc/slash/usr").unwrap().unwrap(), ["inside"]);
        assert_eq!(root.read("/usr/inside/below").unwrap(), None);
    }
}

#[test]
fn writes_through_links_end_inside_the_tree_or_fail() {
    for way in 0..2 {
        let trap = Trap::new();
        symlink(trap.path("outside/new"), trap.path("root/etc/file")).unwrap();
        symlink(trap.path("outside"), trap.path("root/etc/dir")).unwrap();
        let root = &trap.roots()[way];
        let end = root.end_of_links("/etc/file").unwrap();
        root.write(&end, b"x", OURS).unwrap();
        // the directories that the link names exist inside now, and nothing outside
        assert_eq!(root.read("/etc/file").unwrap().unwrap(), b"x");
        // a link where a directory should be leads to nothing inside: it is not replaced
        let _ = root.write("/etc/dir/new", b"x", OURS);
        trap.outside_is_untouched();
    }
}

#[test]
fn a_write_replaces_the_name_and_not_what_a_link_leads_to() {
    let trap = Trap::new();
    symlink(trap.path("outside/secret"), trap.path("root/etc/file")).unwrap();
    // what an attacker who knows our temporary names would plant
    symlink(trap.path("outside/secret"), trap.path("root/etc/.file.nodeagent~")).unwrap();
    for root in trap.roots() {
        root.write("/etc/file", b"ours", OURS).unwrap();
        assert!(!root.is_link("/etc/file").unwrap());
        assert_eq!(root.list("/etc").unwrap().unwrap(), ["file"]);
        trap.outside_is_untouched();
    }
}

#[test]
fn kernel_and_boot_state_of_a_tree_that_does_not_run_is_refused_by_any_name() {
    let trap = Trap::new();
    symlink("../run", trap.path("root/etc/sneaky")).unwrap();
    std::fs::write(trap.path("root/proc/sys/value"), "0").unwrap();
    for root in trap.roots() {
        for path in ["/run/x", "/proc/sys/x", "/etc/sneaky/x", "/etc/sneaky/new/x", "/dev/x"] {
            if path.starts_with("/dev") {
                std::fs::create_dir_all(trap.path("root/dev")).unwrap();
            }
            let error = root.write(path, b"x", OURS).unwrap_err();
            assert!(matches!(error, RootError::Offline { .. }), "{path}: {error}");
        }
        assert!(root.write_kernel_file("/proc/sys/value", "1").is_err());
        assert_eq!(std::fs::read_to_string(trap.path("root/proc/sys/value")).unwrap(), "0");
    }
}

#[test]
fn a_directory_that_is_swapped_for_a_link_while_we_write_never_leads_out() {
    for way in 0..2 {
        let trap = Trap::new();
        let (real, link) = (trap.path("root/etc/a"), trap.path("root/etc/b"));
        std::fs::create_dir(&real).unwrap();
        symlink(trap.path("outside"), &link).unwrap();
        let root = trap.roots()[way].clone();
        let stop = AtomicBool::new(false);
        let mut written = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                    nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &real, nix::fcntl::AT_FDCWD, &link, exchange).unwrap();
                }
            });
            for number in 0..300 {
                written += u32::from(root.write("/etc/a/file", number.to_string().as_bytes(), OURS).is_ok());
                let _ = root.read("/etc/a/secret").map(|found| assert_eq!(found, None));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(written > 0, "the race was never won by the honest side");
        trap.outside_is_untouched();
    }
}

#[test]
fn loops_pipes_and_giants_are_errors_and_not_hangs() {
    let trap = Trap::new();
    symlink("loop", trap.path("root/etc/loop")).unwrap();
    nix::unistd::mkfifo(&trap.path("root/etc/pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    std::fs::write(trap.path("root/etc/big"), vec![b'x'; 1000]).unwrap();
    std::fs::write(trap.path("root/etc/latin1"), b"ok\xff").unwrap();
    for root in trap.roots() {
        assert_eq!(root.read("/etc/loop").unwrap_err().errno(), Some(Errno::ELOOP));
        assert!(root.end_of_links("/etc/loop").is_err());
        assert!(matches!(root.read("/etc/pipe"), Err(RootError::NotRegular { .. })));
        assert!(matches!(root.read("/etc"), Err(RootError::NotRegular { .. })));
        assert!(matches!(root.read_bounded("/etc/big", 999), Err(RootError::TooLarge { .. })));
        assert!(root.read_bounded("/etc/big", 1000).unwrap().is_some());
        assert!(matches!(root.read_text("/etc/latin1"), Err(RootError::NotText { at: 2, .. })));
        for bad in ["etc/x", "/", "/etc/..", "/etc/a\0b"] {
            assert!(matches!(root.write(bad, b"", OURS), Err(RootError::BadPath { .. })), "{bad:?}");
        }
    }
}

#[test]
fn a_write_sets_mode_and_makes_parents_and_leaves_no_temporary_file() {
    let trap = Trap::new();
    for root in trap.roots() {
        root.write("/etc/new/deep/file", b"one", Ownership { mode: 0o600, uid: 0, gid: 0 }).unwrap();
        root.write("/etc/new/deep/file", b"two", Ownership { mode: 0o640, uid: 0, gid: 0 }).unwrap();
        let metadata = std::fs::metadata(trap.path("root/etc/new/deep/file")).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o7777, metadata.uid()), (0o640, 0));
        assert_eq!(root.list("/etc/new/deep").unwrap().unwrap(), ["file"]);
        assert!(root.remove("/etc/new/deep/file").unwrap());
        assert!(!root.remove("/etc/new/deep/file").unwrap());
        assert!(root.remove_empty_directory("/etc/new/deep").unwrap());
        assert!(root.remove_empty_directory("/etc/new").unwrap());
    }
}

#[test]
fn drop_ins_of_one_name_hide_each_other_and_null_hides_all() {
    let trap = Trap::new();
    for (path, text) in [
        ("etc/d/a.conf", "etc"),
        ("usr/d/a.conf", "usr"),
        ("usr/d/b.conf", "b"),
        ("usr/d/c.conf", "c"),
        ("usr/d/x.txt", ""),
    ] {
        let path = trap.path("root").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    symlink("/dev/null", trap.path("root/etc/d/b.conf")).unwrap();
    for root in trap.roots() {
        let found = root.drop_ins(&["/etc/d", "/usr/d"], ".conf").unwrap();
        let expected = [("/etc/d/a.conf", "etc"), ("/usr/d/c.conf", "c")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(found, expected);
    }
}
