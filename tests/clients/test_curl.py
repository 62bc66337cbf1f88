"""curl -N: the output, byte for byte."""

import re
import subprocess
import threading

import sse
from processes import READER, scene
from runner import cases
from waiting import wait_for

RETRY = rb"retry: \d+\n"  # precedes the first block, without a blank line
EVENT = re.compile(rb"id: (\S+)\ndata: ([^\r\n]+)")
HEARTBEAT = re.compile(rb"(id: \S+\n)?event: heartbeat\ndata:")  # possible when the machine is busy for a second


class Curl:
    """A running curl and the bytes it has printed: response head, then body."""

    def __init__(self, url, *options):
        # fmt: off
        self._child = subprocess.Popen(
            ["curl", "-N", "-sS", "-i", "--noproxy", "*", "--max-time", "60", *options,
             "-H", f"Authorization: Bearer {READER}", url],
            stdout=subprocess.PIPE,  # its errors go to our stderr
        )
        # fmt: on
        self.printed = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with self._child.stdout as output:
            while part := output.read1(65536):
                self.printed += part

    def head(self):
        return self.printed.partition(b"\r\n\r\n")[0].decode().lower()

    def body(self):
        return self.printed.partition(b"\r\n\r\n")[2]

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        ended_by_itself = self._child.poll()
        self._child.terminate()
        self._child.wait(5)
        self._reader.join(5)
        if not failure:
            assert ended_by_itself is None, f"curl ended by itself with {ended_by_itself}"


@cases("--http1.1", "--http2-prior-knowledge")
def test_curl_gets_the_head_before_any_event(version):
    # No event passes the filter and no heartbeat is due for thirty seconds: only a head sent at once comes in time.
    with scene(heartbeat="30s") as (_, _, relay), Curl(relay.url("?session_id=nobody"), version) as curl:
        has_both = lambda: re.fullmatch(RETRY, curl.body())
        wait_for(has_both, lambda: f"the head and the retry line; now {curl.printed!r}", seconds=5)
        lines = curl.head().split("\r\n")
        assert re.match(r"http/\S+ 200", lines[0]), lines[0]
        for header in [
            "content-type: text/event-stream",
            "cache-control: no-store, no-transform",
            "x-accel-buffering: no",
            "autoplay-relay: resume",
        ]:
            assert header in lines, f"no {header!r} among {lines}"


@cases("--http1.1", "--http2-prior-knowledge")
def test_curl_prints_the_frames_with_the_connectors_bytes(version):
    with scene() as (_, direct, relay):
        with Curl(relay.url(), version) as curl:
            wait_for(lambda: curl.body().count(b"\n\n") >= 50, lambda: f"50 frames; now {curl.body()[-500:]!r}")
        body = curl.body()
        retry = re.match(RETRY, body)
        assert retry, f"the stream starts with {body[:100]!r}"
        frames = [EVENT.fullmatch(block) for block in blocks(body[retry.end() :])]
        payloads = [frame[2] for frame in frames]
        direct.wait_for_payload(payloads[-1])
        sse.assert_contiguous_run(payloads, direct.payloads(), "the bytes curl printed against the connector's")


def blocks(body):
    """Returns the complete blocks without heartbeats."""
    found = []
    for block in body.split(b"\n\n")[:-1]:
        if HEARTBEAT.fullmatch(block):
            continue
        assert EVENT.fullmatch(block), f"not a frame of the stream: {block[:300]!r}"
        found.append(block)
    return found
