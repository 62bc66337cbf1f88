"""Pages of several origins in Chromium, and the events that each of them gets."""

import json
import tempfile
import time
import urllib.request
from contextlib import contextmanager

import jwt
import processes
import sse
from browser import Browser, Pages
from line import Line
from processes import PRODUCT, READER, Relay, Simulator
from waiting import wait_for

SECRET = "jwt-secret-of-the-browser-tests-0123456789"

# How long Chromium caches a preflight response without a maximum age.
UNSAID_PREFLIGHT_AGE = 5  # seconds


def token(seconds=60, **claims):
    return jwt.encode({"exp": time.time() + seconds, "product_id": PRODUCT, **claims}, SECRET, "HS256")


class Fixture:
    """A relay behind a proxy, pages of a listed origin, and pages of others. Addresses are the proxy's."""

    def __init__(self, simulator, relay_of, pages, others):
        # Another site than the relay's, so that a cookie is sent there only if it was set so.
        self.listed = pages.origin("localhost")
        self.foreign = others.origin("localhost")
        self.neighbour = others.origin("127.0.0.1")  # on the relay's host, and so of its site
        self._relay_of = relay_of
        self._simulator = simulator
        self.relay = relay_of()
        self.line = Line(self.relay.port)
        self.own = f"http://127.0.0.1:{self.line.port}"

    def restart(self, port):
        self.relay = self._relay_of(port=port)

    def url(self, query="", path="stream"):
        return f"{self.own}/{path}/{PRODUCT}{query}"

    def socket(self, query=""):
        return self.url(query, "ws").replace("http", "ws", 1)

    def publish(self, numbers, session="mine", kind="own"):
        """Publishes each number for this session, and another event for another session."""
        for number in numbers:
            for whose in (session, "other"):
                body = event(whose, number, kind)
                url = f"http://127.0.0.1:{self.relay.port}/events/{PRODUCT}"
                bearer = {"Authorization": f"Bearer {token(permissions=['publish'])}"}
                with urllib.request.urlopen(urllib.request.Request(url, body, bearer), timeout=30) as answer:
                    assert answer.status == 202, answer.status


@contextmanager
def world(server="", **options):
    with tempfile.TemporaryDirectory(dir=processes.log_dir) as folder, Simulator(rate=20) as simulator:
        with Pages() as pages, Pages() as others:
            allowed = f'cors_allowed_origins = ["{pages.origin("localhost")}"]\n{server}'
            more = f'\n[auth.jwt]\nsecret = "{SECRET}"\nallow_query_token = true\ncookie_name = "relay"\n'
            relay_of = lambda port=None: Relay(simulator, port=port, data_dir=folder, server=allowed, more=more, **options)
            here = Fixture(simulator, relay_of, pages, others)
            with here.line:
                try:
                    yield here
                except BaseException:
                    here.relay.kill()  # the failure of the test is reported, not that of the stop
                    raise
                here.relay.stop(within=here.relay.patience)


def event(session, number, kind="own"):
    return json.dumps({"type": kind, "session_id": session, "number": number}).encode()


def numbers(events):
    """Returns the numbers of events, all of which must be of the session `mine`."""
    parsed = [json.loads(payload) for _, payload in events]
    assert {payload["session_id"] for payload in parsed} <= {"mine"}, parsed
    return [payload["number"] for payload in parsed]


def key(event_id):
    return tuple(int(part) for part in event_id.split("-"))


def test_a_page_of_a_listed_origin_resumes_after_a_cut_connection_and_a_restart():
    with world() as here, Browser() as browser:
        page = browser.page(here.listed)
        reports = page.follow("mine", here.url(f"?access_token={token(session_id='mine')}"))
        reports.wait_for(lambda: reports.of("open"), "the connection is open")
        here.publish(range(10))
        reports.wait_for(lambda: len(reports.of("message")) == 10, "ten events")
        here.line.cut()
        here.publish(range(10, 20))  # while the EventSource waits for its next attempt
        reports.wait_for(lambda: len(reports.of("message")) == 20, "the events sent meanwhile")
        here.relay.stop(within=here.relay.patience)
        here.restart(here.relay.port)
        here.publish(range(20, 30))
        reports.wait_for(lambda: len(reports.of("message")) == 30, "the events sent after the restart")
        assert numbers(reports.entries()) == list(range(30)), str(reports)
        ids = [key(event_id) for event_id, _ in reports.entries()]
        assert ids == sorted(set(ids)), ids
        # The connector repeats no events, so the only gap is the one of the restart.
        reasons = [json.loads(gap["data"])["reason"] for gap in reports.of("gap")]
        assert reasons == ["upstream_reconnect"], reasons
        assert len(reports.of("open")) == 3 and not any(error["closed"] for error in reports.of("error")), str(reports)
        first, *again = here.line.requests("GET", "/stream")
        assert f"origin: {here.listed}" in first and "last-event-id" not in first, first
        assert all("last-event-id: " in head for head in again), again


def test_a_page_of_an_unlisted_origin_gets_no_event_even_with_a_token():
    with world() as here, Browser() as browser:
        mine = token(session_id="mine")
        here.publish(range(3))
        for origin in (here.foreign, here.neighbour):
            page = browser.page(origin)
            reports = page.follow(origin, here.url(f"?last_event_id=0&access_token={mine}"))
            reports.wait_for(lambda: reports.of("error"), "an error")
            assert reports.all() == [{"name": origin, "kind": "error", "closed": True}], str(reports)
            assert page.fetch(here.url(f"?access_token={mine}", "events")) == {"refused": "TypeError"}
            bearer = {"Authorization": f"Bearer {mine}"}
            assert page.fetch(here.url(path="events"), headers=bearer) == {"refused": "TypeError"}
            socket = page.talk(f"{origin} ws", here.socket(f"?access_token={mine}"))
            socket.wait_for(lambda: socket.of("close"), "the connection is closed")
            assert [report["kind"] for report in socket.all()] == ["error", "close"], str(socket)
        assert len(here.line.answers(403)) == 2, "the WebSockets were refused by the relay, not by the browser"
        asked = here.line.requests("GET", "/events")
        assert len(asked) == 2 and not any("authorization" in head for head in asked), "no request after a preflight"
        assert not any("access-control-allow-origin" in head for head in here.line.answers(200)), "no response has CORS headers"
        # The same request from the listed origin succeeds: the origin was the reason of the
        # refusal.
        answer = browser.page(here.listed).fetch(here.url(f"?access_token={mine}", "events"))
        assert numbers_of_page(answer) == [0, 1, 2]


def numbers_of_page(answer):
    assert answer.get("status") == 200, answer
    parsed = [entry["data"] for entry in json.loads(answer["body"])["events"]]
    return [payload["number"] for payload in parsed if payload["session_id"] == "mine"]


def test_a_cookie_is_accepted_from_pages_of_the_own_host_and_listed_origins_only():
    with world() as here, Browser() as browser:
        here.publish(range(3))
        value = token(session_id="mine")
        browser.set_cookie(name="relay", value=value, domain="127.0.0.1", sameSite="None", secure=True)
        everything = here.url("?last_event_id=0")
        for origin, init in ((here.own, {}), (here.listed, {"withCredentials": True})):
            page = browser.page(f"{origin}/nothing")
            reports = page.follow(origin, everything, **init)
            reports.wait_for(lambda: len(reports.of("message")) == 3, "its events")
            assert numbers(reports.entries()) == [0, 1, 2]
            socket = page.talk(f"{origin} ws", here.socket("?last_event_id=0"))
            socket.wait_for(lambda: len(socket.texts("message")) == 3, "its events")
            assert [message["data"]["session_id"] for message in socket.texts("message")] == ["mine"] * 3
        marked = [head for head in here.line.answers(200) if "access-control-allow-credentials: true" in head]
        assert marked and all(f"access-control-allow-origin: {here.listed}" in head for head in marked), marked
        # A page that does not request credentials sends no cookie.
        reports = browser.page(here.listed).follow("without", everything)
        reports.wait_for(lambda: reports.of("error"), "an error")
        assert reports.of("error")[0]["closed"] and len(here.line.answers(401)) == 1, str(reports)


def test_a_cookie_from_an_unlisted_origin_is_refused():
    with world() as here, Browser() as browser:
        here.publish(range(3))
        value = token(session_id="mine", permissions=["subscribe", "publish"])
        browser.set_cookie(name="relay", value=value, domain="127.0.0.1", sameSite="None", secure=True)
        for origin in (here.foreign, here.neighbour):
            page = browser.page(origin)
            reports = page.follow(origin, here.url("?last_event_id=0"), withCredentials=True)
            reports.wait_for(lambda: reports.of("error"), "an error")
            assert reports.all() == [{"name": origin, "kind": "error", "closed": True}], str(reports)
            # A request without a preflight is sent, and takes effect even if the page cannot read
            # the response.
            simple = {"credentials": "include", "mode": "no-cors", "method": "POST", "body": event("mine", 7).decode()}
            page.fetch(here.url(path="events"), **simple)
            socket = page.talk(f"{origin} ws", here.socket("?last_event_id=0"))
            socket.wait_for(lambda: socket.of("close"), "the connection is closed")
            assert not socket.of("open") and not socket.of("text"), str(socket)
        asked = [here.line.requests(*what) for what in (("GET", "/stream"), ("POST", "/events"), ("GET", "/ws"))]
        assert [len(heads) for heads in asked] == [2, 2, 2], asked
        carried = [f"relay={value}".lower() in head for heads in asked for head in heads]
        assert all(carried), f"each request had the cookie: {carried}"
        assert (len(here.line.answers(401)), len(here.line.answers(403))) == (4, 2)
        assert not here.line.answers(202), "no event was published"


def test_a_page_with_a_header_reads_and_publishes_after_one_preflight():
    with world() as here, Browser() as browser:
        page = browser.page(here.listed)
        both = {"Authorization": f"Bearer {token(session_id='mine', permissions=['subscribe', 'publish'])}"}
        url = here.url(path="events")
        began = time.monotonic()
        published = page.fetch(url, method="POST", body=event("mine", 1).decode(), headers=both)
        assert published["status"] == 202 and json.loads(published["body"])["id"], published
        refused = page.fetch(url, method="POST", body=event("other", 2).decode(), headers=both)
        assert refused["status"] == 403 and json.loads(refused["body"])["title"], "the page may read the reason"
        assert numbers_of_page(page.fetch(url, headers=both)) == [1]
        wait_for(lambda: time.monotonic() - began > UNSAID_PREFLIGHT_AGE + 0.5, "the default age is over")
        assert numbers_of_page(page.fetch(url, headers=both)) == [1]
        assert (len(here.line.requests("POST")), len(here.line.requests("GET", "/events"))) == (2, 2)
        preflights = here.line.requests("OPTIONS")
        assert len(preflights) == 1, "one preflight is sent"
        assert "access-control-request-headers: authorization" in preflights[0], preflights
        for head in here.line.answers(200) + here.line.answers(202) + here.line.answers(403):
            vary = next(line for line in head.splitlines() if line.startswith("vary:"))
            assert "origin" in vary, head
        denied = page.fetch(url, headers={"Authorization": "Bearer wrong"})
        assert denied["status"] == 401, "the page may read this, too"


def test_a_websocket_of_a_page_is_limited_by_its_token_and_gets_the_close_reason():
    with world() as here, Browser() as browser:
        page = browser.page(here.listed)
        socket = page.talk("ws", here.socket(f"?access_token={token(session_id=['mine', 'second'])}"))
        socket.wait_for(lambda: socket.of("open"), "the connection is open")
        here.publish(range(2))
        here.publish(range(2, 4), "second")
        socket.wait_for(lambda: len(socket.texts("message")) == 4, "four events")
        page.say("ws", {"subscribe": {"session_ids": ["second", "other"]}})
        socket.wait_for(lambda: socket.texts("error"), "a filter beyond the grant is refused")
        page.say("ws", {"subscribe": {"session_ids": ["second"], "types": ["own"]}})
        socket.wait_for(lambda: socket.texts("subscribed"), "the filter is changed")
        assert socket.texts("subscribed")[0]["data"] == {"session_ids": ["second"], "user_ids": [], "types": ["own"]}
        here.publish([4], "mine")
        here.publish([5], "second", kind="summary")
        here.publish([6], "second")
        socket.wait_for(lambda: len(socket.texts("message")) == 5, "one more event")
        shown = [(message["data"]["session_id"], message["data"]["number"]) for message in socket.texts("message")]
        assert shown == [("mine", 0), ("mine", 1), ("second", 2), ("second", 3), ("second", 6)], shown
        here.relay.stop(within=here.relay.patience)
        socket.wait_for(lambda: socket.of("close"), "the connection is closed")
        assert [report["code"] for report in socket.of("close")] == [1012]
        here.restart(here.relay.port)
        # The token is valid for three seconds, and streams end within the last fifth. The
        # EventSource reconnects, and is refused.
        query, ends = f"?access_token={token(3, session_id='mine')}", time.monotonic() + 3
        socket, reports = page.talk("short", here.socket(query)), page.follow("short too", here.url(query))
        socket.wait_for(lambda: socket.of("close"), "the connection is closed")
        assert [report["code"] for report in socket.of("close")] == [1008]
        assert time.monotonic() < ends + 0.2, "not later than the token's expiry"
        reports.wait_for(lambda: reports.of("error") and reports.of("error")[-1]["closed"], "the EventSource gives up")
        assert reports.of("open") and len(here.line.answers(401)) == 1, str(reports)


def test_an_eventsource_survives_a_relay_that_is_full_or_draining():
    with world(server="max_subscribers = 1") as full, world(window="8s") as draining, Browser() as browser:
        with sse.Stream(full.relay.url(), READER) as first:
            assert first.status == 200
            late = browser.page(full.listed).follow("late", full.url(f"?access_token={token(session_id='mine')}"))
            late.wait_for(lambda: late.of("error"), "the EventSource is refused")
            assert_retry_requested(full, late)
        page = browser.page(draining.listed)
        query = f"?access_token={token(session_id='mine')}"
        old = page.follow("old", draining.url(query))
        old.wait_for(lambda: old.of("open"), "the connection is open")
        draining.publish(range(3))
        old.wait_for(lambda: len(old.of("message")) == 3, "its events")
        others = [sse.Stream(draining.relay.url(), READER) for _ in range(9)]  # they keep the drain from ending at once
        draining.relay.request_shutdown()
        wait_for(lambda: sse.Stream(draining.relay.url(), READER).status == 503, "the relay sheds newcomers")
        new = page.follow("new", draining.url(query))
        new.wait_for(lambda: new.of("error"), "the EventSource is refused")
        assert_retry_requested(draining, new)
        draining.relay.assert_running()
        for other in others:
            other.close()
        draining.relay.wait_for_exit(within=10)
        draining.restart(draining.relay.port)
        draining.publish(range(3, 6))
        old.wait_for(lambda: len(old.of("message")) == 6, "the events sent during the restart", seconds=30)
        assert numbers(old.entries()) == list(range(6)), str(old)
        for reports in (new, late):
            reports.wait_for(lambda reports=reports: reports.of("message") or reports.of("open")[1:], "the EventSource is admitted", seconds=30)
        for reports in (old, new, late):
            assert not any(error["closed"] for error in reports.of("error")), str(reports)


def assert_retry_requested(here, reports):
    """Checks that the EventSource is reports to reconnect: a status other than 200 would end it, and without a retry time all would return at once."""
    assert not reports.of("error")[0]["closed"], str(reports)
    shed = [head for head in here.line.answers(200) if "content-length:" in head]  # a stream has no length
    assert shed and all("content-type: text/event-stream" in head for head in shed), here.line.answers(200)
    assert here.line.said(rb"\r\n\r\n(?:[0-9a-f]+\r\n)?retry: \d{4,5}\n"), "the response has a retry time"
