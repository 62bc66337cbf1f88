//! `healthcheck`: is the running relay ready, for images without a shell.

use std::time::Duration;

use hyper::{HeaderMap, StatusCode, Uri};
use tokio::time::timeout;

use super::{Failure, block_on};
use crate::{error_chain::with_causes, outbound::client::Client};

/// Exit with 0 if the running relay is ready, else with 1.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What to ask; /readyz, where nothing else is said of the path.
    #[arg(long, default_value = "http://127.0.0.1:9090/readyz")]
    url: Uri,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let url = &arguments.url;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(Failure::Usage(format!("--url {url}: write http://host:port/readyz")));
    }
    let url = &readiness(url);
    block_on(async {
        let client = Client::new(None).map_err(|error| Failure::Other(with_causes(&error)))?;
        let asked = timeout(PATIENCE, client.get(url, HeaderMap::new())).await;
        let exchange = asked
            .map_err(|_| Failure::Other(format!("{url}: no answer within {} s", PATIENCE.as_secs())))?
            .map_err(|error| Failure::Other(format!("{url}: {}", with_causes(&error))))?;
        match exchange.response.status() {
            StatusCode::OK => Ok(()),
            status => Err(Failure::Other(format!("{url}: answered {status}"))),
        }
    })
}

/// What is asked: at its root a relay has the console, which is there whether the relay is ready or not.
fn readiness(url: &Uri) -> Uri {
    let mut parts = url.clone().into_parts();
    if url.path() == "/" {
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        parts.path_and_query = format!("/readyz{query}").parse().ok();
    }
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

/// Docker's and Kubernetes' checks give up at about this time, too.
const PATIENCE: Duration = Duration::from_secs(5);
