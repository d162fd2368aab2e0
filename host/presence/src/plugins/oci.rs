//! Plugins in an OCI registry, in the layout that `wkg` and wasmCloud push: a manifest, with the
//! component as one of its layers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use presence_config::digest::Digest;
use presence_config::regular_file::Limit;
use ring::digest::{SHA256, digest};
use rustls::crypto::ring::default_provider as ring_provider;
use serde::Deserialize;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::oci_login::{Challenge, Login};

/// The beginning of an address.
pub(super) const SCHEME: &str = "oci://";

/// The timeout of each request to a registry, with its body.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long a registry may take to accept a connection, and to begin its answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest manifest, in bytes.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// The media types of a layer that is a component. Newer tools and `wkg` use the first, older tools
/// the others.
const COMPONENTS: [&str; 3] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
];

/// The media types of the manifests that can be read.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.oci.image.index.v1+json";

/// Where a plugin is in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    repository: String,
    reference: Reference,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reference {
    Tag(String),
    Digest(Digest),
}

/// A plugin that was downloaded from a registry.
pub(super) struct PulledPlugin {
    /// Its address, with the digest of its manifest.
    pub(super) pinned: String,
    pub(super) bytes: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    /// The manifests that an index lists. Empty in other manifests.
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: BTreeMap<String, serde_json::Value>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            repository,
            reference,
        } = self;
        match reference {
            Reference::Tag(tag) => write!(f, "{SCHEME}{host}/{repository}:{tag}"),
            Reference::Digest(digest) => write!(f, "{SCHEME}{host}/{repository}@{digest}"),
        }
    }
}

impl Address {
    /// Parses an address, with or without its scheme.
    ///
    /// # Errors
    /// If the text is not an address.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let form = "write oci://HOST/REPOSITORY:TAG or oci://HOST/REPOSITORY@sha256:…";
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        let (host, path) = rest.split_once('/').context(form)?;
        let (repository, reference) = match path.split_once('@') {
            Some((repository, digest)) => {
                let digest = Digest::parse(digest)?;
                // A tag beside a digest is ignored.
                let repository = repository.split_once(':').map_or(repository, |it| it.0);
                (repository, Reference::Digest(digest))
            }
            None => {
                let (repository, tag) = path.split_once(':').context(form)?;
                (repository, Reference::Tag(tag.into()))
            }
        };
        let in_host = |it: char| it.is_ascii_alphanumeric() || ".-:[]".contains(it);
        let in_name =
            |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || "._-".contains(it);
        let in_tag = |it: char| it.is_ascii_alphanumeric() || "._-".contains(it);
        let is_name = |it: &str| !it.is_empty() && !it.starts_with('.') && it.chars().all(in_name);
        ensure!(!host.is_empty() && host.chars().all(in_host), form);
        ensure!(
            repository.split('/').all(is_name),
            "`{repository}` is no repository: it has lower-case letters, digits, `.`, `_`, `-` and `/`"
        );
        if let Reference::Tag(tag) = &reference {
            ensure!(
                (1..=128).contains(&tag.len()) && tag.chars().all(in_tag),
                "`{tag}` is no tag: it has letters, digits, `.`, `_` and `-`"
            );
        }
        Ok(Self {
            host: host.into(),
            repository: repository.into(),
            reference,
        })
    }

    /// The last part of the repository.
    pub(super) fn name(&self) -> &str {
        self.repository
            .rsplit_once('/')
            .map_or(&self.repository, |(_, name)| name)
    }

    /// The host to connect to: Docker's registry has another host than its name.
    fn server(&self) -> &str {
        match &*self.host {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        }
    }

    /// Whether the registry is on this machine.
    fn is_local(&self) -> bool {
        let host = self.server();
        let name = match host.rsplit_once(':') {
            Some((name, _)) if !host.ends_with(']') => name,
            _ => host,
        };
        let ip = name.trim_matches(['[', ']']).parse::<IpAddr>();
        name == "localhost" || ip.is_ok_and(|it| it.is_loopback())
    }

    /// The base URL of the repository. As in other tools, there is no TLS for this machine or with
    /// `plain_http`, and TLS otherwise.
    fn url(&self, plain_http: bool) -> String {
        let host = self.server();
        let scheme = if self.is_local() || plain_http {
            "http"
        } else {
            "https"
        };
        format!("{scheme}://{host}/v2/{}", self.repository)
    }
}

/// Requests to a registry about one repository.
struct Registry<'a> {
    address: &'a Address,
    agent: Agent,
    login: Login,
    plain_http: bool,
}

/// Downloads a plugin from a registry.
///
/// # Errors
/// If it can't be downloaded, or doesn't match its digest.
pub(super) fn pull(
    address: &Address,
    limit: Limit,
    plain_http: bool,
) -> anyhow::Result<PulledPlugin> {
    let mut registry = Registry {
        address,
        agent: agent(address.is_local()),
        login: Login::of(&address.host),
        plain_http,
    };
    let pulled = registry.pull(limit);
    pulled.with_context(|| format!("can't take {address}"))
}

impl Registry<'_> {
    fn pull(&mut self, limit: Limit) -> anyhow::Result<PulledPlugin> {
        let (mut digest, mut manifest) = self.manifest(&self.address.reference.clone())?;
        if !manifest.manifests.is_empty() {
            let of_wasm = of_wasm(&manifest.manifests)?.digest.clone();
            (digest, manifest) = self.manifest(&Reference::Digest(of_wasm))?;
        }
        let layer = component(&manifest.layers)?;
        let Limit { bytes_max, key } = limit;
        ensure!(
            layer.size <= bytes_max,
            "it is {} bytes long, and {key} permits {bytes_max}",
            layer.size
        );
        let path = format!("blobs/{}", layer.digest);
        let bytes = self.get(&path, "*/*", layer.size.saturating_add(1))?;
        let bytes =
            bytes.with_context(|| format!("the registry lacks its layer {}", layer.digest))?;
        let has = digest_of(&bytes)?;
        ensure!(
            has == layer.digest,
            "its layer {} has been altered: what came has the digest {has}",
            layer.digest
        );
        let pinned = Address {
            reference: Reference::Digest(digest),
            ..self.address.clone()
        };
        Ok(PulledPlugin {
            pinned: pinned.to_string(),
            bytes,
        })
    }

    fn manifest(&mut self, reference: &Reference) -> anyhow::Result<(Digest, Manifest)> {
        let (path, missing) = match reference {
            Reference::Tag(tag) => (format!("manifests/{tag}"), format!("no tag `{tag}`")),
            Reference::Digest(digest) => (
                format!("manifests/{digest}"),
                format!("no manifest {digest}"),
            ),
        };
        let bytes = self.get(&path, MANIFESTS, MANIFEST_BYTES_MAX)?;
        let bytes = bytes.with_context(|| {
            let Address {
                host, repository, ..
            } = self.address;
            format!("there is {missing} of `{repository}` at {host}")
        })?;
        let has = digest_of(&bytes)?;
        if let Reference::Digest(digest) = reference {
            ensure!(
                has == *digest,
                "the manifest {digest} has been altered: what came has the digest {has}"
            );
        }
        let manifest = serde_json::from_slice(&bytes);
        Ok((has, manifest.context("its manifest can't be read")?))
    }

    /// Downloads what is at a path of the repository. `None` if there is nothing.
    fn get(&mut self, path: &str, accept: &str, bytes_max: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let url = format!("{}/{path}", self.address.url(self.plain_http));
        let mut answer = self.ask(&url, accept)?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            let challenge = answer.headers().get(header::WWW_AUTHENTICATE);
            let challenge = challenge
                .and_then(|it| it.to_str().ok())
                .unwrap_or_default();
            let challenge = Challenge::parse(challenge)?;
            let open = self.plain_http;
            self.login
                .answer(&self.agent, &challenge, &self.address.repository, open)?;
            answer = self.ask(&url, accept)?;
        }
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(self.login.refused()),
            status => bail!("the registry answers {status}"),
        }
        let body = answer.body_mut().with_config().limit(bytes_max);
        let bytes = body.read_to_vec();
        bytes.map(Some).with_context(|| format!("can't read {url}"))
    }

    fn ask(&self, url: &str, accept: &str) -> anyhow::Result<Response<Body>> {
        let mut request = self.agent.get(url).header(header::ACCEPT, accept);
        if let Some(authorization) = self.login.header() {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request
            .call()
            .with_context(|| format!("can't reach the registry {}", self.address.host))
    }
}

/// The SHA-256 digest of some bytes.
fn digest_of(bytes: &[u8]) -> anyhow::Result<Digest> {
    let digits = digest(&SHA256, bytes);
    let digits: String = digits
        .as_ref()
        .iter()
        .map(|it| format!("{it:02x}"))
        .collect();
    Ok(Digest::of_hex(&digits)?)
}

/// The HTTP client. It trusts the certificates that this machine trusts. It uses no proxy for a
/// registry on this machine.
fn agent(is_local: bool) -> Agent {
    let trusted = rustls_native_certs::load_native_certs();
    let certificates = trusted.certs.iter();
    let certificates = certificates.map(|it| Certificate::from_der(it).to_owned());
    let certificates: Vec<_> = certificates.collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        // As the connections to NATS do.
        .unversioned_rustls_crypto_provider(Arc::new(ring_provider()));
    let mut config = Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .http_status_as_error(false)
        .tls_config(tls.build())
        .user_agent(concat!("presence/", env!("CARGO_PKG_VERSION")));
    if is_local {
        config = config.proxy(None);
    }
    config.build().into()
}

/// The layer that is the component.
fn component(layers: &[Descriptor]) -> anyhow::Result<&Descriptor> {
    let is_one = |it: &&Descriptor| COMPONENTS.contains(&&*it.media_type);
    let components: Vec<_> = layers.iter().filter(is_one).collect();
    match &*components {
        [component] => Ok(component),
        [] => {
            let kinds: Vec<_> = layers.iter().map(|it| &*it.media_type).collect();
            let kinds = match kinds.join(", ") {
                none if none.is_empty() => "it has no layers".to_owned(),
                kinds => format!("its layers are {kinds}"),
            };
            bail!("it is no Wasm component: {kinds}")
        }
        _ => bail!(
            "it has {} components, and a plugin is one",
            components.len()
        ),
    }
}

/// The manifest for Wasm in an index.
fn of_wasm(manifests: &[Descriptor]) -> anyhow::Result<&Descriptor> {
    let is_wasm = |it: &&Descriptor| {
        let architecture = it.platform.get("architecture");
        architecture.is_some_and(|it| it == "wasm")
    };
    let found = match manifests {
        [only] => Some(only),
        several => several.iter().find(is_wasm),
    };
    found.context("it is no Wasm component: it is an index of images for other platforms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_a_repository_and_a_tag_or_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, shown, url) in [
            (
                "oci://ghcr.io/acme/quiet:1.0".to_owned(),
                "oci://ghcr.io/acme/quiet:1.0".to_owned(),
                "https://ghcr.io/v2/acme/quiet",
            ),
            (
                "oci://127.0.0.1:5000/quiet:latest".into(),
                "oci://127.0.0.1:5000/quiet:latest".into(),
                "http://127.0.0.1:5000/v2/quiet",
            ),
            (
                format!("oci://[::1]:5000/a/b/c:1@{digest}"),
                format!("oci://[::1]:5000/a/b/c@{digest}"),
                "http://[::1]:5000/v2/a/b/c",
            ),
            (
                "docker.io/acme/quiet:1".into(),
                "oci://docker.io/acme/quiet:1".into(),
                "https://registry-1.docker.io/v2/acme/quiet",
            ),
        ] {
            let address = Address::parse(&text).unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.url(false), url);
        }
        for (text, problem) in [
            ("oci://", "write oci://HOST"),
            ("oci://host", "write oci://HOST"),
            ("oci://host/repo", "write oci://HOST"),
            ("oci://ho st/repo:1", "write oci://HOST"),
            ("oci://host/Repo:1", "no repository"),
            ("oci://host/../x:1", "no repository"),
            ("oci://host/a//b:1", "no repository"),
            ("oci://host/repo:a/b", "no tag"),
            ("oci://host/repo:", "no tag"),
            ("oci://host/repo@sha256:12", "no digest"),
        ] {
            let error = format!("{:#}", Address::parse(text).unwrap_err());
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    fn descriptor(kind: &str, architecture: &str) -> Descriptor {
        let text = format!(
            r#"{{"mediaType": "{kind}", "digest": "sha256:{}", "size": 3,
                "platform": {{"architecture": "{architecture}"}}}}"#,
            "a".repeat(64)
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_component_is_the_one_layer_of_wasm() {
        let other = || descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "");
        for kind in COMPONENTS {
            let layers = [other(), descriptor(kind, "")];
            assert_eq!(component(&layers).unwrap().media_type, kind);
        }
        let error = |layers: &[Descriptor]| component(layers).err().unwrap().to_string();
        assert!(error(&[]).contains("it has no layers"));
        assert!(error(&[other()]).contains("tar+gzip"));
        let two = [descriptor(COMPONENTS[0], ""), descriptor(COMPONENTS[1], "")];
        assert!(error(&two).contains("2 components"));
        let index = [descriptor("", "amd64"), descriptor("", "wasm")];
        assert_eq!(of_wasm(&index).unwrap().platform["architecture"], "wasm");
        assert!(of_wasm(&[descriptor("", "amd64"), descriptor("", "arm64")]).is_err());
    }
}
