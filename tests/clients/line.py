"""A TCP proxy in front of the relay that records all bytes and can cut its connections."""

import re
import socket
import threading
from dataclasses import dataclass, field

from processes import free_port


@dataclass
class Call:
    """One connection through the proxy."""

    near: socket.socket
    far: socket.socket
    asked: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)


class Line:
    """Forwards a port of its own to the relay's, also after a restart of the relay."""

    def __init__(self, to_port):
        self.port = free_port()
        self._to_port = to_port
        self._calls = []
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def requests(self, method, path=""):
        """Returns the heads of the requests so far whose target begins with `path`, in lower case."""
        found = []
        for call in list(self._calls):
            heads = re.findall(rb"(?<![A-Z])([A-Z]+) (\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", bytes(call.asked), re.DOTALL)
            found += [head for name, target, head in heads if name == method.encode() and target.startswith(path.encode())]
        return [head.decode().lower() for head in found]

    def answers(self, status):
        """Returns the heads of the responses with this status so far, in lower case."""
        found = []
        for call in list(self._calls):
            found += re.findall(rb"HTTP/1\.1 %d [^\r]*\r\n(.*?)\r\n\r\n" % status, bytes(call.answered), re.DOTALL)
        return [head.decode().lower() for head in found]

    def said(self, pattern):
        """Returns true if the relay has sent bytes that match this pattern."""
        return any(re.search(pattern, bytes(call.answered)) for call in list(self._calls))

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to_port), timeout=10)
            except OSError:  # the relay is down
                near.close()
                continue
            far.settimeout(None)
            call = Call(near, far)
            self._calls.append(call)
            for source, sink, record in ((near, far, call.asked), (far, near, call.answered)):
                threading.Thread(target=self._carry, args=(source, sink, record), daemon=True).start()

    def _carry(self, source, sink, record):
        try:
            while data := source.recv(65536):
                record += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # cut

    def cut(self):
        for call in list(self._calls):
            for end in (call.near, call.far):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # closed already
                end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
