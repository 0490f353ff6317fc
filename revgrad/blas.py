"""Pin the number of BLAS threads while a run, or its reversal, is under way.

A matrix product computed by one thread and by two may differ in its last bit, and then training
does not reverse. The limit belongs to the process, so the pin is counted: the first run sets it,
the last one to end restores what was there, and runs in several threads share it.
"""

import sys
import threading
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_pin = {"runs": 0, "threads": None, "limiter": None}


def _libraries():
    """Those loaded now: SciPy, for one, brings a BLAS of its own, maybe after the first run."""
    return _found(len(sys.modules))


@lru_cache(1)
def _found(_modules):
    """Looked for anew when a module was imported since: it takes a millisecond."""
    return ThreadpoolController().select(user_api="blas")


def threads():
    """BLAS threads in use now, or None where no BLAS with a setting is loaded."""
    return max((lib["num_threads"] for lib in _libraries().info()), default=None)


@contextmanager
def pinned(count=None):
    """Hold the BLAS threads at `count` (default: as they are); yields the count.

    Raises: RuntimeError where another run in this process holds them at a different count, or
    another thread has reserved the setting of them.
    """
    count = _acquire(count)
    try:
        yield count
    finally:
        _release()


def _acquire(count):
    with _lock:
        if _pin["runs"] == 0:
            now = threads()
            limiter = None if count in (None, now) else _limit(count)
            _pin.update(threads=count or now, limiter=limiter)
        elif count not in (None, _pin["threads"]):
            raise RuntimeError(
                f"this run used {count} BLAS threads and must be reversed with as many, but "
                f"another run holds them at {_pin['threads']}; let it end first."
            )
        _pin["runs"] += 1
        return _pin["threads"]


def _limit(count):
    limiter = _libraries().limit(limits=count)
    if threads() != count:
        limiter.restore_original_limits()
        raise RuntimeError(
            f"this run used {count} BLAS threads and must be reversed with as many, but another "
            "thread of this process has set them by threadpoolctl; let it call "
            f"threadpool_limits({count}), or reverse the run there."
        )
    return limiter


def _release():
    with _lock:
        _pin["runs"] -= 1
        if _pin["runs"] == 0:
            if _pin["limiter"]:
                _restore(_pin["limiter"])
            _pin.update(threads=None, limiter=None)


def _restore(limiter):
    """From any thread, though threadpoolctl from 3.8 on heeds only the one that set the limit."""
    _give_up_control()
    limiter.restore_original_limits()
    _give_up_control()


def _give_up_control():
    for library in _libraries().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)
