//! Visibility against an oracle that knows only names: random tokens ask for random scopes of
//! random products, live, after an id, in pages and through changes of the filter. A reader sees
//! exactly what is both granted and asked for.
//!
//! Each schedule is known by its seed. `tests/it/access/matrix.rs` does the same from outside, with
//! fewer schedules.

use std::{collections::BTreeSet, fmt::Write as _, pin::Pin};

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::task::unconstrained;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    auth::{Access, Credential, Grant},
    config::{AuthConfig, JwtConfig, JwtVerification, Permission, Secret},
    event::{Draft, GapReason, Kind, ProductId, SessionId, UserId},
    log::{Log, MemoryBounds, Numbering},
    metrics::Metrics,
    subscription::Subscription,
};

#[tokio::test(start_paused = true)]
async fn a_million_random_readers_see_exactly_the_granted_and_requested_events() {
    let is_long = std::env::var_os("AUTOPLAY_RELAY_LONG").is_some();
    let (schedules, min_pairs) = if is_long { (1500, 2_000_000) } else { (100, 100_000) };
    let first: u64 =
        std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut judged = MatrixTally::default();
    for seed in first..first + schedules {
        Schedule::new(seed).run(&mut judged).await;
    }
    let MatrixTally { pairs, seen, refused, changes, notices } = judged;
    assert!(pairs >= min_pairs, "{judged:?}");
    // Without events seen and requests refused, the schedules would prove nothing.
    assert!(
        seen > pairs / 50
            && pairs > seen * 2
            && [refused, changes, notices].iter().all(|it| *it > 50),
        "{judged:?}"
    );
}

/// Counts of what the schedules have exercised.
#[derive(Debug, Default)]
struct MatrixTally {
    /// Pairs of an event and a reader of its product at that time.
    pairs: usize,
    /// Pairs of which the reader was to see the event.
    seen: usize,
    /// Requests and changes beyond a grant.
    refused: usize,
    changes: usize,
    /// Gap notices for ids that no log has given.
    notices: usize,
}

/// Limit by names; `None` is no limit.
type NameFilter = Option<BTreeSet<&'static str>>;

/// Scope that a token grants or a request asks for, in names.
#[derive(Clone, Debug)]
struct ScopeModel {
    sessions: NameFilter,
    users: NameFilter,
    kinds: NameFilter,
}

impl ScopeModel {
    fn random(rng: &mut Rng) -> Self {
        let mut some = |names: &[&'static str]| {
            let few = 1 + rng.usize(..3);
            rng.bool().then(|| (0..few).map(|_| names[rng.usize(..names.len())]).collect())
        };
        Self { sessions: some(&SESSIONS[1..]), users: some(&USERS[1..]), kinds: some(&KINDS) }
    }

    /// Returns a random request, half of the time within what is granted.
    fn random_request(&self, rng: &mut Rng) -> Self {
        let mut requested = Self::random(rng);
        if rng.bool() {
            let within = |asked: &mut NameFilter, granted: &NameFilter| {
                if let (Some(asked), Some(granted)) = (asked, granted) {
                    *asked = granted.iter().copied().take(asked.len()).collect();
                }
            };
            within(&mut requested.sessions, &self.sessions);
            within(&mut requested.users, &self.users);
            within(&mut requested.kinds, &self.kinds);
        }
        requested
    }

    /// Returns what a reader is to see; `None` if more is asked for than is granted.
    fn narrowed(&self, requested: &Self) -> Option<Self> {
        let both = |granted: &NameFilter, asked: &NameFilter| match (granted, asked) {
            (granted, None) => Some(granted.clone()),
            (None, asked) => Some(asked.clone()),
            (Some(granted), Some(asked)) => asked.is_subset(granted).then(|| Some(asked.clone())),
        };
        Some(Self {
            sessions: both(&self.sessions, &requested.sessions)?,
            users: both(&self.users, &requested.users)?,
            kinds: both(&self.kinds, &requested.kinds)?,
        })
    }

    fn admits(&self, (session, user, kind): (&str, &str, &str)) -> bool {
        let is_in = |names: &NameFilter, name: &str| {
            names.as_ref().is_none_or(|names| names.contains(name))
        };
        is_in(&self.sessions, session) && is_in(&self.users, user) && is_in(&self.kinds, kind)
    }

    fn query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(self.sessions.iter().flatten().map(|name| ("session_id", name)));
        query.extend_pairs(self.users.iter().flatten().map(|name| ("user_id", name)));
        query.extend_pairs(self.kinds.iter().flatten().map(|name| ("type", name)));
        query.finish()
    }

    fn scope(&self) -> Scope {
        SubscriptionRequest::parse(&self.query(), &HeaderMap::new()).unwrap().scope
    }
}

/// One product, whose fan-out the schedule runs by hand.
struct ProductHarness {
    id: ProductId,
    fanout: Arc<Fanout>,
    fanout_task: Pin<Box<dyn Future<Output = ()>>>,
    /// Session, user and kind of each event; the first is at position 1.
    sent: Vec<(&'static str, &'static str, &'static str)>,
    shown: usize,
}

impl ProductHarness {
    fn new(name: &str) -> Self {
        let id = ProductId::new(name).unwrap();
        let bounds = MemoryBounds { events: 10_000, bytes: u64::MAX };
        let log = Log::new(id.clone(), bounds, Metrics::new().unwrap().log(&id));
        log.set_numbering(Numbering::Own);
        let fanout = Arc::new(Fanout::new(Arc::new(log), 1));
        let task_fanout = Arc::clone(&fanout);
        let fanout_task =
            Box::pin(unconstrained(async move { task_fanout.run(CancellationToken::new()).await }));
        Self { id, fanout, fanout_task, sent: Vec::new(), shown: 0 }
    }

    fn append(&mut self, session: &'static str, user: &'static str, kind: &'static str) {
        self.sent.push((session, user, kind));
        let payload = Bytes::from(format!("{} {}", self.id, self.sent.len()));
        let session = (!session.is_empty()).then(|| SessionId::new(session).unwrap());
        let draft = Draft {
            kind: Kind::new(kind),
            session,
            user: (!user.is_empty()).then(|| UserId::new(user).unwrap()),
            forwarded_at: None,
            payload,
            received: Instant::now(),
        };
        self.fanout.log().append(draft);
    }

    fn run_fanout(&mut self) {
        let _ = self.fanout_task.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        self.shown = self.sent.len();
    }

    /// Returns the payloads at positions after `from`, up to `to`, that these limits admit.
    fn expected_payloads(
        &self,
        limits: &ScopeModel,
        from: usize,
        to: usize,
    ) -> impl Iterator<Item = String> {
        let positions = (from + 1..=to).filter(|position| limits.admits(self.sent[position - 1]));
        positions.map(|position| format!("{} {position}", self.id))
    }
}

/// Subscriber, with what it must have seen.
struct ModelReader {
    product: usize,
    granted: ScopeModel,
    limits: ScopeModel,
    grant: Grant,
    subscription: Subscription,
    began: usize,
    from: usize,
    expected: Vec<String>,
    seen: Vec<String>,
    notices: usize,
    expected_notices: usize,
}

impl ModelReader {
    fn read(&mut self, max: usize) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        for _ in 0..max {
            match self.subscription.poll_next(&mut context) {
                Poll::Ready(SubscriptionItem::Event { event, .. }) => self.seen.push(text(&event)),
                Poll::Ready(SubscriptionItem::Gap(gap)) => {
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
    harnesses: Vec<ProductHarness>,
    readers: Vec<ModelReader>,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let secret = Secret::inline(SECRET.to_owned());
        let verification = JwtVerification::SharedSecret { secret, previous_secret: None };
        let jwt =
            JwtConfig { verification, audience: None, allow_query_token: false, cookie_name: None };
        let (anonymous_permissions, keys) = (BTreeSet::from([Permission::Subscribe]), Vec::new());
        let auth = AuthConfig {
            allow_anonymous: false,
            anonymous_permissions,
            admin_key: None,
            keys,
            jwt: Some(jwt),
        };
        let harnesses = PRODUCTS.map(ProductHarness::new).into();
        Self {
            seed,
            rng: Rng::with_seed(seed),
            access: Access::new(&auth),
            harnesses,
            readers: Vec::new(),
        }
    }

    async fn run(mut self, judged: &mut MatrixTally) {
        for _ in 0..600 {
            match self.rng.u8(..100) {
                0..55 => {
                    let at = self.rng.usize(..self.harnesses.len());
                    let (session, user, kind) = (
                        SESSIONS[self.rng.usize(..SESSIONS.len())],
                        USERS[self.rng.usize(..USERS.len())],
                        KINDS[self.rng.usize(..KINDS.len())],
                    );
                    self.harnesses[at].append(session, user, kind);
                }
                55..70 => {
                    let at = self.rng.usize(..self.harnesses.len());
                    self.harnesses[at].run_fanout();
                }
                70..80 => self.subscribe(judged),
                80..92 => self.read(),
                92..97 => self.change(judged),
                _ => self.page(judged).await,
            }
        }
        self.check_readers(judged);
    }

    /// Returns a token of random claims: the model of it, and the relay's grant.
    fn grant(&mut self) -> (BTreeSet<&'static str>, ScopeModel, bool, Grant) {
        let rng = &mut self.rng;
        let products: BTreeSet<_> =
            (0..1 + rng.usize(..2)).map(|_| PRODUCTS[rng.usize(..PRODUCTS.len())]).collect();
        let granted = ScopeModel::random(rng);
        let permissions = [
            None,
            Some(json!(["subscribe"])),
            Some(json!(["publish", "subscribe"])),
            Some(json!(["publish"])),
        ];
        let permissions = permissions[rng.usize(..permissions.len())].clone();
        let may_subscribe = permissions
            .as_ref()
            .is_none_or(|it| it.as_array().unwrap().contains(&json!("subscribe")));
        let mut claims = json!({"exp": 4_000_000_000_u64});
        let mut claim = |name: &str, names: &BTreeSet<&str>| {
            // A claim of one name may stand without its array.
            let one = names.first().filter(|_| names.len() == 1 && rng.bool());
            claims[name] = one.map_or_else(|| json!(names), |one| json!(one));
        };
        claim("product_id", &products);
        granted.sessions.iter().for_each(|names| claim("session_id", names));
        granted.users.iter().for_each(|names| claim("user_id", names));
        granted.kinds.iter().for_each(|names| claim("type", names));
        permissions.into_iter().for_each(|it| claims["permissions"] = it);
        let token = signed(&claims);
        let grant = self.access.authenticate(Some(&Credential::TokenOnly(token.as_bytes().into())));
        (
            products,
            granted,
            may_subscribe,
            grant.unwrap_or_else(|_| panic!("seed {}: {claims}", self.seed)),
        )
    }

    /// Makes a random request, and checks that the relay allows it exactly if the model does.
    fn ask(
        &mut self,
        judged: &mut MatrixTally,
    ) -> Option<(usize, ScopeModel, ScopeModel, Grant, SubscriptionRequest, usize, bool)> {
        let (products, granted, may_subscribe, grant) = self.grant();
        let product = self.rng.usize(..self.harnesses.len());
        let is_open = products.contains(PRODUCTS[product]) && may_subscribe;
        let harness = &self.harnesses[product];
        assert_eq!(
            grant.check(&harness.id, Permission::Subscribe).is_ok(),
            is_open,
            "seed {}",
            self.seed
        );
        let asked = granted.random_request(&mut self.rng);
        let position = self.rng.usize(..=harness.sent.len());
        let (id, from, is_foreign) = match self.rng.u8(..8) {
            0..3 => (String::new(), harness.shown, false),
            3 => ("0".to_owned(), 0, false),
            4 => ("1-1".to_owned(), 0, true),
            5 => ("s1".to_owned(), 0, true),
            _ => {
                (harness.fanout.log().id_at(position as u64).unwrap().to_string(), position, false)
            }
        };
        let (mut query, mut headers) = (asked.query(), HeaderMap::new());
        if self.rng.bool() {
            headers.insert("last-event-id", id.parse().unwrap());
        } else {
            let _ = write!(query, "&last_event_id={id}");
        }
        let mut request = SubscriptionRequest::parse(&query, &headers).unwrap();
        let limits = granted.narrowed(&asked);
        let narrowed = grant.narrow(request.scope);
        assert_eq!(narrowed.is_ok(), limits.is_some(), "seed {}: {granted:?} {asked:?}", self.seed);
        let (Some(limits), Ok(scope), true) = (limits, narrowed, is_open) else {
            judged.refused += 1;
            return None;
        };
        request.scope = scope;
        Some((product, granted, limits, grant, request, from, is_foreign))
    }

    fn subscribe(&mut self, judged: &mut MatrixTally) {
        let Some((product, granted, limits, grant, request, from, is_foreign)) = self.ask(judged)
        else {
            return;
        };
        let subscription = Subscription::start(
            &self.harnesses[product].fanout,
            SubscriberSignal::default(),
            request.scope,
            &request.start,
        );
        self.readers.push(ModelReader {
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
        let max = self.rng.usize(1..60);
        let Some(reader) = self.rng.choice(&mut self.readers) else { return };
        reader.read(max);
    }

    /// Changes a reader's filter, as a WebSocket does when its client asks for another one.
    fn change(&mut self, judged: &mut MatrixTally) {
        let Some(reader) = self.rng.choice(&mut self.readers) else { return };
        let asked = reader.granted.random_request(&mut self.rng);
        let limits = reader.granted.narrowed(&asked);
        match (reader.grant.narrow(asked.scope()), limits) {
            (Err(_), None) => judged.refused += 1,
            (Ok(scope), Some(limits)) => {
                // Entries that the old filter had still to give are judged by the new one.
                let position = usize::try_from(reader.subscription.returned_through()).unwrap();
                let due = self.harnesses[reader.product].expected_payloads(
                    &reader.limits,
                    reader.from,
                    position,
                );
                reader.expected.extend(due);
                reader.from = reader.from.max(position);
                reader.limits = limits;
                reader.subscription.change_scope(scope);
                judged.changes += 1;
            }
            (narrowed, limits) => panic!("seed {}: {narrowed:?}, but {limits:?}", self.seed),
        }
    }

    /// Reads all pages from a random id on, one after the other.
    async fn page(&mut self, judged: &mut MatrixTally) {
        let Some((product, _, limits, _, request, from, is_foreign)) = self.ask(judged) else {
            return;
        };
        let max = self.rng.usize(1..50);
        let harness = &mut self.harnesses[product];
        harness.run_fanout();
        let (mut start, from) = match request.start {
            StartPosition::Now => (StartPosition::Oldest, 0),
            start => (start, from),
        };
        let (mut seen, mut notices) = (Vec::new(), 0);
        loop {
            let page = EventPage::read(
                &harness.fanout,
                request.scope.clone(),
                &start,
                max,
                Default::default(),
            )
            .await
            .unwrap();
            if page.is_empty() {
                break;
            }
            notices += usize::from(page.gap.is_some());
            seen.extend(page.events.iter().map(|event| text(event)));
            start = StartPosition::After(page.next.unwrap());
        }
        let expected: Vec<_> =
            harness.expected_payloads(&limits, from, harness.sent.len()).collect();
        assert_eq!(
            (&seen, notices),
            (&expected, usize::from(is_foreign)),
            "seed {}: pages, {limits:?}",
            self.seed
        );
        judged.pairs += harness.sent.len() - from;
        judged.seen += seen.len();
        judged.notices += notices;
    }

    fn check_readers(mut self, judged: &mut MatrixTally) {
        self.harnesses.iter_mut().for_each(ProductHarness::run_fanout);
        for mut reader in self.readers {
            reader.read(usize::MAX);
            let harness = &self.harnesses[reader.product];
            reader.expected.extend(harness.expected_payloads(
                &reader.limits,
                reader.from,
                harness.sent.len(),
            ));
            let limits = (&reader.granted, &reader.limits);
            assert_eq!(reader.seen, reader.expected, "seed {}: {limits:?}", self.seed);
            assert_eq!(reader.notices, reader.expected_notices, "seed {}", self.seed);
            judged.pairs += harness.sent.len() - reader.began;
            judged.seen += reader.seen.len();
            judged.notices += reader.notices;
        }
    }
}

fn signed(claims: &Value) -> String {
    let text =
        format!("{}.{}", BASE64.encode(r#"{"alg":"HS256"}"#), BASE64.encode(claims.to_string()));
    let signature =
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), text.as_bytes());
    format!("{text}.{}", BASE64.encode(signature))
}

const SECRET: &str = "secret-of-the-matrix-0123456789-0";

/// Names that a careless comparison would confuse. The first session and the first user are none.
const PRODUCTS: [&str; 3] = ["p", "p1", "P"];
const USERS: [&str; 4] = ["", "u1", "s1", "U1"];
const SESSIONS: [&str; 7] = ["", "s1", "s10", "S1", "s1 ", "*", "s1&session_id=s10"];
const KINDS: [&str; 6] = ["actions", "summary", "usertour_trigger", "own", "Own", "*"];
