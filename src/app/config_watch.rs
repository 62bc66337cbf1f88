//! Notices that the configuration may have changed, and reads it again.
//!
//! In: the configuration file and every file that it names, read every other second. Out: the
//! configuration, once all contents were the same at two looks: a file that is being written is not
//! taken by halves. Contents are compared, and not names or times, so a symbolic link that points
//! elsewhere (how Kubernetes mounts secrets) is noticed, too. Nothing here blocks the runtime.
//!
//! May use: `config`.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::time::{Instant, sleep_until};

use crate::config::{Config, ConfigDiff, ConfigSource, Findings};

/// Watcher of one configuration's files.
pub(crate) struct ConfigWatcher {
    source: Arc<ConfigSource>,
    files: BTreeSet<PathBuf>,
    next_poll: Instant,
    /// Digest at the last look.
    last_seen_digest: Option<ContentDigest>,
    /// Digest at which the files were last read; `None` before the first time.
    loaded_digest: Option<ContentDigest>,
}

/// Cause of a reload.
pub(crate) enum ReloadTrigger {
    /// A signal asks for it.
    Signal,
    /// The files have changed, and were read.
    Change(Box<Result<Config, Findings>>),
}

/// Waits until the files have changed; for ever if there are none.
pub(crate) async fn config_changed(watch: Option<&mut ConfigWatcher>) -> Result<Config, Findings> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// SHA-256 over all files.
type ContentDigest = [u8; 32];

impl ConfigWatcher {
    /// Starts to watch `files`, and later the files that a new configuration names.
    ///
    /// Nothing counts as read yet, so that a change since the start's configuration was read is
    /// noticed, too.
    pub(crate) fn new(source: ConfigSource, files: BTreeSet<PathBuf>) -> Self {
        Self {
            source: Arc::new(source),
            files,
            next_poll: Instant::now() + CONFIG_POLL_INTERVAL,
            last_seen_digest: None,
            loaded_digest: None,
        }
    }

    /// Waits until the files have changed, and reads them.
    ///
    /// # Errors
    ///
    /// The findings of the new configuration.
    ///
    /// # Cancel safety
    ///
    /// A change that was not returned is returned by the next call.
    pub(crate) async fn changed(&mut self) -> Result<Config, Findings> {
        loop {
            sleep_until(self.next_poll).await;
            let digest = self.digest().await;
            self.next_poll = Instant::now() + CONFIG_POLL_INTERVAL;
            let is_settled = self.last_seen_digest == Some(digest);
            // `loaded_digest` is set only when a result is returned: see the cancel safety.
            self.last_seen_digest = Some(digest);
            if is_settled && self.loaded_digest != Some(digest) {
                return self.read().await;
            }
        }
    }

    /// Reads the files as they are.
    ///
    /// # Errors
    ///
    /// The findings of the configuration.
    pub(crate) async fn read(&mut self) -> Result<Config, Findings> {
        // Before the files are read: a change in between shows as a difference at the next look,
        // and is read again.
        let digest = self.digest().await;
        let source = Arc::clone(&self.source);
        let loaded = run_blocking(move || source.read()).await;
        self.loaded_digest = Some(digest);
        // Also of a configuration that is refused: the file that makes it valid may be one that it
        // names.
        self.files = loaded.dependencies;
        loaded.config
    }

    /// Returns the configuration that comes into force when `new` follows `current`, and what
    /// changes.
    ///
    /// # Errors
    ///
    /// When the result would be open to clients that `new` means to exclude, because a part of
    /// `new` waits for a restart.
    pub(crate) fn plan_reload(
        &self,
        current: &Config,
        new: Config,
    ) -> Result<(Config, ConfigDiff), Findings> {
        self.source.plan_reload(current, new)
    }

    async fn digest(&self) -> ContentDigest {
        let files = self.files.clone();
        run_blocking(move || digest_files(&files)).await
    }
}

/// Runs work that may wait for a disk.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(output) => output,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down, and cancels this task, too.
        Err(_) => std::future::pending().await,
    }
}

/// Returns the digest of the files' names and contents. A file that cannot be read counts with its
/// name and a mark.
fn digest_files(files: &BTreeSet<PathBuf>) -> ContentDigest {
    let mut context = Context::new(&SHA256);
    for file in files {
        context.update(file.as_os_str().as_encoded_bytes());
        match read_content(file) {
            Ok(content) => {
                // The length separates the contents: bytes that move from one file to the next are
                // a change.
                context.update(&content.len().to_le_bytes());
                context.update(&content);
            }
            Err(_) => context.update(b"?"),
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// Returns a file's contents. A pipe is not read: it gives its bytes only once, to the
/// configuration itself.
fn read_content(file: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    if file.metadata()?.is_file() {
        File::open(file)?.take(MAX_CONFIG_FILE_BYTES).read_to_end(&mut content)?;
    }
    Ok(content)
}

/// Soon enough for an operator who has changed a file and waits, seldom enough to cost nothing.
const CONFIG_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// More than any file of a configuration has.
const MAX_CONFIG_FILE_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::config::{AllowAnonymous, Environment};

    /// Returns the watcher of a configuration whose key is in a file of its own.
    fn watcher() -> (TempDir, ConfigWatcher) {
        let directory = tempfile::tempdir().unwrap();
        let (file, key) = (directory.path().join("relay.toml"), directory.path().join("key"));
        let text = "[[auth.keys]]\nname = 'a'\nproducts = ['*']\nkey_file = ";
        fs::write(&key, "one").unwrap();
        fs::write(&file, format!("{text}'{}'", key.display())).unwrap();
        let source = ConfigSource::new(file, Environment::default(), AllowAnonymous::OnLoopback);
        let files = source.read().dependencies;
        (directory, ConfigWatcher::new(source, files))
    }

    fn key(read: Result<Config, Findings>) -> String {
        read.unwrap().auth.keys[0].key.expose().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_read_once_it_has_settled_and_not_before() {
        let (directory, mut watcher) = watcher();
        assert_eq!(key(watcher.changed().await), "one"); // a change since the start would show
        let file = directory.path().join("key");
        let writing = async {
            for n in 0..20 {
                fs::write(&file, format!("half-written-{n}")).unwrap();
                sleep(CONFIG_POLL_INTERVAL.mul_f64(0.9)).await;
            }
        };
        tokio::select! {
            biased;
            read = watcher.changed() => panic!("read while it was being written: {}", key(read)),
            () = writing => {}
        }
        fs::write(&file, "two").unwrap();
        let read = timeout(CONFIG_POLL_INTERVAL * 3, watcher.changed()).await.expect("it is seen");
        assert_eq!(key(read), "two");
        assert!(
            timeout(CONFIG_POLL_INTERVAL * 10, watcher.changed()).await.is_err(),
            "each change is read once"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_a_refused_configuration_names_is_watched_too() {
        let (directory, mut watcher) = watcher();
        fs::remove_file(directory.path().join("key")).unwrap();
        assert!(watcher.changed().await.is_err());
        fs::write(directory.path().join("key"), "back").unwrap();
        assert_eq!(key(watcher.changed().await), "back");
    }
}
