//! `/healthz` on 127.0.0.1.

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Of a request without a body.
const MAX_REQUEST: usize = 16 << 10;

/// Listens on `port` (0: not at all) and answers every request with `ok`.
pub async fn serve(port: u64) -> anyhow::Result<()> {
    if port == 0 {
        return Ok(());
    }
    let port = u16::try_from(port).context("healthzPort")?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.with_context(|| format!("healthz on port {port}"))?;
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            // whoever asked and left does not want the answer
            let _ = answer(&mut connection).await;
        }
    });
    Ok(())
}

/// To the whole request: what is left unread of it at the end would reset the connection, and the answer with it.
async fn answer(connection: &mut TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < MAX_REQUEST {
        if connection.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await
}
