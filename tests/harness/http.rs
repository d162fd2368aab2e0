//! Plain HTTP requests on loopback: enough for health, metrics and the broker's
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
    ask(port, path, &[("Host", "127.0.0.1")], None).await
}

/// Requests a path with these headers: with a body by POST, otherwise by GET.
///
/// # Errors
/// As [`get`].
pub async fn ask(
    port: u16,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Result<Response> {
    let mut stream = begin(port, path, headers, body).await?;
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

/// Sends a request, and leaves it to the caller to read the answer.
///
/// # Errors
/// When nobody listens.
pub async fn begin(
    port: u16,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let method = if body.is_some() { "POST" } else { "GET" };
    // HTTP 1.0, so that the answer is not in chunks and ends with the connection.
    let mut request = format!("{method} {path} HTTP/1.0\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    if let Some(body) = body {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    request += body.unwrap_or_default();
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
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
