"""The console's page in Chromium, and an upstream whose events the tests choose."""

import contextlib
import json
import queue
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import processes
from browser import Browser
from processes import PRODUCT, READER, Relay
from waiting import wait_for

driver = None  # console.mjs beside its node_modules, set by run.py

OTHER = "prod_other"
PHONE = {"viewport": {"width": 375, "height": 812}, "isMobile": True, "hasTouch": True}


class Upstream(ThreadingHTTPServer):
    """A connector that sends given payloads to the relay that is connected."""

    daemon_threads = True
    token = "connector-token-of-the-console-tests"

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Feed)
        self.port = self.server_port
        self.feeds = {}
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def send(self, *payloads, product=PRODUCT):
        """Sends each payload as a frame: a dict as JSON, a text unchanged."""
        texts = [payload if isinstance(payload, str) else json.dumps(payload) for payload in payloads]
        self.feeds[product].put("".join(f"data: {text}\n\n" for text in texts).encode())

    def close(self):
        """Ends all streams, and accepts no more."""
        self.shutdown()
        self.server_close()
        for frames in self.feeds.values():
            frames.put(None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Feed(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.feeds[self.path.rpartition("/")[2]] = frames = queue.Queue()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(OSError):  # the relay has closed
            while (frame := next_of(frames)) is not None:
                self.wfile.write(frame)

    def log_message(self, *_):
        pass


def next_of(frames):
    """Returns the next frame, or a heartbeat after a second without one."""
    try:
        return frames.get(timeout=1)
    except queue.Empty:
        return b"event: heartbeat\ndata: {}\n\n"


class Fixture:
    """An upstream of two products, their relay, and a browser for its console."""

    def __init__(self, upstream, folder, browser, more, admin_key):
        self.upstream = upstream
        self._browser = browser
        second = f'\n[[upstreams]]\nproduct_id = "{OTHER}"\nurl = "http://127.0.0.1:{upstream.port}/stream/{OTHER}"\n'
        self._options = {"data_dir": folder, "admin_key": admin_key, "more": f"{second}token = 'other'\n{more}"}
        self.relay = Relay(upstream, **self._options)

    def restart(self):
        self.relay = Relay(self.upstream, port=self.relay.port, admin_port=self.relay.admin_port, **self._options)

    def open(self, name="console", **options):
        return Console(self._browser, name, f"http://127.0.0.1:{self.relay.admin_port}/", options)

    def ids(self, query="", product=PRODUCT):
        """Returns the ids of all kept events that match the query, read page by page."""
        ids, last = [], "0"
        while True:
            url = f"http://127.0.0.1:{self.relay.port}/events/{product}?last_event_id={last}{query}"
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {READER}"})
            with urllib.request.urlopen(request, timeout=5) as answer:
                page = json.load(answer)
            ids += [event["id"] for event in page["events"]]
            if page["next"] in (last, None):
                return ids
            last = page["next"]

    def arrived(self, count, query="", product=PRODUCT):
        """Waits until there are `count` such ids, and returns them."""
        there = lambda: (ids := self.ids(query, product)) and len(ids) == count and ids
        return wait_for(there, lambda: f"the relay has {count} events; it has {self.ids(query, product)}")


@contextlib.contextmanager
def world(more="", admin_key=""):
    with tempfile.TemporaryDirectory(dir=processes.log_dir) as folder, Upstream() as upstream:
        with Browser(script=driver) as browser:
            here = Fixture(upstream, folder, browser, more, admin_key)
            try:
                yield here
            except BaseException:
                here.relay.kill()  # the failure of the test is reported, not that of the stop
                raise
            here.relay.stop(within=here.relay.patience)


class Console:
    """The page of one operator. Leaving the context checks that the page caused no errors."""

    def __init__(self, browser, name, url, options):
        self._browser = browser
        self._name = name
        self._host = urlsplit(url).netloc
        self.expected = []  # beginnings of the lines that Chromium logs about failed requests, in tests that cause them
        browser.ask(page=name, open=url, options={"viewport": {"width": 1280, "height": 900}, **options})

    def ask(self, **command):
        return self._browser.ask(page=self._name, **command)

    def run(self, script):
        return self.ask(run=script)

    def text(self, selector):
        """Returns the visible text there, or None."""
        find = f"document.querySelector({json.dumps(selector)})"
        return self.run(f"(() => {{ const it = {find}; return it?.checkVisibility() ? it.innerText : null }})()")

    def shows(self, text, selector="body", seconds=15):
        there = lambda: text in (self.text(selector) or "")
        wait_for(there, lambda: f"{selector} shows {text!r}; it shows {self.text(selector)!r}", seconds)

    def holds(self, text):
        """Returns true if the text is anywhere in the document: text, attributes, fields."""
        fields = "[...document.querySelectorAll('input')].map(({ value }) => value).join()"
        return text in self.run(f"document.documentElement.outerHTML + {fields}")

    def click(self, name, role="button"):
        self.ask(click=name, role=role)

    def press(self, *keys):
        for key in keys:
            self.ask(press=key)

    def focus(self):
        """Returns the id of the focused element, or its text."""
        return self.run("document.activeElement.id || document.activeElement.innerText")

    def tab_to(self, name):
        for _ in range(60):
            if self.focus() == name:
                return
            self.press("Tab")
        raise AssertionError(f"the tab key does not lead to {name}")

    def fill(self, field, text):
        self.run(f"document.getElementById({json.dumps(field)}).select()")
        self.press("Delete")
        if text:
            self.ask(write=text)

    def follows(self):
        """Waits until the live tail is connected: events sent from now on are shown."""
        wait_for(lambda: self.run("document.getElementById('tail-state').dataset.state") == "live", "the tail is live")

    def ids(self):
        """Returns the ids in the live tail, oldest first."""
        return self.run("[...document.querySelectorAll('.event:not(.gap) .id')].map((id) => id.textContent).reverse()")

    def shows_ids(self, ids, seconds=15):
        wait_for(lambda: self.ids() == ids, lambda: f"the tail shows {ids}; it shows {self.ids()}", seconds)

    def reports(self, kind):
        return [it for it in list(self._browser.reports) if it["name"] == self._name and it["kind"] == kind]

    def requests(self, path):
        return [request for request in self.reports("request") if urlsplit(request["url"]).path.startswith(path)]

    def assert_behaved(self):
        """Checks that there was no error, no violation of the policy, and no request to another host than the relay."""
        said = [it["text"] for it in self.reports("console")]
        unexpected = [text for text in said if not any(text.startswith(start) for start in self.expected)]
        assert not unexpected, f"in the console of Chromium: {unexpected}"
        assert not self.reports("error") and not self.reports("violation"), self.reports("error") + self.reports("violation")
        hosts = {urlsplit(it["url"]).netloc for it in self.reports("request") if not it["url"].startswith("data:")}
        assert hosts == {self._host}, hosts

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if not failure:
            self.assert_behaved()


def event(session="s1", kind="actions", **more):
    return {"type": kind, "session_id": session, **more}
