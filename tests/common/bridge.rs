//! A way to a relay that the test can block, cut and lead elsewhere.

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

/// Passes bytes on, both ways. Its address stays when what is behind it goes and comes back.
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
    /// A bridge to this address.
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

    /// Keeps back what comes from the other side, until [`Bridge::unblock`].
    pub(crate) fn block(&self) {
        self.state.is_blocked.store(true, SeqCst);
    }

    /// Lets everything pass.
    pub(crate) fn unblock(&self) {
        self.state.is_blocked.store(false, SeqCst);
    }

    /// Cuts every connection; new ones may come.
    pub(crate) fn cut(&self) {
        for socket in self.state.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both); // it may have ended by itself
        }
    }

    /// Leads new connections to another address.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
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
        // nobody is there: the caller sees an end
        let Ok(far) = TcpStream::connect(target) else { return };
        let (to_near, to_far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        self.sockets.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
        thread::spawn(move || pass(near, to_far, || {}));
        let state = Arc::clone(self);
        thread::spawn(move || pass(far, to_near, || state.wait_until_free()));
    }

    fn wait_until_free(&self) {
        while self.is_blocked.load(SeqCst) {
            thread::sleep(PAUSE);
        }
    }
}

/// Copies until one end closes, then closes the other.
fn pass(mut from: TcpStream, mut to: TcpStream, wait: impl Fn()) {
    let mut chunk = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        wait();
        if to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    for socket in [from, to] {
        let _ = socket.shutdown(Shutdown::Both); // the peer may have been quicker
    }
}

/// Between two looks whether the way is free.
const PAUSE: Duration = Duration::from_millis(2);
