//! `serve` with a configuration of the test, on free ports.

use std::{net::SocketAddr, ops::Range, path::PathBuf};

use tempfile::TempDir;

use super::{
    PRODUCT, STREAM,
    connector::{Connector, Link},
    events::{event, number},
    http::{self, Answer},
    metrics::Metrics,
    process::{self, Process},
    subscriber::{Frame, Subscriber},
    wait,
    websocket::Socket,
};

/// A configuration under construction: the lines of each section.
pub(crate) struct Setup {
    server: String,
    upstreams: String,
    auth: String,
    log: String,
    more: String,
}

impl Setup {
    /// Returns a configuration without an upstream that allows anonymous subscribers.
    pub(crate) fn new() -> Self {
        Self {
            server: "listen = '127.0.0.1:0'\nadmin_listen = '127.0.0.1:0'\ndrain_window = '0s'\n"
                .to_owned(),
            upstreams: String::new(),
            auth: "allow_anonymous = true\n".to_owned(),
            log: String::new(),
            more: String::new(),
        }
    }

    /// Returns a configuration with one upstream, [`PRODUCT`], and the token [`TOKEN`].
    pub(crate) fn behind(connector: &Connector) -> Self {
        Self::behind_with(connector, "")
    }

    /// Returns a configuration with one upstream, [`PRODUCT`], and further lines for that.
    pub(crate) fn behind_with(connector: &Connector, lines: &str) -> Self {
        Self::new().upstream(
            PRODUCT,
            &connector.url(PRODUCT),
            &format!("token = '{TOKEN}'\n{lines}"),
        )
    }

    /// Returns the configuration of a leaf behind the edge at this address.
    pub(crate) fn behind_relay(edge: SocketAddr) -> Self {
        Self::new().upstream(PRODUCT, &format!("http://{edge}{STREAM}"), "")
    }

    /// Adds an upstream.
    pub(crate) fn upstream(mut self, product: &str, url: &str, lines: &str) -> Self {
        self.upstreams +=
            &format!("[[upstreams]]\nproduct_id = '{product}'\nurl = '{url}'\n{lines}\n");
        self
    }

    /// Adds lines to `[server]`; a key given again replaces the former line.
    pub(crate) fn server(mut self, lines: &str) -> Self {
        let keys: Vec<_> = lines.lines().filter_map(|line| line.split(" =").next()).collect();
        let kept = self
            .server
            .lines()
            .filter(|line| !keys.iter().any(|key| line.starts_with(&format!("{key} ="))));
        self.server = kept.chain(lines.lines()).map(|line| format!("{line}\n")).collect();
        self
    }

    /// Replaces `[auth]` and its tables.
    pub(crate) fn auth(mut self, lines: &str) -> Self {
        self.auth = format!("{lines}\n");
        self
    }

    /// Replaces the lines of `[log]`.
    pub(crate) fn log(mut self, lines: &str) -> Self {
        self.log = format!("{lines}\n");
        self
    }

    /// Adds whole tables.
    pub(crate) fn more(mut self, tables: &str) -> Self {
        self.more += tables;
        self
    }

    /// Returns the text of the configuration file.
    pub(crate) fn text(&self) -> String {
        let Self { server, upstreams, auth, log, more } = self;
        format!("[server]\n{server}\n{upstreams}\n[auth]\n{auth}\n[log]\n{log}\n{more}\n")
    }

    /// Replaces the configuration file of a relay atomically, as an editor does, without requesting
    /// a reload.
    pub(crate) fn replace(&self, relay: &Relay) {
        let file = relay.file();
        std::fs::write(file.with_extension("new"), self.text()).unwrap();
        std::fs::rename(file.with_extension("new"), file).unwrap();
    }

    /// Replaces the configuration file of a relay, and waits until a reload has succeeded or been
    /// refused.
    pub(crate) fn reload(&self, relay: &Relay) {
        self.replace(relay);
        relay.reload();
    }

    /// Writes the configuration to a new directory.
    pub(crate) fn write(&self) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("relay.toml");
        std::fs::write(&file, self.text()).unwrap();
        (directory, file)
    }

    /// Starts the relay, and waits until it serves.
    pub(crate) fn start(&self) -> Relay {
        self.start_with(&[])
    }

    /// Starts the relay with these environment variables, and waits until it serves.
    pub(crate) fn start_with(&self, environment: &[(&str, &str)]) -> Relay {
        self.start_as("", environment)
    }

    /// Starts the relay under another command, to which the binary's path is appended and which
    /// executes it.
    pub(crate) fn start_under(&self, command: &str) -> Relay {
        self.start_as(command, &[])
    }

    fn start_as(&self, command: &str, environment: &[(&str, &str)]) -> Relay {
        let (directory, file) = self.write();
        let arguments = ["--log-format", "json", "serve", "--config", file.to_str().unwrap()];
        let process = Process::start_under(command, &arguments, environment);
        Relay { directory: Some(directory), ..Relay::of(process) }
    }
}

/// Token that the relay sends to the connector in most tests.
pub(crate) const TOKEN: &str = "upstream-token-of-the-test";

/// Messages with which the log reports the outcome of a reload.
const OUTCOMES: [&str; 2] = [
    "configuration reloaded",
    "the new configuration is refused as a whole, and the old one stays in force",
];

/// Static keys, each with other permissions.
pub(crate) const KEYS: &str = "
[[auth.keys]]
name = 'agent-a'
key = 'key-of-agent-a'
products = ['prod_abc']
permissions = ['subscribe']
[[auth.keys]]
name = 'all'
key = 'key-of-all'
products = ['*']
permissions = ['subscribe', 'publish']
[[auth.keys]]
name = 'publisher'
key = 'key-of-publisher'
products = ['prod_abc']
permissions = ['publish']
";

/// A relay that serves.
pub(crate) struct Relay {
    pub(crate) process: Process,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) probe: Option<SocketAddr>,
    directory: Option<TempDir>,
}

impl Relay {
    /// Returns the path of the configuration file.
    pub(crate) fn file(&self) -> PathBuf {
        self.directory.as_ref().unwrap().path().join("relay.toml")
    }

    /// Requests a reload, and waits until the relay has reported its outcome.
    pub(crate) fn reload(&self) {
        let before = self.reload_outcomes().len();
        self.process.signal("HUP");
        wait::until("the configuration is reloaded", || self.reload_outcomes().len() > before);
    }

    /// Returns the log lines of all reloads so far.
    pub(crate) fn reload_outcomes(&self) -> Vec<serde_json::Value> {
        let lines = self.process.stderr.so_far().into_iter();
        let lines = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok());
        lines
            .filter(|line| OUTCOMES.contains(&line["message"].as_str().unwrap_or_default()))
            .collect()
    }

    /// Starts a relay with the defaults behind this connector.
    pub(crate) fn behind(connector: &Connector) -> Self {
        Setup::behind(connector).start()
    }

    /// Waits until the process serves.
    pub(crate) fn of(process: Process) -> Self {
        let line = process.log_line("serving");
        Self {
            public: process::address(&line, "listen").unwrap(),
            admin: process::address(&line, "admin_listen").unwrap(),
            probe: process::address(&line, "probe_listen"),
            process,
            directory: None,
        }
    }

    /// Subscribes to [`PRODUCT`] without a filter.
    pub(crate) fn subscribe(&self) -> Subscriber {
        self.subscribe_to(STREAM)
    }

    /// Subscribes with a path and query.
    pub(crate) fn subscribe_to(&self, path: &str) -> Subscriber {
        Subscriber::open(self.public, path, &[])
    }

    /// Subscribes to [`PRODUCT`] after an id.
    pub(crate) fn resume(&self, id: &str) -> Subscriber {
        Subscriber::open(self.public, STREAM, &[("Last-Event-ID", id)])
    }

    /// Opens a WebSocket with a path and query.
    pub(crate) fn socket(&self, path: &str) -> Socket {
        Socket::open(self.public, path, &[])
    }

    /// Sends events of one session one by one, and returns the frames that a subscriber receives.
    pub(crate) fn publish(&self, link: &mut Link, numbers: Range<usize>) -> Vec<Frame> {
        let mut subscriber = self.subscribe();
        let frames = numbers.map(|n| {
            link.event(event(n));
            let frame = subscriber.event();
            assert_eq!(number(&frame.data), n);
            frame
        });
        frames.collect()
    }

    /// Accepts the relay's next connection, and waits until subscribers have received the gap.
    pub(crate) fn reconnect(&self, connector: &Connector) -> Link {
        let mut witness = self.subscribe();
        let link = connector.stream();
        assert_eq!(witness.gap().json()["reason"], "upstream_reconnect");
        link
    }

    /// Waits until the store holds this many entries.
    pub(crate) fn wait_until_persisted(&self, entries: usize) {
        let labels = [("product_id", PRODUCT), ("tier", "disk")];
        self.wait_for_metric("autoplay_relay_log_events", &labels, entries as f64);
    }

    /// Shuts the relay down gracefully.
    pub(crate) fn stop(mut self) {
        self.process.signal("TERM");
        assert_eq!(self.process.exit_code(), Some(0));
    }

    /// Sends a GET request whose response ends to the public listener.
    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        http::get(self.public, path, headers)
    }

    /// Sends a GET request to the admin listener.
    pub(crate) fn ask_admin(&self, path: &str) -> Answer {
        http::get(self.admin, path, &[])
    }

    /// Returns the current metrics.
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::parse(&self.ask_admin("/metrics").text())
    }

    /// Waits until a metric has this value.
    pub(crate) fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut last = None;
        wait::until(&format!("{name}{labels:?} is {value}"), || {
            last = self.metrics().value(name, labels);
            last == Some(value)
        });
    }

    /// Returns the current status.
    pub(crate) fn status(&self) -> serde_json::Value {
        self.ask_admin("/api/v1/status").json()
    }

    /// Returns the state of one upstream.
    pub(crate) fn upstream_state(&self, product: &str) -> String {
        let status = self.status();
        let upstreams = status["upstreams"].as_array().unwrap();
        let upstream = upstreams.iter().find(|upstream| upstream["product_id"] == product).unwrap();
        upstream["state"].as_str().unwrap().to_owned()
    }

    /// Waits until the upstream of [`PRODUCT`] is in this state.
    pub(crate) fn wait_for_upstream(&self, state: &str) {
        wait::until(&format!("the upstream is {state}"), || self.upstream_state(PRODUCT) == state);
    }

    /// Returns how many new subscribers have been shed for this reason.
    pub(crate) fn shed(&self, reason: &str) -> f64 {
        self.metrics().value("autoplay_relay_shed_total", &[("reason", reason)]).unwrap()
    }

    /// Waits until this many new subscribers have been shed for this reason.
    pub(crate) fn wait_for_shed(&self, reason: &str, count: f64) {
        self.wait_for_metric("autoplay_relay_shed_total", &[("reason", reason)], count);
    }

    /// Returns how many gaps of a reason have been counted.
    pub(crate) fn gaps(&self, reason: &str) -> f64 {
        let labels = [("product_id", PRODUCT), ("reason", reason)];
        wait::value("the counter exists", || {
            self.metrics().value("autoplay_relay_gaps_total", &labels)
        })
    }

    /// Returns how many gaps have been counted.
    pub(crate) fn all_gaps(&self) -> f64 {
        ["upstream_reconnect", "evicted", "unknown_id", "not_kept"]
            .iter()
            .map(|reason| self.gaps(reason))
            .sum()
    }

    /// Waits for the first heartbeat of the upstream, which a relay sends at the end of its replay.
    pub(crate) fn wait_for_end_of_replay(&self) {
        let name = "autoplay_relay_upstream_last_heartbeat_timestamp_seconds";
        let labels = [("product_id", PRODUCT)];
        wait::until("the replay has ended", || {
            self.metrics().value(name, &labels).is_some_and(|at| at > 0.0)
        });
    }

    /// Waits until the log holds this many events in memory.
    pub(crate) fn wait_for_events(&self, count: usize) {
        let labels = [("product_id", PRODUCT), ("tier", "memory")];
        self.wait_for_metric("autoplay_relay_log_events", &labels, count as f64);
    }

    /// Waits until this many subscribers of [`PRODUCT`] are counted.
    pub(crate) fn wait_for_subscribers(&self, count: f64) {
        self.wait_for_metric(
            "autoplay_relay_subscribers",
            &[("product_id", PRODUCT), ("transport", "sse")],
            count,
        );
    }
}
