//! Names of namespaces that are left over.

use super::node::isolated;
use nix::mount::{MsFlags, mount};
use nodeagent_runtime::network::netns::{NetnsDir, is_namespace};
use std::{collections::HashSet, fs, path::Path};

fn bind(source: &str, target: &Path) {
    if !target.exists() {
        fs::write(target, "").unwrap();
    }
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn names_are_unmounted_and_removed_however_often_they_were_mounted() {
    isolated(|| async {
        let directory = tempfile::tempdir().unwrap();
        let names = NetnsDir::new(directory.path());
        let name = names.name("aa");
        assert_eq!(name, directory.path().join("nodeagent-aa"));
        names.remove("aa").unwrap();
        bind("/proc/thread-self/ns/net", &name);
        bind("/proc/thread-self/ns/net", &name);
        assert!(is_namespace(&name));
        names.remove("aa").unwrap();
        assert!(!name.exists());
        fs::write(&name, "").unwrap();
        assert!(!is_namespace(&name), "a file without a mount");
        names.remove("aa").unwrap();
        assert!(!name.exists());
    });
}

#[test]
fn a_sweep_removes_what_is_ours_and_unknown() {
    isolated(|| async {
        let directory = tempfile::tempdir().unwrap();
        let names = NetnsDir::new(directory.path());
        for id in ["known", "left", "unmounted"] {
            fs::write(names.name(id), "").unwrap();
        }
        bind("/proc/thread-self/ns/net", &names.name("known"));
        bind("/proc/thread-self/ns/net", &names.name("left"));
        let other = directory.path().join("blue");
        bind("/proc/thread-self/ns/net", &other);
        // a directory is nothing we made
        fs::create_dir(names.name("directory")).unwrap();
        let sweep = names.sweep(&HashSet::from(["known".to_owned()])).unwrap();
        let mut removed = sweep.removed;
        removed.sort();
        assert_eq!(removed, ["left", "unmounted"]);
        assert_eq!(sweep.failed.len(), 1);
        assert!(sweep.failed[0].to_string().contains("nodeagent-directory"));
        assert!(is_namespace(&names.name("known")) && is_namespace(&other));
        names.remove("known").unwrap();
        assert!(NetnsDir::new(directory.path().join("none")).sweep(&HashSet::new()).unwrap().removed.is_empty());
    });
}
