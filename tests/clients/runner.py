"""Finds the functions named test_* and runs them. Several workers share them, each a process of its own."""

import importlib
import time
import traceback
from pathlib import Path

import browser
import processes


def cases(*values):
    """Runs the test once for each value, passed as its argument."""

    def mark(test):
        test.cases = values
        return test

    return mark


def work(wanted, outcomes):
    """Runs each wanted test that no other worker has begun.

    The worker that creates a test's file in the folder `outcomes` runs it, and writes how it ended.
    """
    for number, (test, arguments, label) in enumerate(tests(wanted)):
        try:
            outcome = (outcomes / str(number)).open("x")
        except FileExistsError:
            continue
        with outcome:
            outcome.write("passed" if succeeds(test, arguments, label) else "failed")
    browser.close_all()


def tests(wanted):
    """Yields the tests with their arguments and labels; in every worker they are the same, in the same order."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(file.stem)
        for name, test in list(vars(module).items()):
            if not name.startswith("test_"):
                continue
            for arguments, label in variants(name, test):
                if not wanted or any(part in label for part in wanted):
                    yield test, arguments, label


def is_good(wanted, outcomes):
    """Counts the outcomes of all workers. False if one is missing, or there is none."""
    ends = [outcome.read_text() for outcome in outcomes.iterdir()]
    passed = ends.count("passed")
    print(f"{passed} passed, {len(ends) - passed} failed", flush=True)
    if not ends:  # a run without tests must fail
        print(f"no test is called like {wanted}")
    return bool(ends) and passed == len(ends)


def variants(name, test):
    if not hasattr(test, "cases"):
        return [((), name)]
    return [((value,), f"{name}[{describe(value)}]") for value in test.cases]


def describe(value):
    if isinstance(value, tuple):
        return ", ".join(describe(part) for part in value[:2])
    return getattr(value, "__name__", str(value))


def succeeds(test, arguments, label):
    logs_before = set(processes.log_dir.glob("*.log"))
    began = time.monotonic()
    try:
        test(*arguments)
    except Exception:
        text = f"FAILED {label}\n{traceback.format_exc()}"
        for log in sorted(set(processes.log_dir.glob("*.log")) - logs_before):
            text += f"--- end of {log.name}\n{log.read_text(errors='replace')[-1500:]}\n"
        print(text, flush=True)  # at once: other workers print, too
        return False
    print(f"ok {label} ({time.monotonic() - began:.1f} s)", flush=True)
    return True
