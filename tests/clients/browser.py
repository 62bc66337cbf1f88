"""Chromium, and servers of blank pages for it: each port is an origin of its own."""

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

# Cookies go to other sites if their setter wants that. Not every browser does it any more; the relay must not rely on that.
PREFERENCES = {"profile": {"cookie_controls_mode": 0, "block_third_party_cookies": False}}


class Browser:
    """A Node process with one Chromium, which knows nothing at the beginning, and what happened in its pages."""

    def __init__(self, *options, script=None):
        chromium = shutil.which("chromium")
        assert chromium, "there is no chromium: it comes with Debian's package of this name"
        profile = Path(tempfile.mkdtemp(dir=processes.log_dir))
        (profile / "Default").mkdir()
        (profile / "Default" / "Preferences").write_text(json.dumps(PREFERENCES))
        command = ["node", str(script or driver), chromium, str(profile), *options]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.told = []
        self._answers = {}
        self._asked = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with self._child.stdout as lines:
            for line in lines:
                happening = json.loads(line)
                if "number" in happening:
                    self._answers[happening["number"]] = happening
                else:
                    self.told.append(happening)

    def ask(self, **command):
        self._asked += 1
        number = self._asked
        self._child.stdin.write(json.dumps({"number": number, **command}).encode() + b"\n")
        self._child.stdin.flush()

        def answered():
            assert self._child.poll() is None, f"the browser's driver ended with {self._child.returncode}"
            return number in self._answers

        wait_for(answered, f"the browser does {command}", seconds=60)  # its start is in the first one
        answer = self._answers.pop(number)
        assert "failure" not in answer, f"{command}: {answer['failure']}"
        return answer["value"]

    def page(self, url):
        return Page(self, url)

    def set_cookie(self, **cookie):
        self.ask(cookie={"path": "/", **cookie})

    def close(self):
        self._child.stdin.close()
        code = self._child.wait(20)
        self._reader.join(5)
        assert code == 0, f"the browser's driver ended with {code}"

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        try:
            self.close()
        except (AssertionError, subprocess.TimeoutExpired):
            self._child.kill()
            self._child.wait()
            if not failure:
                raise


class Page:
    """A page that has been loaded. What is begun in it has a name, under which its happenings are told."""

    def __init__(self, browser, url):
        self._browser = browser
        self._name = url
        self.origin = browser.ask(page=url, go=url)
        assert url.startswith(self.origin), f"{url} became {self.origin}"

    def run(self, call, *arguments):
        script = f"{call}({', '.join(json.dumps(argument) for argument in arguments)})"
        return self._browser.ask(page=self._name, run=script)

    def fetch(self, url, **init):
        """Status and body, or why the page gets neither."""
        return self.run("ask", url, init)

    def follow(self, name, url, **init):
        self.run("void follow", name, url, init)
        return Told(self._browser, name)

    def talk(self, name, url):
        self.run("void talk", name, url)
        return Told(self._browser, name)

    def say(self, name, message):
        self.run(f"sockets[{json.dumps(name)}].send", json.dumps(message))


class Told:
    """What is told of one EventSource or WebSocket."""

    def __init__(self, browser, name):
        self._browser = browser
        self._name = name

    def all(self):
        return [happening for happening in list(self._browser.told) if happening["name"] == self._name]

    def of(self, kind):
        return [happening for happening in self.all() if happening["kind"] == kind]

    def entries(self):
        """Id and payload of each event of an EventSource, comparable with those of the witness."""
        return [(happening["id"], happening["data"].encode()) for happening in self.of("message")]

    def texts(self, *events):
        """The messages of a WebSocket, of these kinds."""
        parsed = [json.loads(happening["data"]) for happening in self.of("text")]
        return [message for message in parsed if message["event"] in events]

    def wait_for(self, condition, what, seconds=15):
        wait_for(condition, lambda: f"{what}; {self}", seconds)

    def __str__(self):
        others = [happening for happening in self.all() if happening["kind"] != "message"]
        return f"told {len(self.of('message'))} events and {others[-10:]}"


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
