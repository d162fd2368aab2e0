//! One HTTP GET. It is of version 1.0, so that the answer ends with the connection. An answer that
//! is too long or too slow is an error.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// How long the whole request may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer, in bytes.
const BYTES_MAX: usize = 4 << 20;

/// Requests a path, and returns the body of the answer.
///
/// # Errors
/// If nobody answers in time, or the answer isn't a 200.
pub(super) fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let until = Instant::now() + TIMEOUT;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 8_192];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer within {} s", TIMEOUT.as_secs());
        stream.set_read_timeout(Some(left))?;
        let read = match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        answer.extend(piece.iter().take(read));
        ensure!(answer.len() <= BYTES_MAX, "the answer is too long");
    }
    let answer = String::from_utf8(answer).context("the answer isn't text")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer isn't HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "it answers with the HTTP status {status}");
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn answered(answer: &'static [u8]) -> anyhow::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer);
        });
        let got = get(address, "/status");
        server.join().unwrap();
        got
    }

    #[test]
    fn only_a_200_is_an_answer() {
        let good = answered(b"HTTP/1.0 200 OK\r\na: b\r\n\r\n{}").unwrap();
        assert_eq!(good, "{}");
        for bad in [
            &b"HTTP/1.0 404 Not Found\r\n\r\n"[..],
            b"",
            b"SSH-2.0-x\r\n",
            b"HTTP/1.0 200 OK\r\n\r\n\xff",
        ] {
            assert!(answered(bad).is_err());
        }
    }
}
