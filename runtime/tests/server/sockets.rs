//! Who may take a socket path, and in what state it is afterwards.

use nodeagent_runtime::server::{Listener, ServerError};
use std::{
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::Path,
};

fn inode(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).unwrap().ino()
}

#[tokio::test]
async fn the_socket_is_0660_in_directories_that_are_made_as_needed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/crio/crio.sock");
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o7777, 0o755);
    UnixStream::connect(&path).unwrap();
    drop(listener);
    assert!(!path.exists(), "the path goes with the listener");
}

#[tokio::test]
async fn a_dead_servers_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    // std does not remove the path on drop: this is what a killed server leaves
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&path).unwrap();
    UnixStream::connect(listener.path()).unwrap();
}

#[tokio::test]
async fn a_living_servers_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let owner = UnixListener::bind(&path).unwrap();
    let before = inode(&path);
    let error = Listener::bind(&path).unwrap_err();
    assert!(matches!(error, ServerError::Occupied { .. }), "{error}");
    assert_eq!(error.to_string(), format!("a live server owns the socket {}", path.display()));
    assert_eq!(inode(&path), before);
    drop(owner);

    let ours = Listener::bind(&path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(ServerError::Occupied { .. })), "a second daemon");
    drop(ours);

    let _datagram = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(ServerError::Occupied { .. })), "another kind of socket");
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path), Err(ServerError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    assert!(matches!(Listener::bind(&link), Err(ServerError::NotASocket { .. })));
}

#[tokio::test]
async fn a_path_that_was_taken_over_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let first = Listener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _second = Listener::bind(&path).unwrap();
    drop(first);
    UnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn paths_that_cannot_be_sockets_are_named_in_the_error() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("x".repeat(120));
    assert!(matches!(Listener::bind(&long), Err(ServerError::PathTooLong { .. })));
    assert!(matches!(Listener::bind(Path::new("s")), Err(ServerError::NoParent { .. })));
    std::fs::write(directory.path().join("file"), "").unwrap();
    let error = Listener::bind(&directory.path().join("file/s")).unwrap_err();
    assert!(matches!(error, ServerError::CreateDirectory { .. }), "{error}");
}
