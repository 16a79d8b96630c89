//! What nodes and coordinator tell each other of blobs that nodes exchange.

use hatchery_common::{
    id::BlobId,
    swarm::{FetchPlan, PeerReach, PlannedParent, SwarmReport, Trouble, Wait, WantedBlob},
    view::PeersView,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{digest, name, node_id};

pub(super) fn peers_view() -> impl Strategy<Value = PeersView> {
    let link = (any::<bool>(), option::of(1.0..1e9), option::of(1.0..1e9));
    let addresses = vec(select(vec!["gpu-a:4748".to_owned(), "[::1]:80".to_owned()]), 0..3);
    (addresses, link, any::<(u64, u64, u32)>(), vec(name(), 0..3), any::<bool>()).prop_map(
        |(addresses, link, bytes, suspected_by, is_barred)| PeersView {
            addresses,
            can_be_dialled: link.0,
            up_bytes_per_sec: link.1,
            down_bytes_per_sec: link.2,
            sent_bytes: bytes.0,
            received_bytes: bytes.1,
            fetching: bytes.2,
            suspected_by,
            is_barred,
        },
    )
}

pub(super) fn blob_id() -> impl Strategy<Value = BlobId> {
    digest().prop_map(BlobId)
}

fn addresses() -> impl Strategy<Value = Vec<String>> {
    vec(select(vec!["gpu-a:4748".to_owned(), "[::1]:80".to_owned(), "10.0.0.7:65535".to_owned()]), 0..3)
}

pub(super) fn swarm_report() -> impl Strategy<Value = SwarmReport> {
    let reach = (option::of(1..=u16::MAX), addresses(), option::of(any::<u32>()))
        .prop_map(|(port, addresses, children_max)| PeerReach { port, addresses, children_max });
    let wants = vec(
        (blob_id(), any::<u32>(), any::<u64>()).prop_map(|(blob, held, fetch)| WantedBlob {
            blob,
            held,
            fetch,
        }),
        0..3,
    );
    let rates = (option::of(1.0..1e12), option::of(1.0..1e12), any::<(u64, u64)>());
    (option::of(reach), option::of(vec(blob_id(), 0..3)), wants, rates).prop_map(
        |(reach, holds, wants, (up_bytes_per_sec, down_bytes_per_sec, (sent_bytes, received_bytes)))| {
            SwarmReport {
                reach,
                holds,
                wants,
                up_bytes_per_sec,
                down_bytes_per_sec,
                sent_bytes,
                received_bytes,
            }
        },
    )
}

pub(super) fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        node_id().prop_map(Trouble::Stalled),
        node_id().prop_map(Trouble::Slow),
        node_id().prop_map(Trouble::Wrong),
        Just(Trouble::Starved),
    ]
}

pub(super) fn fetch_plan() -> impl Strategy<Value = FetchPlan> {
    let parent = (node_id(), addresses()).prop_map(|(node, addresses)| PlannedParent { node, addresses });
    let waits = option::of(select(vec![Wait::NoHolder, Wait::NoSlot]));
    (blob_id(), vec(parent, 0..3), waits).prop_map(|(blob, parents, waits)| FetchPlan {
        blob,
        parents,
        waits,
    })
}
