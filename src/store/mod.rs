//! The durable store of all logs: one SQLite file, one thread that writes it, a few that read it.
//!
//! Ingest and live delivery never wait for the store. Its writer reads the logs: every few
//! milliseconds it commits the entries that have gathered in one transaction, and reports to each
//! log how far it is persisted.
//!
//! ```text
//! open: lock the directory, open or replace the file, reserve an epoch per product ──► start ──► stop
//! ```
//!
//! The file also has the webhooks' outboxes. Without a file, the same code keeps them in memory.
//!
//! May use: `error_chain`, `event`, `log`, `metrics`.

mod check;
mod commands;
mod handle;
mod opening;
mod reader;
mod reader_pool;
mod requests;
mod settings;
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
    time::{Duration, Instant},
};

use self::{
    opening::{ReservedProduct, open_file, set_aside},
    sqlite::{FileError, IN_MEMORY_PATH, StoreFile},
    writer::StoreWriter,
};
use crate::{
    error_chain::error_chain,
    event::ProductId,
    log::{Log, MemoryBounds},
    metrics::{Metrics, StoreMetrics},
};

pub(crate) use self::commands::StoreUnwritable;
pub(crate) use self::handle::StoreHandle;
pub(crate) use self::settings::StoreSettings;
pub(crate) use self::webhook_rows::{
    DeadLetterSelection, DeadLetterState, DeliveryChange, OwedDelivery, StoredWebhook,
    WebhookChanges, WebhookNotice, WebhookNotices, WebhookRegistration,
};
pub(crate) use crate::log::backing::StoreUnreadable;

/// A running store. Holds the directory's lock until it is dropped.
///
/// `threads` ends before the writer is closed: the last connection to the file moves the
/// write-ahead log into it.
#[derive(Debug)]
pub(crate) struct Store {
    handle: Arc<StoreHandle>,
    threads: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<StoreWriter>>,
    webhooks: Vec<StoredWebhook>,
    _lock: Option<fs::File>,
}

impl Store {
    /// Opens the store, or begins one, and continues the log of each product. A damaged file is set
    /// aside.
    ///
    /// # Errors
    ///
    /// When the directory cannot be used, belongs to another process, or holds a file of another
    /// application, and when no thread can be started.
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
        let (handle, inbox) = StoreHandle::new(path, settings.max_concurrent_replays);
        let log = |(product, persisted, epoch): ReservedProduct| {
            let (backing, metrics) = (Arc::clone(handle.backing()), metrics.log(&product));
            Arc::new(Log::restored(
                product,
                bounds,
                persisted,
                epoch,
                is_replacement,
                backing,
                metrics,
            ))
        };
        let logs: Vec<_> = products_found.into_iter().map(log).collect();
        let was_left_open = file.was_left_open();
        if file.look_for_unindexed_rows().unwrap_or(true) {
            handle.begin_filling();
        }
        let store_metrics = metrics.store().clone();
        let writer = StoreWriter::new(
            (Arc::clone(&handle), inbox),
            logs.clone(),
            file,
            settings,
            store_metrics.clone(),
        );
        let mut store =
            Self { handle, threads: Vec::new(), writer: None, webhooks, _lock: Some(lock) };
        store.start(writer, was_left_open, store_metrics)?;
        Ok((store, logs))
    }

    /// Starts a store for webhooks alone, which ends with the process. It persists nothing of the
    /// logs, and `settings.directory` is not used.
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
        let (handle, inbox) =
            StoreHandle::new(PathBuf::from(IN_MEMORY_PATH), settings.max_concurrent_replays);
        let writer = StoreWriter::new(
            (Arc::clone(&handle), inbox),
            logs,
            file,
            settings,
            metrics.store().clone(),
        );
        let mut store =
            Self { handle, threads: Vec::new(), writer: None, webhooks: Vec::new(), _lock: None };
        store.start_writer(writer)?;
        Ok(store)
    }

    /// Returns the persisted webhooks with their owed deliveries, to the first caller.
    pub(crate) fn take_webhooks(&mut self) -> Vec<StoredWebhook> {
        mem::take(&mut self.webhooks)
    }

    fn start(
        &mut self,
        writer: StoreWriter,
        was_left_open: bool,
        metrics: StoreMetrics,
    ) -> Result<(), StoreError> {
        self.handle.begin_check();
        if was_left_open {
            tracing::warn!("the store was not closed in order; it is being checked");
            self.handle.backing().set_checking(true);
        }
        self.spawn("log-check", move |handle| check::run(handle, was_left_open))?;
        for _ in 0..READER_THREADS {
            self.spawn("log-reader", StoreHandle::serve_reads)?;
        }
        self.spawn("log-syncer", move |handle| syncer::run(handle, &metrics))?;
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

    /// Ends the store as `kill -9` would.
    #[cfg(test)]
    pub(crate) fn crash(&self) {
        self.handle.crash();
    }

    /// Returns the handle that other modules use.
    pub(crate) fn handle(&self) -> &Arc<StoreHandle> {
        &self.handle
    }
}

impl Drop for Store {
    /// Commits the backlog, ends the threads and closes the file. Blocks until that is done.
    ///
    /// The order matters: readers and syncer close their connections first, so the writer's is the
    /// last, which moves the write-ahead log into the file.
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

/// Locks the directory for this process. The operating system releases the lock when the process
/// ends, however it ends.
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
    let give_up_at = Instant::now() + LOCK_TIMEOUT;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up_at => {
                thread::sleep(LOCK_RETRY_INTERVAL);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { directory: directory.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
    }
}

/// Time to wait for the lock. A process that the former holder forked has the lock until its exec,
/// so the lock may outlive the holder by a moment.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Time between two attempts to lock the directory.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Reason for which there is no store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The directory cannot be created, locked or written.
    #[error("log.data_dir: cannot use {}", directory.display())]
    Directory {
        /// Path of the directory.
        directory: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Another process holds the directory's lock.
    #[error("log.data_dir: {} is in use by another autoplay-relay; give each its own directory", directory.display())]
    Locked {
        /// Path of the directory.
        directory: PathBuf,
    },
    /// The file cannot be opened.
    #[error("log.data_dir: cannot open {}; it needs to be readable, writable, and some MiB of room", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Box<FileError>,
    },
    /// There is no memory for the webhooks' outbox.
    #[error("cannot set up the webhooks' outbox in memory")]
    Memory(#[source] Box<FileError>),
    /// The operating system starts no thread.
    #[error("cannot start the store's threads")]
    Thread(#[source] io::Error),
}

const FILE_NAME: &str = "relay.db";

const LOCK_NAME: &str = "relay.lock";

/// Number of reader threads: enough to keep a disk busy; more would take processors from live
/// delivery.
const READER_THREADS: usize = 2;
