//! A TCP proxy between host and broker that can fail like a network does.

use std::net::Ipv4Addr;
use std::sync::Arc;

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

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    flow: Flow,
    /// How often connections were cut: a connection ends when this has moved on
    /// since it began.
    cuts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    /// Bytes wait; connections stay.
    Paused,
    /// New connections are closed at once.
    Refused,
}

impl Proxy {
    /// Listens on a free port and forwards to `port` on loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let own_port = listener.local_addr()?.port();
        let state = Arc::new(watch::Sender::new(State {
            flow: Flow::Open,
            cuts: 0,
        }));
        let accepting = tokio::spawn(accept(listener, port, Arc::clone(&state)));
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

    /// Closes every connection and refuses new ones until [`Self::resume`].
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.flow = Flow::Refused;
            state.cuts += 1;
        });
    }

    /// Closes every connection; new ones are served.
    pub fn drop_connections(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Holds every byte back until [`Self::resume`].
    pub fn pause(&self) {
        self.state.send_modify(|state| state.flow = Flow::Paused);
    }

    /// Lets everything flow again.
    pub fn resume(&self) {
        self.state.send_modify(|state| state.flow = Flow::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, port: u16, state: Arc<watch::Sender<State>>) {
    while let Ok((near, _)) = listener.accept().await {
        let now = *state.borrow();
        if now.flow != Flow::Refused {
            tokio::spawn(forward(near, port, state.subscribe(), now.cuts));
        }
    }
}

/// Carries one connection until either side, or the network, ends it.
async fn forward(near: TcpStream, port: u16, state: watch::Receiver<State>, cuts: u64) {
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    tokio::select! {
        () = pump(near_in, far_out, state.clone(), cuts) => {}
        () = pump(far_in, near_out, state, cuts) => {}
    }
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
            read = from.read(&mut buffer) => match read {
                Ok(length @ 1..) => if to.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() { return },
                _ => return,
            },
        }
    }
}
