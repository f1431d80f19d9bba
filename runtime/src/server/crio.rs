//! CRI-O's inspection dialect, HTTP/1.1 on the same socket: cAdvisor in every kubelet asks it for the names, labels
//! and process ids behind the cgroups it watches.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use std::collections::BTreeMap;

/// Longest container id looked at; ours have 64 characters.
const MAX_ID: usize = 128;

/// What cAdvisor's crio client wants to know. Answered from memory: it asks once per new cgroup and again on doubt.
pub trait CrioInspect: Send + Sync + 'static {
    /// Storage facts for `GET /info`.
    fn info(&self) -> InfoJson;
    /// One container or sandbox for `GET /containers/{id}`; `None` is 404.
    fn container(&self, id: &str) -> Option<ContainerJson>;
}

/// Answer to `GET /info`. cAdvisor registers its crio factory only if it gets one when the kubelet starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InfoJson {
    /// `overlay`
    pub storage_driver: String,
    /// directory of the container file systems
    pub storage_root: String,
    /// directory of the images, where it is another one
    pub storage_image: String,
}

/// Answer to `GET /containers/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ContainerJson {
    /// `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`
    pub name: String,
    /// init process of a container; for a sandbox any process inside the pod's network namespace; 0 is asked again
    pub pid: i32,
    /// the image as the user named it
    pub image: String,
    /// the image by digest
    pub image_ref: String,
    /// nanoseconds since 1970
    pub created_time: i64,
    /// includes `io.kubernetes.container.name` (`POD` for a sandbox), `io.kubernetes.pod.name`, `…namespace`, `…uid`
    pub labels: BTreeMap<String, String>,
    /// includes `io.kubernetes.container.restartCount`
    pub annotations: BTreeMap<String, String>,
    /// CRI-O's own annotations; present because its answer has them
    pub crio_annotations: BTreeMap<String, String>,
    /// absolute path of the log file
    pub log_path: String,
    /// root file system; cAdvisor turns a trailing `/merged` into `/diff` to measure disk use
    pub root: String,
    /// id of the pod's sandbox
    pub sandbox: String,
    /// primary address, the only one that cAdvisor of old kubelets knows
    pub ip_address: String,
    /// all addresses, primary first
    pub ip_addresses: Vec<String>,
    /// whether the pod uses the host's network
    pub host_network: bool,
}

/// Answers one request. Nothing here can fail: what is unknown is 404, as cAdvisor expects.
pub(super) fn answer<B>(inspect: &dyn CrioInspect, request: &Request<B>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
    }
    match request.uri().path() {
        "/info" => json(&inspect.info()),
        path => match path.strip_prefix("/containers/").filter(|id| is_id(id)).and_then(|id| inspect.container(id)) {
            Some(container) => json(&container),
            None => plain(StatusCode::NOT_FOUND, "not found\n"),
        },
    }
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_ID && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn json<T: Serialize>(value: &T) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => with_type(StatusCode::OK, "application/json", Bytes::from(body)),
        Err(error) => {
            log::error!(error = error.to_string().as_str(); "cannot encode an inspection answer");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the answer\n")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;

    impl CrioInspect for One {
        fn info(&self) -> InfoJson {
            InfoJson { storage_driver: "overlay".into(), storage_root: "/r".into(), storage_image: String::new() }
        }

        fn container(&self, id: &str) -> Option<ContainerJson> {
            (id == "aa").then(|| ContainerJson {
                name: "k8s_c_p_n_u_0".into(),
                pid: 7,
                created_time: 5,
                labels: [("io.kubernetes.pod.name".to_owned(), "p".to_owned())].into(),
                ip_address: "10.0.0.2".into(),
                ip_addresses: vec!["10.0.0.2".into(), "fd00::2".into()],
                ..ContainerJson::default()
            })
        }
    }

    async fn get(path: &str) -> (StatusCode, String) {
        use http_body_util::BodyExt;
        let response = answer(&One, &Request::get(path).body(()).unwrap());
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn info_has_the_three_keys_cadvisor_reads() {
        let (status, body) = get("/info").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body, r#"{"storage_driver":"overlay","storage_root":"/r","storage_image":""}"#);
    }

    #[tokio::test]
    async fn a_container_has_every_key_cadvisor_and_crio_know() {
        let (status, body) = get("/containers/aa").await;
        assert_eq!(status, StatusCode::OK);
        let expected = concat!(
            r#"{"name":"k8s_c_p_n_u_0","pid":7,"image":"","image_ref":"","created_time":5,"#,
            r#""labels":{"io.kubernetes.pod.name":"p"},"annotations":{},"crio_annotations":{},"#,
            r#""log_path":"","root":"","sandbox":"","ip_address":"10.0.0.2","#,
            r#""ip_addresses":["10.0.0.2","fd00::2"],"host_network":false}"#
        );
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn what_is_unknown_is_404() {
        for path in ["/containers/bb", "/containers/", "/containers/../info", "/containers/aa/x", "/", "/config"] {
            assert_eq!(get(path).await.0, StatusCode::NOT_FOUND, "{path}");
        }
        let post = Request::post("/info").body(()).unwrap();
        assert_eq!(answer(&One, &post).status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
