//! A TCP proxy in front of a relay, which the test can block, cut and redirect.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Forwards bytes both ways. Its address stays the same when the relay behind it is restarted.
pub(crate) struct Bridge {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    target: Mutex<SocketAddr>,
    sockets: Mutex<Vec<TcpStream>>,
    is_blocked: AtomicBool,
}

impl Bridge {
    /// Listens on a free port, and forwards to this address.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (target, sockets) = (Mutex::new(target), Mutex::default());
        let state = Arc::new(State { target, sockets, is_blocked: AtomicBool::new(false) });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            listener.incoming().flatten().for_each(|socket| shared.connect(socket));
        });
        Self { address, state }
    }

    /// Holds back the bytes of the target until [`Bridge::unblock`].
    pub(crate) fn block(&self) {
        self.state.is_blocked.store(true, SeqCst);
    }

    /// Forwards the bytes of the target again.
    pub(crate) fn unblock(&self) {
        self.state.is_blocked.store(false, SeqCst);
    }

    /// Cuts every connection; new ones are accepted.
    pub(crate) fn cut(&self) {
        for socket in self.state.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both); // the connection may have ended by itself
        }
    }

    /// Forwards new connections to another address.
    pub(crate) fn redirect_to(&self, target: SocketAddr) {
        *self.state.target.lock().unwrap() = target;
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.unblock();
        self.cut();
    }
}

impl State {
    fn connect(self: &Arc<Self>, near: TcpStream) {
        let target = *self.target.lock().unwrap();
        // The target does not listen: the caller sees its connection closed.
        let Ok(far) = TcpStream::connect(target) else { return };
        let (to_near, to_far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        self.sockets.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
        thread::spawn(move || copy(near, to_far, || {}));
        let state = Arc::clone(self);
        thread::spawn(move || copy(far, to_near, || state.wait_until_unblocked()));
    }

    fn wait_until_unblocked(&self) {
        while self.is_blocked.load(SeqCst) {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Copies until one side closes, then closes the other.
fn copy(mut from: TcpStream, mut to: TcpStream, wait: impl Fn()) {
    let mut chunk = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        wait();
        if to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    for socket in [from, to] {
        let _ = socket.shutdown(Shutdown::Both); // the peer may have closed first
    }
}

/// Pause between two checks of the block.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
