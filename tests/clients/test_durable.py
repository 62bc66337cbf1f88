"""Restarts without a loss: a relay with a data_dir, and a leaf behind an edge."""

import json
import subprocess
import tempfile
import threading
from contextlib import contextmanager

import processes
from processes import READER, Relay, Simulator
from test_eventsource import EventSource, around_the_gap, assert_increasing, first_difference, log_of
from waiting import wait_for


class Tail:
    """`autoplay-relay tail --json`, and its output."""

    def __init__(self, url):
        command = [str(processes.binary), "tail", "--json", "--token", READER, "--last-event-id", "0", url]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.reports = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with self._child.stdout as lines:
            for line in lines:
                reports = json.loads(line)
                self.reports.append({"kind": reports["event"], "id": reports["id"], "data": json.dumps(reports["data"])})

    def of(self, kind):
        return [report for report in list(self.reports) if report["kind"] == kind]

    def wait_for_events(self, number):
        wait_for(lambda: len(self.of("message")) >= number, lambda: f"{number} events; {len(self.reports)} lines")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._child.kill()
        self._child.wait()
        self._reader.join(5)


def same_value(entries):
    """Returns entries with parsed payloads: `tail` formats them in its own way."""
    return [(event_id, json.loads(payload)) for event_id, payload in entries]


@contextmanager
def data_dir():
    with tempfile.TemporaryDirectory(prefix="relay-data-") as directory:
        yield directory


def test_eventsource_and_tail_miss_no_event_across_a_restart_of_a_durable_relay():
    with Simulator() as simulator, data_dir() as directory:
        relay = Relay(simulator, data_dir=directory)
        with EventSource(relay.url("?last_event_id=0")) as client, Tail(relay.url()) as tail:
            for each in (client, tail):
                each.wait_for_events(30)
            relay.stop(within=relay.patience)
            with Relay(simulator, port=relay.port, data_dir=directory) as restarted:
                for each in (client, tail):
                    # The relay announces the outage of its connection to the connector, the only
                    # gap.
                    wait_for(lambda: each.of("gap"), lambda: f"a gap notice; {client}")
                    each.wait_for_events(len(each.of("message")) + 50)
                    before, notice, after = around_the_gap(each)
                    gap = json.loads(notice["data"])
                    assert (gap["reason"], gap["after"]) == ("upstream_reconnect", before[-1]["id"]), gap
                    assert gap["before"] in (None, after[0]["id"]), gap
                    assert_increasing([report["id"] for report in [*before, notice, *after]])
                    got = [(report["id"], report["data"].encode()) for report in before + after]
                    log = log_of(restarted, until=(got[-1][0], dict(client.entries())[got[-1][0]]))
                    got, log = same_value(got), same_value(log)
                    assert got == log[: len(got)], f"across the restart: {first_difference(got, log)}"


def test_eventsource_misses_no_event_when_a_leaf_restarts():
    with Simulator() as simulator, Relay(simulator) as edge:
        leaf = Relay(edge)
        with EventSource(leaf.url("?last_event_id=0")) as client:
            client.wait_for_events(30)
            leaf.stop(within=leaf.patience)
            with Relay(edge, port=leaf.port):
                client.wait_for_events(len(client.of("message")) + 100)
                got = client.entries()
                log = log_of(edge, until=got[-1])
                assert got == log[: len(got)], f"across the restart: {first_difference(got, log)}"
                assert not client.of("gap"), str(client)


def test_eventsource_moves_between_leaves_of_one_edge():
    with Simulator() as simulator, Relay(simulator) as edge, Relay(edge) as one, Relay(edge) as other:
        with EventSource(one.url("?last_event_id=0")) as client:
            client.wait_for_events(30)
        first = client.entries()
        with EventSource(other.url(f"?last_event_id={first[-1][0]}")) as client:
            client.wait_for_events(50)
        both = first + client.entries()
        log = log_of(edge, until=both[-1])
        assert both == log[: len(both)], f"from one to the other: {first_difference(both, log)}"
        assert not client.of("gap"), str(client)
