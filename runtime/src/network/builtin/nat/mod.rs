//! Host ports and masquerading, as the reference plugins `portmap` and `bridge` (`ipMasq`) have them, by nftables.
//!
//! * [`rules`] computes what all pods together want of the tables
//! * [`table`] writes that as one transaction of nf_tables, made of [`expression`]s
//! * [`conntrack`] forgets UDP connections that a change has made wrong
//! * [`watch`] hears when somebody else removes the tables, or a part of them
//!
//! The pods' claims are kept in memory, and read from the network records by whoever needs them first: the tables are then
//! made anew, whatever a crash or a reboot left in them. From then on only differences are written. If the kernel refuses
//! one (because the tables are not as they were left), they are made anew as well; connections live on, since the kernel
//! remembers itself how each is translated.

mod conntrack;
mod expression;
mod rules;
mod table;
pub(in crate::network) mod watch;

pub(in crate::network) use rules::Claim;
pub(super) use rules::protocol;

use super::claim_of;
use crate::network::{
    cache::{Cache, CacheError},
    chain_of,
    netlink::{
        NetlinkError, Socket,
        netfilter::{Family, Transaction, table_question},
    },
};
use nix::errno::Errno;
use rules::{Contents, Set, contents, udp_ports};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Host ports or masquerading could not be set up, looked at or removed.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// the records of other pods cannot be read
    #[error("read the host ports of the pods that are there")]
    Records(#[source] CacheError),
    /// the kernel cannot be asked
    #[error("reach nf_tables")]
    Reach(#[source] NetlinkError),
    /// the kernel refused
    #[error("write host ports and masquerading as an nftables transaction")]
    Write(#[source] NetlinkError),
    /// CHECK could not look
    #[error("look at the nftables table")]
    Look(#[source] NetlinkError),
    /// CHECK found something missing
    #[error("set {set} of the nftables table has lost an element of this pod")]
    Lost {
        /// the set
        set: &'static str,
    },
}

/// All pods' host ports and masquerading.
#[derive(Debug)]
pub(in crate::network) struct Nat {
    cache: Cache,
    table: String,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    /// belongs to the host's network namespace, like the thread that opened it
    socket: Socket,
    table: String,
    claims: BTreeMap<String, Claim>,
    /// what the kernel has, by family; nothing is known of one that is absent
    written: BTreeMap<Family, Contents>,
}

impl Nat {
    /// `table` is the name of the tables.
    pub(in crate::network) fn new(cache: Cache, table: String) -> Self {
        Self { cache, table, state: Mutex::new(None) }
    }

    /// Gives a pod its host ports. The thread must be in the host's network namespace.
    pub(in crate::network) fn claim(&self, sandbox: &str, claim: Claim) -> Result<(), NatError> {
        let mut guard = self.lock();
        let state = self.load(&mut guard)?;
        let ports = udp_ports(&claim);
        let before = state.claims.insert(sandbox.to_owned(), claim);
        if let Err(error) = state.write() {
            match before {
                Some(before) => state.claims.insert(sandbox.to_owned(), before),
                None => state.claims.remove(sandbox),
            };
            return Err(error);
        }
        drop(guard);
        forget_connections(&ports);
        Ok(())
    }

    /// Takes away what a pod has. The thread must be in the host's network namespace.
    pub(in crate::network) fn release(&self, sandbox: &str) -> Result<(), NatError> {
        let mut guard = self.lock();
        let state = self.load(&mut guard)?;
        let Some(claim) = state.claims.remove(sandbox) else { return Ok(()) };
        if let Err(error) = state.write() {
            state.claims.insert(sandbox.to_owned(), claim);
            return Err(error);
        }
        drop(guard);
        forget_connections(&udp_ports(&claim));
        Ok(())
    }

    /// Brings the tables to what the records say, if that was not done yet.
    pub(in crate::network) fn ensure(&self) -> Result<(), NatError> {
        let mut guard = self.lock();
        self.load(&mut guard).map(drop)
    }

    /// Whether the tables are where they were written.
    fn is_intact(&self) -> bool {
        let mut guard = self.lock();
        let Some(state) = guard.as_mut() else { return true };
        let written: Vec<Family> = state.written.keys().copied().collect();
        written.into_iter().all(|family| state.is_there(family))
    }

    /// Writes the tables anew: somebody has taken something out of them.
    fn renew(&self) -> Result<(), NatError> {
        let mut guard = self.lock();
        let state = self.load(&mut guard)?;
        let wanted = Family::BOTH.map(|family| (family, contents(family, state.claims.iter())));
        state.renew(wanted)
    }

    /// Whether the kernel still has what a pod was given.
    pub(in crate::network) fn check(&self, sandbox: &str) -> Result<(), NatError> {
        let mut guard = self.lock();
        let state = self.load(&mut guard)?;
        let Some(own) = state.claims.get(sandbox).cloned() else { return Ok(()) };
        for family in Family::BOTH {
            let all = contents(family, state.claims.iter());
            let name = sandbox.to_owned();
            for (element, target) in contents(family, std::iter::once((&name, &own))).elements {
                // an earlier pod may have the port
                if all.elements.get(&element) == Some(&target) && !state.has(family, element.0, &element.1)? {
                    return Err(NatError::Lost { set: element.0.name() });
                }
            }
        }
        Ok(())
    }

    /// Whether a pod has host ports or masquerading.
    pub(in crate::network) fn is_used(&self) -> bool {
        self.lock().as_ref().is_some_and(|state| !state.claims.is_empty())
    }

    /// The port of the socket that changes tables; `None` while no pod needs them.
    fn port(&self) -> Option<u32> {
        let guard = self.lock();
        let state = guard.as_ref().filter(|state| !state.claims.is_empty())?;
        state.socket.port().ok()
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        // what a panic left half done is not known to be written, and is written anew
        self.state.lock().unwrap_or_else(|poisoned| {
            let mut guard = PoisonError::into_inner(poisoned);
            *guard = None;
            guard
        })
    }

    fn load<'a>(&self, state: &'a mut Option<State>) -> Result<&'a mut State, NatError> {
        if state.is_none() {
            let mut claims = BTreeMap::new();
            for sandbox in self.cache.sandboxes().map_err(NatError::Records)? {
                match self.cache.load(&sandbox) {
                    Ok(record) => claims.extend(record.as_ref().and_then(claim_of).map(|claim| (sandbox, claim))),
                    // its own DEL will say the same; the others must have their ports
                    Err(error) => {
                        log::warn!(sandbox = sandbox.as_str(), error = chain_of(&error).as_str(); "host ports are not known")
                    }
                }
            }
            let socket = Socket::open_netfilter().map_err(NatError::Reach)?;
            let mut fresh = State { socket, table: self.table.clone(), claims, written: BTreeMap::new() };
            let wanted = Family::BOTH.map(|family| (family, contents(family, fresh.claims.iter())));
            fresh.renew(wanted)?;
            *state = Some(fresh);
        }
        // was just made
        state.as_mut().ok_or(NatError::Reach(NetlinkError::Open(Errno::ENOENT)))
    }
}

impl State {
    /// One transaction that makes both tables what the claims want.
    fn write(&mut self) -> Result<(), NatError> {
        let wanted = Family::BOTH.map(|family| (family, contents(family, self.claims.iter())));
        let known = wanted.iter().all(|(family, wanted)| self.written.contains_key(family) || wanted.is_empty());
        if known {
            match self.change(&wanted) {
                Ok(()) => return Ok(()),
                Err(error) => log::debug!(error = chain_of(&error).as_str(); "the tables are not as they were left"),
            }
        }
        self.renew(wanted)
    }

    /// Makes the tables anew. Nodes whose pods want nothing of them have none.
    fn renew(&mut self, wanted: [(Family, Contents); 2]) -> Result<(), NatError> {
        self.written.clear();
        let table = self.table.clone();
        let mut transaction = Transaction::on(&table);
        let mut result = BTreeMap::new();
        for (family, wanted) in wanted {
            if !wanted.is_empty() {
                table::create(&mut transaction, family);
                table::change(&mut transaction, family, &Contents::default(), &wanted);
                result.insert(family, wanted);
            } else if self.is_there(family) {
                table::remove(&mut transaction, family);
            }
        }
        if !transaction.is_empty() {
            self.socket.commit("make the tables of host ports", transaction).map_err(NatError::Write)?;
        }
        self.written = result;
        Ok(())
    }

    fn change(&mut self, wanted: &[(Family, Contents)]) -> Result<(), NatError> {
        let table = self.table.clone();
        let mut transaction = Transaction::on(&table);
        let mut result = self.written.clone();
        for (family, wanted) in wanted {
            let Some(written) = result.get_mut(family) else { continue };
            table::change(&mut transaction, *family, written, wanted);
            written.elements.clone_from(&wanted.elements);
            // chains stay
            written.networks.extend(wanted.networks.clone());
        }
        if !transaction.is_empty() {
            self.socket.commit("change host ports", transaction).map_err(NatError::Write)?;
        }
        self.written = result;
        Ok(())
    }

    fn is_there(&mut self, family: Family) -> bool {
        let question = table_question(&self.table, table::GETTABLE, family, |_| {});
        self.socket.get("look up a table", &question, |_| Ok(())).is_ok()
    }

    fn has(&mut self, family: Family, set: Set, key: &[u8]) -> Result<bool, NatError> {
        let question = table_question(&self.table, table::GETSETELEM, family, |message| {
            message.text(2, set.name());
            message.nest(3, |list| list.nest(1, |element| element.nest(1, |data| expression::value(data, key))));
        });
        match self.socket.get("look up an element", &question, |_| Ok(())) {
            Ok(()) => Ok(true),
            Err(error) if error.reason() == Some(Errno::ENOENT) => Ok(false),
            Err(error) => Err(NatError::Look(error)),
        }
    }
}

/// A kernel that cannot tell of connections lets stale ones end by themselves, 30 s after the last packet.
fn forget_connections(ports: &rules::UdpPorts) {
    if ports.is_empty() {
        return;
    }
    if let Err(error) = conntrack::forget(ports) {
        log::warn!(error = chain_of(&error).as_str(); "tracked UDP connections to changed host ports stay until they are idle");
    }
}
