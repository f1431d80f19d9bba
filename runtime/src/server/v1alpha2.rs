//! CRI v1alpha2 by path. Its messages are a wire-compatible subset of v1, so old kubelets (up to 1.25) need nothing but
//! another name for the same calls; handlers that must answer differently (`Version`) look at [`ApiVersion`].

use http::{Request, Uri, uri::PathAndQuery};
use std::task::{Context, Poll};
use tower::{Layer, Service};

const OLD: &str = "/runtime.v1alpha2.";
const NEW: &str = "/runtime.v1.";

/// The dialect a request came in, found in the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiVersion {
    /// `runtime.v1`
    V1,
    /// `runtime.v1alpha2`, rewritten
    V1Alpha2,
}

impl ApiVersion {
    /// The text that `Version` answers as `runtime_api_version`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1Alpha2 => "v1alpha2",
        }
    }

    /// The dialect of a request; one that did not pass the server (a test calling a handler) is v1.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().copied().unwrap_or(Self::V1)
    }
}

/// Puts [`V1Alpha2`] around a service.
#[derive(Debug, Clone, Copy)]
pub(super) struct V1Alpha2Layer;

impl<S> Layer<S> for V1Alpha2Layer {
    type Service = V1Alpha2<S>;

    fn layer(&self, inner: S) -> V1Alpha2<S> {
        V1Alpha2 { inner }
    }
}

/// Rewrites v1alpha2 paths and notes the dialect.
#[derive(Debug, Clone)]
pub(super) struct V1Alpha2<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for V1Alpha2<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let version = match rewritten(request.uri()) {
            Some(uri) => {
                *request.uri_mut() = uri;
                ApiVersion::V1Alpha2
            }
            None => ApiVersion::V1,
        };
        request.extensions_mut().insert(version);
        self.inner.call(request)
    }
}

fn rewritten(uri: &Uri) -> Option<Uri> {
    let rest = uri.path().strip_prefix(OLD)?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(format!("{NEW}{rest}")).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(text: &str) -> Option<String> {
        rewritten(&text.parse().unwrap()).map(|uri| uri.to_string())
    }

    #[test]
    fn only_the_old_package_is_rewritten() {
        assert_eq!(path_of("/runtime.v1alpha2.RuntimeService/Version").unwrap(), "/runtime.v1.RuntimeService/Version");
        assert_eq!(
            path_of("http://localhost/runtime.v1alpha2.ImageService/ListImages").unwrap(),
            "http://localhost/runtime.v1.ImageService/ListImages"
        );
        assert_eq!(path_of("/runtime.v1.RuntimeService/Version"), None);
        assert_eq!(path_of("/x/runtime.v1alpha2.RuntimeService/Version"), None);
        assert_eq!(path_of("/runtime.v1alpha20.RuntimeService/Version"), None);
    }
}
