"""Finds the functions named test_*, runs them one after the other, and counts the results."""

import importlib
import time
import traceback
from pathlib import Path

import processes


def cases(*values):
    """Runs the test once for each value, passed as its argument."""

    def mark(test):
        test.cases = values
        return test

    return mark


def run(wanted):
    passed = failed = 0
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(file.stem)
        for name, test in list(vars(module).items()):
            if not name.startswith("test_"):
                continue
            for arguments, label in variants(name, test):
                if wanted and not any(part in label for part in wanted):
                    continue
                if succeeds(test, arguments, label):
                    passed += 1
                else:
                    failed += 1
    if passed + failed == 0:
        failed = 1  # a run without tests must fail
        print(f"no test is called like {wanted}")
    print(f"{passed} passed, {failed} failed", flush=True)
    return failed == 0


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
        print(f"FAILED {label}\n{traceback.format_exc()}")
        for log in sorted(set(processes.log_dir.glob("*.log")) - logs_before):
            print(f"--- end of {log.name}\n{log.read_text(errors='replace')[-1500:]}")
        return False
    print(f"ok {label} ({time.monotonic() - began:.1f} s)", flush=True)
    return True
