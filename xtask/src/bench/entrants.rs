//! Starting the contenders, each as a process of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use presence_tests::host::{self, Host};
use presence_tests::node;
use presence_tests::process::Process;
use presence_tests::site::Site;

use super::Broker;

/// A running contender.
pub(crate) struct Entrant {
    /// Its title in the table.
    pub(crate) title: &'static str,
    /// The beginning of its subjects.
    pub(crate) root: String,
    process: Running,
}

enum Running {
    Plain(Process),
    /// The site is a temporary folder, which is kept as long as the host runs.
    Host {
        host: Host,
        site: Site,
    },
}

impl Entrant {
    /// One of the contenders that are written here: `relay`, `filter`, `limit`, `count`, `answer`,
    /// `answer-elsewhere`.
    pub(crate) fn own(
        broker: &Broker,
        title: &'static str,
        kind: &str,
        args: &[&str],
    ) -> Result<Self> {
        let root = format!("{kind:x<8}");
        let mut command = Command::new(std::env::current_exe()?);
        command.args([
            "bench-contender",
            kind,
            "--url",
            &broker.server.url(),
            "--root",
            &root,
        ]);
        command.args(args);
        Self::plain(broker, title, root, Process::spawn(title, &mut command)?)
    }

    /// The seed's filter in Node.
    pub(crate) fn node(broker: &Broker, title: &'static str, directory: &Path) -> Result<Self> {
        let root = "nodejsxx".to_owned();
        let directory = directory.to_string_lossy();
        let args = [&*broker.server.url(), &root, &directory];
        let process = node::spawn("xtask/src/bench/contender.js", &args)?;
        Self::plain(broker, title, root, process)
    }

    fn plain(
        broker: &Broker,
        title: &'static str,
        root: String,
        mut process: Process,
    ) -> Result<Self> {
        let ready = process.wait_for_stdout("ready", |line| line == "ready");
        broker.runtime.block_on(ready)?;
        Ok(Self {
            title,
            root,
            process: Running::Plain(process),
        })
    }

    /// The host with the default pipeline.
    pub(crate) fn presence(
        broker: &Broker,
        title: &'static str,
        tenant: Option<&str>,
        directory: &str,
        configure: impl FnOnce(Site) -> Result<Site>,
    ) -> Result<Self> {
        Self::presence_of(
            broker,
            title,
            tenant,
            directory,
            configure,
            &host::binary()?,
        )
    }

    /// As [`Self::presence`], with another binary.
    pub(crate) fn presence_of(
        broker: &Broker,
        title: &'static str,
        tenant: Option<&str>,
        directory: &str,
        configure: impl FnOnce(Site) -> Result<Site>,
        binary: &Path,
    ) -> Result<Self> {
        let mut site = configure(Site::new(&broker.server.url())?.with("state.dir", "")?)?;
        site.write_directory(directory)?;
        // A long timeout: nobody times out while another contender has the load.
        site.set("tracker.timeout_ms", 3_600_000)?;
        let root = match tenant {
            Some(tenant) => {
                site.set("tenant.prefix", tenant)?;
                format!("{tenant}.presence")
            }
            None => "presence".to_owned(),
        };
        let host = broker
            .runtime
            .block_on(Host::start_of(&site, binary))
            .context("starting presence")?;
        Ok(Self {
            title,
            root,
            process: Running::Host { host, site },
        })
    }

    /// The host with a pipeline from the plugin store.
    pub(crate) fn of_store(
        broker: &Broker,
        title: &'static str,
        tenant: &str,
        directory: &str,
        pipeline: &str,
    ) -> Result<Self> {
        let site = Site::new(&broker.server.url())?
            .with("state.dir", "")?
            .with("plugins.source", "store")?
            .with("tracker.timeout_ms", 3_600_000)?
            .with("tenant.prefix", tenant)?;
        site.write_directory(directory)?;
        let mut host = Host::spawn(&site)?;
        let serves = host.wait_for_log(0, &["ready node="]);
        broker.runtime.block_on(serves)?;
        let file = site.path().join("pipeline.toml");
        fs::write(&file, pipeline)?;
        run(
            &site,
            &["pipeline", "apply", &file.to_string_lossy(), "--yes"],
        )?;
        broker.runtime.block_on(host.ready())?;
        Ok(Self {
            title,
            root: format!("{tenant}.presence"),
            process: Running::Host { host, site },
        })
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Running::Plain(process) => process.id(),
            Running::Host { host, .. } => host.process.id(),
        }
    }

    /// The host, if it is one.
    pub(crate) fn host(&self) -> Option<&Host> {
        match &self.process {
            Running::Plain(_) => None,
            Running::Host { host, .. } => Some(host),
        }
    }

    /// Its site, if it is a host.
    pub(crate) fn site(&self) -> Option<&Site> {
        match &self.process {
            Running::Plain(_) => None,
            Running::Host { site, .. } => Some(site),
        }
    }

    /// The end of its output, for error messages.
    pub(crate) fn log_tail(&self) -> String {
        match &self.process {
            Running::Plain(process) => process.log_tail(),
            Running::Host { host, .. } => host.process.log_tail(),
        }
    }
}

/// Runs one of the host's commands, and returns what it prints.
///
/// # Errors
/// If it fails; the error has its output.
pub(crate) fn run(site: &Site, args: &[&str]) -> Result<String> {
    let output = host::run(site, args)?;
    ensure!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
