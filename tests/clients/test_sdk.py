"""autoplay-sdk, the connector's own client, must not notice that it talks to a relay."""

import asyncio
import dataclasses
import json
import logging
import threading
import urllib.error
import urllib.request

from autoplay_sdk import ActionsPayload, AsyncConnectorClient, ConnectorClient, SummaryPayload
from autoplay_sdk.core.exceptions import SdkUpstreamError

import sse
from processes import PRODUCT, READER, TENANT, Relay, Simulator, scene
from runner import cases
from waiting import wait_for


class Client:
    """An SDK client on its own thread, its events and its log."""

    def __init__(self, url, token, **options):
        self.received = []
        self.connects = 0
        self.failure = None
        # Short, so that a restart is quick; doubling and maximum are the SDK's own.
        options = {"initial_backoff_s": 0.2, "max_backoff_s": 1.0, **options}
        self.client = self.make(url=url, token=token, on_connect=self._connected, **options)
        self.client.on_actions(self.received.append).on_summary(self.received.append)
        self.log = LogOfTheSdk()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _connected(self):
        self.connects += 1

    def _run(self):
        try:
            self.run()
        except Exception as failure:
            self.failure = failure

    def __enter__(self):
        logging.getLogger().addHandler(self.log)
        self._thread.start()
        return self

    def __exit__(self, failure, *_):
        self.client.stop()  # takes effect at the next event or heartbeat
        self._thread.join(10)
        logging.getLogger().removeHandler(self.log)
        if not failure:
            assert not self._thread.is_alive(), "the SDK client did not stop within 10 s"

    def wait_for_end(self):
        wait_for(lambda: not self._thread.is_alive(), "the SDK client gives up by itself")


class Threaded(Client):
    make = ConnectorClient

    def run(self):
        self.client.run()


class Async(Client):
    make = AsyncConnectorClient

    def run(self):
        asyncio.run(self.client.run())


class LogOfTheSdk(logging.Handler):
    """Collects warnings and errors of every library in this process: of the SDK and of its HTTP libraries."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.levelname} {record.getMessage()}")

    def errors(self):
        return [line for line in self.lines if not line.startswith("WARNING")]


@cases(Threaded, Async)
def test_the_sdk_receives_every_event_typed_and_complete(kind):
    with scene() as (_, direct, relay):
        with kind(relay.url(), READER) as client:
            wait_for(lambda: enough(client), lambda: f"100 actions and 2 summaries; now {counts(client)}")
            received = list(client.received)
        assert not client.log.lines, f"the SDK complained in normal operation: {client.log.lines[:5]}"
        with sse.Stream(relay.url("?last_event_id=0"), READER) as replay:
            wait_for(lambda: has(replay, received[-1]), "the relay's log has the SDK's last event")
            relayed = replay.payloads()
            direct.wait_for_payload(relayed[-1])
            sse.assert_contiguous_run(relayed, direct.payloads(), "the relay's bytes against the connector's")
            events = [frame.event for frame in replay.frames if frame.event not in ("message", "heartbeat")]
            assert not events, f"nothing was lost, yet the replay has {events}"
            known = replay.jsons("actions", "summary")
            sse.assert_contiguous_run(received, known, "the SDK's events against the relay's", same)
        assert client.connects == 1, f"connected {client.connects} times"
        assert client.failure is None, f"ended with {client.failure!r}"
        assert getattr(client.client, "dropped_count", 0) == 0, "the SDK's queue ran over: its fault, not the relay's"


@cases(Threaded, Async)
def test_the_sdk_ignores_heartbeats_between_events(kind):
    # Two events a second, with time for heartbeats between them.
    with scene(heartbeat="150ms", rate=2) as (_, _, relay), sse.Stream(relay.url(), READER) as witness:
        with kind(relay.url(), READER) as client:
            wait_for(lambda: len(beats_after_an_event(witness)) >= 3, "three heartbeats between events")
            before = len(client.received)
            wait_for(lambda: len(client.received) > before, "an event after them reaches the SDK")
        assert not client.log.lines, f"the SDK complained: {client.log.lines[:5]}"
        # No event is hidden from this subscriber, so no heartbeat has a newer id than its last
        # event.
        assert not any(beat.id for beat in beats_after_an_event(witness)), beats_after_an_event(witness)
        wait_for(lambda: has(witness, client.received[-1]), "the witness has the SDK's last event")
        sse.assert_contiguous_run(client.received, witness.jsons("actions", "summary"), "the SDK's events", same)


@cases(Threaded, Async)
def test_the_sdk_ignores_heartbeats_with_an_id(kind):
    # No event has this session, so only heartbeats arrive, with the ids of hidden events.
    url = "?session_id=nobody"
    with scene(heartbeat="300ms") as (_, _, relay):
        with kind(relay.url(url), READER) as client:
            wait_for(lambda: client.connects, "the SDK is connected")
            with sse.Stream(relay.url(url), READER) as witness:
                wait_for(lambda: len(witness.frames) >= 3, "three heartbeats")
            # The SDK stops at the next block it reads, so its end (in __exit__) shows that it read
            # the heartbeats.
        assert {frame.event for frame in witness.frames} == {"heartbeat"}, witness.frames
        assert any(frame.id for frame in witness.frames), f"no position, though the log moved: {witness.frames}"
        assert not client.log.lines, f"the SDK complained: {client.log.lines[:5]}"
        assert not client.received, f"received {client.received[:2]}"


@cases(Threaded, Async)
def test_the_sdk_does_not_notice_an_outage_of_the_connector(kind):
    with Simulator() as simulator, Relay(simulator) as relay, kind(relay.url(), READER) as client:
        wait_for(lambda: len(client.received) >= 30, "30 events before the outage")
        with sse.Stream(relay.url(), READER) as witness:
            simulator.stop(within=simulator.patience)
            with Simulator(port=simulator.port):
                wait_for(lambda: any(frame.event == "gap" for frame in witness.frames), "the relay tells of the gap")
                before = len(client.received)
                wait_for(lambda: len(client.received) >= before + 30, "30 events after the outage")
        assert client.connects == 1, f"connected {client.connects} times"
        # The SDK ignores the gap notice as an unknown event.
        assert not client.log.lines, f"the SDK complained: {client.log.lines[:5]}"


@cases(Threaded, Async)
def test_the_sdk_continues_after_a_restart_of_the_relay(kind):
    with scene() as (simulator, direct, relay), kind(relay.url(), READER) as client:
        wait_for(lambda: len(client.received) >= 30, "30 events before the restart")
        relay.stop(within=relay.patience)
        before = len(client.received)
        with Relay(simulator, port=relay.port):
            wait_for(lambda: len(client.received) >= before + 50, "50 events after the restart")
            received = list(client.received)
            wait_for(lambda: has(direct, received[-1]), "the witness has the last one too")
            known = direct.jsons("actions", "summary")
            # The SDK cannot resume: events sent meanwhile are missing. The events on each side of
            # that hole are complete.
            first = sse.run_length(received, known, same)
            second = sse.run_length(received[first:], known, same)
            assert first + second == len(received), f"{first} + {second} of {len(received)} events are two runs"
            assert client.connects >= 2, f"connected {client.connects} times"
            assert not client.log.errors(), f"errors: {client.log.errors()}"
            # A drained stream has a proper end. Only connections refused while the relay is down
            # may be logged.
            cut = [line for line in client.log.lines if "incomplete" in line or "without sending complete" in line]
            assert not cut, f"the relay cut the stream instead of ending it: {cut}"


# The SDK's documentation calls 401, 403 and 404 fatal. 0.13.0 does not treat them so: httpx-sse
# checks the content type only, so the SDK sees a lost connection, and retries unless it is
# configured not to. The relay owes it the connector's status and no event stream; this test pins
# what the SDK does with them, and changes with its version.
@cases(*[(kind, *refusal) for kind in (Threaded, Async) for refusal in [
    (401, "not-a-key-of-this-relay", PRODUCT),
    (403, TENANT, "prod_of_somebody_else"),
    (404, READER, "prod_unknown"),
]])  # fmt: skip
def test_the_sdk_is_refused(case):
    kind, status, token, product = case
    with scene() as (_, _, relay):
        url = relay.url(product=product)
        code, content_type, body = refusal(url, token)
        assert code == status, f"HTTP {code} instead of {status}: {body}"
        assert content_type == "application/problem+json", content_type
        assert json.loads(body).get("status") == status, body
        with kind(url, token, max_retries=0) as client:
            client.wait_for_end()
            assert isinstance(client.failure, SdkUpstreamError), f"ended with {client.failure!r}"
            assert any("got 'application/problem+json'" in line for line in client.log.lines), client.log.lines
            assert not client.received, f"received {client.received[:2]}"


def enough(client):
    actions, summaries = counts(client)
    return actions >= 100 and summaries >= 2


def counts(client):
    kinds = [type(typed) for typed in list(client.received)]
    return kinds.count(ActionsPayload), kinds.count(SummaryPayload)


def beats_after_an_event(witness):
    kinds = [frame.event for frame in witness.frames]
    first = kinds.index("message") if "message" in kinds else len(kinds)
    return [frame for frame in witness.frames[first:] if frame.event == "heartbeat"]


def has(witness, typed):
    return any(same(typed, payload) for payload in witness.jsons())


def same(typed, payload):
    """Returns true if every field of the typed object equals the JSON, down to each action."""
    if type(typed) is not {"actions": ActionsPayload, "summary": SummaryPayload}.get(payload["type"]):
        return False
    if isinstance(typed, SummaryPayload):
        return fields_agree(typed, payload)
    return (
        fields_agree(typed, payload, but="actions")
        and typed.count == len(typed.actions) == len(payload["actions"])
        and all(fields_agree(action, sent) for action, sent in zip(typed.actions, payload["actions"]))
    )


def fields_agree(typed, payload, but=None):
    """Compares fields: the SDK reads a missing field as its type's empty value; all others must be equal."""
    for field in dataclasses.fields(typed):
        mine, sent = getattr(typed, field.name), payload.get(field.name)
        if field.name != but and mine != sent and (mine or sent):
            return False
    return True


def refusal(url, token):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}", "Accept": "text/event-stream"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            raise AssertionError(f"HTTP {answer.status} instead of a refusal")
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.headers["Content-Type"], answer.read()
