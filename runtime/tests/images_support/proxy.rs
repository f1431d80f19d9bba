//! A registry in front of the registry, which does what real ones do on bad days.

use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    pub body: String,
}

/// What to answer.
pub enum Answer {
    /// What the registry behind says.
    Forward,
    /// The same, as if no range had been asked for.
    ForwardWhole,
    /// This instead.
    Instead(Response<Full<Bytes>>),
    /// The registry's answer with another body.
    Body(Box<dyn Fn(Vec<u8>) -> Vec<u8> + Send>),
    /// The registry's answer, with its right length announced and cut off after so many bytes.
    CutAfter(usize),
}

type Rule = dyn Fn(&Seen, usize) -> Answer + Send + Sync;

pub struct Proxy {
    pub host: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// `rule` gets each request and how many came before it on the same path.
    pub async fn start(behind: &str, rule: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static) -> Proxy {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (behind, rule, log): (String, Arc<Rule>, _) = (behind.to_owned(), Arc::new(rule), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (behind, rule, log) = (behind.clone(), rule.clone(), log.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(behind.clone(), rule.clone(), log.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Proxy { host, seen, task }
    }

    pub fn paths(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|seen| seen.path.clone()).collect()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// A body that ends early: hyper closes the connection when it has less than was announced.
type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

fn cut(bytes: Vec<u8>) -> Body {
    let pieces = [
        Ok(hyper::body::Frame::data(Bytes::from(bytes))),
        Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "cut by the test")),
    ];
    http_body_util::StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()
}

async fn answer(
    behind: String,
    rule: Arc<Rule>,
    log: Arc<Mutex<Vec<Seen>>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let mut seen = Seen {
        method: request.method().to_string(),
        path: request.uri().path_and_query().unwrap().to_string(),
        authorization: header("authorization"),
        range: header("range"),
        body: String::new(),
    };
    let accept = header("accept");
    seen.body = String::from_utf8_lossy(&request.into_body().collect().await.unwrap().to_bytes()).into_owned();
    let before = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|other| other.path == seen.path).count();
        log.push(seen.clone());
        before
    };
    let decided = rule(&seen, before);
    if let Answer::Instead(response) = decided {
        let (parts, body) = response.into_parts();
        return Ok(Response::from_parts(parts, whole(body.collect().await.unwrap().to_bytes().to_vec())));
    }
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let mut forwarded = client.get(format!("http://{behind}{}", seen.path));
    for (name, value) in [("accept", accept), ("range", seen.range), ("authorization", seen.authorization)] {
        if name == "range" && matches!(decided, Answer::ForwardWhole) {
            continue;
        }
        if let Some(value) = value {
            forwarded = forwarded.header(name, value);
        }
    }
    let original = forwarded.send().await.unwrap();
    let mut response = Response::builder().status(original.status());
    for name in ["content-type", "content-range", "www-authenticate", "docker-content-digest"] {
        if let Some(value) = original.headers().get(name) {
            response = response.header(name, value);
        }
    }
    let body = original.bytes().await.unwrap().to_vec();
    Ok(match decided {
        Answer::Body(change) => response.body(whole(change(body))).unwrap(),
        Answer::CutAfter(length) if length < body.len() => {
            response.header("content-length", body.len()).body(cut(body[..length].to_vec())).unwrap()
        }
        _ => response.body(whole(body)).unwrap(),
    })
}

pub fn status(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    Answer::Instead(response.body(Full::new(Bytes::from(body.to_owned()))).unwrap())
}
