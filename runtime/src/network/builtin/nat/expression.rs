//! Rules as the kernel keeps them: expressions one after the other, which load registers, compare them and act.

use crate::network::netlink::message::Attributes;

/// Verdicts (NF_DROP, NF_ACCEPT, NFT_JUMP).
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;
/// `goto`, as elements of a verdict map have it.
const GOTO: i32 = -4;
const VERDICT_REGISTER: u32 = 0;
/// The first of sixteen registers of four bytes.
const FIRST: u32 = 8;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// Which tuple of a connection.
const ORIGINAL: u8 = 0;

/// The expressions of one rule.
pub(super) struct Rule<'a, 'b> {
    list: &'a mut Attributes<'b>,
}

impl<'a, 'b> Rule<'a, 'b> {
    pub(super) fn new(list: &'a mut Attributes<'b>) -> Self {
        Self { list }
    }

    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.list.nest(1, |element| {
            element.text(1, name);
            element.nest(2, body);
        });
        self
    }

    /// Bytes of the network header into registers from the `word`th on.
    pub(super) fn network_header(&mut self, word: u32, offset: u32, length: u32) -> &mut Self {
        self.payload(1, word, offset, length)
    }

    /// The destination port, which TCP, UDP and SCTP have at the same place.
    pub(super) fn destination_port(&mut self, word: u32) -> &mut Self {
        self.payload(2, word, 2, 2)
    }

    fn payload(&mut self, base: u32, word: u32, offset: u32, length: u32) -> &mut Self {
        self.expression("payload", |payload| {
            payload.be32(1, FIRST + word);
            payload.be32(2, base);
            payload.be32(3, offset);
            payload.be32(4, length);
        })
    }

    fn meta(&mut self, word: u32, key: u32) -> &mut Self {
        self.expression("meta", |meta| {
            meta.be32(1, FIRST + word);
            meta.be32(2, key);
        })
    }

    /// The number of the transport protocol.
    pub(super) fn protocol(&mut self, word: u32) -> &mut Self {
        self.meta(word, 16)
    }

    /// What came in by another link than `lo`, which is the first in every namespace.
    pub(super) fn came_from_outside(&mut self) -> &mut Self {
        self.meta(0, 4).compare(false, &1_u32.to_ne_bytes())
    }

    /// The port that the first packet of the connection was for, before anything was changed in it.
    pub(super) fn original_port(&mut self, word: u32) -> &mut Self {
        self.expression("ct", |ct| {
            ct.be32(1, FIRST + word);
            ct.be32(2, 12);
            ct.bytes(3, &[ORIGINAL]);
        })
    }

    /// What is for an address of this host.
    pub(super) fn goes_to_this_host(&mut self) -> &mut Self {
        const LOCAL: u32 = 2;
        self.expression("fib", |fib| {
            fib.be32(1, FIRST);
            // the type of the address that the packet goes to
            fib.be32(2, 3);
            fib.be32(3, 2);
        });
        self.compare(true, &LOCAL.to_ne_bytes())
    }

    /// Goes on if the registers from the first on are (or are not) that.
    pub(super) fn compare(&mut self, equal: bool, value: &[u8]) -> &mut Self {
        self.expression("cmp", |compare| {
            compare.be32(1, FIRST);
            compare.be32(2, u32::from(!equal));
            compare.nest(3, |data| data.bytes(DATA_VALUE, value));
        })
    }

    /// Clears what a mask does not have in the registers from the first on.
    pub(super) fn mask(&mut self, mask: &[u8]) -> &mut Self {
        self.expression("bitwise", |bitwise| {
            bitwise.be32(1, FIRST);
            bitwise.be32(2, FIRST);
            bitwise.be32(3, u32::try_from(mask.len()).unwrap_or(0));
            bitwise.nest(4, |data| data.bytes(DATA_VALUE, mask));
            bitwise.nest(5, |data| data.bytes(DATA_VALUE, &vec![0; mask.len()]));
        })
    }

    /// Looks the registers up in a map, whose value takes their place.
    pub(super) fn map(&mut self, set: &str) -> &mut Self {
        self.lookup(set, FIRST)
    }

    /// Looks the registers up in a map of chains, and goes there.
    pub(super) fn go_by(&mut self, set: &str) -> &mut Self {
        self.lookup(set, VERDICT_REGISTER)
    }

    fn lookup(&mut self, set: &str, destination: u32) -> &mut Self {
        self.expression("lookup", |lookup| {
            lookup.text(1, set);
            lookup.be32(2, FIRST);
            lookup.be32(3, destination);
        })
    }

    /// Sends the connection to the address in the first registers and the port behind it.
    pub(super) fn send_to(&mut self, family: u8, words: u32) -> &mut Self {
        const DESTINATION: u32 = 1;
        self.expression("nat", |nat| {
            nat.be32(1, DESTINATION);
            nat.be32(2, u32::from(family));
            nat.be32(3, FIRST);
            nat.be32(5, FIRST + words);
        })
    }

    /// Gives the connection the address of the link that it leaves by.
    pub(super) fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |_| {})
    }

    pub(super) fn drop(&mut self) -> &mut Self {
        self.verdict(DROP, None)
    }

    pub(super) fn accept(&mut self) -> &mut Self {
        self.verdict(ACCEPT, None)
    }

    pub(super) fn jump(&mut self, chain: &str) -> &mut Self {
        self.verdict(JUMP, Some(chain))
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) -> &mut Self {
        self.expression("immediate", |immediate| {
            immediate.be32(1, VERDICT_REGISTER);
            immediate.nest(2, |data| verdict(data, code, chain));
        })
    }
}

fn verdict(data: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    data.nest(DATA_VERDICT, |verdict| {
        verdict.be32(1, code.cast_unsigned());
        if let Some(chain) = chain {
            verdict.text(2, chain);
        }
    });
}

/// The value of an element that leads to a chain.
pub(super) fn go_to(data: &mut Attributes<'_>, chain: &str) {
    verdict(data, GOTO, Some(chain));
}

/// A value or a key.
pub(super) fn value(data: &mut Attributes<'_>, bytes: &[u8]) {
    data.bytes(DATA_VALUE, bytes);
}
