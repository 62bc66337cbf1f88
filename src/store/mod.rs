//! The durable store of all logs: one SQLite file, one thread that writes it, a few that read it.
//!
//! Ingest and live delivery never wait for the store. Its writer reads the logs: every few
//! milliseconds it takes what has gathered, commits it in one transaction, and tells each log what
//! is persisted.
//!
//! ```text
//! open: lock the directory, open or replace the file, reserve an epoch per product ──► start ──► stop
//! ```
//!
//! What webhooks are owed stands beside the events. Without a file, the same code keeps it in
//! memory.
//!
//! May use: `error_chain`, `event`, `log`, `metrics`.

pub(crate) mod commands;
pub(crate) mod reader;
pub(crate) mod sqlite;
mod syncer;
#[cfg(test)]
pub(crate) mod testing;
mod webhook_rows;
mod writer;

use std::{
    fs::{self, DirBuilder, OpenOptions, TryLockError},
    io, mem,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use self::{
    reader::StoreReader,
    sqlite::{AppendBatch, FileError, IN_MEMORY_PATH, StoreFile, SyncMode},
    writer::StoreWriter,
};
use crate::{
    error_chain::error_chain,
    event::ProductId,
    log::{Log, MemoryBounds, epoch_after, first_span_of_epoch},
    metrics::Metrics,
};

pub(crate) use self::reader::ReadRequest;
pub(crate) use self::sqlite::PersistedLog;
pub(crate) use self::webhook_rows::{
    DeadLetterSelection, DeadLetterState, DeliveryChange, OwedDelivery, StoredWebhook,
    WebhookChanges, WebhookNotice, WebhookNotices, WebhookRegistration,
};
pub(crate) use crate::log::backing::{CatchUp, StoreHandle, StoreUnreadable, StoreUnwritable};

/// Where the store is and how much it keeps.
#[derive(Clone, Debug)]
pub(crate) struct StoreSettings {
    /// The directory, which belongs to one process.
    pub(crate) directory: PathBuf,
    /// How long an event is kept.
    pub(crate) retention: Duration,
    /// Bytes of the file that may be in use, beside dead letters.
    pub(crate) retention_bytes: u64,
    /// How long a dead letter is kept.
    pub(crate) dead_letter_retention: Duration,
    /// Bytes of the file that dead letters may take, beside the others.
    pub(crate) dead_letter_bytes: u64,
    /// Readers at one time.
    pub(crate) max_concurrent_replays: usize,
}

/// A store at work. Holds the directory until it is dropped.
#[derive(Debug)]
pub(crate) struct Store {
    handle: Arc<StoreHandle>,
    threads: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<StoreWriter>>,
    webhooks: Vec<StoredWebhook>,
    _lock: Option<fs::File>,
}

impl Store {
    /// Opens the store, or begins one, and goes on with the log of each product. A damaged file is
    /// set aside.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used, belongs to another process, or holds a file that is not
    /// ours, and when there are no threads to be had.
    pub(crate) fn open(
        settings: StoreSettings,
        bounds: MemoryBounds,
        products: &[ProductId],
        metrics: &Metrics,
    ) -> Result<(Self, Vec<Arc<Log>>), StoreError> {
        let directory = &settings.directory;
        let unusable = |source| StoreError::Directory { directory: directory.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(unusable)?;
        let lock = lock_directory(directory)?;
        let path = directory.join(FILE_NAME);
        let (opened, is_replacement) = match open_file(&path, products) {
            Err(error @ FileError::Damaged { .. }) => {
                set_aside(&path, &error_chain(&error)).map_err(unusable)?;
                (open_file(&path, products), true)
            }
            opened => (opened, false),
        };
        let (file, products_found, webhooks) = opened
            .map_err(|source| StoreError::File { path: path.clone(), source: Box::new(source) })?;
        let handle = StoreHandle::new(path, settings.max_concurrent_replays);
        let log = |(product, persisted, epoch): ReservedProduct| {
            let (handle, metrics) = (Arc::clone(&handle), metrics.log(&product));
            Arc::new(Log::restored(
                product,
                bounds,
                persisted,
                epoch,
                is_replacement,
                handle,
                metrics,
            ))
        };
        let logs: Vec<_> = products_found.into_iter().map(log).collect();
        let was_left_open = file.was_left_open();
        let writer = StoreWriter::new(
            Arc::clone(&handle),
            logs.clone(),
            file,
            settings,
            metrics.store().clone(),
        );
        let mut store =
            Self { handle, threads: Vec::new(), writer: None, webhooks, _lock: Some(lock) };
        store.start(writer, was_left_open)?;
        Ok((store, logs))
    }

    /// A store for webhooks alone, which ends with the process: the logs keep themselves, and it
    /// keeps nothing of them. The settings' directory is not looked at.
    ///
    /// # Errors
    ///
    /// When there is no memory or no thread.
    pub(crate) fn in_memory(
        settings: StoreSettings,
        logs: Vec<Arc<Log>>,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let file = StoreFile::in_memory().map_err(|source| StoreError::Memory(Box::new(source)))?;
        let handle =
            StoreHandle::new(PathBuf::from(IN_MEMORY_PATH), settings.max_concurrent_replays);
        let writer =
            StoreWriter::new(Arc::clone(&handle), logs, file, settings, metrics.store().clone());
        let mut store =
            Self { handle, threads: Vec::new(), writer: None, webhooks: Vec::new(), _lock: None };
        store.start_writer(writer)?;
        Ok(store)
    }

    /// The webhooks that were kept, with what is owed to them, for the first who asks.
    pub(crate) fn take_webhooks(&mut self) -> Vec<StoredWebhook> {
        mem::take(&mut self.webhooks)
    }

    fn start(&mut self, writer: StoreWriter, was_left_open: bool) -> Result<(), StoreError> {
        if was_left_open {
            tracing::warn!("the store was not closed in order; it is being checked");
            self.handle.set_checking(true);
            self.spawn("log-check", check_file)?;
        }
        for _ in 0..READER_THREADS {
            self.spawn("log-reader", StoreHandle::serve_reads)?;
        }
        self.spawn("log-syncer", syncer::run)?;
        self.start_writer(writer)
    }

    fn start_writer(&mut self, writer: StoreWriter) -> Result<(), StoreError> {
        let thread = thread::Builder::new().name("log-writer".to_owned()).spawn(|| writer.run());
        self.writer = Some(thread.map_err(StoreError::Thread)?);
        Ok(())
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&StoreHandle) + Send + 'static,
    ) -> Result<(), StoreError> {
        let handle = Arc::clone(&self.handle);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || work(&handle));
        self.threads.push(thread.map_err(StoreError::Thread)?);
        Ok(())
    }

    /// Ends as `kill -9` would end it.
    #[cfg(test)]
    pub(crate) fn crash(&self) {
        self.handle.crash();
    }

    /// What others need of it.
    pub(crate) fn handle(&self) -> &Arc<StoreHandle> {
        &self.handle
    }
}

impl Drop for Store {
    /// Keeps what is not kept yet, closes the file, and ends the threads. Blocks until that is
    /// done.
    fn drop(&mut self) {
        self.handle.stop();
        for thread in self.threads.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!(thread = name, "a part of the store did not end well");
            }
        }
        match self.writer.take().map(JoinHandle::join) {
            Some(Ok(writer)) => writer.close(),
            Some(Err(_)) => tracing::error!("the store's writer did not end well"),
            None => {}
        }
    }
}

/// Opens the file, and reserves an epoch for each product: on disk before its first id is shown.
fn open_file(
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

/// What the file has of a product, and an epoch for it, which is on the disk.
fn reserve_epoch(
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
    file.append(&[batch], SyncMode::Full, unix_ms())?;
    Ok((persisted, epoch))
}

/// The webhooks of these products. The others wait in the file for theirs to be configured again.
fn retain_configured(stored: Vec<StoredWebhook>, products: &[ProductId]) -> Vec<StoredWebhook> {
    let (configured, orphaned): (Vec<_>, Vec<_>) =
        stored.into_iter().partition(|webhook| products.contains(&webhook.product));
    for StoredWebhook { id, product, .. } in orphaned {
        tracing::warn!(webhook = id, %product, "the webhook's product is not configured: it gets nothing, and is kept");
    }
    configured
}

/// A product, what the file has of it, and the epoch reserved for it.
type ReservedProduct = (ProductId, PersistedLog, u64);

/// Makes this process the only one that uses the directory.
fn lock_directory(directory: &Path) -> Result<fs::File, StoreError> {
    let path = directory.join(LOCK_NAME);
    let unusable = |source| StoreError::Directory { directory: directory.to_owned(), source };
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::Locked { directory: directory.to_owned() })
        }
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

/// Moves a damaged file out of the way, for whoever may want to save something from it.
fn set_aside(path: &Path, damage: &str) -> io::Result<()> {
    let kept_as = StoreFile::set_aside(path, unix_ms())?;
    tracing::error!(
        file = %path.display(),
        kept_as = %kept_as.display(),
        damage,
        "the store is damaged: set aside, and a new one begun; what it kept cannot be replayed"
    );
    Ok(())
}

fn check_file(handle: &StoreHandle) {
    let generation = handle.generation();
    let checked = StoreReader::open(handle.path()).and_then(|reader| {
        let interrupt = reader.interrupt_handle();
        thread::scope(|scope| {
            let (done, watch) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                while watch.recv_timeout(STOP_POLL_INTERVAL)
                    == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                {
                    if handle.is_stopping() {
                        interrupt.interrupt();
                    }
                }
            });
            let checked = reader.check();
            drop(done);
            checked
        })
    });
    match checked {
        Ok(()) => tracing::info!("the store is whole"),
        Err(_) if handle.is_stopping() => {}
        Err(FileError::Damaged { source, .. }) => {
            tracing::error!(damage = %source, "the check has found damage");
            handle.report_damage(generation);
        }
        Err(error) => {
            tracing::error!(problem = error_chain(&error), "the store could not be checked");
        }
    }
    handle.set_checking(false);
}

fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The directory cannot be made, locked or written.
    #[error("log.data_dir: cannot use {}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has the directory.
    #[error("log.data_dir: {} is in use by another autoplay-relay; give each its own directory", directory.display())]
    Locked {
        /// The directory.
        directory: PathBuf,
    },
    /// The file cannot be opened.
    #[error("log.data_dir: cannot open {}; it needs to be readable, writable, and some MiB of room", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<FileError>,
    },
    /// There is no room for webhooks in memory.
    #[error("cannot set up the webhooks' outbox in memory")]
    Memory(#[source] Box<FileError>),
    /// The operating system gives no thread.
    #[error("cannot start the store's threads")]
    Thread(#[source] io::Error),
}

const FILE_NAME: &str = "relay.db";

const LOCK_NAME: &str = "relay.lock";

/// Enough to keep a disk busy; more would take the processors from live delivery.
const READER_THREADS: usize = 2;

/// How often a check looks whether the relay is leaving.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);
