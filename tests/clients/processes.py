"""The processes under test: the simulator and the relay, on free loopback ports, ended by their pid."""

import atexit
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import sse
from waiting import wait_for

PRODUCT = "prod_demo"
UPSTREAM_TOKEN = "connector-token-of-the-client-tests"
READER = "key-that-reads-every-product-0123456789"  # grants every product, so an unknown one is 404
TENANT = "key-that-reads-prod-demo-only-0123456789"  # any other product is 403

# Set by run.py:
binary = None  # path of the relay
log_dir = None  # of this worker
ports = range(15000, 32000)  # of this worker, below the range of ephemeral ports

_alive = []
_ports_given = set()


class Process:
    """One command of the binary. Its log goes to a file that the runner prints when a test fails."""

    def __init__(self, name, arguments):
        self.name = name
        self.log = log_dir / f"{name}-{time.monotonic_ns()}.log"
        # No AUTOPLAY_* variable of the caller may affect the tests.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AUTOPLAY")}
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [str(binary), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        _alive.append(self)

    def assert_running(self):
        code = self.child.poll()
        assert code is None, f"{self.name} ended by itself with {code}: {self.log.read_text(errors='replace')[-2000:]}"

    def stop(self, within):
        """Sends SIGTERM, and checks that the process exits with 0 within `within` seconds."""
        self.request_shutdown()
        return self.wait_for_exit(within)

    def request_shutdown(self):
        self.assert_running()
        self.child.send_signal(signal.SIGTERM)

    def wait_for_exit(self, within):
        began = time.monotonic()
        try:
            code = self.child.wait(timeout=within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} was still running {within} s after SIGTERM") from None
        _alive.remove(self)
        assert code == 0, f"{self.name} exited with {code} on SIGTERM: {self.log.read_text(errors='replace')[-2000:]}"
        return time.monotonic() - began

    def kill(self):
        self.child.kill()
        self.child.wait()
        if self in _alive:
            _alive.remove(self)

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if self not in _alive:
            return
        if failure:
            self.kill()  # the failure of the test is reported, not that of the stop
        else:
            self.stop(within=self.patience)


class Simulator(Process):
    """The simulated connector: ten sessions, and `rate` events a second."""

    patience = 5
    token = UPSTREAM_TOKEN

    def __init__(self, rate=50, port=None):
        self.port = port or free_port()
        # fmt: off
        super().__init__("simulator", [
            "simulate", "--listen", f"127.0.0.1:{self.port}", "--product", PRODUCT, "--rate", str(rate),
            "--sessions", "10", "--token", UPSTREAM_TOKEN, "--heartbeat", "1s", "--seed", "7",
        ])
        # fmt: on

        def listening():
            self.assert_running()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_for(listening, "the simulator listens")


class Relay(Process):
    """A relay behind the simulator or another relay, with its upstream connected."""

    patience = 6  # a drain window of one second, and time for a busy machine
    token = READER

    # fmt: off
    def __init__(
        self, upstream, heartbeat="1s", port=None, admin_port=None, data_dir="", admin_key="", window="1s", server="", more="",
    ):
        # fmt: on
        self.port = port or free_port()
        self.admin_port = admin_port or free_port()
        config = log_dir / f"relay-{time.monotonic_ns()}.toml"
        values = {"heartbeat": heartbeat, "data_dir": data_dir, "admin_key": admin_key, "window": window}
        text = CONFIG.format(relay=self, upstream=upstream, server=server, **values)
        config.write_text(text + more)
        super().__init__("relay", ["serve", "--config", str(config)])
        wait_for(self._ready, "GET /readyz?require=upstream is 200")

    def url(self, query="", product=PRODUCT):
        return f"http://127.0.0.1:{self.port}/stream/{product}{query}"

    def _ready(self):
        self.assert_running()
        try:
            url = f"http://127.0.0.1:{self.admin_port}/readyz?require=upstream"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
        except OSError:  # refused, or an answer that isn't 2xx
            return False


@contextmanager
def scene(heartbeat="1s", rate=50):
    """A simulator, a witness that reads everything from it, and a relay behind it.

    The witness connects first, so the events of the relay are a run of those of the witness.
    """
    with Simulator(rate) as simulator:
        with sse.Stream(f"http://127.0.0.1:{simulator.port}/stream/{PRODUCT}", UPSTREAM_TOKEN) as direct:
            assert direct.status == 200, f"the simulator answered {direct.status}"
            with Relay(simulator, heartbeat) as relay:
                yield simulator, direct, relay


CONFIG = f"""
[server]
listen = "127.0.0.1:{{relay.port}}"
admin_listen = "127.0.0.1:{{relay.admin_port}}"
heartbeat_interval = "{{heartbeat}}"
drain_window = "{{window}}"
{{server}}

[[upstreams]]
product_id = "{PRODUCT}"
url = "http://127.0.0.1:{{upstream.port}}/stream/{PRODUCT}"
token = "{{upstream.token}}"

[log]
data_dir = "{{data_dir}}"

[auth]
allow_anonymous = false
admin_key = "{{admin_key}}"

[[auth.keys]]
name = "reader"
key = "{READER}"
products = ["*"]
permissions = ["subscribe"]

[[auth.keys]]
name = "tenant"
key = "{TENANT}"
products = ["{PRODUCT}"]
permissions = ["subscribe"]
"""


def free_port():
    """Returns a port of this worker that is free.

    It is below the range of ephemeral ports: a client that retries while the relay is down could otherwise be given the
    relay's port and connect to itself.
    """
    while True:
        port = random.choice(ports)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _ports_given:
            _ports_given.add(port)
            return port


@atexit.register
def kill_leftovers():
    for process in list(_alive):
        process.kill()
