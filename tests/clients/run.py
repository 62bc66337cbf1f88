"""Entry point of the client tests: prepares the clients under target/clients, then runs the tests with them."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "target" / "clients"
WHOLE_RUN = 900  # seconds; every wait inside is bounded too, this covers what those miss
WORKER = "CLIENT_TESTS_WORKER"  # a worker's number, how many there are, and the folder that they share


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

    # Both exit through the clean-up of this process, so that none that it started stays behind.
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"not done within {WHOLE_RUN} s"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped from outside"))
    signal.alarm(WHOLE_RUN)
    if WORKER in os.environ:
        work(binary, node, sys.argv[2:], *os.environ[WORKER].split(" ", 2))
    else:
        sys.exit(0 if share(sys.argv[1:]) else 1)


def share(arguments):
    """Runs one worker for each core and one more, and returns whether every test has passed."""
    logs = Path(tempfile.mkdtemp(prefix="relay-clients-"))
    (logs / "outcomes").mkdir()
    count = len(os.sched_getaffinity(0)) + 1  # the tests wait for half of their time
    workers = []
    try:
        for number in range(count):
            environment = os.environ | {WORKER: f"{number} {count} {logs}"}
            workers.append(subprocess.Popen([sys.executable, "-B", __file__, *arguments], env=environment))
        ended_well = [worker.wait() == 0 for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
                worker.wait()

    import runner

    good = runner.is_good(arguments[1:], logs / "outcomes") and all(ended_well)
    if good:
        shutil.rmtree(logs)
    else:
        print(f"logs: {logs}", file=sys.stderr)
    return good


def work(binary, node, wanted, number, count, logs):
    """Runs the tests that no other worker has begun."""
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
    processes.log_dir = Path(logs) / f"worker-{number}"
    processes.log_dir.mkdir()
    processes.ports = range(15000 + int(number), 32000, int(count))
    # Node looks for packages beside the script, and the packages are in the cache.
    scripts = {"browser.mjs": browser, "console.mjs": console, "eventsource.mjs": test_eventsource}
    for script, module in (scripts | {"websocket.mjs": test_websocket}).items():
        module.driver = node / script
        shutil.copy(HERE / script, processes.log_dir)
        (processes.log_dir / script).replace(node / script)  # at once: another worker may be reading it
    runner.work(wanted, Path(logs) / "outcomes")


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
