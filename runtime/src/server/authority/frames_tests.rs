//! The filter against an HPACK encoder that is not ours, cut at every place.

use super::*;
use httlib_hpack::Encoder;
use proptest::prelude::*;

const BEST: u8 = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING | Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE;

type Pairs = Vec<(String, String)>;

fn pairs(list: &[(&str, &str)]) -> Pairs {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn request(authority: &str, path: &str) -> Pairs {
    pairs(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.51.0"),
        ("te", "trailers"),
        ("grpc-timeout", "119999840u"),
    ])
}

fn encode(encoder: &mut Encoder<'_>, fields: &Pairs, flags: u8) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        encoder.encode((name.clone().into_bytes(), value.clone().into_bytes(), flags), &mut block).unwrap();
    }
    block
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    Head { length: payload.len(), kind, flags, stream }.write(&mut out);
    out.put_slice(payload);
    out.to_vec()
}

/// Everything through a new filter, in pieces of the given sizes (the last one repeats).
fn filtered(input: &[u8], sizes: &[usize]) -> Result<Vec<u8>, FrameError> {
    let mut frames = Frames::new();
    let mut out = BytesMut::new();
    let mut rest = input;
    let mut sizes = sizes.iter().copied();
    let mut size = input.len().max(1);
    while !rest.is_empty() {
        size = sizes.next().unwrap_or(size).max(1);
        let (now, later) = rest.split_at(size.min(rest.len()));
        frames.push(now, &mut out)?;
        rest = later;
    }
    Ok(out.to_vec())
}

#[derive(Debug, PartialEq)]
enum Seen {
    Headers { stream: u32, end_stream: bool, priority: Option<Vec<u8>>, fields: Pairs },
    Other { kind: u8, flags: u8, stream: u32, payload: Vec<u8> },
}

/// Reads the filter's output the way a server would, with the other library's decoder.
fn read(mut input: &[u8]) -> Vec<Seen> {
    let mut decoder = httlib_hpack::Decoder::default();
    let mut seen = Vec::new();
    let mut open: Option<(Head, Option<Vec<u8>>, Vec<u8>)> = None;
    while !input.is_empty() {
        let (head, rest) = input.split_first_chunk::<FRAME_HEAD>().unwrap();
        let head = Head::parse(head);
        let (payload, rest) = rest.split_at(head.length);
        input = rest;
        assert!(head.length <= MAX_FRAME, "frame of {} bytes", head.length);
        match head.kind {
            HEADERS => {
                assert_eq!(head.flags & PADDED, 0, "padding is not handed on");
                let split = if head.flags & PRIORITY == 0 { 0 } else { PRIORITY_LENGTH };
                let priority = (split > 0).then(|| payload[..split].to_vec());
                open = Some((head, priority, payload[split..].to_vec()));
            }
            CONTINUATION => open.as_mut().unwrap().2.extend_from_slice(payload),
            kind => {
                assert!(open.is_none(), "a frame inside a header block");
                seen.push(Seen::Other { kind, flags: head.flags, stream: head.stream, payload: payload.to_vec() });
            }
        }
        if matches!(head.kind, HEADERS | CONTINUATION) && head.flags & END_HEADERS != 0 {
            let (first, priority, mut block) = open.take().unwrap();
            let mut fields = Vec::new();
            decoder.decode(&mut block, &mut fields).unwrap();
            let fields = fields
                .into_iter()
                .map(|(name, value, _)| (String::from_utf8(name).unwrap(), String::from_utf8(value).unwrap()))
                .collect();
            let end_stream = first.flags & END_STREAM != 0;
            seen.push(Seen::Headers { stream: first.stream, end_stream, priority, fields });
        }
    }
    assert!(open.is_none(), "a header block without an end");
    seen
}

fn headers(stream: u32, end_stream: bool, fields: Pairs) -> Seen {
    Seen::Headers { stream, end_stream, priority: None, fields }
}

/// SETTINGS, a call with message and trailers, a padded and prioritised call in three pieces, and a last plain one.
fn conversation(authority: &str) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut bytes = frame(0x4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    let block = encode(&mut encoder, &request(authority, "/runtime.v1.RuntimeService/Version"), BEST);
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &block));
    bytes.extend(frame(0x0, 0, 1, &[0, 0, 0, 0, 1, 7]));
    bytes.extend(frame(0x0, 0, 1, &[]));
    let trailers = encode(&mut encoder, &pairs(&[("x-last", "yes")]), BEST);
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers));
    let block = encode(&mut encoder, &request(authority, "/runtime.v1.RuntimeService/Status"), BEST);
    let (a, rest) = block.split_at(2);
    let (b, c) = rest.split_at(rest.len() / 2);
    let mut padded = vec![3, 0x80, 0, 0, 0, 200];
    padded.extend_from_slice(a);
    padded.extend_from_slice(&[0; 3]);
    bytes.extend(frame(HEADERS, PADDED | PRIORITY | END_STREAM, 3, &padded));
    bytes.extend(frame(CONTINUATION, 0, 3, b));
    bytes.extend(frame(CONTINUATION, 0, 3, &[]));
    bytes.extend(frame(CONTINUATION, END_HEADERS, 3, c));
    bytes.extend(frame(0x6, 0, 0, &[1; 8]));
    let mut block = Vec::new();
    encoder.update_max_dynamic_size(100, &mut block).unwrap();
    block.extend(encode(&mut encoder, &request(authority, "/runtime.v1.RuntimeService/Version"), BEST));
    bytes.extend(frame(HEADERS, END_HEADERS, 5, &block));
    bytes
}

fn expected() -> Vec<Seen> {
    let version = request("localhost", "/runtime.v1.RuntimeService/Version");
    vec![
        Seen::Other { kind: 0x4, flags: 0, stream: 0, payload: vec![0, 3, 0, 0, 0, 100] },
        headers(1, false, version.clone()),
        Seen::Other { kind: 0, flags: 0, stream: 1, payload: vec![0, 0, 0, 0, 1, 7] },
        Seen::Other { kind: 0, flags: 0, stream: 1, payload: vec![] },
        headers(1, true, pairs(&[("x-last", "yes")])),
        Seen::Headers {
            stream: 3,
            end_stream: true,
            priority: Some(vec![0x80, 0, 0, 0, 200]),
            fields: request("localhost", "/runtime.v1.RuntimeService/Status"),
        },
        Seen::Other { kind: 0x6, flags: 0, stream: 0, payload: vec![1; 8] },
        headers(5, false, version),
    ]
}

const BAD: [&str; 5] =
    ["/run/nodeagent/cri.sock", "%2Frun%2Fnodeagent%2Fcri.sock", "/var/run/dockershim.sock", "", "@abstract socket"];

#[test]
fn bad_authorities_become_localhost_in_every_header_block() {
    for authority in BAD {
        let output = filtered(&conversation(authority), &[]).unwrap();
        assert_eq!(read(&output), expected(), "{authority:?}");
    }
}

#[test]
fn a_cut_at_any_place_changes_nothing() {
    let input = conversation(BAD[0]);
    let whole = filtered(&input, &[]).unwrap();
    for cut in 1..input.len() {
        assert_eq!(filtered(&input, &[cut, input.len()]).unwrap(), whole, "cut at {cut}");
    }
    assert_eq!(filtered(&input, &[1]).unwrap(), whole, "byte by byte");
}

#[test]
fn good_authorities_pass_unchanged_and_end_the_filter_at_the_first_block() {
    for authority in ["localhost", "127.0.0.1:1234", "[::1]:80", "node-1.example"] {
        let input = conversation(authority);
        for size in [1, 7, input.len()] {
            assert_eq!(filtered(&input, &[size]).unwrap(), input, "{authority}");
        }
        let mut frames = Frames::new();
        let mut out = BytesMut::new();
        let first_block_ends = input.windows(4).position(|bytes| bytes == [0, 0, 6, 0]).unwrap();
        frames.push(&input[..first_block_ends], &mut out).unwrap();
        assert!(frames.finished());
        // from here on even nonsense is the server's business
        frames.push(&[0xff; 64], &mut out).unwrap();
        assert_eq!(&out[first_block_ends..], &[0xff; 64]);
    }
}

#[test]
fn a_request_without_authority_is_left_alone() {
    let block = encode(&mut Encoder::default(), &pairs(&[(":method", "GET"), (":path", "/")]), BEST);
    let input = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
    assert_eq!(filtered(&input, &[]).unwrap(), input);
}

#[test]
fn headers_that_do_not_fit_one_frame_are_continued() {
    let mut encoder = Encoder::default();
    let mut fields = request(BAD[0], "/p");
    fields.extend((0..50).map(|number| (format!("x-{number}"), "v".repeat(1000))));
    let block = encode(&mut encoder, &fields, 0);
    let mut input = Vec::new();
    let pieces: Vec<_> = block.chunks(MAX_FRAME).collect();
    for (index, piece) in pieces.iter().enumerate() {
        let flags = if index + 1 == pieces.len() { END_HEADERS } else { 0 };
        input.extend(frame(if index == 0 { HEADERS } else { CONTINUATION }, flags, 1, piece));
    }
    fields[3].1 = "localhost".to_owned();
    assert_eq!(read(&filtered(&input, &[1000]).unwrap()), [headers(1, false, fields)]);
}

#[test]
fn what_exceeds_a_bound_ends_the_connection() {
    let too_long = frame(0x0, 0, 1, &vec![0; MAX_FRAME + 1]);
    assert_eq!(filtered(&too_long, &[]), Err(FrameError::FrameSize(MAX_FRAME + 1)));

    let mut endless = frame(HEADERS, 0, 1, &vec![0; MAX_FRAME]);
    for _ in 0..4 {
        endless.extend(frame(CONTINUATION, 0, 1, &vec![0; MAX_FRAME]));
    }
    assert_eq!(filtered(&endless, &[]), Err(FrameError::BlockSize));

    let mut empty = frame(HEADERS, 0, 1, &[]);
    for _ in 0..=MAX_CONTINUATIONS {
        empty.extend(frame(CONTINUATION, 0, 1, &[]));
    }
    assert_eq!(filtered(&empty, &[]), Err(FrameError::BlockSize));

    // one large field in the table, then many references to it
    let mut bomb = encode(&mut Encoder::default(), &pairs(&[("x", &"v".repeat(3000))]), Encoder::WITH_INDEXING);
    bomb.extend([0x80 | 62; 1000]);
    let bomb = frame(HEADERS, END_HEADERS, 1, &bomb);
    assert_eq!(filtered(&bomb, &[]), Err(HpackError::ListSize(MAX_HEADERS).into()));
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let headers = frame(HEADERS, 0, 1, &[0x82]);
    let wrong_stream = [headers.clone(), frame(CONTINUATION, END_HEADERS, 3, &[])].concat();
    assert_eq!(filtered(&wrong_stream, &[]), Err(FrameError::Sequence(CONTINUATION)));
    let data_inside = [headers.clone(), frame(0, 0, 1, &[])].concat();
    assert_eq!(filtered(&data_inside, &[]), Err(FrameError::Sequence(0)));
    let headers_inside = [headers.clone(), headers].concat();
    assert_eq!(filtered(&headers_inside, &[]), Err(FrameError::Sequence(HEADERS)));
    assert_eq!(filtered(&frame(CONTINUATION, 0, 1, &[]), &[]), Err(FrameError::Sequence(CONTINUATION)));
    assert_eq!(filtered(&frame(PUSH_PROMISE, 4, 1, &[0; 4]), &[]), Err(FrameError::Forbidden(PUSH_PROMISE)));
    assert_eq!(filtered(&frame(HEADERS, PADDED | END_HEADERS, 1, &[9, 1]), &[]), Err(FrameError::Padding));
    assert_eq!(filtered(&frame(HEADERS, PADDED, 1, &[]), &[]), Err(FrameError::Padding));
    assert_eq!(filtered(&frame(HEADERS, PRIORITY, 1, &[1, 2, 3, 4]), &[]), Err(FrameError::Padding));
}

fn field() -> impl Strategy<Value = (String, String)> {
    // few names and values, so that the tables are used; some values large enough to push others out
    ("[a-c]{1,3}", prop_oneof!["[ -~]{0,12}", "[x]{900,1500}"])
}

proptest! {
    #[test]
    fn any_list_of_fields_in_any_encoding_arrives_as_sent(
        blocks in prop::collection::vec(prop::collection::vec((field(), 0_u8..32), 0..12), 1..8),
        sizes in prop::collection::vec(1_usize..5000, 0..20),
    ) {
        let mut encoder = Encoder::default();
        let mut input = frame(HEADERS, END_HEADERS, 1, &encode(&mut encoder, &request(BAD[0], "/x"), BEST));
        let mut expected = vec![headers(1, false, request("localhost", "/x"))];
        for (index, block) in blocks.iter().enumerate() {
            let stream = u32::try_from(index * 2 + 3).unwrap();
            let mut encoded = Vec::new();
            for ((name, value), flags) in block {
                encoder.encode((name.clone().into_bytes(), value.clone().into_bytes(), *flags), &mut encoded).unwrap();
            }
            // the encoder writes the whole block; frames hold 16 KiB
            prop_assume!(encoded.len() <= MAX_FRAME);
            input.extend(frame(HEADERS, END_HEADERS, stream, &encoded));
            expected.push(headers(stream, false, block.iter().map(|(pair, _)| pair.clone()).collect()));
        }
        prop_assert_eq!(read(&filtered(&input, &sizes).unwrap()), expected);
    }

    #[test]
    fn rubbish_is_refused_or_passed_but_never_a_panic(
        input in prop::collection::vec(any::<u8>(), 0..2000),
        block in prop::collection::vec(any::<u8>(), 0..400),
        flags in any::<u8>(),
    ) {
        let _ = filtered(&input, &[13]);
        let _ = filtered(&frame(HEADERS, flags, 1, &block), &[17]);
        let _ = Decoder::new().decode(&block, MAX_HEADERS);
    }

    #[test]
    fn output_is_bounded_by_input(block in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut input = frame(HEADERS, END_HEADERS, 1, &encode(&mut Encoder::default(), &request(BAD[0], "/x"), BEST));
        input.extend(frame(HEADERS, END_HEADERS, 3, &block));
        if let Ok(output) = filtered(&input, &[]) {
            prop_assert!(output.len() <= 2 * MAX_HEADERS);
        }
    }
}
