"""Pin the number of BLAS threads while a run, or its reversal, is under way.

A matrix product computed by one thread and by two may differ in its last bit, and then training
does not reverse. The limit belongs to the process, so the pin is counted: the first run sets it,
the last one to end restores what was there, and runs in several threads share it.
"""

import threading
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_pin = {"runs": 0, "threads": None, "limiter": None}


@cache
def _controller():
    return ThreadpoolController().select(user_api="blas")


def threads():
    """BLAS threads in use now, or None where no BLAS with a setting is loaded."""
    return max((lib["num_threads"] for lib in _controller().info()), default=None)


@contextmanager
def pinned(count=None):
    """Hold the BLAS threads at `count` (default: as they are); yields the count.

    Raises RuntimeError if another run in this process holds them at a different count.
    """
    count = _acquire(count)
    try:
        yield count
    finally:
        _release()


def _acquire(count):
    with _lock:
        if _pin["runs"] == 0:
            count = threads() if count is None else count
            _pin.update(threads=count, limiter=_controller().limit(limits=count))
        elif count not in (None, _pin["threads"]):
            raise RuntimeError(
                f"this run used {count} BLAS threads and must be reversed with as many, but "
                f"another run holds them at {_pin['threads']}; let it end first."
            )
        _pin["runs"] += 1
        return _pin["threads"]


def _release():
    with _lock:
        _pin["runs"] -= 1
        if _pin["runs"] == 0:
            _pin["limiter"].restore_original_limits()
            _pin.update(threads=None, limiter=None)
