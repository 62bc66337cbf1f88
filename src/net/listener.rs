//! A listening socket with the options that its connections inherit.
//!
//! May use: no other module.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// Bound socket, not yet served. Accepted connections inherit its options.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(super) socket: std::net::TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`. The kernel, too, gives up a peer that acknowledges nothing for
    /// `write_timeout`.
    ///
    /// `[::]` serves IPv4 as well. Where the machine has no IPv6, `0.0.0.0` is bound instead,
    /// and where it lacks one of the loopback addresses, the other one is.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound; the error names it.
    pub(crate) fn bind(address: SocketAddr, write_timeout: Duration) -> Result<Self, BindError> {
        let opened = Self::open(address, write_timeout).or_else(|error| {
            match substitute(address).filter(|_| lacks_address(&error)) {
                Some(other) => Self::open(other, write_timeout).map_err(|_| error),
                None => Err(error),
            }
        });
        opened.map_err(|source| BindError { address, source })
    }

    fn open(address: SocketAddr, write_timeout: Duration) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            // Said expressly: the default is the system's (`net.ipv6.bindv6only`).
            socket.set_only_v6(false)?;
        }
        // A restart binds again although connections of the former process are in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Set on the listener, not on each connection: Linux copies these options to accepted
        // sockets, which saves four system calls for each.
        socket.set_tcp_nodelay(true)?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        #[cfg(target_os = "linux")]
        {
            socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
            // Finds peers whose host is gone. A peer that acknowledges and does not read is found
            // by `deadline_socket`.
            socket.set_tcp_user_timeout(Some(write_timeout))?;
        }
        socket.bind(&address.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        let socket = std::net::TcpListener::from(socket);
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// Returns the bound address, with the port that the kernel chose if 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Returns the address at which this machine reaches a listener that was asked to bind `address`:
/// loopback for all interfaces, and the other family's loopback where this machine lacks the one.
pub(crate) fn local_address(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let address = SocketAddr::new(ip, address.port());
    // A socket that is only bound sends nothing: it tells whether the machine has the address.
    match UdpSocket::bind((ip, 0)) {
        Err(error) if lacks_address(&error) => substitute(address).unwrap_or(address),
        Ok(_) | Err(_) => address,
    }
}

/// Returns the address that serves the same clients where the machine lacks a family.
fn substitute(address: SocketAddr) -> Option<SocketAddr> {
    let other = match address.ip() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::LOCALHOST) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ => return None,
    };
    Some(SocketAddr::new(other, address.port()))
}

/// Returns true if the kernel has no such family, or the machine no such address.
fn lacks_address(error: &io::Error) -> bool {
    error.raw_os_error() == Some(EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// Failure to bind an address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub(crate) struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// `EAFNOSUPPORT` on Linux: the kernel was started without IPv6. The standard library has no stable
/// `ErrorKind` for it.
const EAFNOSUPPORT: i32 = 97;

/// Bytes that the kernel may hold for a stalled peer. Linux doubles the number for its own
/// bookkeeping.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Length of the accept queue: a rollout makes all subscribers of another replica reconnect at
/// once. The kernel cuts the number to `net.core.somaxconn`.
const LISTEN_BACKLOG: i32 = 4096;

/// Unsent bytes from which on a socket counts as full: more would only grow old in the kernel.
pub(super) const NOTSENT_LOWAT_BYTES: u32 = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_interfaces_is_reached_over_loopback() {
        let local = |address: &str| local_address(address.parse().unwrap()).to_string();
        assert_eq!(local("0.0.0.0:9191"), "127.0.0.1:9191");
        assert_eq!(local("127.0.0.1:9191"), "127.0.0.1:9191");
        assert_eq!(local("192.0.2.1:9191"), "192.0.2.1:9191", "no loopback has no substitute");
    }
}
