//! Clients that send the socket's path as `:authority`: written by hand, since Rust's own clients cannot.

use super::{DEADLINE, Running};
use httlib_hpack::{Decoder, Encoder};
use nodeagent_cri_api as api;
use prost::Message;
use std::collections::BTreeMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An HTTP/2 client that can say anything.
struct Client {
    encoder: Encoder<'static>,
    decoder: Decoder<'static>,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// bytes written at a time
    piece: usize,
}

impl Client {
    async fn connect(server: &Running, piece: usize) -> Self {
        let (reader, writer) = UnixStream::connect(&server.path).await.unwrap().into_split();
        let mut client = Self {
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            reader: BufReader::new(reader),
            writer,
            piece,
        };
        client.send(PREFACE).await;
        client.send(&frame(SETTINGS, 0, 0, &[])).await;
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(self.piece) {
            self.writer.write_all(piece).await.unwrap();
            // lets the server read each piece alone
            tokio::task::yield_now().await;
        }
    }

    fn block(&mut self, authority: &str, path: &str) -> Vec<u8> {
        let flags = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING | Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE;
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-go/1.51.0"),
            ("te", "trailers"),
        ] {
            self.encoder.encode((name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags), &mut block).unwrap();
        }
        block
    }

    async fn message(&mut self, stream: u32, version: &str) {
        let message = api::VersionRequest { version: version.to_owned() }.encode_to_vec();
        let mut payload = vec![0];
        payload.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        payload.extend(message);
        self.send(&frame(DATA, END_STREAM, stream, &payload)).await;
    }

    async fn next(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        tokio::time::timeout(DEADLINE, self.reader.read_exact(&mut head)).await.unwrap().unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.reader.read_exact(&mut payload).await.unwrap();
        (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
    }

    /// Reads until the stream ends: the answer, and all headers and trailers.
    async fn answer(&mut self, wanted: u32) -> (api::VersionResponse, BTreeMap<String, String>) {
        let mut body = Vec::new();
        let mut fields = BTreeMap::new();
        loop {
            let (kind, flags, stream, payload) = self.next().await;
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(&frame(SETTINGS, ACK, 0, &[])).await,
                HEADERS => {
                    let mut list = Vec::new();
                    let mut payload = payload;
                    self.decoder.decode(&mut payload, &mut list).unwrap();
                    for (name, value, _) in list {
                        fields.insert(String::from_utf8(name).unwrap(), String::from_utf8(value).unwrap());
                    }
                }
                DATA => body.extend(payload),
                // reset, goaway: refused
                3 | GOAWAY => panic!("frame {kind} on stream {stream}: {payload:?}"),
                _ => {}
            }
            if stream == wanted && flags & END_STREAM != 0 && matches!(kind, HEADERS | DATA) {
                let message = api::VersionResponse::decode(&body[5..]).unwrap();
                return (message, fields);
            }
        }
    }

    async fn version_is_served(&mut self, stream: u32, dialect: &str) {
        let (answer, fields) = self.answer(stream).await;
        assert_eq!(answer.runtime_api_version, dialect);
        assert_eq!(answer.runtime_version, format!("call {stream}"));
        assert_eq!((fields[":status"].as_str(), fields["grpc-status"].as_str()), ("200", "0"));
    }
}

const V1: &str = "/runtime.v1.RuntimeService/Version";
const V1ALPHA2: &str = "/runtime.v1alpha2.RuntimeService/Version";

#[tokio::test]
async fn clients_with_a_socket_path_as_authority_are_served_however_their_bytes_arrive() {
    let server = Running::start();
    for authority in ["/run/nodeagent/cri.sock", "%2Frun%2Fnodeagent%2Fcri.sock", "localhost"] {
        for piece in [1, 2, 5, 9, 64, 100_000] {
            let mut client = Client::connect(&server, piece).await;
            for (stream, path, dialect) in [(1, V1, "v1"), (3, V1ALPHA2, "v1alpha2"), (5, V1, "v1")] {
                let block = client.block(authority, path);
                client.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
                client.message(stream, &format!("call {stream}")).await;
                client.version_is_served(stream, dialect).await;
            }
        }
    }
    server.stopped().await;
}

#[tokio::test]
async fn padding_priority_and_continuation_are_understood_at_every_cut_of_the_block() {
    let server = Running::start();
    let mut client = Client::connect(&server, 7).await;
    let mut stream = 1;
    let mut cut = 0;
    loop {
        let block = client.block("/run/nodeagent/cri.sock", V1);
        if cut > block.len() {
            break;
        }
        let (first, second) = block.split_at(cut);
        let mut payload = vec![4, 0, 0, 0, 0, 15];
        payload.extend(first);
        payload.extend([0; 4]);
        client.send(&frame(HEADERS, PADDED | PRIORITY, stream, &payload)).await;
        client.send(&frame(CONTINUATION, END_HEADERS, stream, second)).await;
        client.message(stream, &format!("call {stream}")).await;
        client.version_is_served(stream, "v1").await;
        stream += 2;
        cut += 1;
    }
    drop(client);
    assert!(cut > 5, "the block has been cut in several places");
    server.stopped().await;
}

#[tokio::test]
async fn many_calls_at_once_on_one_odd_connection_do_not_mix() {
    let server = Running::start();
    let mut client = Client::connect(&server, 1000).await;
    let streams: Vec<u32> = (0..50).map(|number| number * 2 + 1).collect();
    for &stream in &streams {
        let block = client.block("/run/nodeagent/cri.sock", V1);
        client.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
    }
    for &stream in streams.iter().rev() {
        client.message(stream, &format!("call {stream}")).await;
        client.version_is_served(stream, "v1").await;
    }
    // it would not answer the ping that goes with a polite stop
    drop(client);
    server.stopped().await;
}

#[tokio::test]
async fn a_header_block_without_end_closes_the_connection() {
    let server = Running::start();
    let mut client = Client::connect(&server, 100_000).await;
    let mut flood = frame(HEADERS, 0, 1, &[0x82]);
    for _ in 0..1000 {
        flood.extend(frame(CONTINUATION, 0, 1, &[]));
    }
    // the server may close while this is still being written
    let _ = client.writer.write_all(&flood).await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, client.reader.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection is still open");
    server.stopped().await;
}
