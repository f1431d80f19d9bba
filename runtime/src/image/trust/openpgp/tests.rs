#![allow(clippy::unwrap_used, clippy::panic, reason = "tests stop at the first surprise")]

use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const TEXT: &str = "a document\nof two lines\n";
/// Long after everything that these tests make.
const LATER: u64 = 4_000_000_000;

/// GnuPG with keys of its own.
struct Gpg(tempfile::TempDir);

impl Gpg {
    fn new() -> Gpg {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        Gpg(dir)
    }

    fn run(&self, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new("gpg")
            .args(["--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--homedir"])
            .arg(self.0.path())
            .args(arguments)
            .output()
            .expect("gpg must be installed");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn key(&self, name: &str, algorithm: &str, usage: &str) -> Vec<u8> {
        self.run(&["--quick-gen-key", name, algorithm, usage, "never"]);
        self.export(name)
    }

    fn export(&self, name: &str) -> Vec<u8> {
        self.run(&["--export", name])
    }

    fn fingerprint(&self, name: &str) -> String {
        let listed = String::from_utf8(self.run(&["--with-colons", "--list-keys", name])).unwrap();
        listed.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap().trim_end_matches(':').to_owned()
    }

    fn sign(&self, name: &str, more: &[&str]) -> Vec<u8> {
        let file = self.file("text");
        std::fs::write(&file, TEXT).unwrap();
        let by = ["--local-user", name, "--output", "-"];
        self.run(&[&by[..], more, &["--sign", file.to_str().unwrap()]].concat())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").arg("--homedir").arg(self.0.path()).args(["--kill", "gpg-agent"]).status();
    }
}

fn opened(certificate: &[u8], message: &[u8], now: u64) -> Result<Vec<u8>, String> {
    Keyring(certificates_in(certificate)?).verified(message, now)
}

#[test]
fn signatures_of_every_kind_of_key_are_checked_and_damage_is_noticed() {
    let gpg = Gpg::new();
    for (name, algorithm) in
        [("r2", "rsa2048"), ("r3", "rsa3072"), ("ed", "ed25519"), ("p256", "nistp256"), ("p384", "nistp384")]
    {
        let certificate = gpg.key(name, algorithm, "sign");
        let message = gpg.sign(name, &[]);
        assert_eq!(opened(&certificate, &message, now()).unwrap(), TEXT.as_bytes(), "{algorithm}");
        let plain = gpg.sign(name, &["--compress-algo", "none"]);
        for at in (0..plain.len()).step_by(7) {
            let mut damaged = plain.clone();
            damaged[at] ^= 0x10;
            // what names the file and hints at the key is not signed
            if let Ok(text) = opened(&certificate, &damaged, now()) {
                assert_eq!(text, TEXT.as_bytes(), "{algorithm}: byte {at} of {}", plain.len());
            }
        }
    }
}

#[test]
fn messages_come_in_every_wrapping_that_gnupg_makes() {
    let gpg = Gpg::new();
    let certificate = gpg.key("some", "ed25519", "sign");
    for more in [
        &["--compress-algo", "none"][..],
        &["--compress-algo", "zip"],
        &["--compress-algo", "zlib"],
        &["--textmode"],
        &["--textmode", "--digest-algo", "SHA512"],
        &["--digest-algo", "SHA384"],
        &["--rfc4880"],
    ] {
        let text = String::from_utf8(opened(&certificate, &gpg.sign("some", more), now()).unwrap()).unwrap();
        // text travels with the line ends of the network
        assert_eq!(text.replace("\r\n", "\n"), TEXT, "{more:?}");
    }
    let error = opened(&certificate, &gpg.sign("some", &["--compress-algo", "bzip2"]), now()).unwrap_err();
    assert!(error.contains("bzip2"), "{error}");
    let error = opened(&certificate, &gpg.sign("some", &["--sig-notation", "!a@b=c"]), now()).unwrap_err();
    assert!(error.contains("critical"), "{error}");
    let armored = gpg.run(&["--armor", "--export", "some"]);
    let detached =
        gpg.run(&["--local-user", "some", "--output", "-", "--detach-sign", gpg.file("text").to_str().unwrap()]);
    assert!(opened(&armored, &detached, now()).unwrap_err().contains("no signed OpenPGP message"));
}

#[test]
fn only_keys_that_may_sign_and_are_still_good_count() {
    let gpg = Gpg::new();
    gpg.key("main", "ed25519", "cert");
    let main = gpg.fingerprint("main");
    gpg.run(&["--quick-add-key", &main, "rsa2048", "sign", "never"]);
    gpg.run(&["--quick-add-key", &main, "cv25519", "encr", "never"]);
    let certificate = gpg.export("main");
    let by_subkey = gpg.sign("main", &[]);
    assert_eq!(opened(&certificate, &by_subkey, now()).unwrap(), TEXT.as_bytes());
    // without the subkey's packets, nothing is left that may sign
    let alone =
        gpg.run(&["--export-options", "export-minimal", "--export-filter", "drop-subkey=secret=0", "--export", "main"]);
    assert!(opened(&alone, &by_subkey, now()).unwrap_err().contains("another key"));

    let other = gpg.key("other", "ed25519", "sign");
    assert!(opened(&other, &by_subkey, now()).unwrap_err().contains("another key"));
    // one file with both
    assert!(opened(&[&other[..], &certificate].concat(), &by_subkey, now()).is_ok());

    gpg.run(&["--quick-gen-key", "short", "ed25519", "sign", "2d"]);
    let (short, message) = (gpg.export("short"), gpg.sign("short", &[]));
    assert!(opened(&short, &message, now()).is_ok());
    assert!(opened(&short, &message, LATER).unwrap_err().contains("has expired"));
    let brief = gpg.sign("other", &["--default-sig-expire", "2d"]);
    assert!(opened(&other, &brief, now()).is_ok());
    assert!(opened(&other, &brief, LATER).unwrap_err().contains("it has expired"));

    let revocation = gpg.file("openpgp-revocs.d").join(format!("{}.rev", gpg.fingerprint("other")));
    let text = std::fs::read_to_string(revocation).unwrap().replace(":-----BEGIN", "-----BEGIN");
    std::fs::write(gpg.file("revocation"), text).unwrap();
    gpg.run(&["--import", gpg.file("revocation").to_str().unwrap()]);
    assert!(opened(&gpg.export("other"), &brief, now()).unwrap_err().contains("is revoked"));
}

#[test]
fn a_document_signed_with_a_broken_digest_is_refused_but_an_old_key_is_not() {
    let gpg = Gpg::new();
    gpg.run(&["--cert-digest-algo", "SHA1", "--quick-gen-key", "old", "rsa2048", "sign", "never"]);
    let certificate = gpg.export("old");
    assert_eq!(opened(&certificate, &gpg.sign("old", &[]), now()).unwrap(), TEXT.as_bytes());
    let broken = gpg.sign("old", &["--digest-algo", "SHA1"]);
    assert!(opened(&certificate, &broken, now()).unwrap_err().contains("broken digest"));
}

#[test]
fn algorithms_that_are_not_accepted_are_named() {
    let gpg = Gpg::new();
    for (name, algorithm, named) in [("dsa", "dsa2048", "DSA"), ("brain", "brainpoolP256r1", "elliptic curve")] {
        let certificate = gpg.key(name, algorithm, "sign");
        let error = opened(&certificate, &gpg.sign(name, &[]), now()).unwrap_err();
        assert!(error.contains(named) && error.contains(&gpg.fingerprint(name).to_lowercase()), "{error}");
    }
    let secret = gpg.run(&["--export-secret-keys", "dsa"]);
    assert!(certificates_in(&secret).unwrap_err().contains("secret"));
}

#[test]
fn a_bomb_is_refused() {
    let gpg = Gpg::new();
    let certificate = gpg.key("some", "ed25519", "sign");
    let file = gpg.file("large");
    std::fs::write(&file, vec![b'a'; 3 << 20]).unwrap();
    let message = gpg.run(&["--output", "-", "--sign", file.to_str().unwrap()]);
    assert!(message.len() < 64 << 10);
    assert!(opened(&certificate, &message, now()).unwrap_err().contains("too long"));
}

proptest! {
    #[test]
    fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = certificates_in(&bytes);
        let _ = Message::parse(&bytes);
    }
}
