//! The credentials of a broker and its clients: certificates, and the tokens of a server with
//! operators and accounts. All of them are made anew for each test.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair as CertificateKey,
};
use serde_json::{Value, json};

/// An authority that signs certificates.
pub struct Authority(CertifiedIssuer<'static, CertificateKey>);

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = CertificateKey::generate()?;
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
    }

    /// Its own certificate.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a certificate for a name, or an address, and writes it into a folder, with its key:
    /// `<file>.pem` and `<file>.key`.
    ///
    /// # Errors
    /// When it can't be made or written.
    pub fn issue(&self, name: &str, folder: &Path, file: &str) -> Result<()> {
        let key = CertificateKey::generate()?;
        let params = CertificateParams::new(vec![name.to_owned()])?;
        let certificate = params.signed_by(&key, &self.0)?;
        fs::write(folder.join(format!("{file}.pem")), certificate.pem())?;
        fs::write(folder.join(format!("{file}.key")), key.serialize_pem())?;
        Ok(())
    }
}

/// A server with an operator, and one account for users.
pub struct OperatorServer {
    /// The lines of the server's configuration.
    pub config: String,
    account: KeyPair,
}

impl OperatorServer {
    /// A new server's keys and configuration.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new() -> Result<Self> {
        let (operator, system, account) = (
            KeyPair::new_operator(),
            KeyPair::new_account(),
            KeyPair::new_account(),
        );
        let own = json!({"type": "operator", "version": 2, "system_account": system.public_key()});
        let operator_jwt = jwt(&operator, &operator.public_key(), own)?;
        let limits = json!({
            "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1,
            "payload": -1, "wildcards": true,
        });
        let with_streams = json!({
            "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1,
            "payload": -1, "wildcards": true,
            "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        let of_account = |key: &KeyPair, limits: Value| {
            let claims = json!({"type": "account", "version": 2, "limits": limits});
            jwt(&operator, &key.public_key(), claims)
        };
        let config = format!(
            "operator: {operator_jwt}\nsystem_account: {}\nresolver: MEMORY\n\
             resolver_preload: {{ {}: {}, {}: {} }}",
            system.public_key(),
            system.public_key(),
            of_account(&system, limits)?,
            account.public_key(),
            of_account(&account, with_streams)?,
        );
        Ok(Self { config, account })
    }

    /// The `.creds` file of a new user.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn creds(&self) -> Result<String> {
        let user = KeyPair::new_user();
        let claims = json!({
            "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1,
            "payload": -1,
        });
        let jwt = jwt(&self.account, &user.public_key(), claims)?;
        Ok(format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed()?
        ))
    }
}

/// A signed token with claims about `about`.
fn jwt(issuer: &KeyPair, about: &str, claims: Value) -> Result<String> {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(&json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let claims = encode(&json!({
        "jti": about, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": "test",
        "sub": about, "nats": claims,
    }));
    let signed = format!("{header}.{claims}");
    let signature = issuer.sign(signed.as_bytes()).context("signing a token")?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
