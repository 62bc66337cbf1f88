//! The certificate that is served, and the files it comes from.
//!
//! Certificates are often replaced behind symbolic links (Kubernetes) or one file after the other
//! (certbot). So the contents of both files are compared again and again, and a pair that does not
//! match, or not yet, leaves the served certificate in force.
//!
//! May use: `config`, `metrics`, `net`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    config::{TlsFiles, TlsIdentity, TlsIdentityError},
    metrics::Metrics,
    net::ReloadableTls,
};

/// Pair of files, and the TLS configuration made of it.
#[derive(Debug)]
pub(super) struct ServedCertificate {
    files: TlsFiles,
    tls: Arc<ReloadableTls>,
    metrics: Arc<Metrics>,
    state: Mutex<CertificateState>,
}

#[derive(Debug)]
struct CertificateState {
    served: TlsIdentity,
    /// Error for which the files were last refused; each is logged once.
    refused: Option<TlsIdentityError>,
}

impl ServedCertificate {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// When certificate and key do not match, or TLS cannot be set up.
    pub(super) fn read(
        files: &TlsFiles,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, CertificateError> {
        let served = files.read()?;
        let tls = Arc::new(ReloadableTls::new(&served)?);
        let certificate = Self {
            files: files.clone(),
            tls,
            metrics: Arc::clone(metrics),
            state: Mutex::new(CertificateState { served, refused: None }),
        };
        certificate.report_expiry(&certificate.state.lock().served);
        Ok(Arc::new(certificate))
    }

    /// Returns the TLS configuration, which follows the files.
    pub(super) fn tls(&self) -> &Arc<ReloadableTls> {
        &self.tls
    }

    /// Reads the files again, and serves another pair if there is one. Open connections keep
    /// theirs.
    ///
    /// Blocks as long as the file system does.
    pub(super) fn reload(&self) {
        let read = self.files.read();
        // After the read, so that a file system that hangs holds no lock. The watch and a reload
        // may run at the same time; the later lock wins, and the next look corrects an older pair.
        let mut state = self.state.lock();
        match read {
            Ok(identity) if identity.has_same_contents(&state.served) => state.refused = None,
            Ok(identity) => match self.tls.replace(&identity) {
                Ok(()) => {
                    info!(
                        "the certificate has been replaced; \
                         standing connections keep the former one"
                    );
                    self.report_expiry(&identity);
                    *state = CertificateState { served: identity, refused: None };
                }
                Err(error) => {
                    error!(
                        %error,
                        "cannot set up TLS with the new certificate; the former one is still served"
                    );
                }
            },
            Err(error) if state.refused.as_ref() == Some(&error) => {}
            Err(error) => {
                warn!(
                    %error,
                    "the new certificate is refused, and tried again; \
                     the former one is still served"
                );
                state.refused = Some(error);
            }
        }
    }

    /// Reads the files every [`CERTIFICATE_POLL_INTERVAL`] until `stop`.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(CERTIFICATE_POLL_INTERVAL)).await.is_some() {
            let certificate = Arc::clone(&self);
            // The shutdown does not wait for a file system that hangs.
            let reload = spawn_blocking(move || certificate.reload());
            if let Some(Err(error)) = stop.run_until_cancelled(reload).await {
                error!(%error, "cannot look at the files of the certificate");
            }
        }
    }

    /// Shows when the certificate expires, in the metrics and in the log.
    fn report_expiry(&self, identity: &TlsIdentity) {
        self.metrics.set_certificate_not_after(identity.not_after);
        let not_after = humantime::format_rfc3339_seconds(identity.not_after);
        let file = self.files.cert_file.display();
        match identity.not_after > SystemTime::now() {
            true => info!(%not_after, %file, "the certificate that is served"),
            false => {
                warn!(
                    %not_after, %file,
                    "the certificate has ended, and clients refuse it; renew it"
                );
            }
        }
    }
}

/// Reasons for which a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The files are no matching pair.
    #[error(transparent)]
    Files(#[from] TlsIdentityError),
    /// The TLS library refuses its own defaults.
    #[error("cannot set up TLS")]
    Setup(#[from] rustls::Error),
}

/// Two small files are read in less than a millisecond, and a certificate is replaced days before
/// it expires.
const CERTIFICATE_POLL_INTERVAL: Duration = Duration::from_secs(2);
