"""HTTPS: several implementations of TLS and HTTP/2."""

import base64
import hashlib
import json
import re
import shutil
import ssl
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import httpx
import processes
import sse
from browser import Browser, Pages
from processes import PRODUCT, READER, Relay, Simulator
from runner import cases
from test_browser import SECRET, token
from test_curl import EVENT, RETRY, Curl, blocks
from waiting import wait_for


class Certificate:
    """A self-signed certificate, its key, and the hash by which Chromium trusts it."""

    def __init__(self, folder, name):
        self.cert, self.key = Path(folder, f"{name}.pem"), Path(folder, f"{name}.key")
        # fmt: off
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-keyout", self.key, "-out", self.cert, "-subj", "/CN=127.0.0.1",
                "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE")
        # fmt: on
        public = openssl("x509", "-in", self.cert, "-noout", "-pubkey")
        spki = base64.b64decode(re.sub(r"-----.*?-----|\s", "", public))
        self.spki = base64.b64encode(hashlib.sha256(spki).digest()).decode()

    def become(self, other):
        """Replaces both files one after the other, as most tools do."""
        shutil.copy(other.cert, self.cert)
        shutil.copy(other.key, self.key)


def openssl(*arguments):
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


class SecureRelay(Relay):
    def __init__(self, simulator, certificate, server="", **options):
        tls = f'tls_cert_file = "{certificate.cert}"\ntls_key_file = "{certificate.key}"\n'
        self.certificate = certificate
        super().__init__(simulator, server=tls + server, **options)

    def url(self, query="", product=PRODUCT, path="stream"):
        return f"https://127.0.0.1:{self.port}/{path}/{product}{query}"


@contextmanager
def secure_scene(server="", rate=50, **options):
    with tempfile.TemporaryDirectory(dir=processes.log_dir) as folder, Simulator(rate) as simulator:
        with SecureRelay(simulator, Certificate(folder, "relay"), server, **options) as relay:
            yield simulator, relay


@cases(("--http2", "http/2 200"), ("--http1.1", "http/1.1 200"))
def test_curl_reads_a_stream_over_tls(version):
    option, first_line = version
    with secure_scene() as (simulator, relay):
        with sse.Stream(f"http://127.0.0.1:{simulator.port}/stream/{PRODUCT}", simulator.token) as direct:
            with Curl(relay.url(), option, "--cacert", str(relay.certificate.cert)) as curl:
                wait_for(lambda: curl.body().count(b"\n\n") >= 20, lambda: f"20 frames; now {curl.printed[-500:]!r}")
            assert curl.head().startswith(first_line), curl.head()
            body = curl.body()
            payloads = [EVENT.fullmatch(block)[2] for block in blocks(body[re.match(RETRY, body).end() :])]
            direct.wait_for_payload(payloads[-1])
            shared = [payload for payload in payloads if payload in direct.payloads()]
            sse.assert_contiguous_run(shared, direct.payloads(), "the bytes curl printed against the connector's")
            assert len(shared) > 10, "most came after the witness had begun"


def test_httpx_streams_over_http2():
    with secure_scene() as (_, relay):
        trust = httpx.create_ssl_context(verify=str(relay.certificate.cert), trust_env=False)
        bearer = {"Authorization": f"Bearer {READER}"}
        with httpx.Client(http2=True, verify=trust, trust_env=False, timeout=15, headers=bearer) as client:
            with client.stream("GET", relay.url()) as one, client.stream("GET", relay.url()) as other:
                assert (one.http_version, other.http_version) == ("HTTP/2", "HTTP/2")
                for response in (one, other):
                    lines = response.iter_lines()
                    data = [line for line, _ in zip((line for line in lines if line.startswith("data: ")), range(10))]
                    assert all("type" in json.loads(line.removeprefix("data: ")) for line in data), data


@cases(
    ("-tls1_1", "", False),
    ("-tls1_2", "h2", True),
    ("-tls1_3", "h2", True),
    ("-tls1_2", "http/1.1", True),
    ("-tls1_3", "spdy/3", False),
)
def test_openssl_negotiates_tls_1_2_and_newer_only(wanted):
    version, alpn, good = wanted
    with secure_scene() as (_, relay):
        # Debian's openssl offers TLS 1.1 only at a lower security level.
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{relay.port}", version, "-CAfile", relay.certificate.cert]
        command += ["-cipher", "DEFAULT@SECLEVEL=0", "-verify_return_error"] + (["-alpn", alpn] if alpn else [])
        done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
        told = (done.stdout + done.stderr).decode(errors="replace")
        assert (done.returncode == 0) is good, told
        if good:
            assert f"ALPN protocol: {alpn}" in told and "Verify return code: 0 (ok)" in told, told
        else:
            assert "SSL alert number" in told, f"the relay refuses it, and not openssl: {told}"


@cases("https", "http")
def test_h2load_gets_every_response(scheme):
    with tempfile.TemporaryDirectory(dir=processes.log_dir) as folder, Simulator(rate=50) as simulator:
        relay = SecureRelay(simulator, Certificate(folder, "relay")) if scheme == "https" else Relay(simulator)
        with relay:
            # The response is complete and small: the load is connections and streams.
            url = f"{scheme}://127.0.0.1:{relay.port}/stream/nothing"
            command = ["h2load", "-n", "20000", "-c", "50", "-m", "100", "-H", f"Authorization: Bearer {READER}", url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            told = done.stdout + done.stderr
            assert done.returncode == 0, told
            assert "20000 done" in told and "0 errored, 0 timeout" in told, told
            assert "status codes: 0 2xx, 0 3xx, 20000 4xx, 0 5xx" in told, told
            assert f"Application protocol: {'h2' if scheme == 'https' else 'h2c'}" in told, told


def test_fifty_streams_of_a_page_share_a_connection_and_survive_a_new_certificate():
    with Pages() as pages:
        listed = pages.origin("localhost")
        auth = f'cors_allowed_origins = ["{listed}"]\n'
        more = f'\n[auth.jwt]\nsecret = "{SECRET}"\nallow_query_token = true\n'
        with secure_scene(auth, rate=20, more=more) as (_, relay):
            trusted = f"--ignore-certificate-errors-spki-list={relay.certificate.spki}"
            mine = token(session_id="mine")
            with Browser(trusted) as browser:
                page = browser.page(listed)
                url = relay.url(f"?access_token={mine}")
                followed = [page.follow(str(number), url) for number in range(50)]
                for told in followed:
                    told.wait_for(lambda told=told: told.of("open"), "it is open")
                assert peers(relay) == 1, "fifty streams, one connection"
                publish(relay, 1)
                for told in followed:
                    told.wait_for(lambda told=told: len(told.of("message")) == 1, "the event")
                relay.certificate.become(Certificate(relay.certificate.cert.parent, "next"))
                wait_for(lambda: shown(relay) == relay.certificate.cert.read_text(), "the new certificate is shown")
                publish(relay, 2)
                for told in followed:
                    told.wait_for(lambda told=told: len(told.of("message")) == 2, "the event after that")
                    assert not told.of("error") and len(told.of("open")) == 1, str(told)


def peers(relay):
    """Returns the connections to the relay's port."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local = f"{int.from_bytes(bytes([127, 0, 0, 1]), 'little'):08X}:{relay.port:04X}"
    return sum(1 for row in rows if row.split()[1] == local and row.split()[3] == "01")


def shown(relay):
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{relay.port}"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20
    )
    found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", done.stdout.decode(), re.DOTALL)
    return found and found[0]


def publish(relay, number):
    trust = ssl.create_default_context(cafile=str(relay.certificate.cert))
    body = json.dumps({"type": "own", "session_id": "mine", "number": number}).encode()
    bearer = {"Authorization": f"Bearer {token(permissions=['publish'])}"}
    request = urllib.request.Request(relay.url(path="events"), body, bearer)
    with urllib.request.urlopen(request, timeout=5, context=trust) as answer:
        assert answer.status == 202, answer.status
