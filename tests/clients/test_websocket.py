"""WebSocket clients: `websockets` from PyPI and `ws` from npm. Each connects, follows, changes its filter and resumes."""

import json
import subprocess
import threading
from contextlib import contextmanager

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from processes import PRODUCT, READER, scene
from runner import cases
from waiting import PATIENCE, wait_for

driver = None  # websocket.mjs beside its node_modules, set by run.py


class Python:
    """A connection of `websockets`."""

    def __init__(self, url, token=READER):
        self._socket = connect(url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None)

    def receive(self):
        return json.loads(self._socket.recv(PATIENCE))

    def send(self, message):
        self._socket.send(json.dumps(message))

    def ping(self):
        assert self._socket.ping().wait(PATIENCE), "no pong"

    def closed_with(self):
        try:
            while True:
                self._socket.recv(PATIENCE)
        except ConnectionClosed as closed:
            return closed.rcvd.code

    def close(self):
        self._socket.close()
        assert self._socket.close_code == 1000, self._socket.close_code


class Node:
    """A Node process with one connection of `ws`."""

    def __init__(self, url, token=READER):
        self._child = subprocess.Popen(
            ["node", str(driver), url, token], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._reports = []
        self._taken = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._await("open")

    def _read(self):
        with self._child.stdout as lines:
            for line in lines:
                self._reports.append(json.loads(line))

    def _await(self, *kinds):
        wait_for(lambda: len(self._reports) > self._taken, lambda: f"{kinds}; reports {self._reports[-5:]}")
        report = self._reports[self._taken]
        self._taken += 1
        assert report["kind"] in kinds, report
        return report

    def _write(self, line):
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()

    def receive(self):
        while (report := self._await("message", "pong"))["kind"] == "pong":
            pass
        return json.loads(report["text"])

    def send(self, message):
        self._write(json.dumps(message))

    def ping(self):
        self._write("ping")
        wait_for(lambda: any(report["kind"] == "pong" for report in list(self._reports)), "a pong")

    def closed_with(self):
        wait_for(lambda: self._reports[-1]["kind"] == "close", "the connection is closed")
        self._child.wait(10)
        return self._reports[-1]["code"]

    def close(self):
        self._child.stdin.close()
        try:
            assert self._child.wait(10) == 0
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            raise AssertionError("ws did not close within 10 s") from None
        self._reader.join(5)
        assert self._reports[-1] == {"kind": "close", "code": 1000}, self._reports[-1]


def url_of(relay, query=""):
    return f"ws://127.0.0.1:{relay.port}/ws/{PRODUCT}{query}"


@contextmanager
def opened(client, url):
    connection = client(url)
    yield connection
    connection.close()


def receive_events(connection, number):
    """Receives this many events; only heartbeats may be in between."""
    events = []
    while len(events) < number:
        message = connection.receive()
        if message["event"] != "heartbeat":
            assert message["event"] == "message", message
            events.append(message)
    return events


def key(event_id):
    return tuple(int(part) for part in event_id.split("-"))


@cases(Python, Node)
def test_events_arrive_in_order_and_continue_after_a_reconnect(client):
    with scene() as (_, direct, relay):
        with opened(client, url_of(relay, "?last_event_id=0")) as connection:
            first = receive_events(connection, 60)
            connection.ping()
        with opened(client, url_of(relay, f"?last_event_id={first[-1]['id']}")) as connection:
            second = receive_events(connection, 60)
        ids = [key(event["id"]) for event in first + second]
        assert ids == sorted(set(ids)), ids
        assert [sequence for _, sequence in ids] == list(range(ids[0][1], ids[0][1] + 120)), ids
        got = [event["data"] for event in first + second]
        wait_for(lambda: got[-1] in sent(direct), "the witness has the last one")
        whole = sent(direct)
        begin = whole.index(got[0])
        assert whole[begin : begin + len(got)] == got


def sent(direct):
    return [json.loads(payload) for payload in direct.payloads()]


@cases(Python, Node)
def test_a_filter_changes_while_connected(client):
    with scene() as (_, _, relay):
        with opened(client, url_of(relay)) as connection:
            session = next(
                event["data"]["session_id"]
                for event in receive_events(connection, 30)
                if event["data"].get("session_id")
            )
            connection.send({"subscribe": {"session_ids": [session], "types": ["actions"]}})
            while (answer := connection.receive())["event"] != "subscribed":
                assert answer["event"] == "message", answer
            in_force = {"session_ids": [session], "user_ids": [], "types": ["actions"]}
            assert answer == {"event": "subscribed", "data": in_force}
            for event in receive_events(connection, 3):
                assert (event["data"]["session_id"], event["data"]["type"]) == (session, "actions"), event
            connection.send({"subscribe": {"nonsense": []}})
            while (answer := connection.receive())["event"] != "error":
                assert answer["data"]["session_id"] == session, answer
            assert answer["data"]["title"], answer


@cases(Python, Node)
def test_a_draining_relay_closes_with_1012(client):
    with scene() as (_, _, relay):
        connection = client(url_of(relay))
        receive_events(connection, 3)
        relay.stop(within=relay.patience)
        assert connection.closed_with() == 1012


def test_a_wrong_key_is_refused_before_the_upgrade():
    with scene() as (_, _, relay):
        try:
            Python(url_of(relay), token="wrong")
        except InvalidStatus as refused:
            assert refused.response.status_code == 401, refused.response
        else:
            raise AssertionError("it was let in")
