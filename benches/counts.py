#!/usr/bin/env python3
"""Counts what repeats where times do not: instructions and system calls of the relay for an event.

    benches/counts.py           prints the counts
    benches/counts.py --check   also compares them with benches/counts.toml, and fails above its bounds

Needs valgrind and strace. The relay runs under each of them in scenarios K and Kc of benches/fanout: 200 events one by
one, then, in another process, some thousand more. The difference is their cost, without start, connects and shutdown.
The next event is sent when all subscribers have the last one and every thread of the relay sleeps, so it does not
depend on the machine's load how many threads are awake, or how many events are due at once. The relay has two
processors, because it starts a shard for each. Where compiler, C library or vector instructions differ from those of
counts.toml, instructions are printed and not checked.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).parent

# Scenarios, with the events that the longer run has in addition and the deliveries of an event, as in
# benches/fanout/scenario/counted.rs.
SCENARIOS = {"K": (1000, 20), "Kc": (4000, 1)}

# Calls that send bytes to a subscriber.
SENDS = ("send", "sendto", "sendmsg", "writev")

# Longer than any run takes that is not stuck.
RUN_SECONDS = 300

# strace follows the relay, and writes its table after the relay has ended.
TABLE_SECONDS = 10


def main():
    is_check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not is_check:
        sys.exit(__doc__)
    must_have_tools()
    bench, here = built_bench(), toolchain()
    restrict_to_two_processors()
    expected = tomllib.loads((HERE / "counts.toml").read_text())
    is_comparable = here == expected["toolchain"]
    findings = []
    with tempfile.TemporaryDirectory() as directory:
        for scenario, (events, deliveries) in SCENARIOS.items():
            bounds = expected[scenario]
            few, more = both_runs(instructions, bench, scenario, Path(directory))
            count = (more - few) / events
            print(f"{scenario}: {count:.0f} instructions for an event", flush=True)
            if is_comparable:
                findings += judged(scenario, count, bounds["instructions"], expected["room"])
            few, more = both_runs(system_calls, bench, scenario, Path(directory))
            counts = {name: (more[name] - few.get(name, 0)) / events for name in more}
            print(f"{scenario}: system calls for an event: {listed(counts)}", flush=True)
            findings += exceeded(scenario, counts, deliveries, bounds["calls"])
    if not is_comparable:
        print(f"INSTRUCTIONS NOT CHECKED: counts.toml is of {expected['toolchain']}, this is {here}")
    for _, text in findings:
        print(text)
    sys.exit(is_check and any(is_red for is_red, _ in findings))


def must_have_tools():
    """Fails with a sentence that says what is missing."""
    for tool in ("valgrind", "strace"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed")
    tried = subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        sys.exit(
            "system calls cannot be counted, because strace may trace no process here. A container needs "
            f"`--cap-add SYS_PTRACE`, and a seccomp profile that permits ptrace. strace: {tried.stderr.strip()}"
        )


def built_bench():
    """Builds the bench, and returns its path."""
    command = ["cargo", "bench", "--locked", "--bench", "fanout", "--no-run", "--message-format=json"]
    for line in subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "fanout" and message.get("executable"):
            return message["executable"]
    sys.exit("cargo has built no bench")


def toolchain():
    """Returns what instructions depend on besides the code."""
    rustc = subprocess.run(["rustc", "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    vectors = "avx2" if " avx2 " in Path("/proc/cpuinfo").read_text() else "no avx2"
    return f"rustc {rustc}, {' '.join(platform.libc_ver())}, {platform.machine()}, {vectors}"


def restrict_to_two_processors():
    processors = sorted(os.sched_getaffinity(0))[:2]
    if len(processors) < 2:
        sys.exit("two processors are needed: the counts are those of a relay with two shards")
    os.sched_setaffinity(0, processors)


def run(bench, scenario, under):
    """Runs one scenario with the relay below the command `under`."""
    # Without the platform's certificates, of which some machines have hundreds: the relay reads them at its start, and
    # once more when it reads its configuration again.
    settings = {"BENCH_RELAY_UNDER": under, "SSL_CERT_FILE": os.devnull}
    done = subprocess.run(
        [bench, "--bench", scenario],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
    )
    if done.returncode != 0:
        sys.exit(f"{scenario} failed under {under}:\n{done.stdout}")


def both_runs(count, bench, scenario, directory):
    return [count(bench, name, directory) for name in (scenario, f"{scenario}2")]


def instructions(bench, scenario, directory):
    """Returns the instructions of one run. Not the kernel's, which callgrind does not see."""
    profile = directory / f"callgrind-{scenario}"
    run(bench, scenario, f"valgrind --quiet --tool=callgrind --callgrind-out-file={profile}")
    return int(re.search(r"^(?:totals|summary): (\d+)", profile.read_text(), re.M)[1])


def system_calls(bench, scenario, directory):
    """Returns the system calls of one run, by name."""
    table = directory / f"strace-{scenario}"
    # -D: the relay stays the child of the bench, which signals it.
    run(bench, scenario, f"strace -D -f -c -U calls,name -o {table}")
    deadline = time.monotonic() + TABLE_SECONDS
    while not (table.exists() and re.search(r"^ *\d+ total$", text := table.read_text(), re.M)):
        if time.monotonic() > deadline:
            sys.exit(f"strace has written no table of {scenario}")
        time.sleep(0.05)
    return {name: int(count) for count, name in re.findall(r"^ *(\d+) (\w+)$", text, re.M) if name != "total"}


def listed(counts):
    most_first = sorted(counts.items(), key=lambda count: -count[1])
    return ", ".join(f"{name} {count:.2f}" for name, count in most_first if count >= 0.005)


def judged(scenario, count, figure, room):
    """Compares instructions with their figure, of which they may differ by `room`."""
    change = count / figure - 1
    if change > room:
        return [(True, f"RED: {scenario}: {count:.0f} instructions are {change:.1%} more than {figure}")]
    if change < -room:
        return [(False, f"note: {scenario}: {count:.0f} instructions are {-change:.1%} fewer: lower the {figure}")]
    return []


def exceeded(scenario, counts, deliveries, bounds):
    """Compares system calls with their bounds: those of a name, and all that have no bound of their own."""
    sends = sum(counts.get(name, 0) for name in SENDS)
    others = {name: count for name, count in counts.items() if name not in SENDS}
    seen = {"sends per delivery": sends / deliveries}
    seen |= {name: others.pop(name, 0) for name in bounds if name not in (*seen, "others")}
    seen["others"] = sum(others.values())
    return [
        (True, f"RED: {scenario}: {name}: {count:.3f} for an event, more than {bounds[name]}")
        for name, count in seen.items()
        if count > bounds[name]
    ]


if __name__ == "__main__":
    main()
