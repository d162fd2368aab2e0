//! How a node logs in at each connect. Credential files are read again each time, and other values
//! come from the last reload of the configuration. So a login can be changed while the node runs.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use async_nats::{AuthError, ConnectOptions};
use nkeys::KeyPair;
use presence_config::Auth;

/// The login of all connections of this process.
#[derive(Clone, Debug)]
pub(crate) struct Login(Arc<Mutex<Current>>);

#[derive(Debug)]
struct Current {
    auth: Auth,
    /// How often the login was replaced.
    version: u64,
}

/// A login that the broker has refused.
#[derive(Debug)]
pub(crate) struct RefusedLogin {
    login: Login,
    version: u64,
}

impl RefusedLogin {
    /// Whether the refused login is still in use.
    pub(crate) fn is_used(&self) -> bool {
        self.login.version() == self.version
    }
}

impl Login {
    pub(crate) fn new(auth: Auth) -> Self {
        let version = 0;
        Self(Arc::new(Mutex::new(Current { auth, version })))
    }

    /// Uses another login from the next connection on.
    pub(crate) fn replace(&self, auth: Auth) {
        let mut current = self.current();
        current.version += u64::from(current.auth != auth);
        current.auth = auth;
    }

    /// How often the login was replaced by a different one.
    pub(crate) fn version(&self) -> u64 {
        self.current().version
    }

    /// A record that the broker refuses the login of this version.
    pub(crate) fn refused(&self, version: u64) -> RefusedLogin {
        let login = self.clone();
        RefusedLogin { login, version }
    }

    fn auth(&self) -> Auth {
        self.current().auth.clone()
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Client options that use this login at each connect.
    ///
    /// # Errors
    /// If the login can't be used now: a file can't be read, or has the wrong content.
    pub(crate) fn options(&self) -> anyhow::Result<ConnectOptions> {
        answer(&self.auth(), &[])?;
        let login = self.clone();
        Ok(ConnectOptions::with_auth_callback(move |nonce| {
            let said = answer(&login.auth(), &nonce);
            // The client logs the error, and tries again.
            std::future::ready(said.map_err(|error| AuthError::new(format!("{error:#}"))))
        }))
    }
}

/// The login data for the broker, with the signature of its nonce where the kind of login needs
/// one.
fn answer(auth: &Auth, nonce: &[u8]) -> anyhow::Result<async_nats::Auth> {
    let mut said = async_nats::Auth::new();
    match auth {
        Auth::Anonymous => {}
        Auth::Password { user, password } => {
            said.username = Some(user.clone());
            said.password = Some(password.reveal().into());
        }
        Auth::Token(token) => said.token = Some(token.reveal().into()),
        Auth::Nkey(path) => {
            let key = key(&read(path)?).with_context(|| format!("nkey {}", path.display()))?;
            said.nkey = Some(key.public_key());
            said.signature = Some(key.sign(nonce)?);
        }
        Auth::Creds(path) => {
            let text = read(path)?;
            let place = || format!("creds {}", path.display());
            let jwt = section(&text, "NATS USER JWT").with_context(place)?;
            let seed = section(&text, "USER NKEY SEED").with_context(place)?;
            let key = key(seed).with_context(place)?;
            said.jwt = Some(jwt.into());
            said.signature = Some(key.sign(nonce)?);
        }
    }
    Ok(said)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}

/// The key pair of a seed. An error doesn't repeat the seed.
fn key(seed: &str) -> anyhow::Result<KeyPair> {
    KeyPair::from_seed(seed.trim()).context("it holds no seed of an nkey")
}

/// The content of a section of a `.creds` file, between the lines that begin and end it.
fn section<'a>(text: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let found = text
        .split_once(&format!("BEGIN {name}-"))
        .and_then(|(_, rest)| rest.split_once('\n'))
        .and_then(|(_, rest)| rest.split_once("---"))
        .map(|(body, _)| body.trim())
        .filter(|body| !body.is_empty() && !body.contains(char::is_whitespace));
    found.with_context(|| format!("it has no section \"{name}\""))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A login file of each kind, and the key in it.
    fn creds(jwt: &str, key: &KeyPair) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\r\n{jwt}\r\n------END NATS USER JWT------\n\n\
             *** IMPORTANT ***\n\n-----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            key.seed().unwrap()
        )
    }

    #[test]
    fn a_file_is_read_anew_at_each_login() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.creds");
        let auth = Auth::Creds(path.clone());
        for jwt in ["eyJ0.first.sig", "eyJ0.second.sig"] {
            let key = KeyPair::new_user();
            fs::write(&path, creds(jwt, &key)).unwrap();
            let said = answer(&auth, b"nonce").unwrap();
            assert_eq!(said.jwt.as_deref(), Some(jwt));
            key.verify(b"nonce", &said.signature.unwrap()).unwrap();
        }
        fs::write(&path, KeyPair::new_user().seed().unwrap()).unwrap();
        let key = answer(&Auth::Nkey(path), b"nonce").unwrap();
        assert!(key.nkey.unwrap().starts_with('U'));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.creds");
        let seed = KeyPair::new_user().seed().unwrap();
        let cut = seed.get(..20).unwrap();
        let broken = [
            (String::new(), "it has no section \"NATS USER JWT\""),
            (
                format!(
                    "-----BEGIN NATS USER JWT-----\neyJ0.a.b\n------END NATS USER JWT------\n{seed}"
                ),
                "it has no section \"USER NKEY SEED\"",
            ),
            (
                format!(
                    "-----BEGIN NATS USER JWT-----\neyJ0.a.b\n------END NATS USER JWT------\n\
                     -----BEGIN USER NKEY SEED-----\n{cut}\n------END USER NKEY SEED------\n"
                ),
                "it holds no seed of an nkey",
            ),
        ];
        for (text, problem) in broken {
            fs::write(&path, text).unwrap();
            let error = Login::new(Auth::Creds(path.clone()))
                .options()
                .err()
                .unwrap();
            let error = format!("{error:#}");
            assert!(
                error.contains("a.creds") && error.contains(problem),
                "{error}"
            );
            assert!(!error.contains(cut), "{error}");
        }
    }

    #[test]
    fn another_login_is_used_from_the_next_connection_on() {
        let login = Login::new(Auth::Anonymous);
        let same = login.clone();
        login.replace(Auth::Nkey("gone.nk".into()));
        assert!(same.options().is_err());
    }
}
