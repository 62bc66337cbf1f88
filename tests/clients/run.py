"""Entry point of the client tests: prepares the clients under target/clients, then runs the tests with them."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "target" / "clients"
WHOLE_RUN = 900  # seconds; every wait inside is bounded too, this covers what those miss


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: run.sh BINARY [part of a test's name]...")
    binary = Path(sys.argv[1]).resolve()
    if not os.access(binary, os.X_OK):
        sys.exit(f"no executable at {binary}")
    python = prepare("python", ["requirements.txt"], make_venv) / "bin" / "python"
    node = prepare("node", ["package.json", "package-lock.json"], make_node_modules)
    if Path(sys.prefix) != python.parents[1]:
        os.execv(python, [str(python), "-B", __file__, *sys.argv[1:]])  # again, now with the SDK

    # Both exit through the tests' own clean-up, so that no process stays behind.
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"not done within {WHOLE_RUN} s"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped from outside"))
    signal.alarm(WHOLE_RUN)
    # Loopback only: no proxy of the caller's, and no token of the caller's that the SDK could use.
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("AUTOPLAY")]:
        del os.environ[name]

    import browser
    import console
    import processes
    import runner
    import test_eventsource
    import test_websocket

    processes.binary = binary
    # Node looks for packages beside the script, and the packages are in the cache.
    browser.driver = Path(shutil.copy(HERE / "browser.mjs", node))
    console.driver = Path(shutil.copy(HERE / "console.mjs", node))
    test_eventsource.driver = Path(shutil.copy(HERE / "eventsource.mjs", node))
    test_websocket.driver = Path(shutil.copy(HERE / "websocket.mjs", node))
    good = runner.run(sys.argv[2:])
    if good:
        shutil.rmtree(processes.log_dir)
    else:
        print(f"logs: {processes.log_dir}", file=sys.stderr)
    sys.exit(0 if good else 1)


def prepare(name, pins, make):
    """Returns the folder that `make` fills, which is rebuilt only when a pinned file or the interpreter has changed."""
    key = hashlib.sha256(sys.version.encode())
    for pin in pins:
        key.update((HERE / pin).read_bytes())
    folder = CACHE / f"{name}-{key.hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:  # of two runs at a time, one builds and the other waits
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder, pins)
            (folder / ".complete").touch()
    return folder


def make_venv(folder, pins):
    venv.create(folder, symlinks=True, with_pip=True)
    # The list is complete, so no unpinned package can be installed; pip check fails if it is not.
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    quietly([*pip, "install", "--no-deps", "-r", HERE / pins[0]])
    quietly([*pip, "check"])


def make_node_modules(folder, pins):
    folder.mkdir()
    for pin in pins:
        shutil.copy(HERE / pin, folder)
    quietly(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)


def quietly(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stdout}")


main()
