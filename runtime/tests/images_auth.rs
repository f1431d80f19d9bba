//! Proving who we are, to those who ask, and to nobody else.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, too")]

mod images_support;

use base64::Engine as _;
use images_support::proxy::{Answer, Proxy, Seen, status};
use images_support::{Access, PASSWORD, Registry, USER, is_root, leftovers, open, small};
use nodeagent_runtime::image::{Credentials, ErrorCode, ImageError, Images, ImagesConfig, RegistryConfig};

fn user() -> Credentials {
    Credentials { username: USER.into(), password: PASSWORD.into(), ..Default::default() }
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_authentication_by_name_or_by_the_auth_field() {
    if !is_root() {
        return;
    }
    let registry = Registry::start_with(Access::Basic).await;
    registry.push("app", "v1", &small("x")).await;
    let reference = format!("{}/app:v1", registry.host);
    let auth = Credentials { auth: base64(&format!("{USER}:{PASSWORD}")), ..Default::default() };
    for credentials in [user(), auth] {
        let root = tempfile::tempdir().unwrap();
        open(root.path()).await.pull(&reference, Some(credentials)).await.unwrap();
    }
    let wrong = Credentials { password: "wrong".into(), ..user() };
    let elsewhere = Credentials { server_address: "other.example".into(), ..user() };
    let nonsense = Credentials { auth: "%%".into(), ..Default::default() };
    for credentials in [None, Some(Credentials::default()), Some(wrong), Some(elsewhere), Some(nonsense)] {
        let root = tempfile::tempdir().unwrap();
        let error = open(root.path()).await.pull(&reference, credentials).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unauthorized, "{error}");
        assert!(error.to_string().contains(&registry.host), "{error}");
        assert_eq!(leftovers(root.path()), Vec::<String>::new());
    }
}

/// A token endpoint that knows one user and one refresh token, and a registry that wants its tokens.
async fn with_tokens(registry: &Registry) -> (Proxy, Proxy) {
    let basic = format!("Basic {}", base64(&format!("{USER}:{PASSWORD}")));
    let tokens = Proxy::start("unused", move |seen: &Seen, _| {
        let scope = "repository%3Aprivate%2Fapp%3Apull";
        let asked = if seen.method == "POST" { &seen.body } else { &seen.path };
        if !asked.contains(&format!("scope={scope}")) || !asked.contains("service=test") {
            return status(400, &[], "wrong scope");
        }
        let known = match seen.method.as_str() {
            "POST" => seen.body.contains("grant_type=refresh_token") && seen.body.contains("refresh_token=r%2Bt"),
            _ => seen.authorization.as_ref() == Some(&basic),
        };
        match (known, seen.method.as_str()) {
            (true, "POST") => status(200, &[], r#"{"access_token":"good","expires_in":60}"#),
            (true, _) => status(200, &[], r#"{"token":"good"}"#),
            (false, _) => status(401, &[], r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#),
        }
    })
    .await;
    let challenge =
        format!(r#"Bearer realm="http://{}/token",service="test",scope="repository:private/app:pull""#, tokens.host);
    let front = Proxy::start(&registry.host, move |seen, _| match seen.authorization.as_deref() {
        Some("Bearer good" | "Bearer direct") => Answer::Forward,
        _ => status(401, &[("www-authenticate", &challenge)], ""),
    })
    .await;
    (tokens, front)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_with_a_password_a_refresh_token_or_given_directly() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    registry.push("private/app", "v1", &small("x")).await;
    let ways = [
        (user(), 1),
        (Credentials { identity_token: "r+t".into(), ..Default::default() }, 1),
        (Credentials { username: "<token>".into(), password: "r+t".into(), ..Default::default() }, 1),
        (Credentials { registry_token: "direct".into(), ..Default::default() }, 0),
    ];
    for (credentials, asked) in ways {
        let (tokens, front) = with_tokens(&registry).await;
        let root = tempfile::tempdir().unwrap();
        open(root.path()).await.pull(&format!("{}/private/app:v1", front.host), Some(credentials)).await.unwrap();
        // one token for manifest, config and layer
        assert_eq!(tokens.paths().len(), asked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_refuses_is_quoted() {
    let registry = Registry::start().await;
    let (_tokens, front) = with_tokens(&registry).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let reference = format!("{}/private/app:v1", front.host);
    let wrong = Credentials { password: "wrong".into(), ..user() };
    for credentials in [None, Some(wrong), Some(Credentials { registry_token: "old".into(), ..Default::default() })] {
        let direct = credentials.as_ref().is_some_and(|own| !own.registry_token.is_empty());
        let error = images.pull(&reference, credentials).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unauthorized, "{error}");
        assert!(direct || error.to_string().contains("who are you"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_in_the_middle_is_renewed_once_for_all() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    registry.push("app", "v1", &small("x")).await;
    let tokens = Proxy::start("unused", |_, before| status(200, &[], &format!(r#"{{"token":"t{before}"}}"#))).await;
    let challenge = format!(r#"Bearer realm="http://{}/token""#, tokens.host);
    let front = Proxy::start(&registry.host, move |seen, _| {
        let wanted = if seen.path.contains("manifests") { "Bearer t0" } else { "Bearer t1" };
        match seen.authorization.as_deref() {
            Some(given) if given == wanted => Answer::Forward,
            _ => status(401, &[("www-authenticate", &challenge)], ""),
        }
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    open(root.path()).await.pull(&format!("{}/app:v1", front.host), None).await.unwrap();
    assert_eq!(tokens.paths().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    if !is_root() {
        return;
    }
    let (registry, storage) = (Registry::start_with(Access::Basic).await, Registry::start().await);
    let image = small("x");
    registry.push("app", "v1", &image).await;
    storage.push("app", "v1", &image).await;
    let store = Proxy::start(&storage.host, |_, _| Answer::Forward).await;
    let target = store.host.clone();
    let front = Proxy::start(&registry.host, move |seen, _| {
        if seen.path.contains("/blobs/") {
            status(307, &[("location", &format!("http://{target}{}", seen.path))], "")
        } else {
            Answer::Forward
        }
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    open(root.path()).await.pull(&format!("{}/app:v1", front.host), Some(user())).await.unwrap();
    assert!(front.seen().iter().filter(|seen| seen.path.contains("/blobs/")).all(|seen| seen.authorization.is_some()));
    assert_eq!(store.seen().len(), 2);
    assert!(store.seen().iter().all(|seen| seen.authorization.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_in_a_circle_and_out_of_http_are_refused() {
    let registry = Registry::start().await;
    for (location, why) in [("/v2/app/manifests/v1", "too many"), ("file:///etc/passwd", "not HTTP"), ("", "no target")]
    {
        let front = Proxy::start(&registry.host, move |_, _| status(302, &[("location", location)], "")).await;
        let root = tempfile::tempdir().unwrap();
        let error = open(root.path()).await.pull(&format!("{}/app:v1", front.host), None).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

/// An authority, and a certificate of it for 127.0.0.1.
fn certificates(dir: &std::path::Path) {
    let script = r#"
        set -e; cd "$1"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=registry -keyout server.key -out server.csr
        printf 'subjectAltName=IP:127.0.0.1\n' > extensions
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=node -keyout client.key -out client.csr
        printf 'extendedKeyUsage=clientAuth\n' > client.extensions
        openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile client.extensions -out client.pem
    "#;
    let output = std::process::Command::new("sh").args(["-c", script, "sh"]).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A registry that speaks TLS, by an authority that nobody knows yet.
struct Secured {
    dir: tempfile::TempDir,
    registry: Registry,
}

impl Secured {
    async fn new(access: impl FnOnce(std::path::PathBuf) -> Access) -> Secured {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        let registry = Registry::start_with(access(dir.path().to_owned())).await;
        registry.push("app", "v1", &small("x")).await;
        Secured { dir, registry }
    }

    fn reference(&self) -> String {
        format!("{}/app:v1", self.registry.host)
    }

    /// This registry's directory among those of certificates, with the authority in it.
    fn trusted(&self) -> std::path::PathBuf {
        let directory = self.dir.path().join("certs").join(&self.registry.host);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::copy(self.dir.path().join("ca.pem"), directory.join("ca.crt")).unwrap();
        directory
    }

    /// Writes a hosts.toml for it; the directory with those.
    fn hosts(&self, text: &str) -> std::path::PathBuf {
        let hosts = self.dir.path().join("hosts");
        std::fs::create_dir_all(hosts.join(&self.registry.host)).unwrap();
        std::fs::write(hosts.join(&self.registry.host).join("hosts.toml"), text).unwrap();
        hosts
    }

    /// Pulls into a store of its own, with its directory of certificates and what `change` makes of the configuration.
    async fn pull(&self, name: &str, change: impl FnOnce(&mut ImagesConfig)) -> Result<(), ImageError> {
        let mut config = ImagesConfig::isolated(self.dir.path().join(name));
        config.certificate_directories = vec![self.dir.path().join("certs")];
        change(&mut config);
        Images::open(config).await.unwrap().pull(&self.reference(), None).await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_counts_when_its_authority_is_configured_or_nobody_asks() {
    if !is_root() {
        return;
    }
    let secured = Secured::new(Access::Tls).await;
    let error = secured.pull("unknown", |_| {}).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RegistryUnavailable, "{error}");
    // the certificate is what it says, and not what the server thinks of plain HTTP
    let error = format!("{:#}", anyhow::Error::from(error));
    assert!(error.contains("certificate"), "{error}");

    let hosts = secured.hosts("ca = '../../ca.pem'");
    secured.pull("hosts", |config| config.hosts_directories = vec![hosts]).await.unwrap();

    let insecure = RegistryConfig {
        prefix: secured.registry.host.clone(),
        location: None,
        insecure: true,
        blocked: false,
        defined_in: None,
        mirrors: Vec::new(),
    };
    secured.pull("insecure", |config| config.registries = vec![insecure]).await.unwrap();

    secured.trusted();
    secured.pull("certs", |_| {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_the_node_are_used_when_a_pull_brings_none() {
    if !is_root() {
        return;
    }
    let registry = Registry::start_with(Access::Basic).await;
    registry.push("team/app", "v1", &small("x")).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let auth = base64(&format!("{USER}:{PASSWORD}"));
    std::fs::write(&file, format!(r#"{{"auths":{{"{}/team":{{"auth":"{auth}"}}}}}}"#, registry.host)).unwrap();
    let mut config = ImagesConfig::isolated(dir.path().join("root"));
    config.auth_files = vec![dir.path().join("absent.json"), file.clone()];
    let images = Images::open(config).await.unwrap();
    let reference = format!("{}/team/app:v1", registry.host);
    images.pull(&reference, None).await.unwrap();
    let wrong = Credentials { password: "wrong".into(), ..user() };
    assert_eq!(images.pull(&reference, Some(wrong)).await.unwrap_err().code(), ErrorCode::Unauthorized);
    std::fs::write(&file, "{").unwrap();
    let error = images.pull(&reference, None).await.unwrap_err();
    assert!(error.code() == ErrorCode::Disk && !error.to_string().is_empty(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_certificate_gets_the_one_that_is_configured() {
    if !is_root() {
        return;
    }
    let secured = Secured::new(Access::MutualTls).await;
    let trusted = secured.trusted();
    let error = secured.pull("without", |_| {}).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RegistryUnavailable, "{error}");

    let hosts = secured.hosts("ca = '../../ca.pem'\nclient = [['../../client.pem', '../../client.key']]\n");
    secured.pull("hosts", |config| config.hosts_directories = vec![hosts]).await.unwrap();

    std::fs::copy(secured.dir.path().join("client.pem"), trusted.join("node.cert")).unwrap();
    std::fs::copy(secured.dir.path().join("client.key"), trusted.join("node.key")).unwrap();
    secured.pull("beside", |_| {}).await.unwrap();
}

const PROXIED: &str = "IMAGES_PROXIED";

/// Not a test of its own: a proxy is a matter of the whole process' environment.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the test below"]
async fn pull_through_a_proxy() {
    let Ok(told) = std::env::var(PROXIED) else { return };
    let (root, reference) = told.split_once(' ').unwrap();
    let mut config = ImagesConfig::isolated(std::path::Path::new(root).join("root"));
    config.certificate_directories = vec![std::path::Path::new(root).join("certs")];
    let images = Images::open(config).await.unwrap();
    let explained = images.explain(reference).await.unwrap();
    assert!(explained.candidates[0].endpoints[0].proxy.is_some(), "{explained:?}");
    images.pull(reference, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_of_the_environment_is_used() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    if !is_root() {
        return;
    }
    let secured = Secured::new(Access::Tls).await;
    secured.trusted();
    let registry = &secured.registry;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://user:secret@{}", listener.local_addr().unwrap());
    let asked: std::sync::Arc<std::sync::Mutex<Vec<String>>> = Default::default();
    let (log, behind) = (asked.clone(), registry.host.clone());
    let serving = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (log, behind) = (log.clone(), behind.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                log.lock().unwrap().push(String::from_utf8(head).unwrap());
                let mut server = tokio::net::TcpStream::connect(behind).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let told = format!("{} {}", secured.dir.path().display(), secured.reference());
    let status = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pull_through_a_proxy", "--ignored"])
        .env(PROXIED, told)
        .env("HTTPS_PROXY", proxy)
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .status()
        .await
        .unwrap();
    assert!(status.success());
    let asked = asked.lock().unwrap().clone();
    assert!(asked[0].starts_with(&format!("CONNECT {} ", registry.host)), "{asked:?}");
    assert!(asked[0].to_ascii_lowercase().contains("proxy-authorization: basic"), "{asked:?}");
    serving.abort();
}
