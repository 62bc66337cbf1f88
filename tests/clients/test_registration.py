"""The SDK's registration call against the relay's `POST /products`."""

import asyncio
import json
import urllib.request
from contextlib import contextmanager

from autoplay_sdk.admin.connector_registration_http import (
    ConnectorRegistrationHttpError,
    ProductAlreadyRegisteredError,
    post_register_product_cli,
    post_register_product_payload,
)
from processes import PRODUCT, Relay, Simulator


@contextmanager
def relay():
    with Simulator() as simulator, Relay(simulator) as relay:
        yield relay


def admin_url(relay):
    return f"http://127.0.0.1:{relay.admin_port}"


def register(relay, forward_url="", force=False, product=PRODUCT):
    """Registers as the SDK's command does: a webhook if there is a URL, otherwise the stream."""
    return asyncio.run(
        post_register_product_cli(
            connector_url=admin_url(relay),
            admin_key="",
            product_id=product,
            contact_email="someone@example.com",
            webhook_secret="secret-of-the-source",
            integration_type="webhook" if forward_url else "event_stream",
            forward_url=forward_url,
            forward_secret="secret-of-the-receiver" if forward_url else "",
            force_reregister=force,
        )
    )


def refusal(*arguments, **named):
    try:
        answer = register(*arguments, **named)
    except ConnectorRegistrationHttpError as error:
        return error
    raise AssertionError(f"registered: {answer}")


def webhooks(relay):
    with urllib.request.urlopen(f"{admin_url(relay)}/api/v1/webhooks", timeout=5) as answer:
        return {webhook["id"]: webhook["url"] for webhook in json.load(answer)["webhooks"]}


def test_the_sdk_registers_push_once_and_again_if_forced():
    with relay() as it:
        answer = register(it, "http://127.0.0.1:1/one")
        assert answer["product_id"] == PRODUCT and "secret" not in json.dumps(answer), answer
        again = refusal(it, "http://127.0.0.1:1/two")
        assert isinstance(again, ProductAlreadyRegisteredError), again
        assert webhooks(it) == {PRODUCT: "http://127.0.0.1:1/one"}
        register(it, "http://127.0.0.1:1/two", force=True)
        assert webhooks(it) == {PRODUCT: "http://127.0.0.1:1/two"}


def test_the_sdk_registers_streaming_once_and_replaces_push_only_if_forced():
    with relay() as it:
        assert register(it)["mode"] == "sse"
        assert isinstance(refusal(it), ProductAlreadyRegisteredError)
        assert isinstance(refusal(it, "http://127.0.0.1:1/"), ProductAlreadyRegisteredError)
        register(it, "http://127.0.0.1:1/", force=True)
        register(it, force=True)
        assert webhooks(it) == {}


def test_the_newer_form_registers_push_and_an_unknown_product_is_refused():
    payload = {
        "product_id": PRODUCT,
        "contact_email": "someone@example.com",
        "webhook_secret": "x",
        "integration_type": "event_stream",
        "integration_config": {"mode": "push", "url": "http://127.0.0.1:1/", "secret": "y"},
    }
    with relay() as it:
        posted = post_register_product_payload(connector_url=admin_url(it), admin_key="", payload=payload)
        assert asyncio.run(posted)["webhook_id"] == PRODUCT
        unknown = refusal(it, product="prod_unknown")
        assert unknown.status_code == 422 and "[[upstreams]]" in unknown.response_text, unknown
