//! The server as clients meet it: real sockets, real gRPC, and byte streams that no polite client sends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy.toml's exception for tests does not reach their helpers")]

mod odd_authority;
mod sockets;
mod stub;

use hyper_util::rt::TokioIo;
use nodeagent_cri_api as api;
use nodeagent_cri_api::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use nodeagent_runtime::server::{self, Limits, Listener, MAX_RECEIVE_MESSAGE, MAX_SEND_MESSAGE, Services};
use std::{path::PathBuf, sync::Arc, time::Duration};
use stub::{Images, Inspect, Stub};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A running server in a directory of its own.
struct Running {
    path: PathBuf,
    stub: Stub,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Running {
    fn start() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cri.sock");
        let stub = Stub::new();
        let services = Services { runtime: stub.clone(), image: Images, crio: Arc::new(Inspect) };
        let stop = CancellationToken::new();
        let listeners = vec![Listener::bind(&path).unwrap()];
        let task = tokio::spawn(server::serve(listeners, services, limits, stop.clone()));
        Self { path, stub, stop, task, _directory: directory }
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    async fn channel(&self) -> Channel {
        let path = self.path.clone();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap()
    }

    async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap();
    }
}

fn version() -> api::VersionRequest {
    api::VersionRequest { version: "v".into() }
}

#[tokio::test]
async fn both_dialects_of_grpc_reach_the_same_service() {
    let server = Running::start();
    let channel = server.channel().await;
    let answer = RuntimeServiceClient::new(channel.clone()).version(version()).await.unwrap().into_inner();
    assert_eq!((answer.runtime_name.as_str(), answer.runtime_api_version.as_str()), ("stub", "v1"));

    let mut old = tonic::client::Grpc::new(channel);
    old.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/runtime.v1alpha2.RuntimeService/Version");
    let codec = tonic_prost::ProstCodec::<api::VersionRequest, api::VersionResponse>::default();
    let answer = old.unary(tonic::Request::new(version()), path, codec.clone()).await.unwrap().into_inner();
    assert_eq!(answer.runtime_api_version, "v1alpha2");

    old.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/runtime.v1beta1.RuntimeService/Version");
    let error = old.unary(tonic::Request::new(version()), path, codec).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    server.stopped().await;
}

#[tokio::test]
async fn messages_up_to_the_kubelets_limit_pass_in_both_directions_and_larger_ones_do_not() {
    let server = Running::start();
    let channel = server.channel().await;
    let mut runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(2 * MAX_SEND_MESSAGE);
    let mut image = ImageServiceClient::new(channel).max_decoding_message_size(2 * MAX_SEND_MESSAGE);

    let fits = "v".repeat(MAX_RECEIVE_MESSAGE - 64);
    let answer = runtime.version(api::VersionRequest { version: fits.clone() }).await.unwrap().into_inner();
    assert_eq!(answer.runtime_version.len(), fits.len());
    let request = api::VersionRequest { version: "v".repeat(MAX_RECEIVE_MESSAGE) };
    assert_eq!(runtime.version(request).await.unwrap_err().code(), Code::OutOfRange);

    let ask = |length: usize| api::ImageStatusRequest {
        image: Some(api::ImageSpec { image: length.to_string(), ..Default::default() }),
        ..Default::default()
    };
    let answer = image.image_status(ask(MAX_SEND_MESSAGE - 64)).await.unwrap().into_inner();
    assert_eq!(answer.image.unwrap().id.len(), MAX_SEND_MESSAGE - 64);
    assert_eq!(image.image_status(ask(MAX_SEND_MESSAGE)).await.unwrap_err().code(), Code::OutOfRange);
    server.stopped().await;
}

/// One HTTP/1.1 request, answer until the server closes.
async fn http(server: &Running, request: &str) -> String {
    let mut stream = server.raw().await;
    // two pieces, cut inside the method, as a slow client might
    let (first, rest) = request.as_bytes().split_at(2);
    stream.write_all(first).await.unwrap();
    tokio::task::yield_now().await;
    stream.write_all(rest).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn cadvisor_gets_its_answers_over_http1_on_the_same_socket() {
    let server = Running::start();
    // host and headers as Go's net/http sends them for cAdvisor's client
    let get = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: crio\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
        )
    };
    let info = http(&server, &get("/info")).await;
    assert!(info.starts_with("HTTP/1.1 200 OK\r\n"), "{info}");
    assert!(
        info.ends_with("\r\n\r\n{\"storage_driver\":\"overlay\",\"storage_root\":\"/graph\",\"storage_image\":\"\"}"),
        "{info}"
    );
    let container = http(&server, &get("/containers/c0ffee")).await;
    assert!(container.contains("{\"name\":\"k8s_c_p_n_u_0\",\"pid\":42,"), "{container}");
    assert!(http(&server, &get("/containers/beef")).await.starts_with("HTTP/1.1 404 "));
    // begins like the HTTP/2 preface for a while
    assert!(
        http(&server, "PRI / HTTP/1.1\r\nHost: crio\r\nConnection: close\r\n\r\n").await.starts_with("HTTP/1.1 405 ")
    );
    assert!(http(&server, "GA\u{1}rbage\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    server.stopped().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let server = Running::with(Limits { greeting: Duration::from_millis(50), ..Limits::default() });
    for silence in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut stream = server.raw().await;
        stream.write_all(silence).await.unwrap();
        let read = tokio::time::timeout(DEADLINE, stream.read_u8()).await.unwrap();
        assert!(read.is_err(), "{silence:?}");
    }
    server.stopped().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let server = Running::with(Limits { connections: 1, ..Limits::default() });
    let first = server.channel().await;
    RuntimeServiceClient::new(first.clone()).version(version()).await.unwrap();
    let mut second = RuntimeServiceClient::new(server.channel().await);
    let mut waiting = tokio::spawn(async move { second.version(version()).await });
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err(), "was served at once");
    drop(first);
    tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    server.stopped().await;
}

#[tokio::test]
async fn a_call_under_way_finishes_after_the_stop_and_new_connections_are_refused() {
    let server = Running::start();
    let mut client = RuntimeServiceClient::new(server.channel().await);
    let call = tokio::spawn(async move { client.exec_sync(api::ExecSyncRequest::default()).await });
    server.stub.begun.notified().await;
    server.stop.cancel();
    while server.path.exists() {
        tokio::task::yield_now().await;
    }
    assert!(UnixStream::connect(&server.path).await.is_err());
    server.stub.release.add_permits(1);
    assert_eq!(call.await.unwrap().unwrap().into_inner().exit_code, 7);
    server.stopped().await;
}

#[tokio::test]
async fn a_call_that_does_not_finish_is_cut_at_the_drain_deadline() {
    let server = Running::with(Limits { drain: Duration::from_millis(100), ..Limits::default() });
    let mut client = RuntimeServiceClient::new(server.channel().await);
    let call = tokio::spawn(async move { client.exec_sync(api::ExecSyncRequest::default()).await });
    server.stub.begun.notified().await;
    server.stopped().await;
    assert!(call.await.unwrap().is_err());
}
