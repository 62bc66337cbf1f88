"""Runs the image as a container engine would, and tests it: check.py ROOT IMAGE.JSON

The root is read-only; the relay is process 1 and has the image's user, no capability, and only the image's variables. The script mounts the
files that an engine would mount: the configuration, a volume for the log, /etc/resolv.conf.
"""

import atexit
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

root, image = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())["Docker"]["config"]
work = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, work)
MOUNT = """
set -e; root=$1; shift
mount --bind "$root" "$root"
while [ "$1" != -- ]; do mount --bind "$1" "$root/$2"; shift 2; done; shift
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$1" --groups= "$root" "${@:2}"
"""
CONFIG = """
[server]
listen = "127.0.0.1:{public}"
admin_listen = "127.0.0.1:{admin}"
drain_window = "0s"
tls_cert_file = "/etc/autoplay-relay/tls.crt"
tls_key_file = "/etc/autoplay-relay/tls.key"
[[upstreams]]
product_id = "prod_abc"
url = "http://connector.test:{connector}/stream/prod_abc"
token = "token-of-the-connector"
[[auth.keys]]
name = "agent"
key = "key-of-the-agent"
products = ["prod_abc"]
[log]
data_dir = "/var/lib/autoplay-relay/log"
"""


class Container:
    """One command of the image, in a place of its own."""

    def __init__(self, *arguments, mounts=()):
        for directory in ("proc", "dev", "etc/autoplay-relay"):  # where an engine mounts, it makes the place
            (root / directory).mkdir(parents=True, exist_ok=True)
        (root / "etc/resolv.conf").touch()
        mounts = [*mounts, (work / "resolv.conf", "etc/resolv.conf"), (work / "etc", "etc/autoplay-relay")]
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", MOUNT, "mount", str(root)]
        command += [str(part) for mount in mounts for part in mount] + ["--", image["User"], *image["Entrypoint"], *arguments]
        self.log = work / f"{arguments[0]}.log"
        environment = dict(variable.split("=", 1) for variable in image.get("Env") or [])
        environment["PATH"] = os.environ["PATH"]  # for the commands that mount; the relay starts none
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        atexit.register(self.process.kill)  # what is in there goes with it

    def first(self):
        """The process that is 1 in there, once it is the relay."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")

        def relay():
            pid = children.read_text().strip()
            return pid if pid and "autoplay-relay" in os.readlink(f"/proc/{pid}/exe") else None

        return wait_for(relay, "the relay runs")

    def stop(self):
        """As an engine stops it."""
        os.kill(int(self.first()), signal.SIGTERM)
        assert self.process.wait(timeout=20) == 0, f"it left with {self.process.returncode}: {self.log.read_text()}"


def run(*arguments, mounts=()):
    ended = Container(*arguments, mounts=mounts)
    try:
        told, _ = ended.process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{arguments[0]} does not end: {ended.log.read_text()}") from None
    return ended.process.returncode, told, ended.log.read_text()


def wait_for(look, what):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"not within 20 s: {what}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_names():
    """A name server on loopback: each name is 127.0.0.1, and has no address of version 6."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.53.0.1", 53))

    def answer():
        while True:
            query, client = server.recvfrom(512)
            question = query[12 : query.index(b"\0", 12) + 5]
            is_a = question[-4:-2] == b"\0\1"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x7f\0\0\1" if is_a else b""
            server.sendto(query[:2] + b"\x81\x80\0\1" + bytes([0, is_a]) + b"\0\0\0\0" + question + record, client)

    threading.Thread(target=answer, daemon=True).start()
    (work / "resolv.conf").write_text("nameserver 127.53.0.1\n")


def judge_sbom(binary):
    section = work / "sbom"
    subprocess.run(["objcopy", "--dump-section", f".dep-v0={section}", binary, "/dev/null"], check=True)
    crates = {crate["name"] for crate in json.loads(zlib.decompress(section.read_bytes()))["packages"]}
    assert {"autoplay-relay", "hyper", "rustls", "rusqlite"} <= crates, crates
    return len(crates)


def main():
    serve_names()
    (work / "etc").mkdir()
    (work / "data").mkdir()
    user, group = map(int, image["User"].split(":"))
    assert user and group, "a user that Kubernetes can tell is not root"
    home = root / "var/lib/autoplay-relay"
    assert (home.stat().st_uid, home.stat().st_gid) == (user, group), "a new volume would be root's"
    os.chown(work / "data", user, group)
    work.chmod(0o755)
    shells = [path for path in root.rglob("*") if path.is_file() and path.name in ("sh", "bash", "busybox", "dpkg", "apt")]
    assert not shells, shells
    # fmt: off
    subprocess.run([
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=relay.test",
        "-addext", "subjectAltName=DNS:relay.test", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", work / "etc/tls.key", "-out", work / "etc/tls.crt",
    ], check=True, capture_output=True)
    # fmt: on
    (work / "etc/tls.key").chmod(0o644)
    public, admin, connector = free_port(), free_port(), free_port()
    (work / "etc/relay.toml").write_text(CONFIG.format(public=public, admin=admin, connector=connector))
    health = [*image["Healthcheck"]["Test"][2:], "--url", f"http://127.0.0.1:{admin}/readyz"]
    assert image["Healthcheck"]["Test"][:2] == ["CMD", *image["Entrypoint"]]

    assert run(*health)[0] == 1, "healthy although nothing runs"
    sizes = ("--product", "prod_abc", "--rate", "20", "--token", "token-of-the-connector")
    simulator = Container("simulate", "--listen", f"127.0.0.1:{connector}", *sizes)
    relay = Container("serve", "--config", "/etc/autoplay-relay/relay.toml", mounts=[(work / "data", "var/lib/autoplay-relay")])
    wait_for(lambda: run(*health)[0] == 0, f"healthy: {relay.log.read_text()}")

    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{relay.first()}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == [str(user)] * 4 and int(status["CapEff"], 16) == 0, status
    mounts = [line.split() for line in Path(f"/proc/{relay.first()}/mounts").read_text().splitlines()]
    assert [mount[3].split(",")[0] for mount in mounts if mount[1] == "/"][-1] == "ro", mounts

    # By name, over HTTPS, trusting what lies where the image keeps its roots.
    tail = ("tail", f"https://relay.test:{public}/stream/prod_abc", "--token", "key-of-the-agent", "--json", "--count", "1")
    trust = [(work / "etc/tls.crt", "etc/ssl/certs/ca-certificates.crt")]
    code, told, problem = run(*tail, mounts=trust)
    assert code == 0 and json.loads(told)["data"]["product_id"] == "prod_abc", (code, told, problem)
    assert (work / "data/log/relay.db").stat().st_uid == user
    roots = ssl.create_default_context(cafile=root / "etc/ssl/certs/ca-certificates.crt").cert_store_stats()["x509_ca"]
    assert roots > 100, roots

    relay.stop()
    simulator.stop()
    crates = judge_sbom(root / image["Entrypoint"][0].lstrip("/"))
    size = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file())
    binary = (root / image["Entrypoint"][0].lstrip("/")).stat().st_size
    packed = len(subprocess.run(["tar", "-C", root, "-cz", "."], check=True, capture_output=True).stdout)
    print(f"{size / 2**20:.1f} MiB, {binary / 2**20:.1f} of them the binary; {packed / 2**20:.1f} MiB packed; SBOM of {crates} crates; {roots} roots")


main()
