//! policy.json: images that are let in and images that are not, with signatures by GnuPG and OpenSSL.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may stop at the first surprise, too")]

mod images_support;

use std::path::{Path, PathBuf};

use images_support::trees::run;
use images_support::{Registry, is_root, leftovers, small};
use nodeagent_runtime::content::Digest;
use nodeagent_runtime::image::{ErrorCode, ImageError, Images, ImagesConfig, TrustConfig};
use serde_json::{Value, json};

/// Keys of GnuPG, in a home of their own.
struct Gpg {
    home: PathBuf,
}

impl Gpg {
    fn new(dir: &Path) -> Gpg {
        let home = dir.join("gpg");
        std::fs::create_dir(&home).unwrap();
        std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        Gpg { home }
    }

    fn run(&self, arguments: &[&str]) -> Vec<u8> {
        let own = ["--homedir", self.home.to_str().unwrap(), "--batch", "--yes", "--pinentry-mode", "loopback"];
        run("gpg", &[&own[..], &["--passphrase", ""], arguments].concat())
    }

    /// Makes a key and writes its certificate.
    fn key(&self, name: &str, algorithm: &str, certificate: &Path) {
        self.run(&["--quick-gen-key", name, algorithm, "sign", "never"]);
        std::fs::write(certificate, self.run(&["--armor", "--export", name])).unwrap();
    }

    fn sign(&self, by: &str, text: &str) -> Vec<u8> {
        let file = self.home.join("text");
        std::fs::write(&file, text).unwrap();
        self.run(&["--local-user", by, "--output", "-", "--sign", file.to_str().unwrap()])
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let _ = std::process::Command::new("gpgconf")
            .args(["--homedir", self.home.to_str().unwrap(), "--kill", "gpg-agent"])
            .status();
    }
}

fn payload(kind: &str, reference: &str, digest: Digest) -> String {
    json!({
        "critical": {
            "type": kind, "image": { "docker-manifest-digest": digest }, "identity": { "docker-reference": reference },
        },
        "optional": { "creator": "a test" },
    })
    .to_string()
}

struct World {
    dir: tempfile::TempDir,
    registry: Registry,
    digest: Digest,
    name: String,
}

impl World {
    async fn new() -> World {
        let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::start().await);
        let digest = registry.push("team/app", "v1", &small("signed")).await;
        let name = format!("{}/team/app", registry.host);
        std::fs::create_dir(dir.path().join("registries.d")).unwrap();
        let lookaside = dir.path().join("lookaside").display().to_string();
        let text = format!("default-docker:\n  lookaside: file://{lookaside}\n  use-sigstore-attachments: true\n");
        std::fs::write(dir.path().join("registries.d/default.yaml"), text).unwrap();
        World { dir, registry, digest, name }
    }

    /// Puts a simple signature where it is looked for, as the only one.
    fn simple_signature(&self, bytes: &[u8]) {
        let place = self.dir.path().join(format!("lookaside/team/app@sha256={}", self.digest.hex()));
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("signature-1"), bytes).unwrap();
    }

    async fn pull(&self, requirement: Value) -> Result<(), ImageError> {
        let root = tempfile::tempdir().unwrap();
        let policy = self.dir.path().join("policy.json");
        let text =
            json!({ "default": [{ "type": "reject" }], "transports": { "docker": { &self.name: [requirement] } } });
        std::fs::write(&policy, text.to_string()).unwrap();
        let mut config = ImagesConfig::isolated(root.path());
        config.trust = TrustConfig { policy: Some(policy), registries_d: Some(self.dir.path().join("registries.d")) };
        let images = Images::open(config).await.unwrap();
        let pulled = images.pull(&format!("{}:v1", self.name), None).await;
        if pulled.is_err() {
            assert_eq!(leftovers(root.path()), Vec::<String>::new());
        }
        pulled.map(drop)
    }
}

/// Its code, and the whole text.
fn refused(result: Result<(), ImageError>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Untrusted, "{error}");
    nodeagent_runtime::telemetry::chain(&error)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simple_signature_by_the_right_key_about_this_image_lets_it_in() {
    if !is_root() {
        return;
    }
    let world = World::new().await;
    let gpg = Gpg::new(world.dir.path());
    let key = world.dir.path().join("key.asc");
    let (other, old) = (world.dir.path().join("other.asc"), world.dir.path().join("old.asc"));
    gpg.key("good@example", "ed25519", &key);
    gpg.key("other@example", "rsa2048", &other);
    let signed_by = |path: &Path| json!({ "type": "signedBy", "keyType": "GPGKeys", "keyPath": path });
    let kind = "atomic container signature";
    let reference = format!("{}:v1", world.name);

    assert!(refused(world.pull(signed_by(&key)).await).contains("none found in file://"));
    world.simple_signature(&gpg.sign("good@example", &payload(kind, &reference, world.digest)));
    world.pull(signed_by(&key)).await.unwrap();
    assert!(refused(world.pull(signed_by(&other)).await).contains("by another key"));
    world.pull(json!({ "type": "signedBy", "keyType": "GPGKeys", "keyPaths": [other, key] })).await.unwrap();
    world.simple_signature(&gpg.sign("other@example", &payload(kind, &reference, world.digest)));
    world.pull(signed_by(&other)).await.unwrap();

    let another = Digest::of(b"another");
    world.simple_signature(&gpg.sign("good@example", &payload(kind, &reference, another)));
    assert!(refused(world.pull(signed_by(&key)).await).contains(&another.to_string()));
    world.simple_signature(&gpg.sign("good@example", &payload(kind, &format!("{}:v2", world.name), world.digest)));
    assert!(refused(world.pull(signed_by(&key)).await).contains(":v2"));
    let mut matching = signed_by(&key);
    matching["signedIdentity"] = json!({ "type": "matchRepository" });
    world.pull(matching).await.unwrap();

    let mut tampered = gpg.sign("good@example", &payload(kind, &reference, world.digest));
    let middle = tampered.len() / 2;
    tampered[middle] ^= 1;
    world.simple_signature(&tampered);
    refused(world.pull(signed_by(&key)).await);
    world.simple_signature(payload(kind, &reference, world.digest).as_bytes());
    assert!(refused(world.pull(signed_by(&key)).await).contains("no signed OpenPGP message"));

    // a signature stays genuine, its key does not stay good
    world.simple_signature(&gpg.sign("good@example", &payload(kind, &reference, world.digest)));
    let fingerprint = String::from_utf8(gpg.run(&["--with-colons", "--fingerprint", "good@example"])).unwrap();
    let fingerprint = fingerprint
        .lines()
        .find_map(|line| line.strip_prefix("fpr:::::::::"))
        .unwrap()
        .trim_end_matches(':')
        .to_owned();
    gpg.run(&["--quick-set-expire", &fingerprint, "seconds=1"]);
    std::fs::write(&old, gpg.run(&["--export", "good@example"])).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(refused(world.pull(signed_by(&old)).await).contains("has expired"));
    // the certificate as it was before does not know
    world.pull(signed_by(&key)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sigstore_signature_by_the_right_key_lets_an_image_in() {
    if !is_root() {
        return;
    }
    let world = World::new().await;
    let script = r#"
        set -e; cd "$1"
        for name in good other; do
            openssl ecparam -name prime256v1 -genkey -noout -out $name.key
            openssl ec -in $name.key -pubout -out $name.pub
        done
        openssl dgst -sha256 -sign good.key -out signature payload
    "#;
    let text = payload("cosign container image signature", &world.name, world.digest);
    std::fs::write(world.dir.path().join("payload"), &text).unwrap();
    run("sh", &["-c", script, "sh", world.dir.path().to_str().unwrap()]);
    let signed_by = |name: &str| {
        json!({
            "type": "sigstoreSigned", "keyPath": world.dir.path().join(name), "signedIdentity": { "type": "matchRepository" },
        })
    };
    assert!(refused(world.pull(signed_by("good.pub")).await).contains("none found in sigstore attachments"));

    let signature = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        std::fs::read(world.dir.path().join("signature")).unwrap(),
    );
    let payload = world.registry.push_blob("team/app", text.as_bytes()).await;
    let config = world.registry.push_blob("team/app", b"{}").await;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": config },
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": text.len(), "digest": payload,
            "annotations": { "dev.cosignproject.cosign/signature": signature },
        }],
    });
    let tag = format!("sha256-{}.sig", world.digest.hex());
    world.registry.push_manifest("team/app", &tag, &manifest).await;
    world.pull(signed_by("good.pub")).await.unwrap();
    assert!(refused(world.pull(signed_by("other.pub")).await).contains("by another key"));
    let mut exact = signed_by("good.pub");
    exact["signedIdentity"] = json!({ "type": "matchExact" });
    assert!(refused(world.pull(exact).await).contains("it is for"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_rejects_or_cannot_be_read_lets_nothing_in() {
    let world = World::new().await;
    assert!(refused(world.pull(json!({ "type": "reject" })).await).contains("rejects"));
    assert!(refused(world.pull(json!({ "type": "signedBaseLayer" })).await).contains("policy.json"));
    let missing = json!({ "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/nonexistent/key" });
    assert!(refused(world.pull(missing).await).contains("/nonexistent/key"));
    if is_root() {
        world.pull(json!({ "type": "insecureAcceptAnything" })).await.unwrap();
    }
}
