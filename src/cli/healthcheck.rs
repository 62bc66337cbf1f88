//! `healthcheck`: is the running relay ready, for images without a shell.
//!
//! May use: `error_chain`, `outbound`.

use std::time::Duration;

use hyper::{HeaderMap, StatusCode, Uri};
use tokio::time::timeout;

use super::{CliError, CommandRuntime};
use crate::{error_chain::error_chain, outbound::client::EventStreamClient};

/// Exit with 0 if the running relay is ready, else with 1.
#[derive(Debug, clap::Args)]
pub(super) struct HealthcheckArgs {
    /// What to ask; /readyz, where nothing else is said of the path.
    #[arg(long, default_value = "http://127.0.0.1:9090/readyz")]
    url: Uri,
}

pub(super) fn run(args: &HealthcheckArgs, runtime: CommandRuntime) -> Result<(), CliError> {
    let url = &args.url;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(CliError::Usage(format!("--url {url}: write http://host:port/readyz")));
    }
    let url = &readiness_url(url);
    runtime.run(async {
        let client =
            EventStreamClient::new(None).map_err(|error| CliError::Other(error_chain(&error)))?;
        let reply = timeout(HEALTHCHECK_TIMEOUT, client.get(url, HeaderMap::new())).await;
        let exchange = reply
            .map_err(|_| {
                CliError::Other(format!(
                    "{url}: no answer within {} s",
                    HEALTHCHECK_TIMEOUT.as_secs()
                ))
            })?
            .map_err(|error| CliError::Other(format!("{url}: {}", error_chain(&error))))?;
        match exchange.response.status() {
            StatusCode::OK => Ok(()),
            status => Err(CliError::Other(format!("{url}: answered {status}"))),
        }
    })
}

/// What is asked: at its root a relay has the console, which is there whether the relay is ready or
/// not.
fn readiness_url(url: &Uri) -> Uri {
    let mut parts = url.clone().into_parts();
    if url.path() == "/" {
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        parts.path_and_query = format!("/readyz{query}").parse().ok();
    }
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

/// Docker's and Kubernetes' checks give up at about this time, too.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);
