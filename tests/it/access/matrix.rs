//! Random tokens ask for random things, over SSE, over WebSocket and in pages: what comes is what
//! is both granted and asked for, and all of it. `src/http/public/page/matrix.rs` does the same
//! inside, a million times.

use std::collections::BTreeSet;

use crate::common::{
    connector::{Connector, Link},
    events::number,
    http,
    page::Page,
    relay::{Relay, Setup},
    subscriber::Subscriber,
    token::{jwt, token},
    websocket::{self, Socket},
};
use fastrand::Rng;
use serde_json::{Value, json};

#[test]
fn random_tokens_see_exactly_the_requested_part_of_their_grant() {
    let rounds = if std::env::var_os("AUTOPLAY_RELAY_LONG").is_some() { 20 } else { 1 };
    let first: u64 =
        std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + rounds {
        println!("seed {seed}"); // shown if it fails
        World::new(seed).run();
    }
}

/// A limit in names; none is no limit.
type Names = Option<BTreeSet<&'static str>>;

/// What a token grants, or a request asks for.
#[derive(Clone, Debug)]
struct Limits {
    sessions: Names,
    kinds: Names,
}

impl Limits {
    fn random(rng: &mut Rng) -> Self {
        let mut some = |names: &[&'static str]| {
            let few = rng.usize(1..4);
            rng.bool().then(|| (0..few).map(|_| names[rng.usize(..names.len())]).collect())
        };
        Self { sessions: some(&SESSIONS[1..]), kinds: some(&KINDS) }
    }

    /// What is asked for, often within what is granted.
    fn wished(&self, rng: &mut Rng) -> Self {
        let mut wished = Self::random(rng);
        if rng.u8(..4) > 0 {
            for (wished, granted) in
                [(&mut wished.sessions, &self.sessions), (&mut wished.kinds, &self.kinds)]
            {
                if let (Some(wished), Some(granted)) = (wished, granted) {
                    *wished = granted.iter().copied().take(wished.len()).collect();
                }
            }
        }
        wished
    }

    /// What is to be seen; none where more is asked for than is granted.
    fn narrowed(&self, wished: &Self) -> Option<Self> {
        let both = |granted: &Names, wished: &Names| match (granted, wished) {
            (granted, None) => Some(granted.clone()),
            (None, wished) => Some(wished.clone()),
            (Some(granted), Some(wished)) => {
                wished.is_subset(granted).then(|| Some(wished.clone()))
            }
        };
        Some(Self {
            sessions: both(&self.sessions, &wished.sessions)?,
            kinds: both(&self.kinds, &wished.kinds)?,
        })
    }

    fn admits(&self, session: &str, kind: &str) -> bool {
        let is_in =
            |names: &Names, name: &str| names.as_ref().is_none_or(|names| names.contains(name));
        is_in(&self.sessions, session) && is_in(&self.kinds, kind)
    }

    fn lists(&self) -> [Vec<&'static str>; 2] {
        [&self.sessions, &self.kinds].map(|names| names.iter().flatten().copied().collect())
    }
}

/// One product: its link, and what its log holds.
struct Stage {
    product: &'static str,
    link: Option<Link>,
    /// Session and kind of each event; none is a gap.
    log: Vec<Option<(&'static str, &'static str)>>,
    ids: Vec<String>,
}

impl Stage {
    /// What these limits admit of the log behind a place: events by their number, gaps by their
    /// reason.
    fn due(&self, limits: &Limits, from: usize) -> Vec<String> {
        let entries = self.log.iter().enumerate().skip(from);
        let due = entries.filter_map(|(at, entry)| match entry {
            None => Some("upstream_reconnect".to_owned()),
            Some((session, kind)) => limits.admits(session, kind).then(|| at.to_string()),
        });
        due.collect()
    }
}

/// Who has been let in, and what it has to get next.
struct Guest {
    product: usize,
    granted: Limits,
    limits: Limits,
    from: usize,
    /// It came with an id that no log has given.
    is_foreign: bool,
    path: String,
    authorization: String,
}

impl Guest {
    fn due(&self, stages: &[Stage]) -> Vec<String> {
        let notice = self.is_foreign.then(|| "unknown_id".to_owned());
        notice.into_iter().chain(stages[self.product].due(&self.limits, self.from)).collect()
    }

    fn fields(&self) -> Vec<(&str, &str)> {
        [("Authorization", self.authorization.as_str())]
            .into_iter()
            .filter(|(_, it)| !it.is_empty())
            .collect()
    }
}

struct World {
    rng: Rng,
    connector: Connector,
    relay: Relay,
    stages: Vec<Stage>,
}

impl World {
    fn new(seed: u64) -> Self {
        let connector = Connector::new();
        let setup = PRODUCTS
            .iter()
            .fold(Setup::new().auth(&jwt("allow_query_token = true")), |setup, product| {
                setup.upstream(product, &connector.url(product), "")
            });
        let relay = setup.start();
        let stages =
            PRODUCTS.map(|product| Stage { product, link: None, log: Vec::new(), ids: Vec::new() });
        let mut world = Self { rng: Rng::with_seed(seed), connector, relay, stages: stages.into() };
        world.connect();
        world
    }

    fn run(mut self) {
        self.publish(150);
        let streams = self.guests("stream", 60);
        let sockets = self.guests("ws", 60);
        let mut streams: Vec<_> =
            streams.into_iter().map(|guest| (self.stream(&guest), guest)).collect();
        let mut sockets: Vec<_> =
            sockets.into_iter().map(|guest| (self.socket(&guest), guest)).collect();
        assert!(streams.len() > 15 && sockets.len() > 15, "{} {}", streams.len(), sockets.len());
        self.publish(150);
        for (stream, guest) in &mut streams {
            assert_eq!(
                seen_by(stream, guest.due(&self.stages).len()),
                guest.due(&self.stages),
                "{}",
                guest.path
            );
        }
        self.hear(&mut sockets);
        for _ in 0..2 {
            self.change(&mut sockets);
            self.publish(60);
            self.hear(&mut sockets);
        }
        for guest in self.guests("stream", 80) {
            let due = guest.due(&self.stages);
            if due.last().is_some_and(|last| last == "upstream_reconnect") {
                assert_eq!(seen_by(&mut self.stream(&guest), due.len()), due, "{}", guest.path);
            }
        }
        for guest in self.guests("events", 120) {
            assert_eq!(self.paged(&guest), guest.due(&self.stages), "{}", guest.path);
        }
    }

    /// What has come for these since they were last heard.
    fn hear(&self, sockets: &mut [(Socket, Guest)]) {
        for (socket, guest) in sockets {
            let due = guest.due(&self.stages);
            assert_eq!(heard_by(socket, due.len()), due, "{}", guest.path);
            (guest.from, guest.is_foreign) = (self.stages[guest.product].log.len(), false);
        }
    }

    /// Takes the connections of all products that have none.
    fn connect(&mut self) {
        for _ in 0..self.stages.iter().filter(|stage| stage.link.is_none()).count() {
            let link = self.connector.stream();
            let stage =
                self.stages.iter_mut().find(|stage| link.request.path().ends_with(stage.product));
            stage.unwrap().link = Some(link);
        }
    }

    /// So many events in each product and then a gap, which everybody is told of: the end of what
    /// is to come.
    fn publish(&mut self, events: usize) {
        for stage in &mut self.stages {
            for _ in 0..events {
                let (session, kind) =
                    (self.rng.choice(SESSIONS).unwrap(), self.rng.choice(KINDS).unwrap());
                let mut event =
                    json!({"type": kind, "product_id": stage.product, "count": stage.log.len()});
                if !session.is_empty() {
                    event["session_id"] = json!(session);
                }
                stage.link.as_mut().unwrap().event(event.to_string());
                stage.log.push(Some((session, kind)));
            }
            stage.link = None;
            stage.log.push(None);
        }
        self.connect();
        for stage in &mut self.stages {
            let all = format!("Bearer {}", token(&json!({"product_id": stage.product})));
            let path = format!("/stream/{}?last_event_id=0", stage.product);
            let mut witness =
                Subscriber::open(self.relay.public, &path, &[("Authorization", &all)]);
            stage.ids = stage.log.iter().map(|_| witness.item().id().to_owned()).collect();
        }
    }

    /// Random tokens with random wishes; those that want too much are refused here.
    fn guests(&mut self, route: &str, count: usize) -> Vec<Guest> {
        (0..count).filter_map(|_| self.guest(route)).collect()
    }

    fn guest(&mut self, route: &str) -> Option<Guest> {
        let rng = &mut self.rng;
        let granted = Limits::random(rng);
        let products: BTreeSet<_> =
            (0..rng.usize(1..4)).map(|_| *rng.choice(&PRODUCTS).unwrap()).collect();
        let permissions =
            [json!(["subscribe"]), json!(["publish", "subscribe"]), json!(["publish"])];
        let permissions = &permissions[*rng.choice(&[0, 0, 0, 1, 1, 2]).unwrap()];
        let mut claims = json!({"product_id": products, "permissions": permissions});
        let [sessions, kinds] = granted.lists();
        for (name, values) in [("session_id", sessions), ("type", kinds)] {
            match values.as_slice() {
                [] => {}
                [one] if rng.bool() => claims[name] = json!(one),
                several => claims[name] = json!(several),
            }
        }
        let product = rng.usize(..PRODUCTS.len());
        let stage = &self.stages[product];
        let wished = granted.wished(rng);
        let place = rng.usize(..stage.ids.len());
        let (id, from, is_foreign) = match rng.u8(..8) {
            // Who polls without an id begins at the beginning.
            0 | 1 => (String::new(), if route == "events" { 0 } else { stage.log.len() }, false),
            2 => ("0".to_owned(), 0, false),
            3 => ("1-7".to_owned(), 0, true),
            _ => (stage.ids[place].clone(), place + 1, false),
        };
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("last_event_id", &id);
        let [sessions, kinds] = wished.lists();
        query.extend_pairs(sessions.iter().map(|name| ("session_id", name)));
        query.extend_pairs(kinds.iter().map(|name| ("type", name)));
        let token = token(&claims);
        let authorization = if rng.bool() { format!("Bearer {token}") } else { String::new() };
        if authorization.is_empty() {
            query.append_pair("access_token", &token);
        }
        let path = format!("/{route}/{}?{}", stage.product, query.finish());
        let may_subscribe = permissions.as_array().unwrap().contains(&json!("subscribe"));
        let limits =
            granted.narrowed(&wished).filter(|_| may_subscribe && products.contains(stage.product));
        let limits = limits.or_else(|| {
            let fields = [("Authorization", authorization.as_str())];
            let fields: &[_] = if authorization.is_empty() { &[] } else { &fields };
            let status = match route {
                "ws" => websocket::ask(self.relay.public, &path, fields).0.status(),
                _ => http::status(self.relay.public, &path, fields),
            };
            assert_eq!(status, 403, "{path} {claims}");
            None
        })?;
        Some(Guest { product, granted, limits, from, is_foreign, path, authorization })
    }

    fn stream(&self, guest: &Guest) -> Subscriber {
        Subscriber::open(self.relay.public, &guest.path, &guest.fields())
    }

    fn socket(&self, guest: &Guest) -> Socket {
        Socket::open(self.relay.public, &guest.path, &guest.fields())
    }

    /// Another filter for each, where its token allows that.
    fn change(&mut self, sockets: &mut [(Socket, Guest)]) {
        let wishes: Vec<_> =
            sockets.iter().map(|(_, guest)| guest.granted.wished(&mut self.rng)).collect();
        for ((socket, _), wished) in sockets.iter_mut().zip(&wishes) {
            let [sessions, kinds] = wished.lists();
            socket.ask_for(&sessions, &kinds);
        }
        for ((socket, guest), wished) in sockets.iter_mut().zip(&wishes) {
            let answer = socket.item();
            match guest.granted.narrowed(wished) {
                None => assert_eq!(answer["event"], "error", "{wished:?} of {}", guest.path),
                Some(limits) => {
                    let [sessions, kinds] = limits.lists();
                    let data = json!({"session_ids": sessions, "types": kinds});
                    assert_eq!(
                        in_order(&answer["data"]),
                        in_order(&data),
                        "{wished:?} of {}",
                        guest.path
                    );
                    guest.limits = limits;
                }
            }
        }
    }

    /// All pages of what it asks for, one behind the other.
    fn paged(&mut self, guest: &Guest) -> Vec<String> {
        let limit = self.rng.usize(1..60);
        let (mut path, mut seen) = (format!("{}&limit={limit}", guest.path), Vec::new());
        loop {
            let page = Page::read(&self.relay.get(&path, &guest.fields()));
            if page.events.is_empty() && page.gap.is_none() {
                return seen;
            }
            seen.extend(page.reason().map(str::to_owned));
            seen.extend(page.numbers().iter().map(ToString::to_string));
            path = format!("{}&limit={limit}&last_event_id={}", guest.path, page.next);
        }
    }
}

fn seen_by(stream: &mut Subscriber, count: usize) -> Vec<String> {
    let text = |frame: crate::common::subscriber::Frame| match frame.event {
        Some(_) => frame.reason(),
        None => number(&frame.data).to_string(),
    };
    (0..count).map(|_| text(stream.item())).collect()
}

fn heard_by(socket: &mut Socket, count: usize) -> Vec<String> {
    let text = |message: Value| match message["event"].as_str() {
        Some("gap") => message["data"]["reason"].as_str().unwrap().to_owned(),
        Some("message") => websocket::number(&message).to_string(),
        _ => panic!("{message}"),
    };
    (0..count).map(|_| text(socket.item())).collect()
}

fn in_order(filter: &Value) -> [BTreeSet<String>; 2] {
    ["session_ids", "types"].map(|name| serde_json::from_value(filter[name].clone()).unwrap())
}

/// Names that a careless comparison would take for one another. The first session is none.
const PRODUCTS: [&str; 2] = ["prod_a", "prod_A"];

const SESSIONS: [&str; 7] = ["", "s1", "s10", "S1", "s1 ", "*", "s1&session_id=s10"];

const KINDS: [&str; 5] = ["actions", "summary", "own", "Own", "*"];
