//! The imaginary product of the simulated users: its pages, their controls, and texts that users
//! write.
//!
//! In: nothing. Out: tables. Some texts are not ASCII, have quotation marks or a line break,
//! because real texts do and a relay must carry them unchanged.
//!
//! May use: no other module.

/// One page of the imaginary product.
#[derive(Debug)]
pub(crate) struct SitePage {
    /// Path below the origin, without a query.
    pub(crate) path: &'static str,
    /// Name of the page as its headline has it.
    pub(crate) title: &'static str,
    /// Name of the page in prose: "on the … page".
    pub(crate) name: &'static str,
    /// Buttons to click.
    pub(crate) buttons: &'static [&'static str],
    /// Fields to write into.
    pub(crate) fields: &'static [&'static str],
    /// Queries that visitors arrive with.
    pub(crate) queries: &'static [&'static str],
    /// Tour that is offered to a visitor who makes no progress here.
    pub(crate) flow_id: &'static str,
    /// Reason to offer the tour.
    pub(crate) reason: &'static str,
}

/// A text that a user writes into a field.
#[derive(Debug)]
pub(crate) struct SampleText {
    /// The text.
    pub(crate) text: &'static str,
    /// Query that a search for the text leaves in the address.
    pub(crate) query: &'static str,
}

/// Origin of the imaginary product.
pub(crate) const ORIGIN: &str = "https://app.example.com";

/// All pages. Most visits begin with the first one.
pub(crate) const PAGES: [SitePage; 9] = [
    SitePage {
        path: "/dashboard",
        title: "Dashboard",
        name: "dashboard",
        buttons: &["Refresh", "Add widget", "Last 30 days", "Share dashboard"],
        fields: &["Filter", "Search"],
        queries: &["ref=email", "utm_source=newsletter&utm_campaign=%C3%A9t%C3%A9", "range=30d"],
        flow_id: "tour_dashboard_basics",
        reason: "Looked at an empty dashboard for a while without adding a widget",
    },
    SitePage {
        path: "/reports",
        title: "Reports",
        name: "reports",
        buttons: &["New report", "Export CSV", "Sort by date", "Duplicate"],
        fields: &["Search", "Report name"],
        queries: &["sort=-created", "tab=shared"],
        flow_id: "tour_first_report",
        reason: "Opened the reports page three times and never created a report",
    },
    SitePage {
        path: "/export",
        title: "Export",
        name: "export",
        buttons: &["Export CSV", "Export PDF", "Schedule export", "Cancel"],
        fields: &["File name", "Recipient note"],
        queries: &["format=csv", "report=4711&format=pdf"],
        flow_id: "tour_export_789",
        reason: "Started an export and cancelled it",
    },
    SitePage {
        path: "/settings",
        title: "Account settings",
        name: "settings",
        buttons: &["Save changes", "Change language", "Two-factor sign-in", "Discard"],
        fields: &["Display name", "Company name"],
        queries: &["tab=profile", "lang=fr"],
        flow_id: "tour_settings_profile",
        reason: "Changed a setting and discarded it twice",
    },
    SitePage {
        path: "/settings/billing",
        title: "Billing",
        name: "billing",
        buttons: &["Upgrade to Pro", "Download invoice", "Compare plans", "Show prices in €"],
        fields: &["Purchase order", "Billing address"],
        queries: &["plan=pro", "invoice=2024-0042"],
        flow_id: "tour_billing_plans",
        reason: "Compared the plans for more than a minute",
    },
    SitePage {
        path: "/team",
        title: "Team",
        name: "team",
        buttons: &["Invite a colleague", "Resend invitation", "Make admin", "Remove"],
        fields: &["Search", "Team name"],
        queries: &["role=admin"],
        flow_id: "tour_team_invite",
        reason: "Is alone in the workspace",
    },
    SitePage {
        path: "/integrations",
        title: "Integrations",
        name: "integrations",
        buttons: &["Connect", "Test connection", "Copy \"API key\"", "Show logs"],
        fields: &["Search", "Connection name"],
        queries: &["category=crm"],
        flow_id: "tour_integrations_connect",
        reason: "Tested a connection that failed",
    },
    SitePage {
        path: "/onboarding",
        title: "Welcome 🎉 — first steps",
        name: "onboarding",
        buttons: &["Next step", "Skip", "Watch the video", "Import sample data"],
        fields: &["Your role", "What brings you here"],
        queries: &["step=2", "step=3&from=invitation"],
        flow_id: "tour_onboarding_checklist",
        reason: "Skipped the second step of the checklist",
    },
    SitePage {
        path: "/help",
        title: "Help centre",
        name: "help",
        buttons: &["Contact support", "This was helpful", "Open the guide", "Back"],
        fields: &["Search", "Your question"],
        queries: &["article=exporting-reports"],
        flow_id: "tour_help_chat",
        reason: "Searched the help centre and opened nothing",
    },
];

/// Texts that users write.
pub(crate) const SAMPLE_TEXTS: [SampleText; 8] = [
    SampleText { text: "quarterly revenue", query: "q=quarterly+revenue" },
    SampleText { text: "churn by region", query: "q=churn+by+region" },
    SampleText { text: "Müller & Söhne", query: "q=M%C3%BCller+%26+S%C3%B6hne" },
    SampleText {
        text: "東京オフィス",
        query: "q=%E6%9D%B1%E4%BA%AC%E3%82%AA%E3%83%95%E3%82%A3%E3%82%B9",
    },
    SampleText { text: "informe de métricas", query: "q=informe+de+m%C3%A9tricas" },
    SampleText { text: "the \"new\" pricing", query: "q=the+%22new%22+pricing" },
    SampleText { text: "Launch 🚀 week", query: "q=Launch+%F0%9F%9A%80+week" },
    SampleText { text: "Hello,\nwhere do I find my invoices?", query: "q=invoices" },
];

/// First names. They appear in email addresses only, so they are ASCII.
pub(crate) const FIRST_NAMES: [&str; 12] = [
    "ada", "bela", "chen", "dora", "emeka", "fatima", "goran", "hana", "ines", "jonas", "kavya",
    "liam",
];

/// Last names, ASCII for the same reason.
pub(crate) const LAST_NAMES: [&str; 11] = [
    "abebe",
    "brandt",
    "costa",
    "dubois",
    "eriksen",
    "fischer",
    "garcia",
    "haddad",
    "ivanova",
    "jensen",
    "kobayashi",
];

/// Sentences that pad a payload. Plain ASCII without quotation marks, so each byte is one byte of
/// JSON too.
pub(crate) const FILLER_SENTENCES: [&str; 8] = [
    "The pointer rested over the chart while the numbers were loading.",
    "A tooltip opened and was read to its end before anything else happened.",
    "The list was scrolled down to the last row and back up again.",
    "Nothing was changed on the page during the next few seconds.",
    "The window lost the focus for a moment and then regained it.",
    "Two of the columns were compared with the figures of the month before.",
    "The side panel was opened, looked at and closed without a selection.",
    "The same control was hovered again, a little longer than the first time.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_something_of_each_kind() {
        for page in &PAGES {
            assert!(
                !page.buttons.is_empty() && !page.fields.is_empty() && !page.queries.is_empty(),
                "{}",
                page.path
            );
            assert!(page.path.starts_with('/') && !page.path.contains('?'), "{}", page.path);
            assert!(page.flow_id.starts_with("tour_") && !page.reason.is_empty(), "{}", page.path);
        }
    }

    #[test]
    fn a_byte_of_prose_is_a_byte_of_json() {
        for sentence in FILLER_SENTENCES {
            assert!(sentence.is_ascii());
            assert_eq!(
                serde_json::to_string(sentence).unwrap().len(),
                sentence.len() + 2,
                "{sentence}"
            );
        }
    }
}
