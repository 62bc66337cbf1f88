"""Users as a filter and as a limit of tokens, by EventSource, `websockets`, `ws`, and a raw reader."""

import json
import time
from collections import Counter
from contextlib import contextmanager

import jwt

import sse
from processes import PRODUCT, READER, Relay, Simulator
from runner import cases
from test_eventsource import EventSource
from test_websocket import Node, Python, opened, receive_events, url_of
from waiting import wait_for

SECRET = "jwt-secret-of-the-user-tests-0123456789"
ACCESS = f'\n[auth.jwt]\nalgorithm = "HS256"\nsecret = "{SECRET}"\n'


@contextmanager
def scene_of_users():
    """A relay, a witness of everything that it has and gets, and two users who have acted."""
    with Simulator() as simulator, Relay(simulator, more=ACCESS) as relay:
        with sse.Stream(relay.url("?last_event_id=0"), READER) as witness:
            wait_for(lambda: len(busy_users(witness)) >= 2, "two users have acted")
            yield relay, witness, busy_users(witness)[:2]


def busy_users(witness):
    """Returns the users of at least ten events."""
    counts = Counter(event["user_id"] for event in witness.jsons() if event.get("user_id"))
    return sorted(user for user, count in counts.items() if count >= 10)


def token(**limits):
    claims = {"exp": int(time.time()) + 60, "product_id": PRODUCT, **limits}
    return jwt.encode(claims, SECRET, "HS256")


def assert_events_of(users, got, witness):
    """Checks that `got` begins with all events of these users, in order, and with no other."""
    assert got, "no event"
    wait_for(lambda: got[-1] in witness.jsons(), "the witness has the last one")
    wanted = [event for event in witness.jsons() if event.get("user_id") in users]
    assert got == wanted[: len(got)], f"{len(got)} events are not those of {users}"


def test_a_filter_of_users_on_sse_sends_their_events_only():
    with scene_of_users() as (relay, witness, users):
        for wanted in users[:1], users:
            query = "".join(f"&user_id={user}" for user in wanted)
            with sse.Stream(relay.url(f"?last_event_id=0{query}"), READER) as stream:
                wait_for(lambda: len(stream.payloads()) >= 10, "ten events of the users")
                got = stream.jsons()
            assert_events_of(wanted, got, witness)
        with sse.Stream(relay.url(f"?users={users[0]}"), READER) as stream:
            assert stream.status == 400, "a misspelt filter is refused"


def test_eventsource_with_a_token_of_a_user_sees_only_that_user():
    with scene_of_users() as (relay, witness, users):
        mine, other = users
        of_user = token(user_id=mine)
        for query in "", f"&user_id={mine}":
            with EventSource(relay.url(f"?last_event_id=0{query}"), of_user) as client:
                client.wait_for_events(10)
                got = [json.loads(payload) for _, payload in client.entries()]
            assert_events_of([mine], got, witness)
        with EventSource(relay.url(f"?last_event_id=0&user_id={other}"), of_user) as client:
            wait_for(lambda: client.reports, "the other user is refused")
            client.close()
            assert client.reports == [{"kind": "error", "code": 403, "closed": True}], client.reports


@cases(Python, Node)
def test_users_limit_a_websocket_and_its_later_filters(client):
    with scene_of_users() as (relay, witness, users):
        mine, other = users
        limited = lambda url: client(url, token(user_id=[mine]))
        with opened(limited, url_of(relay, "?last_event_id=0")) as connection:
            got = [event["data"] for event in receive_events(connection, 10)]
            connection.send({"subscribe": {"user_ids": [other]}})
            assert "title" in answer_of(connection, "error", mine)["data"]
            for asked in {"user_ids": [mine]}, {}:
                connection.send({"subscribe": asked})
                in_force = {"session_ids": [], "user_ids": [mine], "types": []}
                assert answer_of(connection, "subscribed", mine)["data"] == in_force
        assert_events_of([mine], got, witness)


def answer_of(connection, kind, user):
    """Returns the answer to a message of the client; before it, only events of the user come."""
    while (message := connection.receive())["event"] != kind:
        if message["event"] != "heartbeat":
            assert message["event"] == "message" and message["data"]["user_id"] == user, message
    return message
