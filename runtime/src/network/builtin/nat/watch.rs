//! Somebody else has emptied the tables (`nft flush ruleset`, a restart of the nftables unit): they are written again.

use super::Nat;
use crate::network::{chain_of, netlink::netfilter::TableEvents};
use std::{sync::Weak, time::Duration};

/// A program that flushes in a loop is not answered more often than that.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs until the network is dropped. It has at least one claim when this begins.
pub(in crate::network) async fn watch(nat: Weak<Nat>) {
    let mut events = match TableEvents::subscribe() {
        Ok(events) => events,
        Err(error) => {
            log::warn!(error = chain_of(&error).as_str(); "cannot hear of flushed tables: host ports may vanish with them");
            return;
        }
    };
    let Some(table) = nat.upgrade().map(|nat| nat.table.clone()) else { return };
    // of a network that is gone, too: then there is nothing to be done, which is seen below
    let foreign = |port| nat.upgrade().is_none_or(|nat| nat.port().is_some_and(|own| own != port));
    // what went before the events began to flow is not in them
    let mut intact = on_thread(&nat, Nat::is_intact).await.unwrap_or(true);
    loop {
        if intact && let Err(error) = events.intrusion(&table, foreign).await {
            log::warn!(error = chain_of(&error).as_str(); "hears no more of flushed tables: host ports may vanish with them");
            return;
        }
        let Some(renewed) = on_thread(&nat, Nat::renew).await else { return };
        log::warn!(table = table.as_str(); "somebody has taken host ports out of the nftables table: they are written again");
        if let Err(error) = renewed {
            log::error!(error = chain_of(&error).as_str(); "host ports cannot be written again");
        }
        intact = true;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Netlink blocks. `None` when the network is gone, or the runtime is ending.
async fn on_thread<T: Send + 'static>(nat: &Weak<Nat>, work: fn(&Nat) -> T) -> Option<T> {
    let nat = nat.upgrade()?;
    tokio::task::spawn_blocking(move || work(&nat)).await.ok()
}
