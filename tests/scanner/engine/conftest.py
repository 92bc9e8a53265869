"""A watch over threads that hang."""

import faulthandler
import threading
import time
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """A hang ends the process, which is a failure, and shows where every thread was. So do threads that a test leaves
    behind, which would hold up the end of the process."""
    before = set(threading.enumerate())
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(5)
    faulthandler.cancel_dump_traceback_later()
    if any(thread.is_alive() for thread in left):
        faulthandler.dump_traceback_later(1, exit=True)
        time.sleep(5)
