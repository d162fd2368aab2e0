//! Files of keys that plugins are signed with. A private key is a PEM file (PKCS #8), as
//! `openssl genpkey -algorithm ed25519` writes it, too.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use presence_config::PublicKey;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// The PKCS #8 header of an Ed25519 key. The 32 bytes of the key follow it.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// At most this much of a key file is read.
const BYTES_MAX: u64 = 4_096;

/// The bits that let others do anything with a file.
const OTHERS: u32 = 0o077;

/// Makes a new key, in a file that nobody else can read, and gives back its public half.
///
/// # Errors
/// If there is a file of that name already, or it can't be written.
pub fn generate(path: &Path) -> anyhow::Result<PublicKey> {
    let mut seed = [0; 32];
    let random = SystemRandom::new().fill(&mut seed);
    random.map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed);
    let pair = pair.map_err(|error| anyhow::anyhow!("can't make a key: {error}"))?;
    let encoded = STANDARD.encode([&PKCS8[..], &seed].concat());
    let mut file = File::options();
    let file = file.write(true).create_new(true).mode(0o600).open(path);
    let mut file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
            "{} exists: a key is never overwritten; choose another name",
            path.display()
        ),
        Err(error) => {
            return Err(error).with_context(|| format!("can't write {}", path.display()));
        }
    };
    let written = write!(file, "{BEGIN}\n{encoded}\n{END}\n").and_then(|()| file.sync_all());
    if let Err(error) = written {
        // A file with half a key is of no use.
        let _ = fs::remove_file(path);
        return Err(error).with_context(|| format!("can't write {}", path.display()));
    }
    public(&pair)
}

/// The public half of a key.
///
/// # Errors
/// If the public half isn't 32 bytes long, which an Ed25519 key's always is.
pub fn public(pair: &Ed25519KeyPair) -> anyhow::Result<PublicKey> {
    let bytes = pair.public_key().as_ref().try_into();
    Ok(PublicKey(bytes.context("a key of another length")?))
}

/// Reads a private key.
///
/// # Errors
/// If others can read the file, or it holds no private key of Ed25519.
pub fn private(path: &Path) -> anyhow::Result<Ed25519KeyPair> {
    let cant = || format!("can't read the key {}", path.display());
    let file = File::open(path).with_context(cant)?;
    let about = file.metadata().with_context(cant)?;
    ensure!(about.is_file(), "{}: it is no file", cant());
    ensure!(
        about.mode() & OTHERS == 0,
        "others can read the key {}: `chmod 600` it, and if they may have read it, make a new one",
        path.display()
    );
    let mut text = String::new();
    file.take(BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(cant)?;
    let none = || {
        format!(
            "{} holds no private key of Ed25519: make one with `presence plugin keygen`",
            path.display()
        )
    };
    let body = text
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END));
    let (body, _) = body.with_context(none)?;
    let body: String = body.split_whitespace().collect();
    let bytes = STANDARD.decode(body).ok().with_context(none)?;
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&bytes);
    pair.ok().with_context(none)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_its_owner_s_alone_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("team.key");
        let key = generate(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(public(&private(&path).unwrap()).unwrap(), key);
        let error = generate(&path).unwrap_err().to_string();
        assert!(error.contains("never overwritten"), "{error}");
        assert_eq!(public(&private(&path).unwrap()).unwrap(), key);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let error = private(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn what_holds_no_key_is_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("team.key");
        for text in [
            "",
            "secret",
            "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
        ] {
            let _ = fs::remove_file(&path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let error = format!("{:#}", private(&path).unwrap_err());
            assert!(error.contains("holds no private key"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
