//! A network that gives each connection only so much.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Forwards to a registry.
pub struct Throttle {
    pub host: String,
    most: Arc<AtomicUsize>,
    sent: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Throttle {
    /// Lets `bytes` through, on each connection, every time that `every` has passed.
    pub async fn start(behind: &str, bytes: usize, every: Duration) -> Throttle {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let sent = Arc::new(AtomicU64::new(0));
        let (behind, counted, all_sent) = (behind.to_owned(), most.clone(), sent.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&behind).await.unwrap();
                let (counted, now, sent) = (counted.clone(), now.clone(), all_sent.clone());
                tokio::spawn(async move {
                    counted.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let (mut from_client, to_client) = client.into_split();
                    let (from_server, mut to_server) = server.into_split();
                    tokio::select! {
                        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                        () = slowly(from_server, to_client, bytes, every, &sent) => {}
                    }
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Throttle { host, most, sent, task }
    }

    /// Bytes of answers that went through.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Most connections at a time.
    pub fn most_connections(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

async fn slowly(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    bytes: usize,
    every: Duration,
    sent: &AtomicU64,
) {
    let mut buffer = vec![0; bytes];
    loop {
        let length = from.read(&mut buffer).await.unwrap_or(0);
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        sent.fetch_add(length as u64, Ordering::SeqCst);
        tokio::time::sleep(every).await;
    }
}
