"""Webhook receivers as users write them: with autoplay-sdk's WebhookReceiver, and with standardwebhooks."""

import asyncio
import base64
import contextlib
import http.server
import json
import logging
import tempfile
import threading
import urllib.request

from autoplay_sdk import ActionsPayload, SummaryPayload, WebhookReceiver
from autoplay_sdk.admin.connector_registration_http import ProductAlreadyRegisteredError, post_register_product_cli
from standardwebhooks import Webhook, WebhookVerificationError

import sse
from processes import PRODUCT, READER, Relay, Simulator
from runner import cases
from test_sdk import LogOfTheSdk, same
from waiting import wait_for

PLAIN = "a-secret-that-is-plain-text"
STANDARD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ADMIN = "admin-key-of-the-client-tests-0123456789"


class Receiver(http.server.ThreadingHTTPServer):
    """A small web server. `check(body, headers)` decides whether a delivery is accepted, as an application would."""

    daemon_threads = True
    refusal = 401

    def __init__(self, check):
        super().__init__(("127.0.0.1", 0), Handler)
        self.check = check
        self.accepted = []  # (headers, body) each
        self.refused = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/hook"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self._thread.join(5)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 15

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        good = self.server.check(body, self.headers)
        (self.server.accepted if good else self.server.refused).append((self.headers, body))
        self.send_response(202 if good else self.server.refusal)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def with_the_sdk(secret, received=None):
    """A receiver by the SDK's documentation: 401 when `handle_sync` raises."""
    received = received if received is not None else []
    sdk = WebhookReceiver(secret=secret, on_actions=received.append, on_summary=received.append)

    def check(body, headers):
        try:
            sdk.handle_sync(body, headers.get("X-Connector-Signature"))
        except ValueError:
            return False
        return True

    return check


def with_the_async_sdk(secret, received=None):
    received = received if received is not None else []

    async def take(payload):
        received.append(payload)

    sdk = WebhookReceiver(secret=secret, on_actions=take, on_summary=take)

    def check(body, headers):
        try:
            asyncio.run(sdk.handle(body, headers.get("X-Connector-Signature")))
        except ValueError:
            return False
        return True

    return check


def with_standard_webhooks(secret, received=None):
    """A receiver with the package, which decodes every text as base64, with `whsec_` or without. Plain text is passed as bytes."""
    webhook = Webhook(secret if secret.startswith("whsec_") else secret.encode())

    def check(body, headers):
        try:
            payload = webhook.verify(body, dict(headers))
        except WebhookVerificationError:
            return False
        if received is not None:
            received.append(payload)
        return True

    return check


MAKERS = (with_the_sdk, with_the_async_sdk, with_standard_webhooks)
CHECKS = [(make, secret) for make in MAKERS for secret in (PLAIN, STANDARD)]


@cases(*CHECKS)
def test_a_receiver_verifies_every_delivery_and_gets_the_events_of_the_stream(case):
    make, secret = case
    received = []
    with Receiver(make(secret, received)) as receiver, scene(hook(receiver, secret)) as relay, log() as complaints:
        with sse.Stream(relay.url("?last_event_id=0"), READER) as witness:
            wait_for(lambda: len(receiver.accepted) >= 60, lambda: f"60 deliveries; {len(receiver.accepted)} now")
            deliveries = list(receiver.accepted)
            bodies = {headers["webhook-id"]: body for headers, body in deliveries}
            assert len(bodies) == len(deliveries), "an id comes twice"
            streamed = lambda: {frame.id: frame.data for frame in witness.frames if frame.event == "message"}
            wait_for(lambda: bodies.keys() <= streamed().keys(), "the stream has the same events")
            for event_id, body in bodies.items():
                assert streamed()[event_id] == body, f"{event_id}: {body} where the stream has {streamed()[event_id]}"
            if make is not with_standard_webhooks:
                seen = received[: len(deliveries)]
                known = lambda: witness.jsons("actions", "summary")
                is_known = lambda typed: any(same(typed, payload) for payload in known())
                # Events since the reading of the stream are delivered a moment later.
                wait_for(lambda: all(map(is_known, seen)), lambda: f"the stream has what the SDK has read: {seen[:2]}")
                kinds = {type(typed) for typed in received}
                assert ActionsPayload in kinds and kinds <= {ActionsPayload, SummaryPayload}, kinds
            else:
                wait_for(lambda: all(payload in witness.jsons() for payload in received[:20]), "the stream has the same")
        assert not receiver.refused, f"refused: {receiver.refused[:2]}"
        assert not complaints.lines, f"the SDK complained: {complaints.lines[:5]}"


@cases(*CHECKS)
def test_a_receiver_with_another_secret_refuses_every_delivery(case):
    make, secret = case
    other = base64.b64encode(b"quite another secret 123").decode()
    other = f"whsec_{other}" if secret is STANDARD else other
    with Receiver(make(other)) as receiver, scene(hook(receiver, secret)) as relay:
        wait_for(lambda: len(receiver.refused) >= 3, "three deliveries are refused")
        assert not receiver.accepted, receiver.accepted[:1]
        path = "/api/v1/webhooks/hook/deliveries?state=dead"
        dead = wait_for(lambda: api(relay, "GET", path)[1]["deliveries"], "what was refused is listed as dead")
        assert dead[0]["attempts"][0]["outcome"] == "refused", dead[:1]


def test_a_plain_text_secret_that_is_base64_is_not_decoded():
    """The relay decodes whsec_ only: a receiver that uses the package with such a secret passes its base64."""
    secret = base64.b64encode(b"0123456789abcdef01234567").decode()
    as_written = Webhook(base64.b64encode(secret.encode()).decode())
    with Receiver(lambda body, headers: verifies(as_written, body, headers)) as receiver, scene(hook(receiver, secret)):
        wait_for(lambda: len(receiver.accepted) >= 10, lambda: f"ten deliveries; {receiver.refused[:1]}")
        headers, body = receiver.accepted[0]
        assert not verifies(Webhook(secret), body, headers), "the package itself reads a plain secret in another way"


def test_both_secrets_verify_after_a_rotation():
    checks = [with_standard_webhooks(secret) for secret in (PLAIN, STANDARD)]
    both = lambda body, headers: all(check(body, headers) for check in checks)
    with Receiver(lambda body, headers: True) as receiver, scene(admin_key=True) as relay:
        webhook = {"id": "hook", "product_id": PRODUCT, "url": receiver.url}
        status, _ = api(relay, "POST", "/api/v1/webhooks", {**webhook, "secret": PLAIN})
        assert status == 201, status
        wait_for(lambda: receiver.accepted, "a delivery")
        status, view = api(relay, "PUT", "/api/v1/webhooks/hook", {**webhook, "secret": STANDARD})
        assert (status, view["secret"]) == (200, "********"), (status, view)
        with_both = lambda: [it for it in list(receiver.accepted) if both(it[1], it[0])]
        headers, body = wait_for(with_both, lambda: f"a delivery with both signatures; {receiver.accepted[-1][0]}")[0]
        assert with_the_sdk(STANDARD)(body, headers), "the connector's header is of the new secret"
        assert not with_the_sdk(PLAIN)(body, headers)


def test_the_sdk_registers_a_webhook_as_it_registers_with_the_connector():
    received = []
    with Receiver(with_the_sdk(PLAIN, received)) as receiver, scene(admin_key=True) as relay:

        def register(**changes):
            wanted = {
                "connector_url": f"http://127.0.0.1:{relay.admin_port}",
                "admin_key": ADMIN,
                "product_id": PRODUCT,
                "contact_email": "ops@example.com",
                "webhook_secret": "of the analytics side, not of this",
                "integration_type": "webhook",
                "forward_url": receiver.url,
                "forward_secret": PLAIN,
            }
            return asyncio.run(post_register_product_cli(**{**wanted, **changes}))

        answer = register()
        assert isinstance(answer, dict), answer
        wait_for(lambda: len(received) >= 10, "the SDK's receiver gets what was registered for it")
        assert not receiver.refused, receiver.refused[:1]
        try:
            register()
        except ProductAlreadyRegisteredError as error:
            assert error.status_code == 409, error
            assert PLAIN not in str(error), "the answer has the secret in it"
        else:
            raise AssertionError("the second registration was not refused with 409")
        assert isinstance(register(force_reregister=True), dict), "force_reregister replaces it"
        _, listed = api(relay, "GET", "/api/v1/webhooks")
        assert [webhook["url"] for webhook in listed["webhooks"]] == [receiver.url], listed
        before = len(receiver.accepted)
        wait_for(lambda: len(receiver.accepted) > before + 5, "deliveries go on")


def test_the_sdk_registers_for_the_stream():
    with scene(admin_key=True) as relay:
        answer = asyncio.run(
            post_register_product_cli(
                connector_url=f"http://127.0.0.1:{relay.admin_port}",
                admin_key=ADMIN,
                product_id=PRODUCT,
                contact_email="ops@example.com",
                webhook_secret="",
                integration_type="event_stream",
                forward_url="",
                forward_secret="",
                force_reregister=True,
            )
        )
        assert isinstance(answer, dict), answer
        _, listed = api(relay, "GET", "/api/v1/webhooks")
        assert listed["webhooks"] == [], "the stream needs no webhook"


def verifies(webhook, body, headers):
    try:
        webhook.verify(body, dict(headers))
    except WebhookVerificationError:
        return False
    return True


def hook(receiver, secret):
    return f"""
[[webhooks]]
id = "hook"
product_id = "{PRODUCT}"
url = "{receiver.url}"
secret = "{secret}"
"""


@contextlib.contextmanager
def scene(webhooks="", admin_key=False, egress=""):
    """A simulator and a relay with a store, these webhooks, and leave to reach the receivers here."""
    more = webhooks + '\n[egress]\nallow_networks = ["127.0.0.0/8"]\n' + egress
    with tempfile.TemporaryDirectory(prefix="relay-data-") as directory, Simulator() as simulator:
        with Relay(simulator, data_dir=directory, admin_key=ADMIN if admin_key else "", more=more) as relay:
            yield relay


@contextlib.contextmanager
def log():
    """Collects the SDK's log."""
    lines = LogOfTheSdk()
    logging.getLogger().addHandler(lines)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(lines)


def api(relay, method, path, body=None):
    """Calls the admin API, and returns status and JSON."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "X-Admin-Key": ADMIN}
    url = f"http://127.0.0.1:{relay.admin_port}{path}"
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status, json.loads(answer.read() or b"null")
