"""Chromium, and servers of blank pages for it: each port is an origin of its own."""

import atexit
import json
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import processes
from processes import free_port
from waiting import wait_for

driver = None  # browser.mjs beside its node_modules, set by run.py

# Chromium sends cookies to other sites if they are set so. Other browsers may not; the relay must
# not rely on that.
PREFERENCES = {"profile": {"cookie_controls_mode": 0, "block_third_party_cookies": False}}


class Driver:
    """A Node process with one Chromium with a new profile, and the events of its pages.

    Chromium takes seconds of a processor to start, so the tests of one worker share it.
    """

    def __init__(self, script, options):
        chromium = shutil.which("chromium")
        assert chromium, "there is no chromium: it comes with Debian's package of this name"
        profile = Path(tempfile.mkdtemp(dir=processes.log_dir))
        (profile / "Default").mkdir()
        (profile / "Default" / "Preferences").write_text(json.dumps(PREFERENCES))
        command = ["node", str(script), chromium, str(profile), *options]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.reports = []
        self._answers = {}
        self._asked = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with self._child.stdout as lines:
            for line in lines:
                report = json.loads(line)
                if "number" in report:
                    self._answers[report["number"]] = report
                else:
                    self.reports.append(report)

    def ask(self, **command):
        self._asked += 1
        number = self._asked
        self._child.stdin.write(json.dumps({"number": number, **command}).encode() + b"\n")
        self._child.stdin.flush()

        def answered():
            assert self._child.poll() is None, f"the browser's driver ended with {self._child.returncode}"
            return number in self._answers

        wait_for(answered, f"the browser does {command}", seconds=60)  # the first command includes the start
        answer = self._answers.pop(number)
        assert "failure" not in answer, f"{command}: {answer['failure']}"
        return answer["value"]

    def close(self):
        self._child.stdin.close()
        code = self._child.wait(20)
        self._reader.join(5)
        assert code == 0, f"the browser's driver ended with {code}"

    def kill(self):
        self._child.kill()
        self._child.wait()


_drivers = {}  # by script and options


class Browser:
    """Chromium during one test: it begins without pages, cookies and reports of other tests."""

    def __init__(self, *options, script=None):
        self._key = (script or driver, options)
        if self._key not in _drivers:
            _drivers[self._key] = Driver(*self._key)
        self._driver = _drivers[self._key]
        self.ask(reset=True)
        self._driver.reports.clear()

    @property
    def reports(self):
        return self._driver.reports

    def ask(self, **command):
        return self._driver.ask(**command)

    def page(self, url):
        return Page(self, url)

    def set_cookie(self, **cookie):
        self.ask(cookie={"path": "/", **cookie})

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if failure:
            _drivers.pop(self._key).kill()  # the next test must not inherit what failed
        else:
            self.ask(reset=True)


def close_all():
    """Ends every Chromium in order; the last test of a worker is over."""
    for key in list(_drivers):
        _drivers.pop(key).close()


@atexit.register
def kill_leftovers():
    for key in list(_drivers):
        _drivers.pop(key).kill()


class Page:
    """A loaded page. Each EventSource and WebSocket in it has a name, under which its events are reported."""

    def __init__(self, browser, url):
        self._browser = browser
        self._name = url
        self.origin = browser.ask(page=url, go=url)
        assert url.startswith(self.origin), f"{url} became {self.origin}"

    def run(self, call, *arguments):
        script = f"{call}({', '.join(json.dumps(argument) for argument in arguments)})"
        return self._browser.ask(page=self._name, run=script)

    def fetch(self, url, **init):
        """Returns status and body, or the error of the page's fetch."""
        return self.run("ask", url, init)

    def follow(self, name, url, **init):
        self.run("void follow", name, url, init)
        return Reports(self._browser, name)

    def talk(self, name, url):
        self.run("void talk", name, url)
        return Reports(self._browser, name)

    def say(self, name, message):
        self.run(f"sockets[{json.dumps(name)}].send", json.dumps(message))


class Reports:
    """The reported events of one EventSource or WebSocket."""

    def __init__(self, browser, name):
        self._browser = browser
        self._name = name

    def all(self):
        return [report for report in list(self._browser.reports) if report["name"] == self._name]

    def of(self, kind):
        return [report for report in self.all() if report["kind"] == kind]

    def entries(self):
        """Returns id and payload of each event of an EventSource, comparable with those of the witness."""
        return [(report["id"], report["data"].encode()) for report in self.of("message")]

    def texts(self, *events):
        """Returns the messages of a WebSocket of these kinds."""
        parsed = [json.loads(report["data"]) for report in self.of("text")]
        return [message for message in parsed if message["event"] in events]

    def wait_for(self, condition, what, seconds=15):
        wait_for(condition, lambda: f"{what}; {self}", seconds)

    def __str__(self):
        others = [report for report in self.all() if report["kind"] != "message"]
        return f"reported {len(self.of('message'))} events and {others[-10:]}"


class Pages:
    """A server of blank pages: `http://localhost` and `http://127.0.0.1` with its port are two origins, and two sites."""

    def __init__(self):
        self.port = free_port()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Blank)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def origin(self, host):
        return f"http://{host}:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class Blank(BaseHTTPRequestHandler):
    def do_GET(self):
        page = b"<!doctype html><link rel=icon href=data:,><title>blank</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass
