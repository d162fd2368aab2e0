//! A real nats-server for one test: with its own port and storage, with JetStream, and stopped when
//! dropped.

pub mod binary;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use crate::process::{Process, Signal};
use crate::{tools, wait};

pub use binary::find;

/// The options of a server. [`NatsServer::start`] uses the defaults.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The port; a free one by default.
    pub port: Option<u16>,
    /// The port of HTTP monitoring; off by default.
    pub monitoring_port: Option<u16>,
    /// Further lines of the server's configuration.
    pub config: String,
}

/// A running nats-server.
#[derive(Debug)]
pub struct NatsServer {
    port: u16,
    monitoring_port: Option<u16>,
    folder: TempDir,
    process: Option<Process>,
}

impl NatsServer {
    /// Starts a server on a free port.
    ///
    /// # Errors
    /// When there is no nats-server and none can be fetched, or it doesn't start.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts a server.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(options: Options) -> Result<Self> {
        let port = match options.port {
            Some(port) => port,
            None => tools::free_port()?,
        };
        let folder = tempfile::Builder::new()
            .prefix("presence-nats-")
            .tempdir()?;
        let mut server = Self {
            port,
            monitoring_port: options.monitoring_port,
            folder,
            process: None,
        };
        server.set_config(&options.config)?;
        server.resume().await?;
        Ok(server)
    }

    /// Writes its configuration, with these further lines. The server reads it when it starts.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn set_config(&self, further: &str) -> Result<()> {
        let port = self.port;
        let store = self.folder.path().join("jetstream");
        let monitoring = self
            .monitoring_port
            .map(|port| format!("http: \"127.0.0.1:{port}\"\n"));
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nserver_name: \"test-{port}\"\n\
             jetstream {{ store_dir: \"{}\" }}\n{}{further}\n",
            store.display(),
            monitoring.unwrap_or_default(),
        );
        fs::write(self.folder.path().join("nats.conf"), config)?;
        Ok(())
    }

    /// The address to give to a client.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The folder of a stream's messages, in the default account.
    pub fn messages_path(&self, stream: &str) -> PathBuf {
        let store = self.folder.path().join("jetstream").join("jetstream");
        store.join("$G").join("streams").join(stream).join("msgs")
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id. `None` while it is stopped.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Stops the server; its storage stays.
    ///
    /// # Errors
    /// When it doesn't end.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            // Its exit code depends on the signal. It is enough that it has ended.
            Some(mut process) => {
                process.terminate()?;
                process.wait().await.map(drop)
            }
            None => Ok(()),
        }
    }

    /// Kills the server without warning; its storage stays.
    ///
    /// # Errors
    /// When it can't be killed.
    pub async fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// Sends it a signal, such as one that pauses it.
    ///
    /// # Errors
    /// When it can't be signalled.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().map_or(Ok(()), |it| it.signal(signal))
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`], on the same port and storage.
    ///
    /// # Errors
    /// When it doesn't start.
    pub async fn resume(&mut self) -> Result<()> {
        let config = self.folder.path().join("nats.conf");
        let mut command = Command::new(find()?);
        command.arg("--config").arg(config);
        command.current_dir(self.folder.path());
        let mut process = Process::spawn("nats-server", &mut command)?;
        let port = self.port;
        let greeted = wait::until("nats-server to greet", async || {
            if let Some(status) = process.ended()? {
                anyhow::bail!("it ended: {status}");
            }
            Ok(greeting(port).await)
        });
        greeted.await.with_context(|| process.log_tail())?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops it and starts it again.
    ///
    /// # Errors
    /// When it doesn't end, or doesn't start.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.resume().await
    }
}

/// Waits for the line with which a server greets a client. `None` if it doesn't.
async fn greeting(port: u16) -> Option<()> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await.ok()?;
    line.starts_with("INFO ").then_some(())
}
