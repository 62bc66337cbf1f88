//! Who may see what, against an oracle that knows only names: random tokens ask for random things of random products, live,
//! behind an id, in pages and through changes of the filter. What is seen is what is both granted and asked for – nothing else,
//! and all of it.
//!
//! Each schedule is known by its seed. `tests/token_matrix.rs` does the same from outside, with fewer.

use std::{collections::BTreeSet, fmt::Write as _};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::task::unconstrained;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    auth::{Access, Credential, Grant},
    config::{Auth, Jwt, Permission, Secret, Verification},
    event::{Draft, GapReason, Kind, ProductId, SessionId},
    log::{Bounds, Log, Numbering},
    metrics::Metrics,
};

#[tokio::test(start_paused = true)]
async fn a_million_times_what_is_seen_is_what_is_granted_and_asked_for() {
    let is_long = std::env::var_os("AUTOPLAY_RELAY_LONG").is_some();
    let (schedules, least_pairs) = if is_long { (1500, 2_000_000) } else { (100, 100_000) };
    let first: u64 = std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut judged = Judged::default();
    for seed in first..first + schedules {
        Schedule::new(seed).run(&mut judged).await;
    }
    let Judged { pairs, seen, refused, changes, notices } = judged;
    assert!(pairs >= least_pairs, "{judged:?}");
    // Were nothing ever seen or refused, the rest would prove nothing.
    assert!(
        seen > pairs / 50 && pairs > seen * 2 && [refused, changes, notices].iter().all(|it| *it > 50),
        "{judged:?}"
    );
}

/// How much has been looked at.
#[derive(Debug, Default)]
struct Judged {
    /// Each event that came while somebody read that product, times who read.
    pairs: usize,
    /// Those of them that were to be seen.
    seen: usize,
    /// Requests and changes beyond a grant.
    refused: usize,
    changes: usize,
    /// Ids that no log has given.
    notices: usize,
}

/// A limit in names; none is no limit.
type Names = Option<BTreeSet<&'static str>>;

/// What a token grants or a request asks for.
#[derive(Clone, Debug)]
struct Limits {
    sessions: Names,
    kinds: Names,
}

impl Limits {
    fn random(rng: &mut Rng) -> Self {
        let mut some = |names: &[&'static str]| {
            let few = 1 + rng.usize(..3);
            rng.bool().then(|| (0..few).map(|_| names[rng.usize(..names.len())]).collect())
        };
        Self { sessions: some(&SESSIONS[1..]), kinds: some(&KINDS) }
    }

    /// What is asked for, often within what is granted.
    fn wished(&self, rng: &mut Rng) -> Self {
        let mut wished = Self::random(rng);
        if rng.bool() {
            let within = |wished: &mut Names, granted: &Names| {
                if let (Some(wished), Some(granted)) = (wished, granted) {
                    *wished = granted.iter().copied().take(wished.len()).collect();
                }
            };
            within(&mut wished.sessions, &self.sessions);
            within(&mut wished.kinds, &self.kinds);
        }
        wished
    }

    /// What is to be seen; none where more is asked for than is granted.
    fn narrowed(&self, wished: &Self) -> Option<Self> {
        let both = |granted: &Names, wished: &Names| match (granted, wished) {
            (granted, None) => Some(granted.clone()),
            (None, wished) => Some(wished.clone()),
            (Some(granted), Some(wished)) => wished.is_subset(granted).then(|| Some(wished.clone())),
        };
        Some(Self { sessions: both(&self.sessions, &wished.sessions)?, kinds: both(&self.kinds, &wished.kinds)? })
    }

    fn admits(&self, (session, kind): (&str, &str)) -> bool {
        let is_in = |names: &Names, name: &str| names.as_ref().is_none_or(|names| names.contains(name));
        is_in(&self.sessions, session) && is_in(&self.kinds, kind)
    }

    fn query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(self.sessions.iter().flatten().map(|name| ("session_id", name)));
        query.extend_pairs(self.kinds.iter().flatten().map(|name| ("type", name)));
        query.finish()
    }

    fn scope(&self) -> Scope {
        Wish::read(&self.query(), &HeaderMap::new()).unwrap().scope
    }
}

/// One product, with its fan-out run by hand.
struct Stage {
    id: ProductId,
    fanout: Arc<Fanout>,
    running: Pin<Box<dyn Future<Output = ()>>>,
    /// Session and kind of each event; the first is at place 1.
    sent: Vec<(&'static str, &'static str)>,
    shown: usize,
}

impl Stage {
    fn new(name: &str) -> Self {
        let id = ProductId::new(name).unwrap();
        let bounds = Bounds { events: 10_000, bytes: u64::MAX };
        let log = Log::new(id.clone(), bounds, Metrics::new().unwrap().log(&id));
        log.numbered_by(Numbering::Own);
        let fanout = Arc::new(Fanout::new(Arc::new(log), 1));
        let of_task = Arc::clone(&fanout);
        let running = Box::pin(unconstrained(async move { of_task.run(CancellationToken::new()).await }));
        Self { id, fanout, running, sent: Vec::new(), shown: 0 }
    }

    fn append(&mut self, session: &'static str, kind: &'static str) {
        self.sent.push((session, kind));
        let payload = Bytes::from(format!("{} {}", self.id, self.sent.len()));
        let session = (!session.is_empty()).then(|| SessionId::new(session).unwrap());
        let draft = Draft { kind: Kind::new(kind), session, forwarded_at: None, payload, received: Instant::now() };
        self.fanout.log().append(draft);
    }

    fn show(&mut self) {
        let _ = self.running.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        self.shown = self.sent.len();
    }

    /// Places behind `from`, up to `to`, that these limits admit.
    fn due(&self, limits: &Limits, from: usize, to: usize) -> impl Iterator<Item = String> {
        let places = (from + 1..=to).filter(|place| limits.admits(self.sent[place - 1]));
        places.map(|place| format!("{} {place}", self.id))
    }
}

/// A subscriber, and what it must have seen.
struct Reader {
    product: usize,
    granted: Limits,
    limits: Limits,
    grant: Grant,
    subscription: Subscription,
    began: usize,
    from: usize,
    expected: Vec<String>,
    seen: Vec<String>,
    notices: usize,
    expected_notices: usize,
}

impl Reader {
    fn read(&mut self, most: usize) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        for _ in 0..most {
            match self.subscription.poll_next(&mut context) {
                Poll::Ready(Item::Event { event, .. }) => self.seen.push(text(&event)),
                Poll::Ready(Item::Gap(gap)) => {
                    assert_eq!(gap.reason, GapReason::UnknownId);
                    self.notices += 1;
                }
                Poll::Pending => return,
            }
        }
    }
}

fn text(event: &Event) -> String {
    String::from_utf8(event.payload().to_vec()).unwrap()
}

struct Schedule {
    seed: u64,
    rng: Rng,
    access: Access,
    stages: Vec<Stage>,
    readers: Vec<Reader>,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let secret = Secret::inline(SECRET.to_owned());
        let verification = Verification::Shared { secret, previous_secret: None };
        let jwt = Jwt { verification, audience: None, allow_query_token: false, cookie_name: None };
        let (anonymous_permissions, keys) = (BTreeSet::from([Permission::Subscribe]), Vec::new());
        let auth = Auth { allow_anonymous: false, anonymous_permissions, admin_key: None, keys, jwt: Some(jwt) };
        let stages = PRODUCTS.map(Stage::new).into();
        Self { seed, rng: Rng::with_seed(seed), access: Access::new(&auth), stages, readers: Vec::new() }
    }

    async fn run(mut self, judged: &mut Judged) {
        for _ in 0..600 {
            match self.rng.u8(..100) {
                0..55 => {
                    let at = self.rng.usize(..self.stages.len());
                    let (session, kind) =
                        (SESSIONS[self.rng.usize(..SESSIONS.len())], KINDS[self.rng.usize(..KINDS.len())]);
                    self.stages[at].append(session, kind);
                }
                55..70 => {
                    let at = self.rng.usize(..self.stages.len());
                    self.stages[at].show();
                }
                70..80 => self.subscribe(judged),
                80..92 => self.read(),
                92..97 => self.change(judged),
                _ => self.page(judged).await,
            }
        }
        self.judge(judged);
    }

    /// A token of random claims, and what the relay makes of it.
    fn grant(&mut self) -> (BTreeSet<&'static str>, Limits, bool, Grant) {
        let rng = &mut self.rng;
        let products: BTreeSet<_> = (0..1 + rng.usize(..2)).map(|_| PRODUCTS[rng.usize(..PRODUCTS.len())]).collect();
        let granted = Limits::random(rng);
        let permissions =
            [None, Some(json!(["subscribe"])), Some(json!(["publish", "subscribe"])), Some(json!(["publish"]))];
        let permissions = permissions[rng.usize(..permissions.len())].clone();
        let may_subscribe = permissions.as_ref().is_none_or(|it| it.as_array().unwrap().contains(&json!("subscribe")));
        let mut claims = json!({"exp": 4_000_000_000_u64});
        let mut claim = |name: &str, names: &BTreeSet<&str>| {
            // One is as good as an array of one.
            let one = names.first().filter(|_| names.len() == 1 && rng.bool());
            claims[name] = one.map_or_else(|| json!(names), |one| json!(one));
        };
        claim("product_id", &products);
        granted.sessions.iter().for_each(|names| claim("session_id", names));
        granted.kinds.iter().for_each(|names| claim("type", names));
        permissions.into_iter().for_each(|it| claims["permissions"] = it);
        let token = signed(&claims);
        let grant = self.access.identify(Some(&Credential::Token(token.as_bytes().into())));
        (products, granted, may_subscribe, grant.unwrap_or_else(|_| panic!("seed {}: {claims}", self.seed)))
    }

    /// Somebody asks for something, and is told so far whether that is allowed.
    fn ask(&mut self, judged: &mut Judged) -> Option<(usize, Limits, Limits, Grant, Wish, usize, bool)> {
        let (products, granted, may_subscribe, grant) = self.grant();
        let product = self.rng.usize(..self.stages.len());
        let is_open = products.contains(PRODUCTS[product]) && may_subscribe;
        let stage = &self.stages[product];
        assert_eq!(grant.check(&stage.id, Permission::Subscribe).is_ok(), is_open, "seed {}", self.seed);
        let wished = granted.wished(&mut self.rng);
        let place = self.rng.usize(..=stage.sent.len());
        let (id, from, is_foreign) = match self.rng.u8(..8) {
            0..3 => (String::new(), stage.shown, false),
            3 => ("0".to_owned(), 0, false),
            4 => ("1-1".to_owned(), 0, true),
            5 => ("s1".to_owned(), 0, true),
            _ => (stage.fanout.log().id(place as u64).unwrap().to_string(), place, false),
        };
        let (mut query, mut headers) = (wished.query(), HeaderMap::new());
        if self.rng.bool() {
            headers.insert("last-event-id", id.parse().unwrap());
        } else {
            let _ = write!(query, "&last_event_id={id}");
        }
        let mut wish = Wish::read(&query, &headers).unwrap();
        let limits = granted.narrowed(&wished);
        let narrowed = grant.narrow(wish.scope);
        assert_eq!(narrowed.is_ok(), limits.is_some(), "seed {}: {granted:?} {wished:?}", self.seed);
        let (Some(limits), Ok(scope), true) = (limits, narrowed, is_open) else {
            judged.refused += 1;
            return None;
        };
        wish.scope = scope;
        Some((product, granted, limits, grant, wish, from, is_foreign))
    }

    fn subscribe(&mut self, judged: &mut Judged) {
        let Some((product, granted, limits, grant, wish, from, is_foreign)) = self.ask(judged) else { return };
        let subscription = self.stages[product].fanout.subscribe(Arc::default(), wish.scope, &wish.start);
        self.readers.push(Reader {
            product,
            granted,
            limits,
            grant,
            subscription,
            began: from,
            from,
            expected: Vec::new(),
            seen: Vec::new(),
            notices: 0,
            expected_notices: usize::from(is_foreign),
        });
    }

    fn read(&mut self) {
        let most = self.rng.usize(1..60);
        let Some(reader) = self.rng.choice(&mut self.readers) else { return };
        reader.read(most);
    }

    /// As a WebSocket does when its client asks for another filter.
    fn change(&mut self, judged: &mut Judged) {
        let Some(reader) = self.rng.choice(&mut self.readers) else { return };
        let wished = reader.granted.wished(&mut self.rng);
        let limits = reader.granted.narrowed(&wished);
        match (reader.grant.narrow(wished.scope()), limits) {
            (Err(_), None) => judged.refused += 1,
            (Ok(scope), Some(limits)) => {
                // What the old filter had still to give is judged by the new one.
                let stands = usize::try_from(reader.subscription.returned_through()).unwrap();
                let due = self.stages[reader.product].due(&reader.limits, reader.from, stands);
                reader.expected.extend(due);
                reader.from = reader.from.max(stands);
                reader.limits = limits;
                reader.subscription.change_scope(scope);
                judged.changes += 1;
            }
            (narrowed, limits) => panic!("seed {}: {narrowed:?}, but {limits:?}", self.seed),
        }
    }

    /// All pages from somewhere on, one behind the other.
    async fn page(&mut self, judged: &mut Judged) {
        let Some((product, _, limits, _, wish, from, is_foreign)) = self.ask(judged) else { return };
        let most = self.rng.usize(1..50);
        let stage = &mut self.stages[product];
        stage.show();
        let (mut start, from) = match wish.start {
            Start::Now => (Start::Oldest, 0),
            start => (start, from),
        };
        let (mut seen, mut notices) = (Vec::new(), 0);
        loop {
            let page = Page::read(&stage.fanout, wish.scope.clone(), &start, most).await.unwrap();
            if page.is_blank() {
                break;
            }
            notices += usize::from(page.gap.is_some());
            seen.extend(page.events.iter().map(|event| text(event)));
            start = Start::After(page.next.unwrap());
        }
        let expected: Vec<_> = stage.due(&limits, from, stage.sent.len()).collect();
        assert_eq!((&seen, notices), (&expected, usize::from(is_foreign)), "seed {}: pages, {limits:?}", self.seed);
        judged.pairs += stage.sent.len() - from;
        judged.seen += seen.len();
        judged.notices += notices;
    }

    fn judge(mut self, judged: &mut Judged) {
        self.stages.iter_mut().for_each(Stage::show);
        for mut reader in self.readers {
            reader.read(usize::MAX);
            let stage = &self.stages[reader.product];
            reader.expected.extend(stage.due(&reader.limits, reader.from, stage.sent.len()));
            let limits = (&reader.granted, &reader.limits);
            assert_eq!(reader.seen, reader.expected, "seed {}: {limits:?}", self.seed);
            assert_eq!(reader.notices, reader.expected_notices, "seed {}", self.seed);
            judged.pairs += stage.sent.len() - reader.began;
            judged.seen += reader.seen.len();
            judged.notices += reader.notices;
        }
    }
}

fn signed(claims: &Value) -> String {
    let text = format!("{}.{}", BASE64.encode(r#"{"alg":"HS256"}"#), BASE64.encode(claims.to_string()));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), text.as_bytes());
    format!("{text}.{}", BASE64.encode(signature))
}

const SECRET: &str = "secret-of-the-matrix-0123456789-0";

/// Names that a careless comparison would take for one another. The first session is none.
const PRODUCTS: [&str; 3] = ["p", "p1", "P"];
const SESSIONS: [&str; 7] = ["", "s1", "s10", "S1", "s1 ", "*", "s1&session_id=s10"];
const KINDS: [&str; 6] = ["actions", "summary", "usertour_trigger", "own", "Own", "*"];
