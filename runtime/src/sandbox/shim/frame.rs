//! Frames on the wire: a `u32` little-endian length, then JSON.

use std::io;

use nodeagent_shim::protocol::MAX_FRAME;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of one frame.
fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value)?;
    let length = bytes.len() - 4;
    let header = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    let header = header.ok_or_else(|| io::Error::other(format!("a message of {length} bytes is too long")))?;
    for (target, byte) in bytes.iter_mut().zip(header.to_le_bytes()) {
        *target = byte;
    }
    Ok(bytes)
}

/// Writes one frame.
pub(in crate::sandbox) async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> io::Result<()> {
    stream.write_all(&encode(value)?).await
}

/// Reads one frame; none at the end of the stream. Not cancel-safe.
pub(in crate::sandbox) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let length = match stream.read_u32_le().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_FRAME {
        return Err(io::Error::other(format!("a message of {length} bytes is too long")));
    }
    // grows with what really arrives: the length alone is only a claim
    let mut bytes = Vec::with_capacity(length.min(64 << 10));
    let limit = u64::try_from(length).unwrap_or(u64::MAX);
    (&mut *stream).take(limit).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read() {
        let mut bytes = encode(&"one").unwrap();
        bytes.extend(encode(&"two").unwrap());
        let mut stream = bytes.as_slice();
        assert_eq!(read::<String>(&mut stream).await.unwrap().as_deref(), Some("one"));
        assert_eq!(read::<String>(&mut stream).await.unwrap().as_deref(), Some("two"));
        assert_eq!(read::<String>(&mut stream).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_claim_that_is_too_long_is_refused_and_one_that_is_cut_noticed() {
        let mut huge: &[u8] = &[0xff, 0xff, 0xff, 0xff, b'"'];
        assert!(read::<String>(&mut huge).await.unwrap_err().to_string().contains("too long"));
        let mut cut: &[u8] = &[9, 0, 0, 0, b'"'];
        assert_eq!(read::<String>(&mut cut).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
