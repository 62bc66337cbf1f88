"""The witness: a raw reader of Server-Sent Events that shares no code with the clients under test."""

import http.client
import json
import socket
import threading
from dataclasses import dataclass

from waiting import wait_for


@dataclass(frozen=True)
class Frame:
    event: str  # "message" where the stream names none
    id: str | None
    data: bytes


class Stream:
    """A stream read by a thread of its own until it ends or is closed. `frames` only grows."""

    def __init__(self, url, token, headers=()):
        host, _, path = url.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=15)  # heartbeats come every second
        connection.connect()
        self._socket = connection.sock
        connection.request("GET", f"/{path}", headers={"Authorization": f"Bearer {token}", **dict(headers)})
        self.response = connection.getresponse()
        self.status = self.response.status
        self.headers = self.response.headers
        self.frames = []
        self.faults = []  # violations of the stream's guarantees
        self._closed = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        if self.status == 200:
            self._thread.start()

    def payloads(self):
        return [frame.data for frame in self.frames if frame.event == "message"]

    def jsons(self, *types):
        """The payloads parsed; only those of `types`, if any are given."""
        parsed = [json.loads(payload) for payload in self.payloads()]
        return [payload for payload in parsed if not types or payload["type"] in types]

    def wait_for_payload(self, payload):
        wait_for(lambda: payload in self.payloads(), lambda: f"the witness has {payload[:200]!r}")

    def close(self):
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side closed first
        self._socket.close()
        if self._thread.ident:
            self._thread.join(5)

    def _read(self):
        fields = {}
        try:
            while line := self.response.readline():
                if line != b"\n":
                    name, _, value = line.rstrip(b"\n").partition(b":")
                    value = value.removeprefix(b" ")
                    # No payload of one line has more than one data line, so none is expected here.
                    if name in fields:
                        self.faults.append(f"field twice in one block: {line!r}")
                    fields[name] = value
                    continue
                if b"data" not in fields:
                    self.faults.append(f"block without data: {fields!r}")
                else:
                    event_id = fields[b"id"].decode() if b"id" in fields else None
                    self.frames.append(Frame(fields.get(b"event", b"message").decode(), event_id, fields[b"data"]))
                fields = {}
            if not self._closed and fields:
                self.faults.append(f"ended in the middle of a block: {fields!r}")
        except (OSError, ValueError, http.client.HTTPException) as failure:
            # Closing the socket is how this thread is ended; any other error is a fault.
            if not self._closed:
                self.faults.append(f"broke: {failure!r}")

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        self.close()
        if not failure:
            assert not self.faults, f"faults in the stream: {self.faults[:5]}"


def run_length(part, whole, same=lambda a, b: a == b):
    """Returns the length of the longest prefix of `part` that is a run of `whole`."""
    best = 0
    for start in range(len(whole)):
        length = 0
        while length < len(part) and start + length < len(whole) and same(part[length], whole[start + length]):
            length += 1
        best = max(best, length)
    return best


def assert_contiguous_run(part, whole, what, same=lambda a, b: a == b):
    """Checks that `part` is a run of `whole`: no item is lost, added, changed or moved."""
    assert part, f"{what}: nothing to compare"
    length = run_length(part, whole, same)
    if length < len(part):
        around = part[max(0, length - 1) : length + 2]
        raise AssertionError(f"{what}: only {length} of {len(part)} are a run of the {len(whole)}; then {around}")
