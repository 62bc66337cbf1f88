//! What one SSE subscriber receives, without its socket: events and gaps as the log has them, heartbeats in between, and an end.
//!
//! May use: `event`, `fanout`, `metrics`, `net`, `sse`, `wheel`.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::HeaderMap;
use tokio::time::Instant;

use super::{RETRY, Side};
use crate::{
    event::{Event, Scope},
    fanout::{Item, Listener, Subscription},
    http::{
        Product, Relay,
        admission::{Leave, Newcomer, Seat},
        problem::spread,
        public::request::Wish,
    },
    metrics::{ShedReason, Transport},
    net::Cut,
    sse,
    timer_wheel::{Alarm, Wheel},
};

/// What one subscriber receives.
#[derive(Debug)]
pub(crate) struct Events {
    subscription: Subscription,
    seat: Seat,
    product: Arc<Product>,
    is_onlooker: bool,
    fault: Option<Fault>,
    /// Ends it while nothing is asked of it; where its socket is its own, that is not needed.
    cut: Option<Arc<Cut>>,
    alarm: Alarm,
    /// Place of the last entry it gets, once it has been told to leave.
    leave_after: Option<u64>,
    has_left: bool,
    /// A relay asks: it has not been told yet that the replay is at its end.
    owes_end_of_replay: bool,
    /// Ticks of silence after which there is a heartbeat.
    heartbeat_ticks: u64,
    heartbeat_due: u64,
    leave_due: u64,
    /// None where there is no token whose time may be over.
    term: Option<Box<Term>>,
    /// The tick at which it is over for whoever takes nothing, too.
    ends_due: u64,
}

/// The time of a token.
#[derive(Debug)]
struct Term {
    /// When it is over, and the tick at which its subscriber is woken for that.
    over: Instant,
    over_due: u64,
}

/// What ended a stream that was not told to end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The client took nothing for too long.
    Stalled,
    /// The relay has made a mistake.
    Error,
}

impl Fault {
    /// As it stands in metric labels.
    fn as_str(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Error => "error",
        }
    }
}

impl Events {
    /// Gives a newcomer a seat, and a place in the log.
    ///
    /// # Errors
    ///
    /// Which limit it would go past.
    pub(crate) fn open(
        relay: &Relay,
        side: &Side<'_>,
        product: &Arc<Product>,
        wish: Wish,
        peer: IpAddr,
        headers: &HeaderMap,
        cut: Option<Arc<Cut>>,
    ) -> Result<Self, ShedReason> {
        relay.admits_newcomers()?;
        let listener = Arc::new(Listener::default());
        let seat = side.subscribers.admit(Newcomer {
            product: product.id.clone(),
            transport: Transport::Sse,
            key: Arc::clone(&side.key),
            holder: side.holder.clone(),
            proof: Arc::clone(&side.proof),
            address: relay.client_address(peer, headers),
            listener: Arc::clone(&listener),
            cut: cut.clone(),
        })?;
        if relay.is_draining.load(Ordering::SeqCst) {
            seat.dismiss(Leave::Drain); // it was let in at the very moment of closing
        }
        if relay.still_serves(product).is_err() {
            seat.dismiss(Leave::Removed); // the same, of its product
        }
        let subscription = product.fanout.subscribe(listener, wish.scope, &wish.start);
        if !side.is_onlooker {
            product.sse.subscribers.inc();
        }
        let wheel = side.wheel;
        // Each a little earlier than the interval: ten thousand subscribers of one event must not all be idle in one tick.
        let heartbeat_interval = relay.heartbeat_interval.mul_f64(1.0 - fastrand::f64() / 10.0);
        let within = |at: Instant| wheel.within(at.saturating_duration_since(Instant::now()));
        let ends_due = side.farewell.map_or(u64::MAX, |farewell| within(farewell.ends));
        if let Some(cut) = &cut {
            cut.at(ends_due);
        }
        let term = side.farewell.map(|it| Box::new(Term { over: it.begins, over_due: within(it.begins) }));
        let age = side.max_age.map(|age| age.mul_f64(0.8 + 0.4 * fastrand::f64()));
        Ok(Self {
            subscription,
            seat,
            product: Arc::clone(product),
            is_onlooker: side.is_onlooker,
            fault: None,
            cut,
            alarm: Alarm::new(wheel),
            leave_after: None,
            has_left: false,
            owes_end_of_replay: headers.get("autoplay-relay").is_some_and(|value| value.as_bytes() == b"follow"),
            heartbeat_ticks: wheel.after(heartbeat_interval) - wheel.now(),
            heartbeat_due: wheel.after(heartbeat_interval),
            leave_due: age.map_or(u64::MAX, |age| wheel.after(age)),
            term,
            ends_due,
        })
    }

    /// What is to be sent next, none when the stream is at its end.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        let piece = self.poll_piece(context);
        if let Poll::Ready(Some(_)) = &piece {
            self.has_spoken();
        }
        piece
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        if self.has_left {
            return Poll::Ready(None);
        }
        if self.has_expired() {
            // At once, whatever is still in the log: it is there for whoever comes back with a new token.
            self.seat.dismiss(Leave::Expired);
            return self.leave();
        }
        if self.seat.dismissed().is_some_and(Leave::is_at_once) {
            return self.leave();
        }
        self.heed_dismissal();
        if self.is_onlooker && self.leave_after.is_some() {
            return self.leave(); // the fan-out may be gone before it
        }
        if self
            .leave_after
            .is_some_and(|last| self.subscription.has_passed(last) || self.subscription.reads_from_store())
        {
            return self.leave(); // what is in the store is there for whoever comes back
        }
        if let Poll::Ready(item) = self.subscription.poll_next(context) {
            return Poll::Ready(Some(self.piece(item)));
        }
        self.note_position();
        // Again, now that whoever dismisses it knows whom to wake.
        self.heed_dismissal();
        let has_everything = |last| self.is_onlooker || self.subscription.has_passed(last);
        if self.leave_after.is_some_and(has_everything) {
            return self.leave();
        }
        // Who is leaving waits for the fan-out to come to the end of the log, which takes it no longer than a tick.
        // So does a relay that asks, until the log it reads has caught up itself.
        let looks_again = self.leave_after.is_some() || self.subscription.must_look_again() || self.owes_end_of_replay;
        let is_end = self.owes_end_of_replay && self.subscription.is_at_end() && self.product.log.has_caught_up();
        if is_end || self.alarm.wheel().now() >= self.heartbeat_due {
            return Poll::Ready(Some(Piece::Seldom(self.heartbeat())));
        }
        let due = self.heartbeat_due.min(self.leave_due).min(self.term.as_ref().map_or(u64::MAX, |term| term.over_due));
        let due = if looks_again { due.min(self.alarm.wheel().after(Duration::ZERO)) } else { due };
        self.alarm.set(due, context.waker());
        Poll::Pending
    }

    /// Whether its token's time is over. The clock is asked, too: the wheel could stand still.
    fn has_expired(&self) -> bool {
        self.term.as_ref().is_some_and(|term| self.wheel().now() >= term.over_due || Instant::now() >= term.over)
    }

    /// From now on it is silent.
    pub(super) fn has_spoken(&mut self) {
        self.heartbeat_due = self.wheel().now() + self.heartbeat_ticks;
    }

    /// Who is dismissed still gets what is in the log at that moment: memory is gone with the process.
    fn heed_dismissal(&mut self) {
        if self.alarm.wheel().now() >= self.leave_due {
            self.seat.dismiss(Leave::Rotated);
        }
        if self.leave_after.is_none() && self.seat.dismissed().is_some() {
            self.leave_after = Some(self.product.log.newest());
            if self.subscription.is_told_by_lane() {
                self.subscription.look_into_the_log(0); // its lane may be long at giving to others
            }
        }
    }

    /// One last line: when to come back.
    fn leave(&mut self) -> Poll<Option<Piece>> {
        self.has_left = true;
        Poll::Ready(Some(Piece::Seldom(sse::encode_retry(spread(RETRY)))))
    }

    fn piece(&mut self, item: Item) -> Piece {
        match item {
            Item::Event { event, received } => {
                self.seat.stands_at(event.place());
                if !self.is_onlooker {
                    self.product.sse.delivered.inc();
                    if let Some(received) = received {
                        self.product.sse.lag.observe(received.elapsed().as_secs_f64());
                    }
                }
                Piece::Event(event)
            }
            Item::Gap(gap) => {
                self.seat.stands_at(gap.place);
                Piece::Seldom(sse::encode_gap(gap.id, &gap.notice()))
            }
        }
    }

    /// Tells its seat where it stands when it falls asleep.
    fn note_position(&self) {
        match self.subscription.is_at_end() {
            true => self.seat.has_nothing_to_get(),
            false => self.seat.stands_at(self.subscription.returned_through()),
        }
    }

    /// Moves the client's id on where the log has moved past what its filter let through. To a relay, the first one says that
    /// what comes from now on is news.
    fn heartbeat(&mut self) -> Bytes {
        let log = &self.product.log;
        let is_replaying = !self.subscription.is_at_end() || log.is_replaying() || log.is_recovering();
        if self.owes_end_of_replay && is_replaying {
            return sse::encode_keep_alive();
        }
        self.owes_end_of_replay = false;
        sse::encode_heartbeat(self.subscription.move_on())
    }

    /// While its socket takes nothing: whether it has to go all the same. If not, `context` is woken when that may have changed,
    /// and at tick `due`.
    pub(super) fn must_go(&mut self, due: u64, context: &Context<'_>) -> bool {
        self.subscription.wake_later(context);
        if self.seat.dismissed().is_some_and(|leave| leave == Leave::Kicked || leave.is_at_once()) {
            self.ends_due = self.ends_due.min(self.wheel().after(MOMENT));
        }
        self.alarm.set(due.min(self.ends_due), context.waker());
        self.wheel().now() >= self.ends_due
    }

    /// The timer.
    pub(super) fn wheel(&self) -> &Wheel {
        self.alarm.wheel()
    }

    /// The product it is of.
    pub(super) fn product(&self) -> &Arc<Product> {
        &self.product
    }

    /// Its place in the log.
    pub(super) fn subscription(&mut self) -> &mut Subscription {
        &mut self.subscription
    }

    /// What it may see.
    pub(super) fn scope(&self) -> &Scope {
        self.subscription.scope()
    }

    /// It has not come to its end in the way it was told.
    pub(super) fn fails(&mut self, fault: Fault) {
        self.fault = Some(fault);
    }
}

/// How the lane's task gives a follower what arrives, as long as it has everything.
impl Events {
    /// Whether there is nothing else to be said to it than what arrives.
    pub(super) fn is_following(&self) -> bool {
        self.subscription.is_at_end() && self.leave_after.is_none() && !self.has_left && !self.owes_end_of_replay
    }

    /// It is to be polled, and looks into the log, from `place` on.
    pub(super) fn look_into_the_log(&mut self, place: u64) {
        self.subscription.look_into_the_log(place);
    }

    /// Whether its token's time is over at this moment.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.term.as_ref().is_some_and(|term| now >= term.over)
    }

    /// Gives it an event, if that is for it.
    pub(super) fn take(&mut self, event: &Event) -> bool {
        self.subscription.take(event)
    }

    /// Whether an event is within what it may see.
    pub(super) fn may_see(&self, event: &Event) -> bool {
        self.scope().includes(event.session(), event.kind())
    }

    /// The place of the last entry that it has been given, or may not see.
    pub(super) fn place(&self) -> u64 {
        self.subscription.returned_through()
    }

    /// Its socket could not take all of what it has been given.
    pub(super) fn is_stuck(&self) {
        self.seat.stands_at(self.place());
    }
}

/// Something to send.
#[derive(Debug)]
pub(super) enum Piece {
    /// An event.
    Event(Arc<Event>),
    /// A frame of another kind, or a line.
    Seldom(Bytes),
}

impl Piece {
    /// Its bytes.
    pub(super) fn frame(self) -> Bytes {
        match self {
            Self::Event(event) => event.wire(),
            Self::Seldom(bytes) => bytes,
        }
    }

    /// Its bytes as a chunk of an HTTP/1.1 body.
    pub(super) fn chunk(self) -> Bytes {
        match self {
            Self::Event(event) => event.chunk().clone(),
            Self::Seldom(bytes) => sse::encode_chunk(&bytes),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if self.has_expired() {
            self.seat.dismiss(Leave::Expired); // nobody asked it for its last bytes
        }
        if let Some(cut) = &self.cut {
            cut.lift();
        }
        let reason = match self.seat.dismissed() {
            _ if let Some(fault) = self.fault => fault.as_str(),
            Some(leave) => leave.as_str(),
            None => "client",
        };
        if !self.is_onlooker {
            self.product.metrics.disconnects(Transport::Sse, reason).inc();
            self.product.sse.subscribers.dec();
        }
        if matches!(self.fault, Some(Fault::Stalled)) {
            tracing::debug!(product = %self.product.id, "subscriber took nothing for the write time-out");
        }
    }
}

/// What whoever is sent away may take to make room for its last bytes.
const MOMENT: Duration = Duration::from_millis(700);
