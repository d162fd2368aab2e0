//! A TCP proxy between host and broker that can fail as a network does.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The proxy. It stops when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<watch::Sender<State>>,
    accepting: JoinHandle<()>,
}

/// The state of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    flow: Flow,
    /// By how much bytes are delayed.
    delay: Duration,
    /// How many times connections were cut. A connection ends when this number has changed since it
    /// began.
    cuts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    /// Bytes wait, and connections stay.
    Paused,
    /// New connections are closed at once.
    Refused,
}

impl Proxy {
    /// Listens on a free port and forwards to `port` on loopback.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(port: u16) -> Result<Self> {
        Self::start_with(port, None).await
    }

    /// As [`Self::start`], but failures affect only connections whose name, as a NATS client gives
    /// it, contains `of`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_for(port: u16, of: &'static str) -> Result<Self> {
        Self::start_with(port, Some(of)).await
    }

    async fn start_with(port: u16, of: Option<&'static str>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let own_port = listener.local_addr()?.port();
        let state = Arc::new(watch::Sender::new(State {
            flow: Flow::Open,
            delay: Duration::ZERO,
            cuts: 0,
        }));
        let accepting = tokio::spawn(accept(listener, port, of, Arc::clone(&state)));
        Ok(Self {
            port: own_port,
            state,
            accepting,
        })
    }

    /// The address to give to a NATS client.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes every connection and refuses new ones until [`Self::resume`].
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.flow = Flow::Refused;
            state.cuts += 1;
        });
    }

    /// Closes every connection. New ones are served.
    pub fn drop_connections(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Holds all bytes back until [`Self::resume`].
    pub fn pause(&self) {
        self.state.send_modify(|state| state.flow = Flow::Paused);
    }

    /// Delays bytes in both directions, until [`Self::resume`].
    pub fn slow(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Ends the failure: everything flows again without delay.
    pub fn resume(&self) {
        self.state.send_modify(|state| {
            state.flow = Flow::Open;
            state.delay = Duration::ZERO;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    port: u16,
    of: Option<&'static str>,
    state: Arc<watch::Sender<State>>,
) {
    while let Ok((near, _)) = listener.accept().await {
        if of.is_some() || state.borrow().flow != Flow::Refused {
            tokio::spawn(forward(near, port, of, state.subscribe()));
        }
    }
}

/// Carries one connection until either side, or the network, ends it.
async fn forward(
    mut near: TcpStream,
    port: u16,
    of: Option<&'static str>,
    state: watch::Receiver<State>,
) {
    let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    if let Some(of) = of {
        let Ok(named) = greet(&mut near, &mut far, of).await else {
            return;
        };
        if !named {
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            return;
        }
    }
    let now = *state.borrow();
    if now.flow == Flow::Refused {
        return;
    }
    let cuts = now.cuts;
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    tokio::select! {
        () = pump(near_in, far_out, state.clone(), cuts) => {}
        () = pump(far_in, near_out, state, cuts) => {}
    }
}

/// Carries the first line of each side: INFO, and then CONNECT. Returns whether `of` occurs in the
/// latter.
async fn greet(near: &mut TcpStream, far: &mut TcpStream, of: &str) -> std::io::Result<bool> {
    let info = line(far).await?;
    near.write_all(&info).await?;
    let connect = line(near).await?;
    far.write_all(&connect).await?;
    Ok(String::from_utf8_lossy(&connect).contains(of))
}

/// Reads up to the end of a line, and perhaps beyond.
async fn line(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while !line.contains(&b'\n') {
        if from.read_buf(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(line)
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut state: watch::Receiver<State>,
    cuts: u64,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let may_flow = |state: &State| state.cuts != cuts || state.flow == Flow::Open;
        match state.wait_for(may_flow).await {
            Ok(now) if now.cuts == cuts => {}
            _ => return,
        }
        tokio::select! {
            biased;
            _ = state.changed() => {}
            read = from.read(&mut buffer) => {
                let Ok(length @ 1..) = read else { return };
                let delay = state.borrow().delay;
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                let read = buffer.get(..length).unwrap_or_default();
                if to.write_all(read).await.is_err() {
                    return;
                }
            }
        }
    }
}
