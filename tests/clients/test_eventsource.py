"""The npm client `eventsource`, which implements the browser's EventSource in Node."""

import json
import subprocess
import threading

import sse
from line import Line
from processes import PRODUCT, READER, Relay, Simulator, scene
from waiting import wait_for

driver = None  # eventsource.mjs beside its node_modules, set by run.py


class EventSource:
    """A Node process with one EventSource, and the events that it reported."""

    def __init__(self, url, token=READER):
        # Its stderr is ours: node prints errors only.
        self._child = subprocess.Popen(
            ["node", str(driver), url, token], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.reports = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with self._child.stdout as lines:
            for line in lines:
                self.reports.append(json.loads(line))

    def of(self, kind):
        return [report for report in list(self.reports) if report["kind"] == kind]

    def entries(self):
        """Returns id and payload of each event, comparable with those of the witness."""
        return [(report["id"], report["data"].encode()) for report in self.of("message")]

    def wait_for_events(self, number):
        wait_for(lambda: len(self.of("message")) >= number, lambda: f"{number} events; {self}")

    def close(self):
        self._child.stdin.close()
        try:
            code = self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            raise AssertionError("the EventSource did not close within 10 s") from None
        self._reader.join(5)
        assert code == 0, f"node ended with {code}"

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if failure:
            self._child.stdin.close()
            self._child.kill()
            self._child.wait()
        elif self._child.returncode is None:
            self.close()

    def __str__(self):
        others = [report for report in list(self.reports) if report["kind"] != "message"]
        return f"reports {len(self.of('message'))} events and {others[-10:]}"


def test_eventsource_receives_every_event_in_order_with_increasing_ids():
    with scene() as (_, direct, relay):
        with EventSource(relay.url("?last_event_id=0")) as client:
            wanted = {"actions", "summary", "usertour_trigger"}
            wait_for(lambda: wanted <= types(client), lambda: f"one of each kind; now {types(client)}")
            client.wait_for_events(150)
        got = client.entries()
        assert_increasing([event_id for event_id, _ in got])
        log = log_of(relay, until=got[-1])
        assert got == log[: len(got)], f"not the start of the relay's log: {first_difference(got, log)}"
        payloads = [payload for _, payload in got]
        direct.wait_for_payload(payloads[-1])
        sse.assert_contiguous_run(payloads, direct.payloads(), "the client's bytes against the connector's")
        assert [h["kind"] for h in client.reports if h["kind"] != "message"] == ["open"], str(client)


def test_heartbeats_reach_eventsource_and_carry_its_position_past_hidden_events():
    with scene(heartbeat="300ms") as (_, _, relay):
        with EventSource(relay.url("?session_id=nobody")) as client:
            wait_for(lambda: len(client.of("heartbeat")) >= 3, lambda: f"three heartbeats; {client}")
        beats = client.of("heartbeat")
        assert [h["kind"] for h in client.reports] == ["open"] + ["heartbeat"] * len(beats), client.reports
        assert {beat["data"] for beat in beats} == {""}
        # If the simulator pauses for a moment, the log does not grow, and the id stays.
        positions = list(dict.fromkeys(beat["id"] for beat in beats))
        assert len(positions) >= 2, beats
        assert_increasing(positions)
        position = beats[-1]["id"]
        # Such an id can be resumed from like an event's: every later event follows, without a gap.
        with EventSource(relay.url(f"?last_event_id={position}")) as client:
            client.wait_for_events(20)
        got = client.entries()
        log = [entry for entry in log_of(relay, until=got[-1]) if key(entry[0]) > key(position)]
        assert got == log[: len(got)], f"after {position}: {first_difference(got, log)}"
        assert not client.of("gap"), str(client)


def test_eventsource_resumes_where_it_was_closed():
    with scene() as (_, _, relay):
        with EventSource(relay.url("?last_event_id=0")) as client:
            client.wait_for_events(50)
        first = client.entries()
        with sse.Stream(relay.url(f"?last_event_id={first[-1][0]}"), READER) as meanwhile:
            wait_for(lambda: len(meanwhile.payloads()) >= 50, "50 events while the client is away")
        with EventSource(relay.url(f"?last_event_id={first[-1][0]}")) as client:
            client.wait_for_events(100)  # missed events, then live ones
        both = first + client.entries()
        log = log_of(relay, until=both[-1])
        assert both == log[: len(both)], f"the two parts are not the log: {first_difference(both, log)}"
        assert not client.of("gap"), str(client)


def test_eventsource_resumes_by_itself_after_a_cut_connection():
    with scene() as (_, _, relay), Line(relay.port) as line:
        with EventSource(relay.url("?last_event_id=0").replace(str(relay.port), str(line.port), 1)) as client:
            client.wait_for_events(30)
            line.cut()
            before = len(client.of("message"))
            wait_for(lambda: len(client.of("open")) == 2, lambda: f"it connects again; {client}")
            client.wait_for_events(before + 50)
        # The URL still has last_event_id=0; the header of the reconnect has the current id, and
        # must override it.
        got = client.entries()
        log = log_of(relay, until=got[-1])
        assert got == log[: len(got)], f"around the cut: {first_difference(got, log)}"
        assert not client.of("gap"), str(client)


def test_eventsource_survives_a_restart_of_the_relay_and_gets_the_gap_once():
    with scene() as (simulator, _, relay), EventSource(relay.url()) as client:
        client.wait_for_events(30)
        relay.stop(within=relay.patience)
        with Relay(simulator, port=relay.port) as restarted:
            # The log was in memory only, so the new relay does not know the client's id, and
            # announces that.
            wait_for(lambda: client.of("gap"), lambda: f"a gap notice; {client}")
            client.wait_for_events(len(client.of("message")) + 100)
            client.close()
            before, notice, after = around_the_gap(client)
            gap = json.loads(notice["data"])
            assert (gap["type"], gap["product_id"], gap["reason"]) == ("gap", PRODUCT, "unknown_id"), gap
            assert gap["after"] == before[-1]["id"], f"{gap} does not name the client's id {before[-1]['id']}"
            assert gap["before"] in (None, after[0]["id"]), f"{gap}, but the next event is {after[0]['id']}"
            # After the notice, every event of the new relay follows.
            got = [(report["id"], report["data"].encode()) for report in after]
            log = log_of(restarted, until=got[-1])
            assert got == log[: len(got)], f"after the gap: {first_difference(got, log)}"
            assert_increasing([report["id"] for report in before + after])
            assert not any(error["closed"] for error in client.of("error")), f"it gave up: {client}"


def test_eventsource_gets_the_gap_of_a_connector_outage_once_and_in_order():
    with Simulator() as simulator, Relay(simulator) as relay:
        with EventSource(relay.url("?last_event_id=0")) as client:
            client.wait_for_events(30)
            simulator.stop(within=simulator.patience)
            with Simulator(port=simulator.port):
                wait_for(lambda: client.of("gap"), lambda: f"a gap notice; {client}")
                client.wait_for_events(len(client.of("message")) + 30)
        before, notice, after = around_the_gap(client)
        last, following = before[-1], after[0]
        gap = json.loads(notice["data"])
        assert (gap["type"], gap["product_id"], gap["reason"]) == ("gap", PRODUCT, "upstream_reconnect"), gap
        assert gap["after"] == last["id"], f"{gap} stands after {last['id']}"
        assert gap["before"] in (None, following["id"]), f"{gap} stands before {following['id']}"
        assert_increasing([report["id"] for report in [*before, notice, *after]])
        assert len(client.of("open")) == 1, str(client)
        # The notice is an entry of the log: replayed when resuming before it, and not after it.
        with sse.Stream(relay.url(f"?last_event_id={last['id']}"), READER) as again:
            wait_for(lambda: len(again.frames) >= 2, "the notice and what follows")
        assert [frame.event for frame in again.frames[:2]] == ["gap", "message"], again.frames[:2]
        assert [frame.id for frame in again.frames[:2]] == [notice["id"], following["id"]], again.frames[:2]
        with sse.Stream(relay.url(f"?last_event_id={notice['id']}"), READER) as later:
            wait_for(lambda: later.frames, "what follows")
        assert (later.frames[0].event, later.frames[0].id) == ("message", following["id"]), later.frames[0]


def test_eventsource_gives_up_without_a_valid_token():
    with scene() as (_, _, relay), EventSource(relay.url(), token="not-a-key-of-this-relay") as client:
        wait_for(lambda: client.reports, "an error event")
        client.close()  # the process must end by itself; a pending reconnect would show in the events
        assert client.reports == [{"kind": "error", "code": 401, "closed": True}], client.reports


def around_the_gap(client):
    """Returns the events before the only gap notice, the notice, and the events after it."""
    assert len(client.of("gap")) == 1, client.of("gap")
    reports = [report for report in client.reports if report["kind"] in ("message", "gap")]
    place = [report["kind"] for report in reports].index("gap")
    before, notice, after = reports[:place], reports[place], reports[place + 1 :]
    assert before and after, f"{len(before)} events before the notice and {len(after)} after it"
    return before, notice, after


def types(client):
    return {json.loads(payload)["type"] for _, payload in client.entries()}


def log_of(relay, until):
    """Returns id and payload of all entries of the relay, read raw, at least up to the entry `until`."""
    with sse.Stream(relay.url("?last_event_id=0"), READER) as stream:
        entries = lambda: [(frame.id, frame.data) for frame in stream.frames if frame.event == "message"]
        wait_for(lambda: until in entries(), lambda: f"the relay's log has {until}")
        return entries()


def key(event_id):
    parts = event_id.split("-")
    assert len(parts) == 2 and all(part.isdecimal() for part in parts), f"{event_id!r} is no <epoch>-<sequence>"
    return tuple(int(part) for part in parts)


def assert_increasing(ids):
    for earlier, later in zip(ids, ids[1:]):
        assert key(earlier) < key(later), f"id {later} after {earlier}"


def first_difference(got, expected):
    for place, (mine, theirs) in enumerate(zip(got, expected)):
        if mine != theirs:
            return f"at {place} of {len(got)}: {mine} where the log has {theirs}"
    return f"{len(got)} entries, but the log has {len(expected)}"
