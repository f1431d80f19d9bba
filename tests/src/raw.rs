//! A gRPC call written out frame by frame, for what well-behaved clients do not send: an `:authority` that is a path, another
//! version's service name.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;

const PATIENCE: Duration = Duration::from_secs(20);
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// One unary call on a connection of its own; the answer's message. The status in the trailers is not looked at: HPACK would be
/// needed for it, and a failed call has no message.
pub fn call<Q: Message, A: Message + Default>(socket: &Path, authority: &str, path: &str, request: &Q) -> Result<A> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        // literal, not indexed, new name, no Huffman code
        block.push(0);
        text(&mut block, name)?;
        text(&mut block, value)?;
    }
    frame(&mut bytes, HEADERS, END_HEADERS, 1, &block);
    let message = request.encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len())?.to_be_bytes());
    body.extend(message);
    frame(&mut bytes, DATA, END_STREAM, 1, &body);
    stream.write_all(&bytes)?;
    let body = answer(&mut stream)?;
    ensure!(body.len() >= 5, "the call was answered without a message: it has failed");
    A::decode(&body[5..]).context("decode the answer")
}

fn frame(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    to.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    to.extend([kind, flags]);
    to.extend(stream.to_be_bytes());
    to.extend(payload);
}

fn text(to: &mut Vec<u8>, text: &str) -> Result<()> {
    ensure!(text.len() < 127, "{text:?} needs a longer length");
    to.push(text.len() as u8);
    to.extend(text.as_bytes());
    Ok(())
}

/// The data of stream 1 until it ends.
fn answer(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).context("the connection ended before the answer")?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        match kind {
            SETTINGS if flags & ACK == 0 => {
                let mut ack = Vec::new();
                frame(&mut ack, SETTINGS, ACK, 0, &[]);
                stream.write_all(&ack)?;
            }
            DATA => body.extend(payload),
            RST_STREAM => bail!("the stream was reset with code {payload:?}"),
            GOAWAY => bail!("sent away: {}", String::from_utf8_lossy(payload.get(8..).unwrap_or_default())),
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Ok(body);
        }
    }
}
