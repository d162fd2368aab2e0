//! The login at a registry, with the credentials in docker's configuration.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;
use ureq::Agent;
use ureq::http::header;

/// The name of Docker's own registry in docker's configuration.
const DOCKER: &str = "https://index.docker.io/v1/";

/// The longest answer with a token, in bytes.
const TOKEN_BYTES_MAX: u64 = 1 << 20;

/// The kind of login that a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password.
    Basic,
    /// A token, which another server issues.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The login at one registry.
pub(super) struct Login {
    host: String,
    /// The credentials in docker's configuration, `None` if it has none, or why it can't be read.
    credentials: Result<Option<DockerCredential>, String>,
    /// The value of the header `Authorization`. `None` before a login.
    authorization: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Challenge {
    /// Parses the header `WWW-Authenticate` of an answer.
    ///
    /// # Errors
    /// If it asks for another kind of login, or doesn't say where tokens are issued.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let (scheme, parameters) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Ok(Self::Basic);
        }
        ensure!(
            scheme.eq_ignore_ascii_case("bearer"),
            "the registry asks for a login of the kind `{scheme}`, and Basic and Bearer are known"
        );
        let of = |name: &str| parameter(parameters, name);
        let realm = of("realm").context("the registry doesn't say where its tokens are from")?;
        Ok(Self::Bearer {
            realm,
            service: of("service"),
            scope: of("scope"),
        })
    }
}

/// A parameter of a challenge: `realm="…",service="…"`.
fn parameter(text: &str, name: &str) -> Option<String> {
    let mut rest = text;
    loop {
        let (key, after) = rest.split_once('=')?;
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        rest = next;
    }
}

impl Login {
    /// Reads the credentials for a registry.
    pub(super) fn of(host: &str) -> Self {
        let server = match host {
            "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER,
            host => host,
        };
        let credentials = match docker_credential::get_credential(server) {
            Ok(credential) => Ok(Some(credential)),
            Err(
                CredentialRetrievalError::NoCredentialConfigured
                | CredentialRetrievalError::ConfigNotFound,
            ) => Ok(None),
            Err(CredentialRetrievalError::ConfigReadError) if !has_config() => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        Self {
            host: host.into(),
            credentials,
            authorization: None,
        }
    }

    /// The value of the header `Authorization`. `None` before a login.
    pub(super) fn header(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// The message that the registry refuses access, and what helps.
    pub(super) fn refused(&self) -> String {
        let host = &self.host;
        match &self.credentials {
            Ok(Some(_)) => format!(
                "{host} refuses the credentials of docker's configuration: `docker login {host}` \
                 renews them"
            ),
            Ok(None) => format!(
                "{host} wants a login, and docker's configuration has none: `docker login {host}`"
            ),
            Err(why) => {
                format!("{host} wants a login, and docker's configuration can't be read: {why}")
            }
        }
    }

    /// Answers a registry's challenge, to read a repository. With `plain_http`, credentials may be
    /// sent where others can read them.
    ///
    /// # Errors
    /// If there are no credentials, they are refused, or no token is issued.
    pub(super) fn answer(
        &mut self,
        agent: &Agent,
        challenge: &Challenge,
        repository: &str,
        plain_http: bool,
    ) -> anyhow::Result<()> {
        let basic = match &self.credentials {
            Ok(Some(DockerCredential::UsernamePassword(user, password))) => {
                let pair = BASE64_STANDARD.encode(format!("{user}:{password}"));
                Some(format!("Basic {pair}"))
            }
            _ => None,
        };
        let Challenge::Bearer {
            realm,
            service,
            scope,
        } = challenge
        else {
            ensure!(basic.is_some(), self.refused());
            self.authorization = basic;
            return Ok(());
        };
        let is_safe = plain_http || realm.starts_with("https://") || is_local(realm);
        ensure!(
            is_safe || self.credentials.as_ref().is_ok_and(Option::is_none),
            "{} wants its credentials sent to {realm}, where others can read them",
            self.host
        );
        let scope = scope
            .clone()
            .unwrap_or_else(|| format!("repository:{repository}:pull"));
        let service = service.as_deref().unwrap_or_default();
        let asked = match &self.credentials {
            Ok(Some(DockerCredential::IdentityToken(token))) => agent.post(realm).send_form([
                ("grant_type", "refresh_token"),
                ("service", service),
                ("scope", &scope),
                ("client_id", "presence"),
                ("refresh_token", token),
            ]),
            _ => {
                let mut request = agent.get(realm).query("scope", &scope);
                if !service.is_empty() {
                    request = request.query("service", service);
                }
                if let Some(basic) = basic {
                    request = request.header(header::AUTHORIZATION, basic);
                }
                request.call()
            }
        };
        let mut answer = asked.with_context(|| format!("can't get a token from {realm}"))?;
        if matches!(answer.status().as_u16(), 400 | 401 | 403) {
            bail!(self.refused());
        }
        ensure!(
            answer.status().is_success(),
            "{realm} answers {}, and gives no token",
            answer.status()
        );
        let body = answer.body_mut().with_config().limit(TOKEN_BYTES_MAX);
        let token: Token = serde_json::from_slice(&body.read_to_vec()?)
            .with_context(|| format!("what {realm} answers is no token"))?;
        let token = token.token.or(token.access_token);
        let token = token.with_context(|| format!("what {realm} answers is no token"))?;
        self.authorization = Some(format!("Bearer {token}"));
        Ok(())
    }
}

/// Whether docker's configuration file exists.
fn has_config() -> bool {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(home);
    folder.is_some_and(|folder| folder.join("config.json").exists())
}

/// Whether a URL without TLS leads to this machine.
fn is_local(url: &str) -> bool {
    let host = url.strip_prefix("http://").unwrap_or_default();
    let local = ["127.0.0.1", "localhost", "[::1]"];
    local.iter().any(|it| {
        let rest = host.strip_prefix(it);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_says_where_tokens_are_from() {
        let text = r#"Bearer realm="https://auth.example/token",service="registry", scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(text).unwrap(),
            Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("registry".into()),
                scope: Some("repository:a/b:pull,push".into()),
            }
        );
        assert_eq!(
            Challenge::parse("basic realm=\"x\"").unwrap(),
            Challenge::Basic
        );
        for (text, problem) in [
            ("", "of the kind ``"),
            ("Negotiate", "of the kind `Negotiate`"),
            ("Bearer service=\"x\"", "where its tokens are from"),
            ("Bearer realm=\"x", "where its tokens are from"),
        ] {
            let error = Challenge::parse(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn credentials_go_over_tls_or_stay_on_this_machine() {
        for local in [
            "http://127.0.0.1:5001/token",
            "http://localhost",
            "http://[::1]/t",
        ] {
            assert!(is_local(local), "{local}");
        }
        for other in [
            "http://127.0.0.1.evil.example/",
            "http://example/",
            "https://x",
            "",
        ] {
            assert!(!is_local(other), "{other}");
        }
    }
}
