"""Receivers of webhooks as Python's standard library makes them: TLS, self-signed, and ended without close_notify."""

import hashlib
import hmac
import http.server
import ssl
import tempfile
import threading

from test_https import openssl
from test_webhooks import PLAIN, api, hook, scene
from runner import cases
from waiting import wait_for


class Handler(http.server.BaseHTTPRequestHandler):
    """Looks headers up by their exact name, and ends each connection with its answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        named = dict(self.headers.items())
        body = self.rfile.read(int(named["Content-Length"]))
        signature = "sha256=" + hmac.new(PLAIN.encode(), body, hashlib.sha256).hexdigest()
        good = named.get("X-Connector-Signature") == signature and named.get("Authorization") == f"Bearer {PLAIN}"
        self.server.answered.append((good, named.get("webhook-id")))
        self.send_response(200 if good else 401)
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_):
        pass


class SecureReceiver(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder, extensions):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answered = []
        self.cert, key = f"{folder}/server.pem", f"{folder}/server.key"
        # fmt: off
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-keyout", key, "-out", self.cert, "-subj", "/CN=127.0.0.1", *extensions)
        # fmt: on
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self):
        return f"https://127.0.0.1:{self.server_port}/hook"


NAMED = ("-addext", "subjectAltName=IP:127.0.0.1")


@cases(NAMED, (*NAMED, "-addext", "basicConstraints=critical,CA:FALSE"))
def test_a_self_signed_http_server_gets_each_event_once(extensions):
    with tempfile.TemporaryDirectory() as folder:
        receiver = SecureReceiver(folder, extensions)
        with receiver, scene(hook(receiver, PLAIN), egress=f'ca_file = "{receiver.cert}"\n') as relay:
            wait_for(lambda: len(receiver.answered) >= 20, lambda: f"20 deliveries; {receiver.answered[-1:]}")
            answered = list(receiver.answered)
            assert all(good for good, _ in answered), answered[:3]
            assert len({event for _, event in answered}) == len(answered), "an event comes twice"
            _, listed = api(relay, "GET", "/api/v1/webhooks/hook/deliveries?state=delivered")
            assert all(len(delivery["attempts"]) == 1 for delivery in listed["deliveries"]), listed["deliveries"][:1]


def test_a_certificate_without_the_hosts_name_is_refused_in_words():
    with tempfile.TemporaryDirectory() as folder:
        receiver = SecureReceiver(folder, ())
        with receiver, scene(hook(receiver, PLAIN), egress=f'ca_file = "{receiver.cert}"\n') as relay:
            path = "/api/v1/webhooks/hook/deliveries?state=pending"
            tried = lambda: [it for it in api(relay, "GET", path)[1]["deliveries"] if it["attempts"]]
            error = wait_for(tried, "an attempt has failed")[0]["attempts"][0]["error"]
            assert "subjectAltName" in error, error
            assert not receiver.answered, receiver.answered[:1]
