//! The hashes on which nodes, brokers and standbys must agree. They never change within one
//! [`VERSION`].

use crate::digest::{FNV64_OFFSET, fnv64, mix};
use crate::token;

/// The version of the hashes. It is noted in the fleet's bucket: a node with another version can't
/// join.
pub const VERSION: u32 = 1;

/// The shard that a user belongs to, if there are `shards` shards.
///
/// It equals what nats-server's subject mapping `partition(shards, 1)` computes for the user's
/// token: 32-bit FNV-1a, modulo the number of shards. So the broker's partition and a router pick
/// the same shard.
pub fn shard_of(user: &str, shards: u32) -> u32 {
    fnv32(token::encoded(user).as_bytes()) % shards.max(1)
}

/// The weight of a node for a shard (rendezvous hashing). Of the live nodes, the one with the
/// highest weight owns the shard, and the next ones are its standbys. A node that comes or goes
/// moves only its own shards. `placement` is a number of the fleet's own, so that two fleets on the
/// same nodes place their shards differently. With 0, the hash is the same as without a placement.
pub fn weight(placement: u64, shard: u32, node: &str) -> u64 {
    let mut hash = match placement {
        0 => FNV64_OFFSET,
        own => fnv64(FNV64_OFFSET, &own.to_le_bytes()),
    };
    hash = fnv64(hash, &shard.to_le_bytes());
    hash = fnv64(hash, node.as_bytes());
    mix(hash)
}

/// The nodes, by descending weight for a shard.
pub fn rank<'a>(
    placement: u64,
    shard: u32,
    nodes: impl IntoIterator<Item = &'a str>,
) -> Vec<&'a str> {
    let mut ranks: Vec<_> = nodes.into_iter().collect();
    // Equal weights are ordered by name.
    ranks.sort_unstable_by_key(|node| (std::cmp::Reverse(weight(placement, shard, node)), *node));
    ranks.dedup();
    ranks
}

const FNV32_OFFSET: u32 = 0x811c_9dc5;
const FNV32_PRIME: u32 = 0x0100_0193;

fn fnv32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(FNV32_OFFSET, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(FNV32_PRIME)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::digest::digest;

    #[test]
    fn a_partition_is_the_brokers() {
        // The published test vectors of FNV-1a, 32 bits.
        for (text, hash) in [
            ("", 0x811c_9dc5),
            ("a", 0xe40c_292c),
            ("foobar", 0xbf9c_f968),
        ] {
            assert_eq!(fnv32(text.as_bytes()), hash, "{text}");
        }
        assert_eq!(shard_of("foobar", 64), 0xbf9c_f968 % 64);
        // For an id that is no token, the token is hashed, since that is in the subject.
        let token = token::encode("ann@example.com");
        assert_eq!(
            shard_of("ann@example.com", 64),
            fnv32(token.as_bytes()) % 64
        );
        assert_eq!(shard_of("ann", 1), 0);
    }

    #[test]
    fn weights_stay_as_they_are_written_down() {
        assert_eq!(weight(0, 0, "node-a"), 0xf8ca_07f6_83e8_4175);
        assert_eq!(weight(0, 63, "node-b"), 0x6168_0dec_2e76_9896);
    }

    #[test]
    fn shards_spread_over_nodes() {
        let nodes = ["a", "b", "c", "d"];
        let mut counts = [0_u32; 4];
        for shard in 0..1_024 {
            let first = rank(0, shard, nodes)[0];
            let place = nodes.iter().position(|node| *node == first).unwrap();
            counts[place] += 1;
        }
        assert!(
            counts.iter().all(|count| (192..320).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn the_shards_of_many_small_fleets_spread_over_nodes() {
        let nodes = ["a", "b", "c", "d"];
        let mut counts = [0_u32; 4];
        for fleet in 0..1_024_u32 {
            let placement = digest(&[format!("tenant-{fleet}").as_bytes()]);
            let first = rank(placement, 0, nodes)[0];
            let place = nodes.iter().position(|node| *node == first).unwrap();
            counts[place] += 1;
        }
        assert!(
            counts.iter().all(|count| (192..320).contains(count)),
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn a_node_that_goes_moves_none_but_its_own_shards(
            nodes in proptest::collection::btree_set("[a-z]{1,8}", 2..12),
            (placement, shard) in (0_u64..4, 0_u32..4_096),
            gone in any::<prop::sample::Index>(),
        ) {
            let gone = gone.get(&nodes.iter().collect::<Vec<_>>()).as_str();
            let before = rank(placement, shard, nodes.iter().map(String::as_str));
            let left: BTreeSet<_> = nodes.iter().map(String::as_str).filter(|it| *it != gone).collect();
            let after = rank(placement, shard, left.iter().copied());
            // The others keep their order: only those behind the removed node move up.
            let expected: Vec<_> = before.into_iter().filter(|node| *node != gone).collect();
            prop_assert_eq!(after, expected);
        }
    }
}
