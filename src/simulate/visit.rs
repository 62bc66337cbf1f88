//! One visit of a simulated user.
//!
//! In: random numbers. Out: the next action of the user, and a summary of past actions.
//!
//! May use: no other module.

use std::mem;

use fastrand::Rng;

use super::{
    payload::{Action, UserIdentity},
    site::{ORIGIN, PAGES, SAMPLE_TEXTS, SitePage},
};

/// A visit in progress.
pub(crate) struct Visit {
    /// Noun for the user in sentences: "User" or "Visitor".
    noun: &'static str,
    page: &'static SitePage,
    query: Option<&'static str>,
    next_action: NextAction,
    /// Index of the next action.
    index: u64,
    unsummarized: UnsummarizedActions,
}

/// Constraint on the next action, so that it follows from the previous one.
enum NextAction {
    Land,
    OpenPage(&'static SitePage),
    TypeInto(&'static str),
    FinishField(&'static str),
    Anything,
}

/// Actions since the last summary.
#[derive(Default)]
struct UnsummarizedActions {
    actions: u64,
    pages: Vec<&'static str>,
    controls: Vec<&'static str>,
}

impl Visit {
    /// Begins a visit of a user whom sentences call `noun`.
    pub(crate) fn new(noun: &'static str, rng: &mut Rng) -> Visit {
        let lands_at_the_front = rng.u8(..10) < 6;
        let page = if lands_at_the_front { &PAGES[0] } else { pick(&PAGES, rng) };
        Visit {
            noun,
            page,
            query: None,
            next_action: NextAction::Land,
            index: 0,
            unsummarized: UnsummarizedActions::default(),
        }
    }

    /// Returns the next action.
    pub(crate) fn act<'a>(&mut self, user: &'a UserIdentity, rng: &mut Rng) -> Action<'a> {
        let (kind, title, description) =
            match mem::replace(&mut self.next_action, NextAction::Anything) {
                NextAction::Land => {
                    self.query = rng.bool().then(|| *pick(self.page.queries, rng));
                    self.open(self.page)
                }
                NextAction::OpenPage(page) => {
                    let linked_deeper = rng.u8(..4) == 0;
                    self.query = linked_deeper.then(|| *pick(page.queries, rng));
                    self.open(page)
                }
                NextAction::TypeInto(field) => self.write(field, rng),
                NextAction::FinishField(field) => self.finish(field, rng),
                NextAction::Anything => match rng.u8(..10) {
                    0..=2 => self.follow_link(rng),
                    3..=6 => self.click(rng),
                    _ => self.focus(rng),
                },
            };
        self.record(user, kind, title, description)
    }

    /// Returns the last action of the visit.
    pub(crate) fn leave<'a>(&mut self, user: &'a UserIdentity) -> Action<'a> {
        let title = format!("Leave {}", self.page.title);
        let description = format!("{} left the {} page", self.noun, self.page.name);
        self.record(user, "blur", title, description)
    }

    /// Returns the tour to offer on the current page, and the reason to offer it.
    pub(crate) fn tour(&self) -> (&'static str, &'static str) {
        (self.page.flow_id, self.page.reason)
    }

    /// Returns the number of actions since the last summary.
    pub(crate) fn unsummarized_actions(&self) -> u64 {
        self.unsummarized.actions
    }

    /// Returns a summary of the actions since the last one, and the number of actions that it
    /// replaces.
    pub(crate) fn sum_up(&mut self) -> (String, u64) {
        let done = mem::take(&mut self.unsummarized);
        let pages = match done.pages.as_slice() {
            [] => format!("stayed on the {} page", self.page.name),
            [page] => format!("opened the {page} page"),
            pages => format!("went through the {} pages", join_words(pages)),
        };
        let controls = match done.controls.as_slice() {
            [] => "looked around without changing anything".to_owned(),
            controls => format!("used {}", join_words(controls)),
        };
        (format!("The {} {pages}, then {controls}.", self.noun.to_lowercase()), done.actions)
    }

    fn open(&mut self, page: &'static SitePage) -> ActionText {
        self.page = page;
        add_mention(&mut self.unsummarized.pages, page.name);
        let description = format!("{} landed on the {} page", self.noun, page.name);
        ("pageview", format!("Page Load: {}", page.title), description)
    }

    fn follow_link(&mut self, rng: &mut Rng) -> ActionText {
        let page = pick(&PAGES, rng);
        self.next_action = NextAction::OpenPage(page);
        let description =
            format!("{} clicked {} link on the {} page", self.noun, page.name, self.page.name);
        ("click", format!("Click {} link", page.name), description)
    }

    fn click(&mut self, rng: &mut Rng) -> ActionText {
        let button = *pick(self.page.buttons, rng);
        add_mention(&mut self.unsummarized.controls, button);
        let description =
            format!("{} clicked {button} button on the {} page", self.noun, self.page.name);
        ("click", format!("Click {button} button"), description)
    }

    fn focus(&mut self, rng: &mut Rng) -> ActionText {
        let field = *pick(self.page.fields, rng);
        self.next_action = if rng.u8(..4) == 0 {
            NextAction::FinishField(field)
        } else {
            NextAction::TypeInto(field)
        };
        let description = format!(
            "{} put the cursor into the {field} field on the {} page",
            self.noun, self.page.name
        );
        ("focus", format!("Focus {field} field"), description)
    }

    fn write(&mut self, field: &'static str, rng: &mut Rng) -> ActionText {
        let writing = pick(&SAMPLE_TEXTS, rng);
        if field == "Search" {
            self.query = Some(writing.query);
        }
        self.next_action = NextAction::FinishField(field);
        add_mention(&mut self.unsummarized.controls, field);
        let description = format!(
            "{} typed “{}” into the {field} field on the {} page",
            self.noun, writing.text, self.page.name
        );
        ("type", format!("Type in {field} field"), description)
    }

    fn finish(&mut self, field: &'static str, rng: &mut Rng) -> ActionText {
        let (kind, verb, did) =
            if rng.bool() { ("submit", "Submit", "submitted") } else { ("blur", "Leave", "left") };
        let description =
            format!("{} {did} the {field} field on the {} page", self.noun, self.page.name);
        (kind, format!("{verb} {field} field"), description)
    }

    /// Creates an action with its index in the session and its address. Its times are filled in
    /// later.
    fn record<'a>(
        &mut self,
        user: &'a UserIdentity,
        kind: &'static str,
        title: String,
        description: String,
    ) -> Action<'a> {
        let index = self.index;
        self.index += 1;
        self.unsummarized.actions += 1;
        let canonical_url = format!("{ORIGIN}{}", self.page.path);
        let raw_url = self
            .query
            .map_or_else(|| canonical_url.clone(), |query| format!("{canonical_url}?{query}"));
        Action {
            index,
            kind,
            title,
            description,
            timestamp_start: 0.0,
            timestamp_end: 0.0,
            raw_url,
            canonical_url,
            user,
        }
    }
}

/// Kind, title and description of an action.
type ActionText = (&'static str, String, String);

/// Returns a random entry of a table of `site`.
pub(crate) fn pick<'a, T>(table: &'a [T], rng: &mut Rng) -> &'a T {
    rng.choice(table).expect("a test of `site` shows that no table is empty")
}

/// Records a page or control for the summary, unless it is recorded already or there are enough.
fn add_mention(mentions: &mut Vec<&'static str>, mention: &'static str) {
    if mentions.len() < MAX_MENTIONS && !mentions.contains(&mention) {
        mentions.push(mention);
    }
}

/// Joins words to "a", "a and b" or "a, b and c".
fn join_words(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Maximum number of pages, and of controls, that a summary names, to keep it short.
const MAX_MENTIONS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const ANONYMOUS: UserIdentity =
        UserIdentity { session_id: None, user_id: None, email: None, conversation_id: None };

    #[test]
    fn a_visit_begins_with_a_page_and_every_link_leads_to_one() {
        let mut rng = Rng::with_seed(1);
        let mut visit = Visit::new("User", &mut rng);
        let mut before: Option<Action<'_>> = None;
        for _ in 0..1000 {
            let action = visit.act(&ANONYMOUS, &mut rng);
            let after_a_link = before.as_ref().is_none_or(|before| before.title.ends_with(" link"));
            assert_eq!(action.kind == "pageview", after_a_link, "{}", action.title);
            before = Some(action);
        }
    }

    #[test]
    fn only_a_focused_field_is_written_in_or_left() {
        let mut rng = Rng::with_seed(2);
        let mut visit = Visit::new("User", &mut rng);
        let mut before = "";
        for _ in 0..1000 {
            let kind = visit.act(&ANONYMOUS, &mut rng).kind;
            match kind {
                "type" => assert_eq!(before, "focus"),
                "submit" | "blur" => {
                    assert!(before == "focus" || before == "type", "{kind} after {before}");
                }
                _ => assert!(before != "focus" && before != "type", "{kind} after {before}"),
            }
            before = kind;
        }
    }

    #[test]
    fn a_summary_replaces_what_happened_since_the_one_before() {
        let mut rng = Rng::with_seed(3);
        let mut visit = Visit::new("Visitor", &mut rng);
        for _ in 0..7 {
            visit.act(&ANONYMOUS, &mut rng);
        }
        let (prose, replaces) = visit.sum_up();
        assert_eq!(replaces, 7);
        assert!(prose.starts_with("The visitor ") && prose.ends_with('.'), "{prose}");
        visit.leave(&ANONYMOUS);
        assert_eq!(visit.sum_up().1, 1);
    }

    #[test]
    fn the_address_without_its_query_is_the_canonical_one() {
        let mut rng = Rng::with_seed(4);
        let mut with_query = 0;
        for _ in 0..50 {
            let mut visit = Visit::new("User", &mut rng);
            for _ in 0..20 {
                let action = visit.act(&ANONYMOUS, &mut rng);
                let (path, query) = action.raw_url.split_once('?').unwrap_or((&action.raw_url, ""));
                assert_eq!(path, action.canonical_url);
                with_query += usize::from(!query.is_empty());
            }
        }
        assert!((100..900).contains(&with_query), "{with_query} of 1000 addresses have a query");
    }

    #[test]
    fn a_listing_reads_like_prose() {
        assert_eq!(join_words(&["a"]), "a");
        assert_eq!(join_words(&["a", "b"]), "a and b");
        assert_eq!(join_words(&["a", "b", "c"]), "a, b and c");
    }
}
