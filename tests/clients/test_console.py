"""The console in Chromium: what it shows of a relay, and that it stays usable under load and errors."""

import time

import sse
from console import OTHER, PHONE, event, world
from processes import PRODUCT, READER
from runner import cases
from waiting import wait_for

# Lines that Chromium logs while the relay is down.
RELAY_DOWN = ["Failed to load resource: net::ERR_", "Failed to load resource: the server responded with a status of 503"]
# A webhook whose every delivery is a dead letter: the egress guard refuses its address.
UNREACHABLE = f"""
[[webhooks]]
id = "hook"
product_id = "{PRODUCT}"
url = "http://127.0.0.1:1/"
secret = "a-secret-of-the-console-tests"
"""
EVIL = "<script>hacked=1</script><img src=x onerror=hacked=1><svg onload=hacked=1>"


def test_a_live_event_is_shown_within_a_second():
    with world() as here, here.open() as console:
        console.follows()
        for number in range(5):
            began = time.monotonic()
            here.upstream.send(event(number=number))
            wait_for(lambda: len(console.ids()) == number + 1, "the event is shown")
            took = time.monotonic() - began
            assert took < 1, f"shown after {took:.2f} s"
        assert console.ids() == here.ids()
        console.shows("Connected", "#upstreams")
        console.shows("2 of 2", "#tile-upstreams")


def test_upstreams_rates_lag_and_subscribers_are_shown():
    with world() as here, sse.Stream(here.relay.url(), READER), here.open() as console:
        row = lambda: console.run(ROW)
        wait_for(lambda: row().get("Heartbeat") in ("now", "1 s ago"), lambda: f"a heartbeat shows: {row()}")
        assert (row()["State"], row()["Last event"], row()["Lag"]) == ("● Connected", "–", "–"), row()
        for number in range(15):
            here.upstream.send(event(number=number, forwarded_at=time.time() - 90.2))
            wait_for(lambda: len(console.ids()) == number + 1, "the event is shown")
        wait_for(lambda: row()["Lag"].startswith("90.") and row()["Lag"].endswith(" s"), "the lag")
        assert row()["Last event"] in ("now", "1 s ago", "2 s ago"), row()
        wait_for(lambda: row()["Events/s"] not in ("–", "0"), lambda: f"the rate of events: {row()}")
        wait_for(lambda: console.run("document.querySelectorAll('#chart-events path').length") == 2, "a line is drawn")
        console.shows("at most", "#chart-events")
        console.shows("half of the deliveries within", "#chart-lag")
        console.shows("1\t0\t1", "#subscribers")
        here.upstream.close()
        wait_for(lambda: "Backing off" in row()["State"], lambda: f"the outage is shown: {row()}")
        console.shows("0 of 2", "#tile-upstreams")


# The values of the first upstream by their columns.
ROW = """(() => Object.fromEntries([...document.querySelectorAll('#upstreams tr:first-child td')]
    .map((cell) => [cell.dataset.name, cell.innerText])))()"""


def test_a_restart_of_the_relay_is_shown_and_no_event_is_missing_after_it():
    with world() as here, here.open() as console:
        console.expected = RELAY_DOWN
        console.follows()
        here.upstream.send(*(event(number=number) for number in range(3)))
        console.shows_ids(here.arrived(3))
        console.ask(hold="**/api/v1/stream/**")
        here.relay.stop(within=here.relay.patience)
        console.shows("The relay has not answered since", "#lost")
        console.shows("Not reached", "#link")
        console.shows("Interrupted", "#tail-state")
        here.restart()
        here.upstream.send(*(event(number=number) for number in range(3, 6)))
        here.arrived(6)
        console.ask(release="**/api/v1/stream/**")
        console.shows_ids(here.arrived(6))
        console.follows()
        wait_for(lambda: not console.text("#lost"), "the notice is hidden")
        console.shows("Live", "#link")
        here.upstream.send(event(number=6))
        console.shows_ids(here.arrived(7))
        first, *later = [request["headers"].get("last-event-id") for request in console.requests("/api/v1/stream/")]
        assert first is None and set(later) == {here.ids()[2]}, (first, later)


def test_a_payload_is_shown_as_text_only():
    with world() as here, here.open() as console:
        console.follows()
        here.upstream.send(event(EVIL, EVIL, note=EVIL), f"{{{EVIL}", event(kind="last"))
        console.shows_ids(here.arrived(2))
        console.shows(EVIL[:60], "#tail-list")
        console.run("document.querySelectorAll('.event')[1].click()")
        console.shows(EVIL, "#inspector-session")
        console.shows(EVIL, "#inspector-payload")
        console.shows("invalid_json", "#rejected")
        console.run("document.querySelector('#rejected summary').click()")
        console.shows(f"{{{EVIL}", "#rejected pre")
        assert console.run("typeof hacked + document.querySelectorAll('body :is(script, img, svg svg)').length") == "undefined0"


def test_the_policy_blocks_foreign_scripts_and_hosts():
    with world() as here:
        console = here.open()
        console.run("document.body.append(Object.assign(document.createElement('script'), { textContent: 'hacked=1' }))")
        console.run("document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.2:1/ onerror=hacked=1>')")
        console.run("fetch('http://127.0.0.2:1/').catch(() => {})")
        stopped = lambda: {violation["text"].split()[0] for violation in console.reports("violation")}
        expected = {"script-src-elem", "script-src-attr", "img-src", "connect-src"}
        wait_for(lambda: stopped() == expected, lambda: f"{expected} are stopped: {stopped()}")
        assert console.run("typeof hacked") == "undefined"


def test_payloads_and_sessions_are_in_the_page_only_while_they_are_open():
    with world() as here, here.open() as console:
        console.follows()
        here.upstream.send(event("session-in-question", note="payload-in-question"), '{"frame-in-question')
        console.shows_ids(here.arrived(1))
        console.shows("invalid_json", "#rejected")
        secrets = ("session-in-question", "payload-in-question", "frame-in-question")
        assert not [text for text in secrets if console.holds(text)]
        console.run("document.querySelector('.event').click()")
        console.run("document.querySelector('#rejected summary').click()")
        wait_for(lambda: all(console.holds(text) for text in secrets), "all texts are shown")
        console.click("Close")
        console.run("document.querySelector('#rejected summary').click()")
        wait_for(lambda: not any(console.holds(text) for text in secrets), "the texts are removed again")


def test_filters_show_matching_events_only():
    with world() as here, here.open() as console:
        console.follows()
        kinds = ("actions", "summary", "own")
        users = {"s1": "ada", "s2": "ada", "s3": "bob"}
        events = [event(session, kind, user_id=user) for session, user in users.items() for kind in kinds]
        here.upstream.send(*events)
        console.shows_ids(here.arrived(9))

        def shows_matching(matching, query="", product=PRODUCT):
            """Checks the events shown after a change of the filter."""
            wait_for(lambda: console.ids() == [], "events that do not match are removed")
            console.follows()
            before = len(here.ids(query, product))
            here.upstream.send(*events, product=product)
            console.shows_ids(here.arrived(before + matching, query, product)[before:])

        for sessions, user, types, matching, query in (
            ("s1", "", "", 3, "&session_id=s1"),
            ("s1, s3", "", "own", 2, "&session_id=s1&session_id=s3&type=own"),
            ("", "ada", "own", 2, "&user_id=ada&type=own"),
            ("", "", "summary own", 6, "&type=summary&type=own"),
        ):
            console.fill("tail-session", sessions)
            console.fill("tail-user", user)
            console.fill("tail-type", types)
            console.click("Apply")
            shows_matching(matching, query)
        console.click("Clear")
        shows_matching(9)
        console.run("document.getElementById('tail-product').focus()")
        console.press("ArrowDown")
        shows_matching(9, product=OTHER)


def test_the_keyboard_alone_pauses_and_opens_an_event():
    with world() as here, here.open() as console:
        console.follows()
        here.upstream.send(event(number=1), event(number=2), event(number=3))
        console.shows_ids(here.arrived(3))
        console.tab_to("tail-pause")
        console.press("Enter")
        console.shows("Resume", "#tail-pause")
        shown = console.ids()
        here.upstream.send(event(number=4), event(number=5))
        console.shows("Paused: 2 waiting", "#tail-count")
        assert console.ids() == shown, "a paused list does not change"
        console.press("Tab")
        assert shown[2] in console.focus(), "the list is one stop, at its newest"
        console.press("ArrowDown", "ArrowDown", "ArrowUp", "Enter")
        console.shows('"number": 2', "#inspector-payload")
        assert console.focus() == "inspector-title"
        console.press("Escape")
        assert shown[1] in console.focus(), "back where it was opened"
        assert not console.text("#inspector"), "closed"
        console.press("Shift+Tab", "Space")
        console.shows_ids(here.arrived(5))


@cases("light", "dark")
def test_axe_finds_no_violation(scheme):
    with world(UNREACHABLE) as here, here.open(colorScheme=scheme) as console:
        console.expected = RELAY_DOWN
        console.follows()
        here.upstream.send(event(), event(kind="summary"), "{not JSON")
        console.shows_ids(here.arrived(2))
        console.shows("Show dead letters", "#webhooks-list")
        console.click("Show dead letters: hook")
        console.shows("egress_refused", ".letters")
        console.run("document.querySelectorAll('details').forEach((details) => (details.open = true))")
        assert console.ask(check=True) == [], "everything opened"
        console.click("Redeliver all: hook")
        assert console.ask(check=True) == [], "before it redelivers"
        console.click("Cancel")
        console.run("document.querySelector('.event').click()")
        here.relay.stop(within=here.relay.patience)
        console.shows("The relay has not answered since", "#lost")
        assert console.ask(check=True) == [], "an event open, and the relay down"
        here.restart()


def test_the_page_fits_a_phone_screen_and_its_tables_keep_their_roles():
    with world(UNREACHABLE) as here, here.open(**PHONE) as console:
        console.follows()
        here.upstream.send(event(), event("s" * 300, "t" * 200, note="n" * 500), "{" + "x" * 300)
        console.shows_ids(here.arrived(2))
        console.shows("Show dead letters", "#webhooks-list")
        console.click("Show dead letters: hook")
        console.shows("egress_refused", ".letters")
        console.shows("invalid_json", "#rejected")
        console.run("document.querySelectorAll('details').forEach((details) => (details.open = true))")
        console.run("document.querySelector('.event').click()")
        assert console.run("document.documentElement.scrollWidth") == 375
        assert console.ask(check=True) == []
        tree = console.ask()
        names = {role: [name for kind, name in tree if kind == role] for role in ("table", "rowheader", "columnheader", "cell")}
        assert "Upstreams, one per product" in names["table"], names["table"]
        assert names["rowheader"].count(PRODUCT) == 2, names["rowheader"]
        assert {"Last event", "WebSocket", "Reason", "Given up"} <= set(names["columnheader"]), names["columnheader"]
        assert any("Connected" in name for name in names["cell"]), names["cell"]
        # Chromium derives these roles even for elements laid out as blocks; other browsers need
        # them in the markup.
        assert console.run("document.querySelectorAll(':is(table, thead, tbody, tr, th, td):not([role])').length") == 0


def test_the_page_stays_responsive_with_thousands_of_events_and_one_of_a_mebibyte():
    with world() as here, here.open() as console:
        console.follows()
        console.run(WATCH_THE_CLOCK)
        long = event(kind="long", text="x" * (1024 * 1024 - 100))
        for _ in range(10):
            here.upstream.send(*(event(number=number) for number in range(500)))
        here.upstream.send(long, event(kind="last"))
        console.shows("5,002 events received", "#tail-count")
        newest = lambda: console.run("document.querySelector('.event .type').textContent")
        wait_for(lambda: newest() == "last", "the newest is shown")
        assert console.run("document.querySelectorAll('.event').length") == 200, "the list is bounded"
        console.shows("left out", "#tail-count")
        console.run("document.querySelectorAll('.event')[1].click()")
        console.shows("1,048,5", "#inspector-size")
        assert console.run("document.getElementById('inspector-payload').textContent.length") == 200000
        longest = console.run("Math.max(...stalls)")
        assert longest < 700, f"the page was busy for {longest:.0f} ms"
        console.run("document.getElementById('inspector-more').click()")
        assert console.run("document.getElementById('inspector-payload').textContent.length") > 1048000


# Delays of a timer, which show how long the page was busy.
WATCH_THE_CLOCK = """
    stalls = [0]; last = performance.now();
    setInterval(() => { const now = performance.now(); stalls.push(now - last - 20); last = now }, 20); 0
"""


@cases("status", "webhooks", "rejected")
def test_a_failed_call_is_reported_in_its_part_and_the_others_continue(path):
    with world() as here, here.open() as console:
        console.expected = ["Failed to load resource: the server responded with a status of 500"]
        console.follows()
        console.ask(hold=f"**/api/v1/{path}", status=500)
        console.shows("made to fail", f"#{path}-problem")
        here.upstream.send(event(), "{not JSON")
        console.shows_ids(here.arrived(1))
        others = {"status": ("Connected", "#upstreams"), "webhooks": ("No webhook", "#webhooks-empty"), "rejected": ("invalid_json", "#rejected")}
        for name in others.keys() - {path}:
            console.shows(*others[name])
        assert not console.text("#lost"), "the relay is reached"
        console.ask(release=f"**/api/v1/{path}")
        wait_for(lambda: not console.text(f"#{path}-problem"), "the problem is hidden")
