//! A registry of OCI artifacts on loopback: Debian's `docker-registry`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::Process;
use crate::{http, tools, wait};

/// The user, if the registry asks for a login.
pub const USER: &str = "operator";
/// The password.
pub const PASSWORD: &str = "secret-of-the-registry";
/// User and password, as `htpasswd -B` writes them.
const HTPASSWD: &str = "operator:$2b$04$abcdefghijklmnopqrstuuEAyAnJFDhoYFcnHAG/Nx/ZihF7KXDr2";

/// A running registry. It ends when dropped.
#[derive(Debug)]
pub struct Registry {
    /// The process, with its log.
    pub process: Process,
    folder: TempDir,
    port: u16,
    has_login: bool,
}

impl Registry {
    /// Starts an empty registry.
    ///
    /// # Errors
    /// When there is no registry and none can be fetched, or it can't be started.
    pub async fn start(has_login: bool) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("presence-registry-")
            .tempdir()?;
        let port = tools::free_port()?;
        let passwords = folder.path().join("htpasswd");
        fs::write(&passwords, format!("{HTPASSWD}\n"))?;
        let auth = match has_login {
            true => format!(
                "auth:\n  htpasswd:\n    realm: tests\n    path: {}\n",
                passwords.display()
            ),
            false => String::new(),
        };
        let config = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        fs::write(
            &config,
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: \
                 127.0.0.1:{port}\n  secret: tests\n{auth}",
                storage.display()
            ),
        )?;
        let mut command = Command::new(find()?);
        command.arg("serve").arg(&config);
        let process = Process::spawn("docker-registry", &mut command)?;
        wait::until("the registry to answer", async || {
            Ok(http::get(port, "/v2/").await.ok())
        })
        .await?;
        Ok(Self {
            process,
            folder,
            port,
            has_login,
        })
    }

    /// Its host and port.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes an artifact with one layer, as `wkg` does, under a tag. Returns the digests of its
    /// manifest and of its layer.
    ///
    /// # Errors
    /// When the registry refuses it.
    pub async fn push(
        &self,
        repository: &str,
        tag: &str,
        kind: &str,
        bytes: &[u8],
    ) -> Result<(String, String)> {
        let config = json!({"architecture": "wasm", "os": "wasip2", "layerDigests": []});
        let config = config.to_string().into_bytes();
        let described = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("application/vnd.wasm.config.v0+json", &config),
            "layers": [described(kind, bytes)],
        });
        self.blob(repository, &config).await?;
        self.blob(repository, bytes).await?;
        let pushed = self.manifest(repository, tag, &manifest).await?;
        Ok((pushed, digest(bytes)))
    }

    /// Pushes a manifest, and returns its digest.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn manifest(&self, repository: &str, tag: &str, manifest: &Value) -> Result<String> {
        let kind = manifest["mediaType"].as_str().unwrap_or_default();
        let bytes = manifest.to_string().into_bytes();
        let path = format!("/v2/{repository}/manifests/{tag}");
        self.send("PUT", &path, kind, &bytes).await?;
        Ok(digest(&bytes))
    }

    async fn blob(&self, repository: &str, bytes: &[u8]) -> Result<()> {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let begun = self.send("POST", &path, "", &[]).await?;
        let location = begun.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("location").then_some(value)
        });
        let location = location.context("a registry says where to upload")?;
        let path = location
            .split_once(&self.host())
            .map_or(location, |it| it.1);
        let sign = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{sign}digest={}", digest(bytes));
        self.send("PUT", &path, "application/octet-stream", bytes)
            .await
            .map(drop)
    }

    /// Sends a request, and returns the head of the answer.
    async fn send(&self, method: &str, path: &str, kind: &str, bytes: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let host = self.host();
        let login = match self.has_login {
            true => {
                use base64::Engine;
                let pair = format!("{USER}:{PASSWORD}");
                let pair = base64::prelude::BASE64_STANDARD.encode(pair);
                format!("Authorization: Basic {pair}\r\n")
            }
            false => String::new(),
        };
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: {kind}\r\n{login}\
             Content-Length: {}\r\n\r\n",
            bytes.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(bytes).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2'), "{method} {path}: {answer}");
        Ok(answer)
    }

    /// The file in which the registry keeps a blob.
    #[must_use]
    pub fn stored(&self, digest: &str) -> PathBuf {
        let digits = digest.trim_start_matches("sha256:");
        let begin = digits.get(..2).unwrap_or_default();
        let blobs = "storage/docker/registry/v2/blobs/sha256";
        let blob = self.folder.path().join(blobs).join(begin).join(digits);
        blob.join("data")
    }
}

/// The digest of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let digits = Sha256::digest(bytes);
    let digits = digits.iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", digits.collect::<String>())
}

/// The path of `docker-registry`: `DOCKER_REGISTRY`, one on the path, or Debian's, which is
/// unpacked under the target folder if there is none.
///
/// # Errors
/// When there is none and it can't be fetched; the error says what to do.
pub fn find() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("DOCKER_REGISTRY") {
        return Ok(named.into());
    }
    if let Some(there) = tools::on_path("docker-registry") {
        return Ok(there);
    }
    // It isn't installed: the installed package would start a server.
    let folder = tools::debian("docker-registry").context(
        "no docker-registry: install it so that `docker-registry` is on the path, or name one in \
         DOCKER_REGISTRY",
    )?;
    Ok(folder.join("usr/bin/docker-registry"))
}
