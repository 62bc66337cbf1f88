//! A session on a lane, polled by hand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use hyper::HeaderMap;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
};

use super::*;
use crate::{
    event::{Scope, Start},
    fanout::Followers,
    http::tests::{product, publish, relay},
    net::tests::guarded,
    shard::{Follower, Given, Lent},
};

#[tokio::test]
async fn who_takes_no_pong_is_behind_and_not_polled_for_what_comes_meanwhile() {
    let relay = relay(["one"]);
    let product = product(&relay, "one");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    SockRef::from(&client).set_recv_buffer_size(8 * 1024).unwrap();
    SockRef::from(&stream).set_send_buffer_size(8 * 1024).unwrap();
    let (socket, connection) = guarded(stream, &relay.wheel);
    let grant = relay.access.identify(None).unwrap();
    let visitor =
        Visitor::admit(&relay, &product, grant, Scope::EVERYTHING, &Start::Now, &connection, &HeaderMap::new());
    let mut session = Session::new(socket, visitor.unwrap());
    let mut followers = Followers::new(&product.fanout, 0, Waker::noop().clone());
    followers.join(0, session.subscription());
    let bell = Arc::new(Bell::default());
    let mut lent = Lent { pieces: VecDeque::new(), bytes: 0, write_timeout: Duration::MAX };
    let mut poll = |session: &mut Session<_>| {
        bell.0.store(false, Ordering::SeqCst);
        lent.bytes = 0;
        let polled = session.poll(&mut Context::from_waker(&Waker::from(Arc::clone(&bell))), &mut lent);
        assert!(polled.is_pending(), "the session goes on");
        // Nothing is to be done, and neither the session nor its socket has asked to be polled again.
        !bell.0.load(Ordering::SeqCst)
    };
    while !(poll(&mut session) && session.is_idle) {
        yield_now().await;
    }
    let behind = || relay.subscribers.list(0, 1)[0].1.behind(product.log.newest());
    publish(&relay, "one", "first");
    assert_eq!(session.look_into_the_log(1), Given::Look);
    while !(poll(&mut session) && session.is_idle) {
        yield_now().await;
    }
    let (pings, mut sent) = (PING.repeat(100), 0);
    while !poll(&mut session) || session.is_idle {
        sent += client.try_write(pings.split_at(sent % pings.len()).1).unwrap_or(0); // it is full at times
        yield_now().await;
    }
    for (place, text) in [(2, "second"), (3, "third")] {
        publish(&relay, "one", text);
        assert_eq!(session.look_into_the_log(place), Given::Done);
    }
    assert_eq!(behind(), 2);
    let mut seen = Vec::new();
    while !(poll(&mut session) && session.is_idle && seen.windows(6).any(|it| it == b"third}")) {
        let _ = client.try_read_buf(&mut seen);
        yield_now().await;
    }
    assert_eq!(behind(), 0);
}

/// Whether it has rung.
#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Whose mask changes nothing.
const PING: &[u8] = b"\x89\x84\0\0\0\0ping";
