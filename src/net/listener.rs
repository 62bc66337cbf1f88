//! A socket that listens, with what its connections inherit.
//!
//! May use: nothing.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};

/// A socket that listens, not yet served. Its options are inherited by every connection.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(super) socket: std::net::TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`. A peer that acknowledges nothing for `write_timeout` is given up by the kernel, too.
    ///
    /// # Errors
    ///
    /// When the address cannot be had, naming it.
    pub(crate) fn bind(address: SocketAddr, write_timeout: Duration) -> Result<Self, BindError> {
        Self::open(address, write_timeout).map_err(|source| BindError { address, source })
    }

    fn open(address: SocketAddr, write_timeout: Duration) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        #[cfg(target_os = "linux")]
        {
            socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
            socket.set_tcp_user_timeout(Some(write_timeout))?;
        }
        socket.bind(&address.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        let socket = std::net::TcpListener::from(socket);
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// Where it listens, the port filled in.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An address that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub(crate) struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// What the kernel may hold for a stalled peer; it doubles the number for its own bookkeeping.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// A rollout makes all subscribers of another replica come at once.
const LISTEN_BACKLOG: i32 = 4096;

/// What may wait unsent before a socket counts as full: bytes beyond it would only grow old in the kernel.
pub(super) const NOTSENT_LOWAT_BYTES: u32 = 32 * 1024;
