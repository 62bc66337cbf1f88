//! Random tokens with random requests over SSE, over WebSocket and by pages: a client receives
//! exactly the events that are both granted and requested. `src/http/public/page/matrix.rs` does
//! the same inside the crate, a million times.

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
        println!("seed {seed}"); // printed if the test fails
        Fixture::new(seed).run();
    }
}

/// A limit to some names; `None` is no limit.
type Names = Option<BTreeSet<&'static str>>;

/// The limits of a token or of a request.
#[derive(Clone, Debug)]
struct Limits {
    sessions: Names,
    users: Names,
    kinds: Names,
}

impl Limits {
    fn random(rng: &mut Rng) -> Self {
        let mut some = |names: &[&'static str]| {
            let few = rng.usize(1..4);
            rng.bool().then(|| (0..few).map(|_| names[rng.usize(..names.len())]).collect())
        };
        Self { sessions: some(&SESSIONS[1..]), users: some(&USERS[1..]), kinds: some(&KINDS) }
    }

    /// Returns the limits of a random request, which are often within the grant.
    fn requested(&self, rng: &mut Rng) -> Self {
        let mut requested = Self::random(rng);
        if rng.u8(..4) > 0 {
            for (requested, granted) in [
                (&mut requested.sessions, &self.sessions),
                (&mut requested.users, &self.users),
                (&mut requested.kinds, &self.kinds),
            ] {
                if let (Some(requested), Some(granted)) = (requested, granted) {
                    *requested = granted.iter().copied().take(requested.len()).collect();
                }
            }
        }
        requested
    }

    /// Returns the effective limits; `None` if the request exceeds the grant.
    fn narrowed(&self, requested: &Self) -> Option<Self> {
        let both = |granted: &Names, requested: &Names| match (granted, requested) {
            (granted, None) => Some(granted.clone()),
            (None, requested) => Some(requested.clone()),
            (Some(granted), Some(requested)) => {
                requested.is_subset(granted).then(|| Some(requested.clone()))
            }
        };
        Some(Self {
            sessions: both(&self.sessions, &requested.sessions)?,
            users: both(&self.users, &requested.users)?,
            kinds: both(&self.kinds, &requested.kinds)?,
        })
    }

    fn admits(&self, [session, user, kind]: [&str; 3]) -> bool {
        let is_in =
            |names: &Names, name: &str| names.as_ref().is_none_or(|names| names.contains(name));
        is_in(&self.sessions, session) && is_in(&self.users, user) && is_in(&self.kinds, kind)
    }

    fn lists(&self) -> [Vec<&'static str>; 3] {
        [&self.sessions, &self.users, &self.kinds]
            .map(|names| names.iter().flatten().copied().collect())
    }
}

/// One product: its upstream connection and the entries of its log.
struct Product {
    name: &'static str,
    link: Option<Link>,
    /// Session, user and kind of each event; `None` is a gap.
    log: Vec<Option<[&'static str; 3]>>,
    ids: Vec<String>,
}

impl Product {
    /// Returns the entries from an index on that these limits admit: events by number, gaps by
    /// reason.
    fn expected(&self, limits: &Limits, from: usize) -> Vec<String> {
        let entries = self.log.iter().enumerate().skip(from);
        let expected = entries.filter_map(|(at, entry)| match entry {
            None => Some("upstream_reconnect".to_owned()),
            Some(event) => limits.admits(*event).then(|| at.to_string()),
        });
        expected.collect()
    }
}

/// An admitted client, and the position from which it expects entries.
struct Client {
    product: usize,
    granted: Limits,
    limits: Limits,
    from: usize,
    /// The client resumed with an id of no log.
    is_foreign: bool,
    path: String,
    authorization: String,
}

impl Client {
    fn expected(&self, products: &[Product]) -> Vec<String> {
        let notice = self.is_foreign.then(|| "unknown_id".to_owned());
        notice.into_iter().chain(products[self.product].expected(&self.limits, self.from)).collect()
    }

    fn fields(&self) -> Vec<(&str, &str)> {
        [("Authorization", self.authorization.as_str())]
            .into_iter()
            .filter(|(_, it)| !it.is_empty())
            .collect()
    }
}

struct Fixture {
    rng: Rng,
    connector: Connector,
    relay: Relay,
    products: Vec<Product>,
}

impl Fixture {
    fn new(seed: u64) -> Self {
        let connector = Connector::new();
        let setup = PRODUCTS
            .iter()
            .fold(Setup::new().auth(&jwt("allow_query_token = true")), |setup, product| {
                setup.upstream(product, &connector.url(product), "")
            });
        let relay = setup.start();
        let products =
            PRODUCTS.map(|name| Product { name, link: None, log: Vec::new(), ids: Vec::new() });
        let mut fixture =
            Self { rng: Rng::with_seed(seed), connector, relay, products: products.into() };
        fixture.connect();
        fixture
    }

    fn run(mut self) {
        self.publish(150);
        let streams = self.clients("stream", 60);
        let sockets = self.clients("ws", 60);
        let mut streams: Vec<_> =
            streams.into_iter().map(|client| (self.stream(&client), client)).collect();
        let mut sockets: Vec<_> =
            sockets.into_iter().map(|client| (self.socket(&client), client)).collect();
        assert!(streams.len() > 15 && sockets.len() > 15, "{} {}", streams.len(), sockets.len());
        self.publish(150);
        for (stream, client) in &mut streams {
            assert_eq!(
                seen_by(stream, client.expected(&self.products).len()),
                client.expected(&self.products),
                "{}",
                client.path
            );
        }
        self.check_received(&mut sockets);
        for _ in 0..2 {
            self.change(&mut sockets);
            self.publish(60);
            self.check_received(&mut sockets);
        }
        for client in self.clients("stream", 80) {
            let expected = client.expected(&self.products);
            if expected.last().is_some_and(|last| last == "upstream_reconnect") {
                assert_eq!(
                    seen_by(&mut self.stream(&client), expected.len()),
                    expected,
                    "{}",
                    client.path
                );
            }
        }
        for client in self.clients("events", 120) {
            assert_eq!(self.paged(&client), client.expected(&self.products), "{}", client.path);
        }
    }

    /// Checks that each client has received its expected entries, and advances its position.
    fn check_received(&self, sockets: &mut [(Socket, Client)]) {
        for (socket, client) in sockets {
            let expected = client.expected(&self.products);
            assert_eq!(received_by(socket, expected.len()), expected, "{}", client.path);
            (client.from, client.is_foreign) = (self.products[client.product].log.len(), false);
        }
    }

    /// Accepts the upstream connections of all products without one.
    fn connect(&mut self) {
        for _ in 0..self.products.iter().filter(|product| product.link.is_none()).count() {
            let link = self.connector.stream();
            let product = self
                .products
                .iter_mut()
                .find(|product| link.request.path().ends_with(product.name));
            product.unwrap().link = Some(link);
        }
    }

    /// Publishes this many events in each product, and then a gap, which every client receives: it
    /// marks the end of the expected entries.
    fn publish(&mut self, events: usize) {
        for product in &mut self.products {
            for _ in 0..events {
                let mut one = |names: &[&'static str]| names[self.rng.usize(..names.len())];
                let (session, user, kind) = (one(&SESSIONS), one(&USERS), one(&KINDS));
                let mut event =
                    json!({"type": kind, "product_id": product.name, "count": product.log.len()});
                for (name, value) in [("session_id", session), ("user_id", user)] {
                    if !value.is_empty() {
                        event[name] = json!(value);
                    }
                }
                product.link.as_mut().unwrap().event(event.to_string());
                product.log.push(Some([session, user, kind]));
            }
            product.link = None;
            product.log.push(None);
        }
        self.connect();
        for product in &mut self.products {
            let all = format!("Bearer {}", token(&json!({"product_id": product.name})));
            let path = format!("/stream/{}?last_event_id=0", product.name);
            let mut witness =
                Subscriber::open(self.relay.public, &path, &[("Authorization", &all)]);
            product.ids = product.log.iter().map(|_| witness.item().id().to_owned()).collect();
        }
    }

    /// Returns clients with random tokens and requests. Requests beyond their grant are refused
    /// here.
    fn clients(&mut self, route: &str, count: usize) -> Vec<Client> {
        (0..count).filter_map(|_| self.client(route)).collect()
    }

    fn client(&mut self, route: &str) -> Option<Client> {
        let rng = &mut self.rng;
        let granted = Limits::random(rng);
        let products: BTreeSet<_> =
            (0..rng.usize(1..4)).map(|_| *rng.choice(&PRODUCTS).unwrap()).collect();
        let permissions =
            [json!(["subscribe"]), json!(["publish", "subscribe"]), json!(["publish"])];
        let permissions = &permissions[*rng.choice(&[0, 0, 0, 1, 1, 2]).unwrap()];
        let mut claims = json!({"product_id": products, "permissions": permissions});
        for (name, values) in FILTERS.into_iter().zip(granted.lists()) {
            match values.as_slice() {
                [] => {}
                [one] if rng.bool() => claims[name] = json!(one),
                several => claims[name] = json!(several),
            }
        }
        let index = rng.usize(..PRODUCTS.len());
        let product = &self.products[index];
        let requested = granted.requested(rng);
        let position = rng.usize(..product.ids.len());
        let (id, from, is_foreign) = match rng.u8(..8) {
            // Polling without an id starts at the oldest entry.
            0 | 1 => (String::new(), if route == "events" { 0 } else { product.log.len() }, false),
            2 => ("0".to_owned(), 0, false),
            3 => ("1-7".to_owned(), 0, true),
            _ => (product.ids[position].clone(), position + 1, false),
        };
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("last_event_id", &id);
        for (name, values) in FILTERS.into_iter().zip(requested.lists()) {
            query.extend_pairs(values.iter().map(|value| (name, value)));
        }
        let token = token(&claims);
        let authorization = if rng.bool() { format!("Bearer {token}") } else { String::new() };
        if authorization.is_empty() {
            query.append_pair("access_token", &token);
        }
        let path = format!("/{route}/{}?{}", product.name, query.finish());
        let may_subscribe = permissions.as_array().unwrap().contains(&json!("subscribe"));
        let limits = granted
            .narrowed(&requested)
            .filter(|_| may_subscribe && products.contains(product.name));
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
        Some(Client { product: index, granted, limits, from, is_foreign, path, authorization })
    }

    fn stream(&self, client: &Client) -> Subscriber {
        Subscriber::open(self.relay.public, &client.path, &client.fields())
    }

    fn socket(&self, client: &Client) -> Socket {
        Socket::open(self.relay.public, &client.path, &client.fields())
    }

    /// Sends each client's socket another filter, which its token may refuse.
    fn change(&mut self, sockets: &mut [(Socket, Client)]) {
        let requests: Vec<_> =
            sockets.iter().map(|(_, client)| client.granted.requested(&mut self.rng)).collect();
        for ((socket, _), requested) in sockets.iter_mut().zip(&requests) {
            let [sessions, users, kinds] = requested.lists();
            let filter = json!({"session_ids": sessions, "user_ids": users, "types": kinds});
            socket.send_text(&json!({ "subscribe": filter }).to_string());
        }
        for ((socket, client), requested) in sockets.iter_mut().zip(&requests) {
            let answer = socket.item();
            match client.granted.narrowed(requested) {
                None => assert_eq!(answer["event"], "error", "{requested:?} of {}", client.path),
                Some(limits) => {
                    let [sessions, users, kinds] = limits.lists();
                    let data = json!({"session_ids": sessions, "user_ids": users, "types": kinds});
                    assert_eq!(
                        in_order(&answer["data"]),
                        in_order(&data),
                        "{requested:?} of {}",
                        client.path
                    );
                    client.limits = limits;
                }
            }
        }
    }

    /// Reads all pages of the client's request.
    fn paged(&mut self, client: &Client) -> Vec<String> {
        let limit = self.rng.usize(1..60);
        let (mut path, mut seen) = (format!("{}&limit={limit}", client.path), Vec::new());
        loop {
            let page = Page::read(&self.relay.get(&path, &client.fields()));
            if page.events.is_empty() && page.gap.is_none() {
                return seen;
            }
            seen.extend(page.reason().map(str::to_owned));
            seen.extend(page.numbers().iter().map(ToString::to_string));
            path = format!("{}&limit={limit}&last_event_id={}", client.path, page.next);
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

fn received_by(socket: &mut Socket, count: usize) -> Vec<String> {
    let text = |message: Value| match message["event"].as_str() {
        Some("gap") => message["data"]["reason"].as_str().unwrap().to_owned(),
        Some("message") => websocket::number(&message).to_string(),
        _ => panic!("{message}"),
    };
    (0..count).map(|_| text(socket.item())).collect()
}

fn in_order(filter: &Value) -> [BTreeSet<String>; 3] {
    ["session_ids", "user_ids", "types"]
        .map(|name| serde_json::from_value(filter[name].clone()).unwrap())
}

/// Claims and parameters that limit.
const FILTERS: [&str; 3] = ["session_id", "user_id", "type"];

/// Names that a careless comparison would confuse. The first session and the first user are empty.
const PRODUCTS: [&str; 2] = ["prod_a", "prod_A"];

const SESSIONS: [&str; 7] = ["", "s1", "s10", "S1", "s1 ", "*", "s1&session_id=s10"];

const USERS: [&str; 5] = ["", "s1", "u1", "U1", "u1,u2"];

const KINDS: [&str; 5] = ["actions", "summary", "own", "Own", "*"];
