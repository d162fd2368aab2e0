//! One plain HTTP GET on loopback: enough for health, metrics and the broker's
//! monitoring.

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A response's status and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// Gets a path from a port on loopback.
///
/// # Errors
/// When nobody listens, or what comes back is not HTTP.
pub async fn get(port: u16, path: &str) -> Result<Response> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    // 1.0, so that the answer is not in chunks and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an HTTP answer has a head")?;
    let status = head
        .split(' ')
        .nth(1)
        .context("an HTTP answer has a status")?;
    Ok(Response {
        status: status.parse()?,
        body: body.to_owned(),
    })
}

/// The sum of a Prometheus metric's samples whose labels contain all of
/// `labels`, each written `name="value"`; 0 if there is none.
#[must_use]
pub fn metric(exposition: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = exposition.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}
