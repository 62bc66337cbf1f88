//! `tail`: prints a stream, reconnects and resumes.
//!
//! May use: `config`, `error_chain`, `outbound`, `printable`, `sse`, `upstream`.

use std::{num::NonZeroU64, time::Duration};

use hyper::Uri;
use serde_json::{Value, value::RawValue};
use tokio::time::{Instant, sleep};

use super::{CliError, CommandRuntime, print_line};
use crate::{
    config::Secret,
    error_chain::error_chain,
    outbound::{
        client::{EventStreamClient, OpenError, StreamTarget},
        event_stream::EventStream,
    },
    printable::{printable_line, without_hidden},
    sse::{Decoded, Frame},
    upstream::backoff::Backoff,
};

/// Print a stream, one line per event; reconnect and resume when the connection breaks.
#[derive(Debug, clap::Args)]
pub(super) struct TailArgs {
    /// URL of the stream, e.g. <http://127.0.0.1:8080/stream/prod_abc>.
    url: Uri,
    /// Token or key to send.
    #[arg(long, value_name = "T", env = "AUTOPLAY_APP_UNKEY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print only events of this session; may be given several times.
    #[arg(long = "session-id", value_name = "S")]
    sessions: Vec<String>,
    /// Print only events of this user; may be given several times.
    #[arg(long = "user-id", value_name = "U")]
    users: Vec<String>,
    /// Print only events of this type; may be given several times.
    #[arg(long = "type", value_name = "T")]
    kinds: Vec<String>,
    /// Begin after this id; 0 begins with the oldest event that is kept.
    #[arg(long, value_name = "ID")]
    last_event_id: Option<String>,
    /// Print one JSON object per line: {"id","event","data"}.
    #[arg(long)]
    json: bool,
    /// Exit with 0 after this many events, not counting heartbeats and gaps.
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
}

pub(super) fn run(args: TailArgs, runtime: CommandRuntime) -> Result<(), CliError> {
    if !matches!(args.url.scheme_str(), Some("http" | "https")) {
        return Err(CliError::Usage(format!(
            "{} is not an http or https URL; write http://host:port/stream/product",
            args.url
        )));
    }
    runtime.run(follow(args))
}

async fn follow(args: TailArgs) -> Result<(), CliError> {
    let client =
        EventStreamClient::new(None).map_err(|error| CliError::Other(error_chain(&error)))?;
    let mut target = StreamTarget {
        url: with_filter_query(&args)?,
        token: args.token.map(Secret::inline),
        last_event_id: args.last_event_id,
        is_relay: false,
    };
    let mut backoff = Backoff::new(Duration::from_millis(500), MAX_TAIL_BACKOFF);
    let mut random = fastrand::Rng::new();
    let mut remaining = args.count.map_or(u64::MAX, NonZeroU64::get);
    loop {
        let mut retry_delay = Duration::ZERO;
        match client.open(&target, MAX_TAIL_EVENT_BYTES).await {
            Ok(mut stream) => {
                let opened = Instant::now();
                if !print_stream(
                    &mut stream,
                    &mut target.last_event_id,
                    &mut retry_delay,
                    &mut remaining,
                    args.json,
                )
                .await?
                {
                    return Ok(());
                }
                if opened.elapsed() >= STABLE_STREAM_AGE {
                    backoff.reset();
                }
            }
            Err(error) if rejects_permanently(&error) => {
                return Err(CliError::Other(format!("{}: {}", target.url, error_chain(&error))));
            }
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "cannot open the stream");
                retry_delay = error.retry_after().unwrap_or_default();
            }
        }
        sleep(backoff.next_delay(&mut random).max(retry_delay)).await;
    }
}

/// Prints events until the stream breaks. Returns false if `remaining` events have been printed.
///
/// # Errors
///
/// When stdout takes no more.
async fn print_stream(
    stream: &mut EventStream,
    last_event_id: &mut Option<String>,
    retry_delay: &mut Duration,
    remaining: &mut u64,
    json: bool,
) -> Result<bool, CliError> {
    loop {
        let frame = match stream.next(STREAM_SILENCE_TIMEOUT).await {
            Ok(Some(Decoded::Frame(frame))) => frame,
            Ok(Some(Decoded::Retry(wait))) => {
                *retry_delay = wait.min(MAX_TAIL_BACKOFF);
                continue;
            }
            Ok(Some(Decoded::TooLarge)) => {
                tracing::warn!("an event larger than {MAX_TAIL_EVENT_BYTES} bytes was skipped");
                continue;
            }
            Ok(None) => {
                tracing::warn!("the stream was silent for {} s", STREAM_SILENCE_TIMEOUT.as_secs());
                return Ok(true);
            }
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "the stream broke");
                return Ok(true);
            }
        };
        if !frame.id.is_empty() {
            *last_event_id = Some(String::from_utf8_lossy(&frame.id).into_owned());
        }
        let line = if json { Some(json_line(&frame)) } else { readable_line(&frame) };
        if let Some(line) = line {
            print_line(&line)?;
        }
        if !matches!(&*frame.event, b"heartbeat" | b"gap") {
            *remaining -= 1;
            if *remaining == 0 {
                return Ok(false);
            }
        }
    }
}

/// Returns the frame as a line of JSON. The id is the one in force: a heartbeat without an id of
/// its own repeats the last one.
fn json_line(frame: &Frame) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let event = if frame.event.is_empty() { "message".to_owned() } else { text(&frame.event) };
    let id = if frame.id.is_empty() { Value::Null } else { Value::String(text(&frame.id)) };
    let data = match serde_json::from_slice::<&RawValue>(&frame.data) {
        // The data is copied as it came, because parsing and formatting a number may change it.
        // Outside of strings JSON may have line ends, and inside them it has none, so they can be
        // replaced.
        Ok(data) => data.get().replace(['\r', '\n'], " "),
        Err(_) if frame.data.is_empty() => Value::Null.to_string(),
        Err(_) => Value::String(text(&frame.data)).to_string(),
    };
    let line = format!(r#"{{"id":{id},"event":{},"data":{data}}}"#, Value::String(event));
    without_hidden(&line).into_owned()
}

/// Returns time, type, session and a summary of the event; [`None`] for a heartbeat.
fn readable_line(frame: &Frame) -> Option<String> {
    if &*frame.event == b"heartbeat" {
        return None;
    }
    let Ok(data) = serde_json::from_slice::<Value>(&frame.data) else {
        return Some(format!("? {}", printable_line(&String::from_utf8_lossy(&frame.data))));
    };
    let field = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or("-");
    let kind = field("type");
    let detail = match kind {
        "actions" => {
            let actions = data
                .get("actions")
                .and_then(Value::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let titles =
                actions.iter().filter_map(|action| action.get("title").and_then(Value::as_str));
            titles.collect::<Vec<_>>().join(" · ")
        }
        "summary" => field("summary").to_owned(),
        "usertour_trigger" => format!("start tour {}", field("flow_id")),
        "gap" => format!("events may be missing: {}", field("reason")),
        _ => String::from_utf8_lossy(&frame.data).into_owned(),
    };
    let time = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
    Some(format!(
        "{time}  {:<16}  {:<20}  {}",
        printable_line(kind),
        printable_line(field("session_id")),
        printable_line(&detail)
    ))
}

fn with_filter_query(args: &TailArgs) -> Result<Uri, CliError> {
    let url = &args.url;
    let mut query = form_urlencoded::Serializer::new(url.query().unwrap_or_default().to_owned());
    query.extend_pairs(args.sessions.iter().map(|session| ("session_id", session)));
    query.extend_pairs(args.users.iter().map(|user| ("user_id", user)));
    query.extend_pairs(args.kinds.iter().map(|kind| ("type", kind)));
    let query = query.finish();
    let mut parts = url.clone().into_parts();
    let path =
        if query.is_empty() { url.path().to_owned() } else { format!("{}?{query}", url.path()) };
    parts.path_and_query =
        Some(path.parse().map_err(|error| CliError::Usage(format!("{url}: {error}")))?);
    Uri::from_parts(parts).map_err(|error| CliError::Usage(format!("{url}: {error}")))
}

/// Returns whether the error persists if the request is repeated: a fault of the client, except one
/// of time or number (408, 425, 429; RFC 9110, section 15.5).
fn rejects_permanently(error: &OpenError) -> bool {
    match error {
        OpenError::Status { status, .. } => {
            status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429)
        }
        error => matches!(error, OpenError::Header),
    }
}

/// Two and a half heartbeat intervals of a relay with defaults.
const STREAM_SILENCE_TIMEOUT: Duration = Duration::from_secs(75);

/// Above the largest event that a relay can be configured to accept.
const MAX_TAIL_EVENT_BYTES: usize = 128 << 20;

/// Maximum delay before reconnecting, for the `retry` of the stream and for the backoff.
const MAX_TAIL_BACKOFF: Duration = Duration::from_secs(30);

/// Age at which a stream counts as a success and resets the backoff: a stream that closes at once
/// must not be reopened in a tight loop.
const STABLE_STREAM_AGE: Duration = Duration::from_secs(10);
