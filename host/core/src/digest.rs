//! Digests by which nodes compare their states. They never change, since nodes of different
//! versions must agree.

/// A digest of a list of texts. The same bytes, split otherwise, have another digest.
pub fn digest(parts: &[&[u8]]) -> u64 {
    let hash = parts.iter().fold(FNV64_OFFSET, |hash, part| {
        let length = (part.len() as u64).to_le_bytes();
        fnv64(fnv64(hash, &length), part)
    });
    mix(hash)
}

/// The number of parts in which a set is compared. Some elements come and go all the time: they can
/// only hide a difference in their own part.
pub const PARTS: usize = 32;

/// The digest of a set, in parts. Adding an element and removing it again leaves the digest
/// unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartedDigest([u64; PARTS]);

impl PartedDigest {
    /// Adds the element with this digest.
    pub fn add(&mut self, digest: u64) {
        let part = self.part(digest);
        *part = part.wrapping_add(digest);
    }

    /// Removes the element with this digest.
    pub fn remove(&mut self, digest: u64) {
        let part = self.part(digest);
        *part = part.wrapping_sub(digest);
    }

    /// Adds all elements of another set.
    pub fn add_all(&mut self, other: &Self) {
        let parts = self.0.iter_mut().zip(other.0);
        parts.for_each(|(part, digest)| *part = part.wrapping_add(digest));
    }

    /// The digests of the parts.
    pub fn parts(&self) -> &[u64; PARTS] {
        &self.0
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "a number of five bits is less than 32"
    )]
    fn part(&mut self, digest: u64) -> &mut u64 {
        &mut self.0[(digest >> 59) as usize]
    }
}

impl FromIterator<u64> for PartedDigest {
    fn from_iter<T: IntoIterator<Item = u64>>(digests: T) -> Self {
        let mut parted = Self::default();
        digests.into_iter().for_each(|digest| parted.add(digest));
        parted
    }
}

pub(crate) const FNV64_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV64_PRIME: u64 = 0x0000_0100_0000_01b3;

pub(crate) fn fnv64(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(FNV64_PRIME)
    })
}

/// The final step of splitmix64. FNV-1a alone leaves the high bits of short texts similar.
pub(crate) fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_stay_as_they_are_written_down() {
        assert_eq!(digest(&[b"ab", b"c"]), 0x482f_6f54_3bbc_5465);
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
    }

    #[test]
    fn what_has_gone_leaves_no_trace_and_the_order_is_all_the_same() {
        let digests = ["a", "b", "c", "d"].map(|text| digest(&[text.as_bytes()]));
        let [a, b, c, d] = digests;
        let mut parted: PartedDigest = [d, b, a].into_iter().collect();
        parted.remove(b);
        parted.add(c);
        assert_eq!(parted, [a, c, d].into_iter().collect());
        assert_ne!(parted, digests.into_iter().collect());
    }
}
