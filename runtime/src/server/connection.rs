//! One accepted connection: which dialect it speaks, and speaking it until either side is done.

use super::{
    CrioInspect, Limits, MAX_RECEIVE_MESSAGE, MAX_SEND_MESSAGE, Services,
    authority::AuthorityFilter,
    crio,
    v1alpha2::{V1Alpha2, V1Alpha2Layer},
};
use bytes::{Bytes, BytesMut};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nodeagent_cri_api::{
    image_service_server::{ImageService, ImageServiceServer},
    runtime_service_server::{RuntimeService, RuntimeServiceServer},
};
use std::{
    convert::Infallible,
    io::{self, Cursor},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, join},
    net::UnixStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::Layer;

/// What every HTTP/2 client sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client that is stopped (not dead: the kernel tells us of those) must not keep its place forever.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// An HTTP/1.1 client may keep its connection open, quiet, for this long.
const IDLE: Duration = Duration::from_secs(90);
/// Head of an HTTP/1.1 request; cAdvisor's has some 200 bytes.
const HTTP1_BUFFER: usize = 16 * 1024;

/// The services in the form connections need them.
pub(super) struct Dialects {
    grpc: V1Alpha2<Routes>,
    crio: Arc<dyn CrioInspect>,
    greeting: Duration,
    streams: u32,
}

impl Dialects {
    pub(super) fn new<R: RuntimeService, I: ImageService>(services: Services<R, I>, limits: &Limits) -> Self {
        let runtime = RuntimeServiceServer::new(services.runtime)
            .max_decoding_message_size(MAX_RECEIVE_MESSAGE)
            .max_encoding_message_size(MAX_SEND_MESSAGE);
        let image = ImageServiceServer::new(services.image)
            .max_decoding_message_size(MAX_RECEIVE_MESSAGE)
            .max_encoding_message_size(MAX_SEND_MESSAGE);
        let routes = Routes::new(runtime).add_service(image).prepare();
        Self {
            grpc: V1Alpha2Layer.layer(routes),
            crio: services.crio,
            greeting: limits.greeting,
            streams: limits.streams,
        }
    }

    /// Serves one connection to its end; after `stop`, to the end of the calls under way.
    pub(super) async fn serve(&self, mut stream: UnixStream, stop: &CancellationToken) {
        // cancel safety: a connection that has not said anything yet has nothing to lose
        let greeting = match stop.run_until_cancelled(timeout(self.greeting, greet(&mut stream))).await {
            None => return,
            Some(Ok(Ok(greeting))) if greeting.is_empty() => return,
            Some(Ok(Ok(greeting))) => greeting,
            Some(Ok(Err(error))) => {
                log::debug!(error = error.to_string().as_str(); "a connection ended before it said what it speaks");
                return;
            }
            Some(Err(_)) => {
                log::debug!("a connection did not say what it speaks");
                return;
            }
        };
        let (read, write) = stream.into_split();
        let outcome = if greeting.as_ref() == PREFACE {
            self.grpc(join(AuthorityFilter::new(&greeting, read), write), stop).await
        } else {
            self.crio(join(Cursor::new(greeting).chain(read), write), stop).await
        };
        if let Err(error) = outcome {
            log::debug!(error = error.to_string().as_str(); "a connection ended with an error");
        }
    }

    async fn grpc<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        stream: S,
        stop: &CancellationToken,
    ) -> hyper::Result<()> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.streams)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let service = TowerToHyperService::new(self.grpc.clone());
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            outcome = connection.as_mut() => return outcome,
            // cancel safety: the connection is pinned outside and polled on below
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }

    async fn crio<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        stream: S,
        stop: &CancellationToken,
    ) -> hyper::Result<()> {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(HTTP1_BUFFER);
        let service = service_fn(|request: http::Request<Incoming>| {
            let response = crio::answer(&*self.crio, &request);
            async move { Ok::<_, Infallible>(response) }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            outcome = connection.as_mut() => return outcome,
            // cancel safety: as above
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

/// Reads until it is certain whether this is the HTTP/2 preface: all of it, or the first difference. Empty at the end
/// of the stream.
async fn greet(stream: &mut UnixStream) -> io::Result<Bytes> {
    let mut greeting = BytesMut::with_capacity(PREFACE.len());
    while greeting.len() < PREFACE.len() && PREFACE.starts_with(&greeting) {
        let missing = (PREFACE.len() - greeting.len()) as u64;
        if (&mut *stream).take(missing).read_buf(&mut greeting).await? == 0 {
            break;
        }
    }
    Ok(greeting.freeze())
}
