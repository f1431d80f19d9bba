//! Trees as a distribution might have them, packed by tar.

use std::process::Command;

/// Runs a tool and stops the test when it fails.
pub fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A tree with a bit of everything, as tar writes it.
pub fn lower() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        set -e; cd "$1"; umask 022
        mkdir -p bin etc/deep/er tmp var/empty usr/share/doc
        printf '#!/bin/sh\n' > bin/sh; chmod 4755 bin/sh; ln bin/sh bin/hard; ln -s sh bin/soft; ln -s /nowhere bin/dangling
        chmod 1777 tmp; chmod 2750 var/empty; chown 1000:2000 var/empty
        head -c 3000000 /dev/zero > etc/zeros; printf end >> etc/zeros
        truncate -s 5000000 etc/sparse; printf middle | dd of=etc/sparse bs=1 seek=2500000 conv=notrunc status=none
        mkfifo var/fifo; mknod var/null c 1 3; mknod var/loop b 7 200; chmod 0666 var/null
        n=$(printf 'long-%.0s' $(seq 1 40)); mkdir -p usr/$n/$n; printf x > usr/$n/$n/$n; ln -s $n/$n usr/link-$n
        printf cap > bin/cap; chmod 755 bin/cap
        printf 'h\303\251llo\n' > "etc/h$(printf '\303\251')llo w
orld"
        chown 4000000000:4000000000 etc/deep/er; chmod 000 etc/deep/er
        printf gone > etc/gone; mkdir -p etc/opaque; printf hidden > etc/opaque/hidden; printf x > usr/share/doc/a
        touch -h -d '1969-12-31 23:59:58.25 UTC' bin/soft; touch -d '2001-02-03 04:05:06.789 UTC' etc/gone bin/sh
        find . -depth -type d -exec touch -d '2011-01-01 00:00:00.5 UTC' {} +
    "#;
    run("sh", &["-c", script, "sh", dir.path().to_str().unwrap()]);
    let tree = dir.path().to_str().unwrap();
    run("tar", &["--format=posix", "--xattrs", "-S", "--sort=name", "--numeric-owner", "-cf", "-", "-C", tree, "."])
}

/// Changes on top of it.
pub fn upper() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        set -e; cd "$1"; umask 022
        mkdir -p etc/opaque bin usr/share/doc
        : > etc/.wh.gone; : > etc/opaque/.wh..wh..opq; printf new > etc/opaque/new; : > usr/share/.wh.doc
        rmdir usr/share/doc; printf replaced > bin/soft; printf 'now a file' > usr/new
        find . -depth -exec touch -h -d '2020-01-01 00:00:00 UTC' {} +
    "#;
    run("sh", &["-c", script, "sh", dir.path().to_str().unwrap()]);
    run("tar", &["--format=gnu", "--sort=name", "--numeric-owner", "-cf", "-", "-C", dir.path().to_str().unwrap(), "."])
}

/// Capabilities as the kernel stores them: revision 2, effective, CAP_NET_RAW permitted.
pub const NET_RAW: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A program with capabilities that belongs to somebody, and attributes of users on a file and a directory.
pub fn attributed() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let entries: [(tar::EntryType, &str, &str, &[u8]); 3] = [
        (tar::EntryType::Regular, "bin/ping", "SCHILY.xattr.security.capability", NET_RAW),
        (tar::EntryType::Regular, "etc/noted", "SCHILY.xattr.user.note", b"of a file\0\n="),
        (tar::EntryType::Directory, "srv/", "SCHILY.xattr.user.note", b"of a directory"),
    ];
    for (kind, path, name, value) in entries {
        builder.append_pax_extensions([(name, value)]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        builder.append_data(&mut header, path, &[][..]).unwrap();
    }
    builder.into_inner().unwrap()
}
