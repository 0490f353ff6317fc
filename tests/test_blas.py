"""The pin on BLAS threads: counted, shared between threads, and taken off at the end."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from training import batches_of, bits, hyper_of, loss, params_of

import revgrad as rg
from revgrad import blas


@pytest.fixture(autouse=True)
def two_threads():
    """Two threads before each test, and no pin left over after it."""
    if blas.threads() is None:
        pytest.skip("NumPy has no BLAS whose threads can be set")
    with threadpool_limits(2, user_api="blas"):
        if blas.threads() < 2:
            pytest.skip("BLAS was built for one thread")
        yield
        assert blas.threads() == 2 and blas._pin == {"runs": 0, "threads": None, "limiter": None}


def test_a_pin_holds_and_is_taken_off():
    with blas.pinned(1) as count:
        assert count == blas.threads() == 1
    assert blas.threads() == 2
    with blas.pinned() as count:
        assert count == 2


def test_pins_are_counted():
    with blas.pinned(1):
        with blas.pinned(1) as inner, blas.pinned() as innermost:
            assert inner == innermost == 1
        assert blas.threads() == 1
    assert blas.threads() == 2


def test_a_pin_is_taken_off_after_an_exception():
    with pytest.raises(KeyError), blas.pinned(1):
        raise KeyError
    assert blas.threads() == 2


def test_another_count_is_refused_and_leaves_the_pin():
    with blas.pinned(1):
        complaint = (
            r"^this run used 2 BLAS threads .* another run holds them at 1; let it end first"
        )
        with pytest.raises(RuntimeError, match=complaint), blas.pinned(2):
            raise AssertionError("not to be reached")
        assert blas.threads() == 1


def test_two_runs_in_two_threads_do_not_unpin_each_other():
    """The first run to start ends first: the second must stay pinned."""
    started, ended, seen = threading.Event(), threading.Event(), []

    def second():
        with blas.pinned() as count:
            started.set()
            assert ended.wait(10)
            seen.append((count, blas.threads()))

    thread = threading.Thread(target=second)
    with blas.pinned(1):
        thread.start()
        assert started.wait(10)
    ended.set()
    thread.join()
    assert seen == [(1, 1)]
    assert blas.threads() == 2


def in_another_thread(work):
    found = []

    def report():
        try:
            found.append(work())
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=report)
    thread.start()
    thread.join()
    return found[0]


def pin(count=1):
    with blas.pinned(count):
        return blas.threads()


def test_any_thread_may_pin_after_another_one():
    assert pin() == 1
    assert in_another_thread(pin) == 1
    assert pin() == 1


def test_a_pin_that_has_no_effect_is_refused():
    """threadpoolctl from 3.8 on ignores all threads but the first that has set a limit."""
    with threadpool_limits(2, user_api="blas"):
        found = in_another_thread(pin)
    assert found == 1 or "another thread of this process has set them" in found
    assert blas.threads() == 2


def test_as_they_are_needs_no_right_to_set():
    with threadpool_limits(1, user_api="blas"):
        assert in_another_thread(lambda: pin(None)) == 1


LATE = """
from revgrad import blas
with blas.pinned(1):
    assert blas.threads() == 1
import scipy.linalg
counts = lambda: [lib["num_threads"] for lib in blas._libraries().info()]
assert set(counts()) == {2}
with blas.pinned(1):
    assert set(counts()) == {1}
assert set(counts()) == {2}
"""


def test_libraries_loaded_after_the_first_run_are_pinned_too():
    pytest.importorskip("scipy", reason="SciPy brings a BLAS of its own")
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", LATE], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# In training.


def run(loss=loss, report=None, batches=None, **options):
    batches = batches or batches_of(3).__getitem__
    return lambda p: rg.train(
        loss, p, rg.Momentum(0.2), batches, steps=3, hyper=hyper_of(), report=report, **options
    )


def noting(seen):
    batches = batches_of(3)

    def batch_and_note(t):
        seen.append(blas.threads())
        return batches[t]

    return batch_and_note


def test_a_run_is_reversed_with_the_threads_it_had():
    seen, report = [], rg.Report()
    with threadpool_limits(1, user_api="blas"):
        out, pullback = rg.vjp(run(batches=noting(seen), report=report), params_of())
    assert set(seen) == {1} and report.blas_threads == 1 and blas.threads() == 2
    seen.clear()
    report.blas_threads = 2  # a report is for reading
    pullback(out)
    assert set(seen) == {1} and len(seen) == 3


def test_a_run_is_not_reversed_under_another_pin():
    with threadpool_limits(1, user_api="blas"):
        out, pullback = rg.vjp(run(), params_of())
    with blas.pinned(2), pytest.raises(RuntimeError, match="used 1 BLAS threads"):
        pullback(out)
    pullback(out)


@pytest.mark.parametrize("at", [1, 3, 4, 5])
def test_a_run_that_fails_leaves_no_pin(at):
    calls, batches = iter(range(100)), batches_of(3)

    def failing(t):
        if next(calls) == at:
            raise KeyError("mine")
        return batches[t]

    with pytest.raises(KeyError, match="mine"):
        rg.vjp(run(batches=failing), params_of())[1](params_of())


def test_runs_inside_of_runs_and_beside_them():
    def outer_loss(params, hyper, batch):
        inside = run()(params_of())
        return loss(params, hyper, batch) + 0.0 * np.sum(inside["out"])

    expected = bits(rg.grad(lambda p: np.sum(run()(p)["out"]))(params_of()))
    assert bits(rg.grad(lambda p: np.sum(run(outer_loss)(p)["out"]))(params_of())) == expected
    found = [None] * 4

    def work(k):
        found[k] = bits(rg.grad(lambda p: np.sum(run()(p)["out"]))(params_of()))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_a_library_that_is_loaded_later_is_found():
    """SciPy brings a BLAS of its own; libraries are looked for when modules were imported."""
    script = (
        "import numpy, revgrad.blas as blas\n"
        "found = lambda: {x.filepath for x in blas._libraries().lib_controllers}\n"
        "found()\n"
        "import scipy.linalg\n"
        "from threadpoolctl import threadpool_info\n"
        "assert found() == {x['filepath'] for x in threadpool_info() if x['user_api'] == 'blas'}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
