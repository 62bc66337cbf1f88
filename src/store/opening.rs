//! Opens the store's file and reserves epochs for the logs; sets a damaged file aside.
//!
//! May use: `event`, `log`, `wall_clock`.

use std::{io, path::Path};

use super::{
    sqlite::{self, AppendBatch, FileError, StoreFile, SyncMode},
    webhook_rows::StoredWebhook,
};
use crate::{
    event::ProductId,
    log::{PersistedLog, epoch_after, first_span_of_epoch},
    wall_clock,
};

/// Opens the file, and reserves an epoch for each product.
pub(super) fn open_file(
    path: &Path,
    products: &[ProductId],
) -> Result<(StoreFile, Vec<ReservedProduct>, Vec<StoredWebhook>), FileError> {
    let mut file = StoreFile::open(path)?;
    let webhooks = retain_configured(file.webhooks()?, products);
    let mut restored = Vec::new();
    for product in products {
        let (persisted, epoch) = reserve_epoch(&mut file, product)?;
        restored.push((product.clone(), persisted, epoch));
    }
    Ok((file, restored, webhooks))
}

/// Returns the persisted log of a product, and a new epoch for it.
///
/// The epoch is synced to the disk before its first id is shown: an id that was shown and then lost
/// in a power cut is never given to another event.
pub(super) fn reserve_epoch(
    file: &mut StoreFile,
    product: &ProductId,
) -> Result<(PersistedLog, u64), FileError> {
    let persisted = file.find_or_add_product(product)?;
    let epoch = epoch_after(persisted.highest_epoch);
    let spans = [first_span_of_epoch(persisted.newest, epoch)];
    let first = persisted.newest + 1;
    let batch = AppendBatch {
        product_number: persisted.product_number,
        first,
        entries: &[],
        spans: &spans,
        holes: &[],
    };
    file.append(&[batch], SyncMode::Full, wall_clock::now().unix_ms)?;
    Ok((persisted, epoch))
}

/// Returns the webhooks of these products. The others stay in the file until their product is
/// configured again.
fn retain_configured(stored: Vec<StoredWebhook>, products: &[ProductId]) -> Vec<StoredWebhook> {
    let (configured, orphaned): (Vec<_>, Vec<_>) =
        stored.into_iter().partition(|webhook| products.contains(&webhook.product));
    for StoredWebhook { id, product, .. } in orphaned {
        tracing::warn!(webhook = id, %product, "the webhook's product is not configured: it gets nothing, and is kept");
    }
    configured
}

/// Product, its persisted log, and the epoch reserved for it.
pub(super) type ReservedProduct = (ProductId, PersistedLog, u64);

/// Renames a damaged file and keeps all its bytes, so that an operator may recover events from it.
pub(super) fn set_aside(path: &Path, damage: &str) -> io::Result<()> {
    let kept_as = sqlite::set_aside(path, wall_clock::now().unix_ms)?;
    tracing::error!(
        file = %path.display(),
        kept_as = %kept_as.display(),
        damage,
        "the store is damaged: set aside, and a new one begun; what it kept cannot be replayed"
    );
    Ok(())
}
