"""Waits for conditions: always with a deadline, never for a fixed time."""

import time

PATIENCE = 15.0  # seconds; every awaited condition takes two or three at most


def wait_for(condition, what, seconds=PATIENCE):
    """Polls until `condition()` is true and returns its value. `what` names it in the failure; it may be a function."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what() if callable(what) else what}")
        time.sleep(0.02)
