//! One shard's index and its readers, run by hand.

use std::{sync::Arc, task::Waker};

use crate::{
    event::{Event, Scope},
    fanout::{Fanout, QueueContents},
    shard::index::ShardIndex,
    subscription::FanoutReader,
};

/// Expected items of a reader, by its start position and its scope.
pub(super) struct Expectation {
    pub(super) reader: FanoutReader,
    pub(super) scope: Scope,
    pub(super) after: u64,
}

/// A shard's task, as far as the fan-out is concerned.
pub(super) struct FanoutShardHarness {
    pub(super) shard_index: ShardIndex,
    queued: Vec<Arc<Event>>,
}

impl FanoutShardHarness {
    pub(super) fn new(fanout: &Arc<Fanout>) -> Self {
        Self { shard_index: ShardIndex::new(fanout, 0, Waker::noop().clone()), queued: Vec::new() }
    }

    pub(super) fn join(&mut self, number: usize, reader: &mut FanoutReader) {
        if !reader.is_on_shard {
            reader.is_on_shard = true;
            self.shard_index.add(number, &mut reader.subscription);
        }
    }

    pub(super) fn read(&self, reader: &mut FanoutReader, max_items: usize) {
        if let Some(position) = self.shard_index.position().filter(|_| reader.is_on_shard) {
            reader.subscription.advance_to(position);
        }
        reader.read(max_items);
        reader.is_following = reader.is_on_shard && reader.subscription.is_caught_up();
    }

    /// Delivers the queued events to the readers that follow; readers in `stuck` cannot take
    /// anything now.
    pub(super) fn deliver_queued(&mut self, readers: &mut [Expectation], stuck: &[usize]) {
        self.queued.clear();
        match self.shard_index.take_queued(&mut self.queued) {
            QueueContents::Events => {}
            QueueContents::Marks(_) => unreachable!("so much is not appended"),
            QueueContents::Overflowed(position) => {
                return self
                    .shard_index
                    .for_each(|number| readers[number].reader.resync_from(position));
            }
        }
        let mut first = vec![None; readers.len()];
        let keys = self.queued.iter().map(|event| event.scope_key());
        self.shard_index.for_each_interested(keys, |at, number| {
            first[number].get_or_insert(at);
        });
        for (number, first) in first.into_iter().enumerate() {
            let (Some(first), reader) = (first, &mut readers[number].reader) else { continue };
            if !reader.is_following || stuck.contains(&number) {
                reader.resync_from(self.queued[first].position());
                continue;
            }
            let given =
                self.queued[first..].iter().filter(|event| reader.subscription.accept(event));
            reader.seen.extend(given.map(|event| Ok(event.position())));
        }
    }
}
