//! One webhook's side of the store: its definition, its journal, and dead letters on their way back.
//!
//! At most one question or order of each kind is out. What cannot be written is written later. Nothing is written down of a
//! webhook that the store does not have yet: its registration comes first.
//!
//! ```text
//! outbox ── changes ──► journal ──► committed | not committed: they come again
//! ```
//!
//! May use: `delivery`, `log`, the webhook's own rooms.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{self, Instant},
};

use super::{Now, definition::Definition, outbox::Outbox};
use crate::{
    event::{ProductId, Scope},
    store::{Changes, Desk, Notice, Notices, Registration, Unreadable, Unwritable},
    webhook_delivery::DeadLetter,
};

/// What one webhook has out at the store.
pub(super) struct Records {
    id: Arc<str>,
    product: ProductId,
    scope: Scope,
    text: String,
    /// Where it begins in a store that does not know it: what it has come to since is still to be written down.
    begins_at: u64,
    /// The store has it, since this process runs.
    is_registered: bool,
    desk: Arc<Desk>,
    notices: Arc<Notices>,
    /// The definition is not in the store as it is.
    is_redefined: bool,
    registering: Out<Result<(), Unwritable>>,
    register_at: Instant,
    waiting: Vec<oneshot::Sender<Result<(), Unwritable>>>,
    journal: Out<Result<(), Changes>>,
    journal_at: Instant,
    /// When what can wait is written, too.
    all_at: Instant,
    letters: Out<Result<Vec<DeadLetter>, Unreadable>>,
    /// They have come, and wait for what else there is to know.
    come: Option<Vec<DeadLetter>>,
    letters_at: Instant,
}

type Out<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

impl Records {
    /// The records of a webhook that begins at `position`, and whose definition is still to be written; `waiting` is told when
    /// it is.
    pub(super) fn new(
        definition: &Definition,
        position: u64,
        desk: Arc<Desk>,
        notices: Arc<Notices>,
        waiting: Option<oneshot::Sender<Result<(), Unwritable>>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            id: definition.webhook.id.as_str().into(),
            product: definition.webhook.product_id.clone(),
            scope: definition.webhook.scope(),
            text: definition.to_text(),
            begins_at: position,
            is_registered: false,
            desk,
            notices,
            is_redefined: true,
            registering: None,
            register_at: now,
            waiting: waiting.into_iter().collect(),
            journal: None,
            journal_at: now,
            all_at: now,
            letters: None,
            come: None,
            letters_at: now,
        }
    }

    /// Notes that the definition is another.
    pub(super) fn redefined(&mut self, definition: &Definition) {
        (self.scope, self.text) = (definition.webhook.scope(), definition.to_text());
        (self.is_redefined, self.register_at) = (true, Instant::now());
    }

    /// Has `answer` told when the definition is in the store as it is from now on.
    pub(super) fn tell_when_registered(&mut self, answer: oneshot::Sender<Result<(), Unwritable>>) {
        self.waiting.push(answer);
        self.is_redefined = true;
    }

    /// Begins to write down what is to be written. Nothing that has not been committed is called passed.
    pub(super) fn write_down(&mut self, outbox: &mut Outbox, committed: u64) {
        let now = Instant::now();
        if self.is_redefined && self.registering.is_none() && now >= self.register_at {
            self.is_redefined = false;
            self.registering = Some(Box::pin(self.desk.register(self.registration())));
        }
        // The store is degraded. What is not committed is not called passed: after a crash, other events would stand there.
        let is_ahead = committed < outbox.position();
        if is_ahead || self.desk.is_degraded() {
            outbox.cannot_be_written();
        }
        if !self.is_registered || self.journal.is_some() || now < self.journal_at {
            return;
        }
        if is_ahead {
            self.journal_at = now + AGAIN;
            return;
        }
        let changes = if now >= self.all_at { outbox.all_changes() } else { outbox.changes() };
        self.all_at = if now >= self.all_at { now + LAZY } else { self.all_at };
        self.journal = changes.map(|changes| Box::pin(self.desk.journal(&self.id, changes)) as _);
    }

    /// Whether a journal is on its way.
    pub(super) fn is_writing(&self) -> bool {
        self.journal.is_some()
    }

    fn registration(&self) -> Registration {
        Registration {
            id: Arc::clone(&self.id),
            product: self.product.clone(),
            scope: self.scope.clone(),
            definition: self.text.clone(),
            position: self.begins_at,
            notices: Arc::clone(&self.notices),
        }
    }

    /// Hands over dead letters that have come to be delivered again, and asks for others, now and then: they come on top of what
    /// is owed. The outbox has heard before what the store had to tell by then.
    pub(super) fn redeliver(&mut self, outbox: &mut Outbox, notice: &Notice) {
        if let Some(letters) = self.come.take() {
            let is_worth_it = outbox.redeliver(letters, Now::read());
            self.letters_at = Instant::now() + if is_worth_it { LETTERS_EVERY } else { LETTERS_AGAIN };
        }
        let is_due = notice.requeued > outbox.letters() && self.letters.is_none() && Instant::now() >= self.letters_at;
        if let Some(after) = outbox.wants_letters_behind().filter(|_| is_due) {
            self.letters = Some(Box::pin(self.desk.requeued(&self.id, after, LETTERS_AT_A_TIME)));
        }
    }

    /// Forgets the dead letters that are on their way: they are asked for again.
    pub(super) fn forget_letters(&mut self) {
        (self.letters, self.come) = (None, None);
    }

    /// When there is something to ask for or to write, though nothing else happens.
    pub(super) fn due(&self, outbox: &Outbox, notice: &Notice) -> Option<Instant> {
        let now = Instant::now();
        let letters = (notice.requeued > outbox.letters() && self.letters.is_none()).then_some(self.letters_at);
        let register = (self.is_redefined && self.registering.is_none()).then_some(self.register_at);
        let journal = Some(self.journal_at).filter(|at| *at > now);
        [letters.filter(|at| *at > now), register, journal].into_iter().flatten().min()
    }

    /// Waits for an answer of the store, and deals with it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(super) async fn next(&mut self, outbox: &mut Outbox) {
        let now = Instant::now();
        match poll_fn(|context| self.poll(context)).await {
            Answer::Journal(Ok(())) => outbox.committed(),
            Answer::Journal(Err(changes)) => {
                outbox.not_committed(changes);
                self.journal_at = now + AGAIN;
            }
            Answer::Registered(registered) => self.registered(registered),
            Answer::Letters(letters) => self.come = Some(letters.unwrap_or_default()),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        if let Poll::Ready(written) = poll_out(&mut self.journal, context) {
            return Poll::Ready(Answer::Journal(written));
        }
        if let Poll::Ready(registered) = poll_out(&mut self.registering, context) {
            return Poll::Ready(Answer::Registered(registered));
        }
        poll_out(&mut self.letters, context).map(Answer::Letters)
    }

    fn registered(&mut self, registered: Result<(), Unwritable>) {
        self.is_registered |= registered.is_ok();
        if registered.is_err() {
            (self.is_redefined, self.register_at) = (true, Instant::now() + REGISTER_AGAIN);
        }
        // What was redefined meanwhile is still on its way.
        if registered.is_err() || !self.is_redefined {
            for waiting in self.waiting.drain(..) {
                let _ = waiting.send(registered); // who asked may have left
            }
        }
    }

    /// Writes down everything there is, unless the store is not to be had.
    pub(super) async fn close(&mut self, outbox: &mut Outbox, committed: u64) {
        let now = Instant::now();
        (self.register_at, self.journal_at, self.all_at) = (now, now, now);
        let write = async {
            loop {
                self.write_down(outbox, committed);
                if self.journal.is_none() && self.registering.is_none() {
                    return; // what could not be written is delivered twice
                }
                self.next(outbox).await;
            }
        };
        let _ = time::timeout(CLOSING, write).await;
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the store has to say.
enum Answer {
    Journal(Result<(), Changes>),
    Registered(Result<(), Unwritable>),
    Letters(Result<Vec<DeadLetter>, Unreadable>),
}

/// Polls what is out, which is then no longer.
fn poll_out<T>(out: &mut Out<T>, context: &mut Context<'_>) -> Poll<T> {
    let Some(future) = out else { return Poll::Pending };
    let polled = future.as_mut().poll(context);
    if polled.is_ready() {
        *out = None;
    }
    polled
}

/// How long the position may wait to be written when nothing else is.
const LAZY: Duration = Duration::from_secs(1);

/// After a journal that could not be written.
const AGAIN: Duration = Duration::from_millis(50);

/// After a definition that could not be written.
const REGISTER_AGAIN: Duration = Duration::from_secs(1);

/// Between two helpings of dead letters: with the number that is under way at one time, some sixty a second.
const LETTERS_EVERY: Duration = Duration::from_millis(250);

/// After all that wait have been looked at, and none could be taken: those before them fail.
const LETTERS_AGAIN: Duration = Duration::from_secs(1);

/// More than the outbox takes at one time, as it leaves some.
const LETTERS_AT_A_TIME: usize = 48;

/// For the last journal.
const CLOSING: Duration = Duration::from_secs(2);
