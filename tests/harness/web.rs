//! A web server on loopback for a page under test. It serves folders, and receives the page's
//! reports.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::wait;

/// The longest report that is accepted, in bytes.
const REPORT_MAX: usize = 1 << 20;

/// The server. It stops when dropped.
#[derive(Debug)]
pub struct Web {
    port: u16,
    reports: mpsc::UnboundedReceiver<String>,
    accepting: JoinHandle<()>,
}

impl Web {
    /// Serves folders, each below a path such as `/client/`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(folders: &[(&str, PathBuf)]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let folders = folders
            .iter()
            .map(|(at, folder)| ((*at).to_owned(), folder.clone()));
        let folders: Arc<[_]> = folders.collect();
        let (sender, reports) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (folders, sender) = (Arc::clone(&folders), sender.clone());
                tokio::spawn(async move {
                    // An error means that the browser has gone. It needs no answer.
                    let _ = serve(stream, &folders, &sender).await;
                });
            }
        });
        Ok(Self {
            port,
            reports,
            accepting,
        })
    }

    /// The address of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The next report: the body of a POST.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn report(&mut self, what: &str) -> Result<String> {
        let report = wait::guarded(what, self.reports.recv()).await?;
        report.context("the server has stopped")
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Answers one request, and closes the connection.
async fn serve(
    stream: TcpStream,
    folders: &[(String, PathBuf)],
    reports: &mpsc::UnboundedSender<String>,
) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut words = request.split(' ');
    let (status, kind, body) = match (words.next(), words.next()) {
        (Some("GET"), Some(path)) => match file(path, folders) {
            Some((kind, body)) => ("200 OK", kind, body),
            None => ("404 Not Found", "text/plain", Vec::new()),
        },
        (Some("POST"), Some(_)) if length <= REPORT_MAX => {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            reports.send(String::from_utf8_lossy(&body).into_owned())?;
            ("200 OK", "text/plain", Vec::new())
        }
        _ => ("400 Bad Request", "text/plain", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    Ok(stream.flush().await?)
}

/// A file's media type and content. `None` if these folders have no such file.
fn file(path: &str, folders: &[(String, PathBuf)]) -> Option<(&'static str, Vec<u8>)> {
    let path = path.split('?').next().unwrap_or_default();
    let (below, folder) = folders
        .iter()
        .find_map(|(at, folder)| Some((path.strip_prefix(at.as_str())?, folder)))?;
    if below.split('/').any(|part| part == "..") {
        return None;
    }
    let kind = match Path::new(below).extension()?.to_str()? {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        _ => return None,
    };
    Some((kind, std::fs::read(folder.join(below)).ok()?))
}
