//! The load generator. It speaks the NATS protocol itself, and its messages are laid out
//! beforehand. So on two cores, it takes as little as it can from the contender.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use presence_tests::wait::GUARD;

/// Messages laid out to be sent.
#[derive(Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Frames {
    /// Adds a message.
    pub(crate) fn push(&mut self, subject: &str, reply: &str, body: &str) {
        let head = format!("PUB {subject} {reply} {}\r\n", body.len());
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(body.as_bytes());
        self.bytes.extend(b"\r\n");
        self.ends.push(self.bytes.len());
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of the messages `from..to`.
    fn range(&self, from: usize, to: usize) -> &[u8] {
        let end = |count: usize| match count {
            0 => 0,
            _ => self
                .ends
                .get(count - 1)
                .copied()
                .unwrap_or(self.bytes.len()),
        };
        self.bytes.get(end(from)..end(to)).unwrap_or_default()
    }
}

/// The limit on messages under way.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    /// The most messages sent and not yet answered for.
    pub(crate) messages: usize,
    /// How many messages one answer stands for.
    pub(crate) per_answer: usize,
}

/// A connection that sends, and counts what comes back on one subject.
pub(crate) struct Generator {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The part of the buffer that is yet to be read.
    from: usize,
    to: usize,
    /// How many bytes are left of the message whose head was read.
    skip: usize,
}

impl Generator {
    /// Connects to a broker and subscribes.
    pub(crate) fn connect(port: u16, subject: &str) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GUARD))?;
        let mut generator = Self {
            stream,
            buffer: vec![0; 1 << 20],
            from: 0,
            to: 0,
            skip: 0,
        };
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"name\":\"load\"}}\r\n\
             SUB {subject} 1\r\nPING\r\n"
        );
        generator.stream.write_all(hello.as_bytes())?;
        while !generator.line()?.starts_with(b"PONG") {}
        Ok(generator)
    }

    /// Sends all frames, never more than the window ahead of the answers, and
    /// waits for the last answer. Returns how long it took.
    pub(crate) fn feed(&mut self, frames: &Frames, window: Window) -> Result<Duration> {
        let begin = Instant::now();
        let answers = frames.len().div_ceil(window.per_answer);
        let (mut sent, mut answered) = (0, 0);
        while answered < answers {
            let may = frames
                .len()
                .min(answered * window.per_answer + window.messages);
            if may > sent {
                self.stream.write_all(frames.range(sent, may))?;
                sent = may;
            }
            answered += self.receive().with_context(|| {
                format!("{answered} of {answers} answers came, to {sent} messages")
            })?;
        }
        if answered > answers {
            bail!("{answered} answers came to {answers} questions");
        }
        Ok(begin.elapsed())
    }

    /// Sends one message and returns the body, with headers if it has any, of
    /// what comes back.
    pub(crate) fn ask(&mut self, frame: &Frames) -> Result<String> {
        self.stream.write_all(&frame.bytes)?;
        self.message()
    }

    /// Returns the body, with headers if it has any, of the next message that comes.
    pub(crate) fn message(&mut self) -> Result<String> {
        let size = loop {
            if let Some(size) = message_size(&self.line()?)? {
                break size;
            }
        };
        while self.to - self.from < size + 2 {
            self.fill()?;
        }
        let body = self
            .buffer
            .get(self.from..self.from + size)
            .unwrap_or_default();
        let body = String::from_utf8_lossy(body).into_owned();
        self.from += size + 2;
        Ok(body)
    }

    /// Reads what is there, and waits if there is nothing. Returns how many messages' heads it has
    /// completed.
    fn receive(&mut self) -> Result<usize> {
        self.fill()?;
        let mut count = 0;
        loop {
            let skipped = self.skip.min(self.to - self.from);
            self.from += skipped;
            self.skip -= skipped;
            if self.skip > 0 {
                return Ok(count);
            }
            let Some(end) = self.line_end() else {
                return Ok(count);
            };
            let line = self.buffer.get(self.from..end).unwrap_or_default();
            if let Some(size) = message_size(line)? {
                self.skip = size + 2;
                count += 1;
            } else if line.starts_with(b"PING") {
                self.stream.write_all(b"PONG\r\n")?;
            }
            self.from = end;
        }
    }

    /// Takes the next line of the protocol.
    fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.line_end() {
                let line = self.buffer.get(self.from..end).unwrap_or_default().to_vec();
                self.from = end;
                return Ok(line);
            }
            self.fill()?;
        }
    }

    /// The end of the line that begins here, after its line feed. `None` if the line isn't
    /// complete.
    fn line_end(&self) -> Option<usize> {
        let there = self.buffer.get(self.from..self.to)?;
        let end = there.iter().position(|byte| *byte == b'\n')?;
        Some(self.from + end + 1)
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.copy_within(self.from..self.to, 0);
        self.to -= self.from;
        self.from = 0;
        let space = self.buffer.get_mut(self.to..).unwrap_or_default();
        match self.stream.read(space) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(read) => self.to += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("nothing came for {} s", GUARD.as_secs())
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// The size of the message that a protocol line announces: headers and body together. `None` if the
/// line announces none.
fn message_size(line: &[u8]) -> Result<Option<usize>> {
    if line.starts_with(b"-ERR") {
        bail!(
            "the broker says {}",
            String::from_utf8_lossy(line).trim_end()
        );
    }
    if !line.starts_with(b"MSG ") && !line.starts_with(b"HMSG ") {
        return Ok(None);
    }
    // The last word of either is the whole size.
    let digits = line
        .trim_ascii_end()
        .rsplit(|byte| *byte == b' ')
        .next()
        .unwrap_or_default();
    let size = digits
        .iter()
        .fold(0, |size, digit| size * 10 + usize::from(digit - b'0'));
    Ok(Some(size))
}
