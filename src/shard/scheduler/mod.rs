//! The task of a lane that writes to its subscribers.
//!
//! ```text
//! fan-out ─ an event has arrived ──────────────► flock: who is concerned? ─► give it to 7, 12, 31
//! wheel, socket, a word to leave ─ rings a bell ► due: [ 7, 40 ] ──────────► poll 7, 40
//! ```
//!
//! May use: `event`, `net` (the socket), `wheel`.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    task::{Context, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::net::TcpStream;
use tracing::{debug, error};

use super::{
    Follower, Given, Lent,
    placement::{Bell, Call, Newcomer, Shard},
    product_group::{Flock, News},
};
use crate::{
    http::Product,
    net::Socket,
    timer_wheel::{Alarm, Wheel},
};

/// The subscribers of one shard, in the hands of its task.
pub(super) struct Crowd {
    shard: Arc<Shard>,
    members: Slab<Member>,
    /// Those that are to be polled.
    due: VecDeque<usize>,
    /// Those who are to be let in.
    newcomers: VecDeque<Newcomer>,
    flocks: Slab<Flock>,
    /// Flocks that have something to give.
    giving: VecDeque<usize>,
    /// Change places with the lists in the inbox, so that none is ever allocated anew.
    woken: Vec<usize>,
    called: Vec<usize>,
    lent: Lent,
    pulse: Alarm,
    pulse_due: u64,
}

struct Member {
    follower: Box<dyn Follower>,
    flock: usize,
    /// The first of its flock's arrivals that is for it, if it is concerned.
    first: Option<usize>,
    is_due: bool,
    bell: Arc<Bell>,
}

impl Crowd {
    /// Nobody yet.
    pub(super) fn new(shard: &Arc<Shard>, write_timeout: Duration, wheel: &Arc<Wheel>) -> Self {
        Self {
            shard: Arc::clone(shard),
            members: Slab::new(),
            due: VecDeque::new(),
            newcomers: VecDeque::new(),
            flocks: Slab::new(),
            giving: VecDeque::new(),
            woken: Vec::new(),
            called: Vec::new(),
            lent: Lent { pieces: VecDeque::new(), bytes: 0, write_timeout },
            pulse: Alarm::new(wheel),
            pulse_due: 0,
        }
    }

    /// Whether nobody is here.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.newcomers.is_empty()
    }

    /// Does some of what there is to do. `context` is woken when there is more.
    pub(super) fn turn(&mut self, context: &Context<'_>) {
        self.shard.waker.register(context.waker());
        self.beat(context);
        // In this order: who has been told to leave before an event came does not get it.
        self.look_for_arrivals();
        let is_more = self.look_into_the_inbox();
        self.lent.bytes = 0;
        self.poll_some();
        self.lent.bytes = 0;
        self.give_some();
        if is_more || !self.due.is_empty() || !self.giving.is_empty() {
            context.waker().wake_by_ref();
        }
    }

    /// Shows once a second that the lane is alive.
    fn beat(&mut self, context: &Context<'_>) {
        let now = self.pulse.wheel().now();
        if now >= self.pulse_due {
            self.shard.beat.store(now, Ordering::Relaxed);
            self.pulse_due = self.pulse.wheel().after(PULSE);
            self.pulse.set(self.pulse_due, context.waker());
        }
    }

    fn look_for_arrivals(&mut self) {
        std::mem::swap(&mut self.shard.inbox().called, &mut self.called);
        for number in self.called.drain(..) {
            let Some(flock) = self.flocks.get_mut(number) else { continue };
            flock.is_called = true;
            if !std::mem::replace(&mut flock.is_listed, true) {
                self.giving.push_back(number);
            }
        }
        let Self { giving, flocks, members, due, .. } = self;
        for number in &*giving {
            let Some(flock) = flocks.get_mut(*number) else { continue };
            flock.look(|number, news| {
                let Some(member) = members.get_mut(number) else { return false };
                match news {
                    News::InTheLog(place) => {
                        if member.follower.look_into_the_log(place) == Given::Look {
                            member.is_to_be_polled(number, due);
                        }
                        false
                    }
                    News::Arrived(_) if member.first.is_some() => false,
                    News::Arrived(at) => {
                        member.first = Some(at);
                        true
                    }
                }
            });
        }
    }

    /// Takes what others have left, but for arrivals; whether there is more.
    fn look_into_the_inbox(&mut self) -> bool {
        let is_called = {
            let mut inbox = self.shard.inbox();
            std::mem::swap(&mut inbox.woken, &mut self.woken);
            self.newcomers.extend(inbox.newcomers.drain(..));
            !inbox.called.is_empty()
        };
        for number in self.woken.drain(..) {
            if let Some(member) = self.members.get_mut(number) {
                member.bell.has_rung.store(false, Ordering::SeqCst);
                member.is_to_be_polled(number, &mut self.due);
            }
        }
        for _ in 0..TURN {
            match self.newcomers.pop_front() {
                Some(newcomer) => self.let_in(newcomer),
                None => break,
            }
        }
        is_called || !self.newcomers.is_empty()
    }

    fn let_in(&mut self, Newcomer { socket, place, introduce }: Newcomer) {
        let socket = match TcpStream::from_std(socket) {
            Ok(stream) => Socket { stream, place },
            Err(error) => {
                debug!(%error, "connection ended");
                self.shard.size.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        };
        let mut follower = introduce(socket);
        let flock = self.flock_of(follower.product());
        let place = self.members.vacant_entry();
        let number = place.key();
        if let Some(flock) = self.flocks.get_mut(flock) {
            flock.join(number, follower.subscription());
        }
        let bell = Bell::new(&self.shard, number);
        place.insert(Member { follower, flock, first: None, is_due: true, bell });
        self.due.push_back(number);
    }

    /// The number of a product's flock, which it begins with the first of its subscribers.
    fn flock_of(&mut self, product: &Arc<Product>) -> usize {
        // By another configuration it is another `Product`, but its events are the same.
        let is_same = |known: &Product| Arc::ptr_eq(&known.fanout, &product.fanout);
        let known = self.flocks.iter().find(|(_, flock)| is_same(&flock.product));
        known.map(|(number, _)| number).unwrap_or_else(|| {
            let place = self.flocks.vacant_entry();
            let number = place.key();
            let waker = Waker::from(Arc::new(Call::new(&self.shard, number)));
            place.insert(Flock::new(product, self.shard.lane, waker));
            number
        })
    }

    /// Has some of those that are due do their work.
    fn poll_some(&mut self) {
        for _ in 0..TURN {
            if self.lent.bytes > TURN_BYTES {
                return;
            }
            let Some(number) = self.due.pop_front() else { return };
            let Some(member) = self.members.get_mut(number) else { continue };
            member.is_due = false;
            if let Some(flock) = self.flocks.get_mut(member.flock) {
                member.follower.subscription().has_arrived(flock.through());
            }
            let waker = Waker::from(Arc::clone(&member.bell));
            let mut context = Context::from_waker(&waker);
            let flock = self.flocks.get_mut(member.flock);
            let poll = || {
                let polled = member.follower.poll(&mut context, &mut self.lent);
                let wish = member.follower.wish().zip(flock);
                let has_wished = wish.is_some();
                if let Some((scope, flock)) = wish {
                    flock.change_scope(number, member.follower.subscription(), scope);
                }
                (polled.is_ready(), has_wished)
            };
            match shielded(poll) {
                Some((false, false)) => {}
                Some((false, true)) => member.is_to_be_polled(number, &mut self.due),
                Some((true, _)) => self.remove(number),
                None => {
                    member.fails();
                    self.remove(number);
                }
            }
        }
    }

    /// Gives some of those who are concerned what has arrived.
    fn give_some(&mut self) {
        let mut most = TURN;
        while most > 0
            && let Some(number) = self.giving.pop_front()
        {
            most = self.give(number, most);
            let Some(flock) = self.flocks.get_mut(number) else { continue };
            flock.ledgers.flush();
            let is_done = flock.is_done();
            flock.is_listed = flock.is_called || !is_done;
            if flock.is_listed {
                self.giving.push_back(number); // the other products have their turn
                if most > 0 && is_done {
                    return; // it is called: what has arrived is looked for at the next turn
                }
            }
        }
    }

    /// Gives what has arrived for one flock to so many, and returns how many of these were not there.
    fn give(&mut self, number: usize, most: usize) -> usize {
        for left in (0..most).rev() {
            if self.lent.bytes > TURN_BYTES {
                return 0;
            }
            let Some(flock) = self.flocks.get_mut(number) else { return left };
            let Some(concerned) = flock.concerned.pop_front() else { return left };
            // Under the number of one that has gone may be another one, even of another product.
            let member = self.members.get_mut(concerned).filter(|member| member.flock == number);
            let Some(member) = member else { continue };
            let Some(first) = member.first.take() else { continue };
            let (arrivals, ledgers) = flock.arrivals(first);
            let give = || match member.is_due {
                true => member.follower.look_into_the_log(arrivals.place()),
                false => member.follower.give(arrivals, &mut self.lent, ledgers),
            };
            match shielded(give) {
                Some(Given::Done) => {}
                Some(Given::Look) => member.is_to_be_polled(concerned, &mut self.due),
                Some(Given::Ended) => self.remove(concerned),
                None => {
                    member.fails();
                    self.remove(concerned);
                }
            }
        }
        0
    }

    fn remove(&mut self, number: usize) {
        self.lent.pieces.clear();
        self.shard.size.fetch_sub(1, Ordering::Relaxed);
        let Some(mut member) = self.members.try_remove(number) else { return };
        let Some(flock) = self.flocks.get_mut(member.flock) else { return };
        if flock.leave(number, member.follower.subscription().scope()) {
            self.flocks.try_remove(member.flock);
        }
    }
}

impl Member {
    fn is_to_be_polled(&mut self, number: usize, due: &mut VecDeque<usize>) {
        if !std::mem::replace(&mut self.is_due, true) {
            due.push_back(number);
        }
    }

    /// Its work has panicked: it ends.
    fn fails(&mut self) {
        self.follower.fails();
    }
}

/// Does the work of one subscriber. A mistake in it ends that one, whose client comes back, and no other.
fn shielded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work))
        .inspect_err(|_| error!("a subscriber was cut off: its work panicked; please report the panic above"))
        .ok()
}

/// Subscribers in one turn: what else the thread has to do waits for no more than twice as many.
const TURN: usize = 32;

/// Bytes written after which a turn is over.
const TURN_BYTES: usize = 512 * 1024;

/// Between two signs of life.
const PULSE: Duration = Duration::from_secs(1);
