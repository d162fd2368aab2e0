//! Signatures over plugins: Ed25519, in a custom section at the beginning of the component, as
//! the WebAssembly tool conventions describe it ("Signatures") and wasmsign2 writes it.
//!
//! The section holds sets of hashes, each with the signatures over it. Only signatures over the
//! whole component are made and accepted here: the last hash of a set is the SHA-256 of all that
//! follows the section. (The conventions also permit a signature over the beginning alone. It says
//! nothing about the rest, so it is not accepted.)
//!
//! This code is the first to read a plugin's bytes, and nobody has vouched for them yet. So it
//! parses only this one section.

use presence_config::PublicKey;
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// The name of the custom section, which must be the component's first section.
const SECTION: &[u8] = b"signature";

/// The beginning of the signed message. `HEAD` follows: the version of the specification, the kind
/// of content (a module or component) and the hash function (SHA-256).
const DOMAIN: &[u8] = b"wasmsig";
const HEAD: [u8; 3] = [1, 1, 1];

/// The number that stands for Ed25519 in a signature.
const ALGORITHM: u8 = 1;

/// The first bytes of every component.
const PREAMBLE: [u8; 8] = *b"\0asm\x0d\0\x01\0";

const HASH_BYTES: usize = 32;

/// How many signatures a component may have, and how many hashes each set.
const SIGNATURES_MAX: usize = 64;
const HASHES_MAX: usize = 64;

/// Why a plugin's signature isn't accepted.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignatureError {
    /// The bytes are no WebAssembly component.
    #[error("it is not a WebAssembly component")]
    NoComponent,
    /// There is no signature.
    #[error("it has no signature: sign it with `presence plugin sign`")]
    Unsigned,
    /// The section can't be read.
    #[error("its signature can't be read ({0}): sign it again with `presence plugin sign`")]
    Malformed(&'static str),
    /// No signature is by a trusted key.
    #[error(
        "it is not signed with a trusted key: sign it with one, or add the public key of its \
         signer to [plugins] trusted_keys"
    )]
    Untrusted,
    /// It was signed with a trusted key, and changed after that.
    #[error("it was changed after it was signed with {0}: sign it again, if the change is meant")]
    Altered(PublicKey),
}

/// The signatures of a component, and what follows them.
struct Signed<'a> {
    sets: Vec<SignatureSet>,
    rest: &'a [u8],
}

/// Hashes, and the signatures over them.
struct SignatureSet {
    hashes: Vec<u8>,
    signatures: Vec<Signature>,
}

struct Signature {
    key_id: Vec<u8>,
    signature: Vec<u8>,
}

/// The signatures of a component, without its bytes. With them, its signers can be checked later.
pub struct Signatures {
    sets: Vec<SignatureSet>,
    /// The hash that a valid signature has to cover: of all that follows the section.
    hash: Vec<u8>,
}

impl Signatures {
    /// Reads the signatures of a component. It verifies none of them.
    ///
    /// # Errors
    /// If the component has no signatures, or they can't be read.
    pub fn read(component: &[u8]) -> Result<Self, SignatureError> {
        let Signed { sets, rest } = read(component)?.ok_or(SignatureError::Unsigned)?;
        let hash = digest(&SHA256, rest).as_ref().to_vec();
        Ok(Self { sets, hash })
    }

    /// Verifies the signatures. Returns those of `keys` that have signed the component, in the
    /// order of `keys`: one at least.
    ///
    /// # Errors
    /// If none of the keys has signed it as it is now.
    pub fn verify(&self, keys: &[PublicKey]) -> Result<Vec<PublicKey>, SignatureError> {
        let mut altered = None;
        let mut verified = Vec::new();
        for key in keys {
            let by_key = UnparsedPublicKey::new(&ED25519, &key.0);
            for set in &self.sets {
                let message = message(&set.hashes);
                let is_by = |it: &Signature| by_key.verify(&message, &it.signature).is_ok();
                if !set.signatures.iter().any(is_by) {
                    continue;
                }
                if set.hashes.ends_with(&self.hash) {
                    verified.push(*key);
                    break;
                }
                altered = Some(*key);
            }
        }
        match (verified.is_empty(), altered) {
            (false, _) => Ok(verified),
            (true, Some(key)) => Err(SignatureError::Altered(key)),
            (true, None) => Err(SignatureError::Untrusted),
        }
    }
}

/// Returns those of `keys` that have signed a component, in the order of `keys`: one at least.
///
/// # Errors
/// If none of the keys has signed it as it is now, or its signatures can't be read.
pub fn verify(component: &[u8], keys: &[PublicKey]) -> Result<Vec<PublicKey>, SignatureError> {
    Signatures::read(component)?.verify(keys)
}

/// Signs a component. The signatures of others over the same content stay, so that a plugin can
/// have several. Signatures over other content are left out.
///
/// # Errors
/// If the bytes are no component, or its signatures can't be read or are too many.
pub fn sign(component: &[u8], key: &Ed25519KeyPair) -> Result<Vec<u8>, SignatureError> {
    let signed = read(component)?;
    let unsigned = component.get(PREAMBLE.len()..).unwrap_or_default();
    let rest = signed.as_ref().map_or(unsigned, |signed| signed.rest);
    let hash = digest(&SHA256, rest);
    let message = message(hash.as_ref());
    let own = key.sign(&message);
    let by_own = UnparsedPublicKey::new(&ED25519, key.public_key().as_ref());
    let sets = signed.iter().flat_map(|signed| &signed.sets);
    let same = sets.filter(|set| set.hashes == hash.as_ref());
    let others = same
        .flat_map(|set| &set.signatures)
        .filter(|it| by_own.verify(&message, &it.signature).is_err());
    let mut signatures: Vec<_> = others.map(Signature::to_bytes).collect();
    if signatures.len() >= SIGNATURES_MAX {
        return Err(SignatureError::Malformed("it has too many signatures"));
    }
    let own = Signature {
        key_id: Vec::new(),
        signature: own.as_ref().to_vec(),
    };
    signatures.push(own.to_bytes());
    let mut set = vec![1];
    set.extend(hash.as_ref());
    write_number(&mut set, signatures.len());
    for signature in &signatures {
        write_length_prefixed(&mut set, signature);
    }
    Ok(with_section(&set, rest))
}

/// A component that begins with a signature section of this one set, and continues with `rest`.
fn with_section(set: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    write_length_prefixed(&mut content, SECTION);
    content.extend(HEAD);
    content.push(1);
    write_length_prefixed(&mut content, set);
    let mut bytes = PREAMBLE.to_vec();
    bytes.push(0);
    write_length_prefixed(&mut bytes, &content);
    bytes.extend(rest);
    bytes
}

impl Signature {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_length_prefixed(&mut bytes, &self.key_id);
        bytes.push(ALGORITHM);
        write_length_prefixed(&mut bytes, &self.signature);
        bytes
    }
}

/// The message that is signed for some hashes.
fn message(hashes: &[u8]) -> Vec<u8> {
    [DOMAIN, &HEAD, hashes].concat()
}

/// The signatures of a component, if it has any.
fn read(component: &[u8]) -> Result<Option<Signed<'_>>, SignatureError> {
    let rest = component.strip_prefix(&PREAMBLE);
    let mut rest = ByteReader(rest.ok_or(SignatureError::NoComponent)?);
    if rest.byte() != Some(0) {
        return Ok(None);
    }
    let Some(mut content) = rest.sized().map(ByteReader) else {
        return Ok(None);
    };
    if content.sized() != Some(SECTION) {
        return Ok(None);
    }
    let sets = sets(&mut content)?;
    Ok(Some(Signed { sets, rest: rest.0 }))
}

fn sets(content: &mut ByteReader<'_>) -> Result<Vec<SignatureSet>, SignatureError> {
    let ends = || SignatureError::Malformed("it ends too early");
    if content.take(HEAD.len()).ok_or_else(ends)? != HEAD {
        return Err(SignatureError::Malformed("it is of an unknown version"));
    }
    let mut sets = Vec::new();
    let mut left = SIGNATURES_MAX;
    let count = content.number().ok_or_else(ends)?;
    for _ in 0..count {
        let mut set = ByteReader(content.sized().ok_or_else(ends)?);
        let hashes = set.number().ok_or_else(ends)?;
        if hashes == 0 || hashes > HASHES_MAX {
            return Err(SignatureError::Malformed("it has too many hashes, or none"));
        }
        let hashes = set.take(HASH_BYTES * hashes).ok_or_else(ends)?;
        let mut signatures = Vec::new();
        let count = set.number().ok_or_else(ends)?;
        for _ in 0..count {
            let mut one = ByteReader(set.sized().ok_or_else(ends)?);
            left = left
                .checked_sub(1)
                .ok_or(SignatureError::Malformed("it has too many signatures"))?;
            let key_id = one.sized().ok_or_else(ends)?;
            // A signature by another algorithm is skipped.
            if one.byte() == Some(ALGORITHM)
                && let Some(signature) = one.sized()
            {
                one.expect_end()?;
                let (key_id, signature) = (key_id.to_vec(), signature.to_vec());
                signatures.push(Signature { key_id, signature });
            }
        }
        set.expect_end()?;
        // A set without signatures counts as one, so that the number of sets is bounded, too.
        left = left
            .checked_sub(usize::from(signatures.is_empty()))
            .ok_or(SignatureError::Malformed("it has too many sets of hashes"))?;
        sets.push(SignatureSet {
            hashes: hashes.to_vec(),
            signatures,
        });
    }
    // No signature would cover bytes that stand here, so there may be none.
    content.expect_end()?;
    Ok(sets)
}

/// The bytes that have not been read yet.
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// Fails unless all bytes have been read.
    fn expect_end(&self) -> Result<(), SignatureError> {
        let is_read = self.0.is_empty();
        is_read
            .then_some(())
            .ok_or(SignatureError::Malformed("something else follows it"))
    }

    /// Reads a number in LEB128, of at most 32 bits. Only the shortest form is accepted, so that
    /// there is one way to write a number.
    fn number(&mut self) -> Option<usize> {
        let mut number = 0_u64;
        for place in 0..5 {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte == 0 && place > 0 {
                return None;
            }
            if byte & 0x80 == 0 {
                return u32::try_from(number).ok().map(|number| number as usize);
            }
        }
        None
    }

    /// Reads a length, and as many bytes.
    fn sized(&mut self) -> Option<&'a [u8]> {
        let count = self.number()?;
        self.take(count)
    }
}

fn write_number(bytes: &mut Vec<u8>, mut number: usize) {
    while number > 0x7f {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn write_length_prefixed(bytes: &mut Vec<u8>, content: &[u8]) {
    write_number(bytes, content.len());
    bytes.extend(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::built_in;

    fn pair(seed: u8) -> (Ed25519KeyPair, PublicKey) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = PublicKey(pair.public_key().as_ref().try_into().unwrap());
        (pair, public)
    }

    #[test]
    fn what_is_signed_verifies_with_its_key_alone() {
        let component = built_in("public").unwrap();
        let ((one, key), (_, other)) = (pair(1), pair(2));
        let signed = sign(component, &one).unwrap();
        assert_eq!(verify(&signed, &[other, key]), Ok(vec![key]));
        assert_eq!(verify(&signed, &[other]), Err(SignatureError::Untrusted));
        assert_eq!(verify(&signed, &[]), Err(SignatureError::Untrusted));
        assert_eq!(verify(component, &[key]), Err(SignatureError::Unsigned));
        assert_eq!(verify(b"MZ", &[key]), Err(SignatureError::NoComponent));
        // Signing again changes nothing, since Ed25519 is deterministic.
        assert_eq!(sign(&signed, &one).unwrap(), signed);
    }

    /// A public key, and what `wasmsign2 sign` (0.2) has made with it of a component that holds one
    /// custom section.
    const WASMSIGN2: (&str, &str) = (
        "ed25519:vGI70JwuoVm2S6p5XLQGq0C2Zq7KRhh+2etexBNFdSI=",
        "0061736d0d0001000075097369676e617475726501010101660152d4da95257c462bddc3ca81b91f\
        adda8281f202e7ba2bbb4fc96bbcdb1f76c40143000140cf39fe5c34faccf64d58a53d5dabd9ce17\
        1a2be4526577ab9789da31420ffa04eb0214ffb9144b2b07a4ef571785aef1b49d5e2ee1821ed546\
        b0f86cb3ebfe010006046e6f746558",
    );

    #[test]
    fn what_wasmsign2_has_signed_verifies_and_keeps_its_signature_beside_another() {
        let (key, hex) = WASMSIGN2;
        let theirs = PublicKey::parse(key).unwrap();
        let digits = |place: usize| u8::from_str_radix(&hex[place..place + 2], 16).unwrap();
        let signed: Vec<_> = (0..hex.len()).step_by(2).map(digits).collect();
        assert_eq!(verify(&signed, &[theirs]), Ok(vec![theirs]));
        let (one, ours) = pair(1);
        let both = sign(&signed, &one).unwrap();
        assert_eq!(verify(&both, &[theirs, ours]), Ok(vec![theirs, ours]));
        let mut changed = signed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(
            verify(&changed, &[theirs]),
            Err(SignatureError::Altered(theirs))
        );
    }

    #[test]
    fn several_may_sign_the_same() {
        let ((one, first), (two, second)) = (pair(1), pair(2));
        let component = built_in("public").unwrap();
        let signed = sign(&sign(component, &one).unwrap(), &two).unwrap();
        assert_eq!(verify(&signed, &[second, first]), Ok(vec![second, first]));
    }

    #[test]
    fn not_a_bit_of_it_may_change() {
        let (one, key) = pair(1);
        let component = built_in("public").unwrap();
        let signed = sign(component, &one).unwrap();
        let mut longer = signed.clone();
        longer.extend([0, 2, 1, b'x']);
        assert_eq!(verify(&longer, &[key]), Err(SignatureError::Altered(key)));
        for place in (0..signed.len()).step_by(97).chain(8..160) {
            let mut changed = signed.clone();
            changed[place] ^= 1;
            assert!(verify(&changed, &[key]).is_err(), "{place}");
        }
        for end in (0..signed.len()).step_by(97).chain(0..200) {
            assert!(verify(&signed[..end], &[key]).is_err(), "{end}");
        }
        // The signature from before the change isn't kept beside the new one.
        let again = sign(&longer, &one).unwrap();
        assert_eq!(verify(&again, &[key]), Ok(vec![key]));
    }

    #[test]
    fn a_signature_over_the_beginning_says_nothing_of_the_rest() {
        let (one, key) = pair(1);
        let component = built_in("public").unwrap();
        let (whole, part) = (&component[8..], &component[8..40]);
        let with = |hashes: &[&[u8]], rest: &[u8]| {
            let hashes: Vec<u8> = hashes
                .iter()
                .flat_map(|part| digest(&SHA256, part).as_ref().to_vec())
                .collect();
            let signature = one.sign(&message(&hashes));
            let signature = Signature {
                key_id: b"key".to_vec(),
                signature: signature.as_ref().to_vec(),
            };
            let mut set = vec![(hashes.len() / HASH_BYTES) as u8];
            set.extend(&hashes);
            set.push(1);
            write_length_prefixed(&mut set, &signature.to_bytes());
            with_section(&set, rest)
        };
        assert_eq!(verify(&with(&[part, whole], whole), &[key]), Ok(vec![key]));
        let altered = Err(SignatureError::Altered(key));
        assert_eq!(verify(&with(&[part, whole], part), &[key]), altered);
        assert_eq!(verify(&with(&[part], whole), &[key]), altered);
    }

    #[test]
    fn nothing_can_be_put_into_a_signature_or_written_otherwise() {
        let (one, key) = pair(1);
        let component = built_in("public").unwrap();
        let rest = &component[8..];
        let hash = digest(&SHA256, rest);
        let signature = Signature {
            key_id: Vec::new(),
            signature: one.sign(&message(hash.as_ref())).as_ref().to_vec(),
        };
        // One byte more at each depth: in the signature, in the set, and in the section.
        let signed = |more: [&[u8]; 3], count: &[u8]| {
            let mut set = vec![1];
            set.extend(hash.as_ref());
            set.extend(count);
            write_length_prefixed(&mut set, &[&signature.to_bytes(), more[0]].concat());
            set.extend(more[1]);
            let mut content = Vec::new();
            write_length_prefixed(&mut content, SECTION);
            content.extend(HEAD);
            content.push(1);
            write_length_prefixed(&mut content, &set);
            content.extend(more[2]);
            let mut bytes = PREAMBLE.to_vec();
            bytes.push(0);
            write_length_prefixed(&mut bytes, &content);
            bytes.extend(rest);
            bytes
        };
        let plain = signed([&[], &[], &[]], &[1]);
        assert_eq!(verify(&plain, &[key]), Ok(vec![key]));
        for other in [
            signed([b"x", &[], &[]], &[1]),
            signed([&[], b"x", &[]], &[1]),
            signed([&[], &[], b"x"], &[1]),
            signed([&[], &[], &[]], &[0x81, 0]),
            signed([&[], &[], &[]], &[0x81, 0x80, 0]),
        ] {
            let refused = verify(&other, &[key]);
            assert!(matches!(refused, Err(SignatureError::Malformed(_))));
        }
        // The same for the length of the section.
        let mut longer = plain.clone();
        let at = plain[9..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 9;
        longer[at] |= 0x80;
        longer.insert(at + 1, 0);
        assert!(verify(&longer, &[key]).is_err());
    }

    #[test]
    fn numbers_without_end_and_counts_beyond_the_end_are_refused() {
        let (_, key) = pair(1);
        let section = |data: &[u8]| {
            let mut content = Vec::new();
            write_length_prefixed(&mut content, SECTION);
            content.extend(data);
            let mut bytes = PREAMBLE.to_vec();
            bytes.push(0);
            write_length_prefixed(&mut bytes, &content);
            bytes
        };
        for data in [
            &[][..],
            &[1, 1],
            &[2, 1, 1, 0],
            &[1, 1, 1],
            &[1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f],
            &[1, 1, 1, 1, 0xff, 0x7f],
            &[1, 1, 1, 1, 2, 0xff, 0x7f],
        ] {
            let refused = verify(&section(data), &[key]);
            assert!(
                matches!(refused, Err(SignatureError::Malformed(_))),
                "{data:?}"
            );
        }
        let many = [&[1, 1, 1, 0xff, 0x7f][..], &[35_u8; 36]].concat();
        assert!(verify(&section(&many), &[key]).is_err());
    }
}
