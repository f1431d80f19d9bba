//! `/healthz` on 127.0.0.1.

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Listens on `port` (0: not at all) and answers every request with `ok`.
pub async fn serve(port: u64) -> anyhow::Result<()> {
    if port == 0 {
        return Ok(());
    }
    let port = u16::try_from(port).context("healthzPort")?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.with_context(|| format!("healthz on port {port}"))?;
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
            if connection.read(&mut request).await.is_ok_and(|length| length > 0) {
                // whoever asked and left does not want it
                let _ = connection.write_all(answer).await;
            }
        }
    });
    Ok(())
}
