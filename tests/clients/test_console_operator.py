"""The console in Chromium: the operator's key, and the effect of its buttons on receivers and the API."""

import contextlib

from console import event, world
from processes import PRODUCT
from test_webhooks import ADMIN, Receiver, api
from waiting import wait_for

DENIED = "Failed to load resource: the server responded with a status of 401"


def test_the_admin_key_is_requested_and_kept_in_memory_only():
    with world(admin_key=ADMIN) as here, here.open() as console:
        console.expected = [DENIED]
        console.shows("Admin key", "#key-dialog")
        assert console.focus() == "key", "the field has the focus"
        console.ask(write="a-key-that-is-wrong")
        console.press("Enter")
        console.shows("The relay does not accept this key", "#key-wrong")
        assert not console.text("#upstreams"), "no data is shown"
        console.ask(write=ADMIN)
        console.press("Enter")
        wait_for(lambda: not console.run("document.getElementById('key-dialog').open"), "the dialog is closed")
        console.shows("Connected", "#upstreams")
        console.follows()
        here.upstream.send(event())
        console.shows_ids(here.arrived(1))
        assert console.run(STORED_DATA) == [0, 0, "", [], [], None], "no data is stored"
        assert not console.holds(ADMIN), "not in a field either"
        assert not [it for it in console.reports("request") if ADMIN in it["url"]], "never in an address"
        assert console.requests("/api/v1/stream/")[-1]["headers"]["x-admin-key"] == ADMIN
        console.ask(reload=True)
        console.shows("Admin key", "#key-dialog")


# Every place in which a page can store data.
STORED_DATA = """(async () => [localStorage.length, sessionStorage.length, document.cookie, await indexedDB.databases(),
    await caches.keys(), history.state])()"""


def test_no_key_is_requested_where_none_is_set():
    with world() as here, here.open() as console:
        console.shows("Connected", "#upstreams")
        assert not console.run("document.getElementById('key-dialog').open")


def test_the_test_button_sends_a_sample_and_shows_the_response():
    with hooked() as (here, receiver, console):
        console.click("Send test: hook")
        console.shows("Test accepted: status 202", ".result")
        assert len(receiver.accepted) == 1
        receiver.is_good = False
        console.click("Send test: hook")
        console.shows("Test refused: status 401", ".result")
        assert not here.ids(), "a sample is no event of the log"


def test_dead_letters_are_shown_on_demand_and_redelivered_singly_or_all_at_once():
    with hooked() as (here, receiver, console):
        receiver.is_good = False
        here.upstream.send(*(event(note=f"payload-in-question-{number}") for number in range(3)))
        console.shows("3", "#tile-dead")
        first, second, third = here.arrived(3)
        console.click("Show dead letters: hook")
        console.shows(third, ".letters")
        assert not console.holds("payload-in-question"), "not before it is opened"
        console.run("document.querySelector('.letters summary').click()")
        console.shows("payload-in-question-2", ".letters")
        receiver.is_good = True
        console.click(f"Redeliver {second}")
        wait_for(lambda: delivered(receiver) == [second], "the delivery is accepted")
        console.shows("1 delivery back in the queue", ".result")
        wait_for(lambda: second not in console.text(".letters"), "the delivery is no dead letter any more")
        console.click("Redeliver all: hook")
        console.shows("gets 2 dead letters again", "#confirm")
        console.click("Cancel")
        assert delivered(receiver) == [second], "not before the confirmation"
        console.click("Redeliver all: hook")
        console.click("Redeliver 2 dead letters")
        wait_for(lambda: sorted(delivered(receiver)) == sorted([first, second, third]), "all are delivered")
        console.shows("2 deliveries back in the queue", ".result")
        wait_for(lambda: dead(here) == [], "none is dead")
        console.shows("0", "#tile-dead")


def test_the_enable_button_enables_a_webhook():
    with hooked() as (here, receiver, console):
        receiver.is_good, receiver.refusal = False, 410
        here.upstream.send(event())
        console.shows("Disabled", ".card")
        here.upstream.send(event(), event())
        console.shows("2, oldest", ".card")
        receiver.is_good = True
        assert state(here) == "disabled"
        console.click("Enable: hook")
        console.shows("Enabled", ".result")
        wait_for(lambda: delivered(receiver) == here.ids()[1:], "pending deliveries are accepted")
        assert state(here) == "active"
        console.shows("Active", ".card")


def test_the_error_of_an_action_is_shown_beside_its_button():
    with hooked() as (here, _, console):
        console.expected = ["Failed to load resource: the server responded with a status of 404"]
        console.ask(hold="**/api/v1/webhooks")  # so that the card stays
        status, _ = api(here.relay, "DELETE", "/api/v1/webhooks/hook")
        assert status == 204, status
        console.click("Send test: hook")
        console.shows("That did not work: ", ".result")
        console.ask(release="**/api/v1/webhooks")
        console.shows("No webhook is registered", "#webhooks-empty")


@contextlib.contextmanager
def hooked():
    """A fixture with a receiver, a webhook registered by the API, and an open console."""
    with Receiver(lambda body, headers: receiver.is_good) as receiver:
        receiver.is_good = True
        with world('\n[egress]\nallow_networks = ["127.0.0.0/8"]\n') as here, here.open() as console:
            webhook = {"id": "hook", "product_id": PRODUCT, "url": receiver.url, "secret": "a-secret-of-the-console-tests"}
            status, _ = api(here.relay, "POST", "/api/v1/webhooks", {**webhook, "max_retries": 0})
            assert status == 201, status
            console.shows("hook", "#webhooks-list")
            console.follows()
            yield here, receiver, console


def delivered(receiver):
    return [headers["webhook-id"] for headers, _ in list(receiver.accepted)]


def state(here):
    return api(here.relay, "GET", "/api/v1/webhooks/hook")[1]["state"]


def dead(here):
    return api(here.relay, "GET", "/api/v1/webhooks/hook/deliveries?state=dead")[1]["deliveries"]
