//! Commands of operators to one worker, and their replies.
//!
//! May use: `webhook_delivery`.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{WebhookCommand, Worker};
use crate::{
    webhook::{DeliveryPage, DeliveryState, ListedDelivery, Now, definition::Definition, sample},
    webhook_delivery::Attempt,
};

impl Worker {
    /// Executes a command and replies.
    pub(super) fn execute(&mut self, command: WebhookCommand) {
        // Errors of `send` are ignored: the caller may have dropped its future.
        match command {
            WebhookCommand::Redefine(definition, reply) => {
                self.store_sync.notify_when_registered(reply);
                self.redefine(*definition);
            }
            WebhookCommand::ReplaceSender(reply) => {
                self.sender = Arc::new(self.context.build_sender(&self.shared.definition()));
                let _ = reply.send(());
            }
            WebhookCommand::Enable(reply) => {
                // Attempts in flight ran against the receiver as it was before the operator's fix,
                // so their outcomes must not open the circuit again.
                self.endpoint_generation += 1;
                self.outbox.enable();
                // Before the reply: the caller reads the published status right after it.
                self.start_due_work();
                let _ = reply.send(());
            }
            WebhookCommand::Disable(reply) => {
                self.outbox.disable("by an operator");
                self.start_due_work();
                let _ = reply.send(());
            }
            WebhookCommand::Test(reply) => self.send_test(reply),
            WebhookCommand::List { state, before, limit, reply } => {
                let _ = reply.send(self.list_deliveries(state, before, limit));
            }
            WebhookCommand::Erase(erased, reply) => {
                self.outbox.erase(&erased);
                // The subscription may hold such events that it read but did not return.
                self.reader.resubscribe(self.shared.definition().webhook.scope());
                self.store_sync.discard_dead_letters();
                let _ = reply.send(());
            }
        }
    }

    /// Applies another definition: a new scope re-subscribes, a new URL is a new endpoint, any
    /// other change of the configuration replaces policy and sender.
    pub(super) fn redefine(&mut self, definition: Definition) {
        let before = self.shared.definition();
        let (webhook, previous) = (&definition.webhook, &definition.previous_secret);
        if before.webhook.scope() != webhook.scope() {
            self.reader.resubscribe(webhook.scope());
        }
        if before.webhook.url != webhook.url {
            self.endpoint_generation += 1;
            if definition.disabled.is_none() {
                self.outbox.enable();
            }
        }
        if before.webhook != *webhook || before.previous_secret != *previous {
            self.outbox.set_policy(self.context.policy(webhook));
            self.sender = Arc::new(self.context.build_sender(&definition));
        }
        self.store_sync.set_definition(&definition);
        self.shared.redefine(definition);
    }

    fn send_test(&mut self, reply: oneshot::Sender<Attempt>) {
        let sender = Arc::clone(&self.sender);
        let (id, payload) = sample::event(&self.shared.definition().webhook.product_id);
        self.samples.spawn(async move {
            let (attempt, _) = sender.send(&id, payload).await;
            let _ = reply.send(attempt);
        });
    }

    fn list_deliveries(
        &self,
        state: DeliveryState,
        before: Option<u64>,
        limit: usize,
    ) -> DeliveryPage {
        match state {
            DeliveryState::Delivered => {
                let delivered = self.outbox.delivered(before, limit);
                let next = delivered
                    .last()
                    .map(|(number, _)| *number)
                    .filter(|_| delivered.len() == limit);
                let deliveries = delivered
                    .into_iter()
                    .map(|(_, delivery)| ListedDelivery::Delivered(delivery))
                    .collect();
                DeliveryPage { deliveries, next_cursor: next }
            }
            DeliveryState::Pending | DeliveryState::Dead => {
                let pending = self.outbox.pending(before, limit, Now::read());
                let next = pending
                    .last()
                    .map(|(delivery, _)| delivery.position)
                    .filter(|_| pending.len() == limit);
                let deliveries = pending
                    .into_iter()
                    .map(|(delivery, due)| ListedDelivery::Pending(delivery, due))
                    .collect();
                DeliveryPage { deliveries, next_cursor: next }
            }
        }
    }
}
