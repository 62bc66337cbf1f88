"""A real browser: pages of several origins in Chromium, and what each of them gets to see."""

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

# So long Chromium keeps a preflight's answer that does not say how long.
UNSAID_PREFLIGHT_AGE = 5  # seconds


def token(seconds=60, **claims):
    return jwt.encode({"exp": time.time() + seconds, "product_id": PRODUCT, **claims}, SECRET, "HS256")


class World:
    """A relay behind a line, pages of a listed origin, and pages of others. Addresses are of the line."""

    def __init__(self, simulator, relay_of, pages, others):
        # Of another site than the relay, so that a cookie is sent there only if its setter wants that.
        self.listed = pages.origin("localhost")
        self.foreign = others.origin("localhost")
        self.neighbour = others.origin("127.0.0.1")  # on the relay's host, and so of its site
        self._relay_of = relay_of
        self._simulator = simulator
        self.relay = relay_of()
        self.line = Line(self.relay.port)
        self.own = f"http://127.0.0.1:{self.line.port}"

    def begin_anew(self, port):
        self.relay = self._relay_of(port=port)

    def url(self, query="", path="stream"):
        return f"{self.own}/{path}/{PRODUCT}{query}"

    def socket(self, query=""):
        return self.url(query, "ws").replace("http", "ws", 1)

    def publish(self, numbers, session="mine", kind="own"):
        """Each number for this session, and another for somebody else."""
        for number in numbers:
            for whose in (session, "other"):
                body = event(whose, number, kind)
                url = f"http://127.0.0.1:{self.relay.port}/events/{PRODUCT}"
                bearer = {"Authorization": f"Bearer {token(permissions=['publish'])}"}
                with urllib.request.urlopen(urllib.request.Request(url, body, bearer), timeout=5) as answer:
                    assert answer.status == 202, answer.status


@contextmanager
def world(server="", **options):
    with tempfile.TemporaryDirectory(dir=processes.log_dir) as folder, Simulator(rate=20) as simulator:
        with Pages() as pages, Pages() as others:
            allowed = f'cors_allowed_origins = ["{pages.origin("localhost")}"]\n{server}'
            more = f'\n[auth.jwt]\nsecret = "{SECRET}"\nallow_query_token = true\ncookie_name = "relay"\n'
            relay_of = lambda port=None: Relay(simulator, port=port, data_dir=folder, server=allowed, more=more, **options)
            here = World(simulator, relay_of, pages, others)
            with here.line:
                try:
                    yield here
                except BaseException:
                    here.relay.kill()  # the test's own failure is the one to show
                    raise
                here.relay.stop(within=here.relay.patience)


def event(session, number, kind="own"):
    return json.dumps({"type": kind, "session_id": session, "number": number}).encode()


def numbers(events):
    """The numbers of events, all of which must be of the session `mine`."""
    parsed = [json.loads(payload) for _, payload in events]
    assert {payload["session_id"] for payload in parsed} <= {"mine"}, parsed
    return [payload["number"] for payload in parsed]


def key(event_id):
    return tuple(int(part) for part in event_id.split("-"))


def test_a_page_of_a_listed_origin_resumes_after_a_cut_connection_and_a_restart():
    with world() as here, Browser() as browser:
        page = browser.page(here.listed)
        told = page.follow("mine", here.url(f"?access_token={token(session_id='mine')}"))
        told.wait_for(lambda: told.of("open"), "it is open")
        here.publish(range(10))
        told.wait_for(lambda: len(told.of("message")) == 10, "ten events")
        here.line.cut()
        here.publish(range(10, 20))  # while it waits for its next attempt
        told.wait_for(lambda: len(told.of("message")) == 20, "what came meanwhile")
        here.relay.stop(within=here.relay.patience)
        here.begin_anew(here.relay.port)
        here.publish(range(20, 30))
        told.wait_for(lambda: len(told.of("message")) == 30, "what came after the restart")
        assert numbers(told.entries()) == list(range(30)), str(told)
        ids = [key(event_id) for event_id, _ in told.entries()]
        assert ids == sorted(set(ids)), ids
        # The connector repeats nothing, so what it sent during the restart may be missing, and that is all.
        reasons = [json.loads(gap["data"])["reason"] for gap in told.of("gap")]
        assert reasons == ["upstream_reconnect"], reasons
        assert len(told.of("open")) == 3 and not any(error["closed"] for error in told.of("error")), str(told)
        first, *again = here.line.requests("GET", "/stream")
        assert f"origin: {here.listed}" in first and "last-event-id" not in first, first
        assert all("last-event-id: " in head for head in again), again


def test_a_page_of_an_unlisted_origin_gets_no_event_even_with_a_token():
    with world() as here, Browser() as browser:
        mine = token(session_id="mine")
        here.publish(range(3))
        for origin in (here.foreign, here.neighbour):
            page = browser.page(origin)
            told = page.follow(origin, here.url(f"?last_event_id=0&access_token={mine}"))
            told.wait_for(lambda: told.of("error"), "an error")
            assert told.all() == [{"name": origin, "kind": "error", "closed": True}], str(told)
            assert page.fetch(here.url(f"?access_token={mine}", "events")) == {"refused": "TypeError"}
            bearer = {"Authorization": f"Bearer {mine}"}
            assert page.fetch(here.url(path="events"), headers=bearer) == {"refused": "TypeError"}
            socket = page.talk(f"{origin} ws", here.socket(f"?access_token={mine}"))
            socket.wait_for(lambda: socket.of("close"), "it is closed")
            assert [happening["kind"] for happening in socket.all()] == ["error", "close"], str(socket)
        assert len(here.line.answers(403)) == 2, "the WebSockets were refused by the relay, not by the browser"
        asked = here.line.requests("GET", "/events")
        assert len(asked) == 2 and not any("authorization" in head for head in asked), "no request behind a preflight"
        assert not any("access-control-allow-origin" in head for head in here.line.answers(200)), "nor is any marked"
        # The same from the listed origin is let in: it was the origin that was refused.
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
            told = page.follow(origin, everything, **init)
            told.wait_for(lambda: len(told.of("message")) == 3, "its events")
            assert numbers(told.entries()) == [0, 1, 2]
            socket = page.talk(f"{origin} ws", here.socket("?last_event_id=0"))
            socket.wait_for(lambda: len(socket.texts("message")) == 3, "its events")
            assert [message["data"]["session_id"] for message in socket.texts("message")] == ["mine"] * 3
        marked = [head for head in here.line.answers(200) if "access-control-allow-credentials: true" in head]
        assert marked and all(f"access-control-allow-origin: {here.listed}" in head for head in marked), marked
        # A page that does not ask for its cookie to be sent has none.
        told = browser.page(here.listed).follow("without", everything)
        told.wait_for(lambda: told.of("error"), "an error")
        assert told.of("error")[0]["closed"] and len(here.line.answers(401)) == 1, str(told)


def test_a_cookie_from_an_unlisted_origin_is_refused():
    with world() as here, Browser() as browser:
        here.publish(range(3))
        value = token(session_id="mine", permissions=["subscribe", "publish"])
        browser.set_cookie(name="relay", value=value, domain="127.0.0.1", sameSite="None", secure=True)
        for origin in (here.foreign, here.neighbour):
            page = browser.page(origin)
            told = page.follow(origin, here.url("?last_event_id=0"), withCredentials=True)
            told.wait_for(lambda: told.of("error"), "an error")
            assert told.all() == [{"name": origin, "kind": "error", "closed": True}], str(told)
            # What needs no preflight is sent, and a page need not read the answer for it to have an effect.
            simple = {"credentials": "include", "mode": "no-cors", "method": "POST", "body": event("mine", 7).decode()}
            page.fetch(here.url(path="events"), **simple)
            socket = page.talk(f"{origin} ws", here.socket("?last_event_id=0"))
            socket.wait_for(lambda: socket.of("close"), "it is closed")
            assert not socket.of("open") and not socket.of("text"), str(socket)
        asked = [here.line.requests(*what) for what in (("GET", "/stream"), ("POST", "/events"), ("GET", "/ws"))]
        assert [len(heads) for heads in asked] == [2, 2, 2], asked
        carried = [f"relay={value}".lower() in head for heads in asked for head in heads]
        assert all(carried), f"each of them had the cookie, or this shows nothing: {carried}"
        assert (len(here.line.answers(401)), len(here.line.answers(403))) == (4, 2)
        assert not here.line.answers(202), "nothing was published"


def test_a_page_with_a_header_reads_and_publishes_after_one_preflight():
    with world() as here, Browser() as browser:
        page = browser.page(here.listed)
        both = {"Authorization": f"Bearer {token(session_id='mine', permissions=['subscribe', 'publish'])}"}
        url = here.url(path="events")
        began = time.monotonic()
        published = page.fetch(url, method="POST", body=event("mine", 1).decode(), headers=both)
        assert published["status"] == 202 and json.loads(published["body"])["id"], published
        refused = page.fetch(url, method="POST", body=event("other", 2).decode(), headers=both)
        assert refused["status"] == 403 and json.loads(refused["body"])["title"], "the page may read why not"
        assert numbers_of_page(page.fetch(url, headers=both)) == [1]
        wait_for(lambda: time.monotonic() - began > UNSAID_PREFLIGHT_AGE + 0.5, "an unsaid age is over")
        assert numbers_of_page(page.fetch(url, headers=both)) == [1]
        assert (len(here.line.requests("POST")), len(here.line.requests("GET", "/events"))) == (2, 2)
        preflights = here.line.requests("OPTIONS")
        assert len(preflights) == 1, "it is asked once"
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
        socket.wait_for(lambda: socket.of("open"), "it is open")
        here.publish(range(2))
        here.publish(range(2, 4), "second")
        socket.wait_for(lambda: len(socket.texts("message")) == 4, "four events")
        page.say("ws", {"subscribe": {"session_ids": ["second", "other"]}})
        socket.wait_for(lambda: socket.texts("error"), "more than it is granted is refused")
        page.say("ws", {"subscribe": {"session_ids": ["second"], "types": ["own"]}})
        socket.wait_for(lambda: socket.texts("subscribed"), "its filter is another")
        assert socket.texts("subscribed")[0]["data"] == {"session_ids": ["second"], "types": ["own"]}
        here.publish([4], "mine")
        here.publish([5], "second", kind="summary")
        here.publish([6], "second")
        socket.wait_for(lambda: len(socket.texts("message")) == 5, "one more event")
        shown = [(message["data"]["session_id"], message["data"]["number"]) for message in socket.texts("message")]
        assert shown == [("mine", 0), ("mine", 1), ("second", 2), ("second", 3), ("second", 6)], shown
        here.relay.stop(within=here.relay.patience)
        socket.wait_for(lambda: socket.of("close"), "it is closed")
        assert [happening["code"] for happening in socket.of("close")] == [1012]
        here.begin_anew(here.relay.port)
        # Three seconds, of which the last fifth is for leaving; an EventSource comes back, and learns that it is over.
        query, ends = f"?access_token={token(3, session_id='mine')}", time.monotonic() + 3
        socket, told = page.talk("short", here.socket(query)), page.follow("short too", here.url(query))
        socket.wait_for(lambda: socket.of("close"), "it is closed")
        assert [happening["code"] for happening in socket.of("close")] == [1008]
        assert time.monotonic() < ends + 0.2, "not later than the token"
        told.wait_for(lambda: told.of("error") and told.of("error")[-1]["closed"], "it gives up")
        assert told.of("open") and len(here.line.answers(401)) == 1, str(told)


def test_an_eventsource_survives_a_relay_that_is_full_or_draining():
    with world(server="max_subscribers = 1") as full, world(window="8s") as leaving, Browser() as browser:
        with sse.Stream(full.relay.url(), READER) as first:
            assert first.status == 200
            late = browser.page(full.listed).follow("late", full.url(f"?access_token={token(session_id='mine')}"))
            late.wait_for(lambda: late.of("error"), "it is turned away")
            assert_told_to_come_back(full, late)
        page = browser.page(leaving.listed)
        query = f"?access_token={token(session_id='mine')}"
        old = page.follow("old", leaving.url(query))
        old.wait_for(lambda: old.of("open"), "it is open")
        leaving.publish(range(3))
        old.wait_for(lambda: len(old.of("message")) == 3, "its events")
        others = [sse.Stream(leaving.relay.url(), READER) for _ in range(9)]  # they keep it from being gone at once
        leaving.relay.begin_to_leave()
        wait_for(lambda: sse.Stream(leaving.relay.url(), READER).status == 503, "it takes nobody any more")
        new = page.follow("new", leaving.url(query))
        new.wait_for(lambda: new.of("error"), "it is turned away")
        assert_told_to_come_back(leaving, new)
        leaving.relay.assert_running()
        for other in others:
            other.close()
        leaving.relay.leave(within=10)
        leaving.begin_anew(leaving.relay.port)
        leaving.publish(range(3, 6))
        old.wait_for(lambda: len(old.of("message")) == 6, "what came while it was away", seconds=30)
        assert numbers(old.entries()) == list(range(6)), str(old)
        for told in (new, late):
            told.wait_for(lambda told=told: told.of("message") or told.of("open")[1:], "it is let in", seconds=30)
        for told in (old, new, late):
            assert not any(error["closed"] for error in told.of("error")), str(told)


def assert_told_to_come_back(here, told):
    """A status other than 200 would have been the end; a wait that is not told, an onslaught."""
    assert not told.of("error")[0]["closed"], str(told)
    shed = [head for head in here.line.answers(200) if "content-length:" in head]  # a stream has no length
    assert shed and all("content-type: text/event-stream" in head for head in shed), here.line.answers(200)
    assert here.line.said(rb"\r\n\r\n(?:[0-9a-f]+\r\n)?retry: \d{4,5}\n"), "it is told how long to wait"
