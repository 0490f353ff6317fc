"""A run that is killed at any step goes on and ends with the same bits; other files are refused."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np
import optree
import pytest
from hypothesis import settings
from killed import ADJOINTS, STEPS, answer
from threadpoolctl import threadpool_limits
from training import batches_of, bits, hyper_of, loss, params_of, validation_loss

import revgrad as rg
from revgrad import blas, files, resume
from revgrad.gradient import Gradient
from revgrad.resume import digest

SCRIPT = Path(__file__).parent / "killed.py"
DEEP = settings.default.max_examples >= 1000
NAMES = [*ADJOINTS]


class Killed(BaseException):
    """Ends a run like a kill: nobody catches it."""


def until(monkeypatch, kill, act=None):
    """Raise Killed at gradient number `kill`, counted from now."""
    ticks = iter(range(10**9))
    names = "value", "with_pullback", "with_push"

    def counted(method):
        def call(self, *args):
            if next(ticks) == kill:
                if act is None:
                    raise Killed
                act()
            return method(self, *args)

        return call

    for name in names:
        monkeypatch.setattr(Gradient, name, counted(getattr(Gradient, name)))


@cache
def expected(name, **changes):
    return bits(answer(None, name, **changes))


# Real processes, real kills.


def process(path, name, *kill):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *sys.path])}
    command = [sys.executable, SCRIPT, path, name, *map(str, kill)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("name", NAMES)
def test_a_process_killed_again_and_again_ends_with_the_same_bits(name, tmp_path):
    path = tmp_path / "run.safetensors"
    whole = process("none", name)
    assert whole.returncode == 0, whole.stderr
    wanted, gradients = whole.stdout.split()
    rng, kills = random.Random(0), 0
    while kills < (50 if DEEP else 3):
        done = process(path, name, rng.randrange(10, int(gradients)))
        if done.returncode == 0:  # it came to its end before it could be killed
            assert done.stdout.split()[0] == wanted and not path.exists()
            continue
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    last = process(path, name)
    assert last.returncode == 0, last.stderr
    assert last.stdout.split()[0] == wanted and os.listdir(tmp_path) == []


# The same within this process, at every step.


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_gradient(name, every, tmp_path, monkeypatch):
    path, resumed = tmp_path / "run", 0
    for kill in range(1, 4 * STEPS, 1 if DEEP else 23 if every == 1 else 13):
        with monkeypatch.context() as patch:
            until(patch, kill)
            try:
                found = answer(path, name, every=every)
            except Killed:
                resumed += path.exists()
                found = None
        assert bits(found or answer(path, name, every=every)) == expected(name)
        assert os.listdir(tmp_path) == []
    assert resumed >= 3


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch):
    path, batches = tmp_path / "run", batches_of(STEPS, "float32")
    seen = []

    def stepwise(t):
        seen.append(t)
        return batches[t]

    for kill, first in ((STEPS - 2, STEPS - 5), (STEPS + 20, 0)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            until(patch, kill)
            answer(path, "reversible", every=5, batches=stepwise, steps=STEPS)
        seen.clear()
        if first:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                until(patch, 10)
                answer(path, "reversible", every=5, batches=stepwise, steps=STEPS)
            assert set(seen) - {0, 1} <= set(range(first - 5, STEPS))
            path.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_an_untraced_run_goes_on_too(name, tmp_path, monkeypatch):
    path = tmp_path / "run"
    run = lambda save=None: rg.train(
        loss, params_of(), rg.Momentum(0.05), batches_of(STEPS), hyper=hyper_of(),
        adjoint=ADJOINTS[name], save=save, save_every=save and 4, return_state=True,
    )  # fmt: skip
    whole = bits(run())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        until(patch, 27)
        run(path)
    assert path.exists()
    with pytest.raises(rg.NotResumed, match="with another derivative asked for"):
        rg.vjp(lambda p: rg.train(
            loss, p, rg.Momentum(0.05), batches_of(STEPS), hyper=hyper_of(), save=path,
            adjoint=ADJOINTS[name],
        ), params_of())  # fmt: skip
    assert bits(run(path)) == whole and not path.exists()


@pytest.mark.parametrize("name", NAMES)
def test_several_pull_backs_of_one_saved_run(name, tmp_path, monkeypatch):
    """A Jacobian: the file is of one row, the others begin at the end."""

    def rows(save):
        def losses(hyper):
            trained = rg.train(
                loss, params_of(), rg.Momentum(0.05), batches_of(STEPS), hyper=hyper,
                adjoint=ADJOINTS[name], save=save, save_every=save and 5,
            )  # fmt: skip
            return np.stack([loss(trained, hyper_of(), batch) for batch in batches_of(3, seed=3)])

        return rg.jacrev(losses)(hyper_of())

    whole = bits(rows(None))
    for kill in (10, 25, 38) if name == "forward" else (55, 100, 140):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            until(patch, kill)
            rows(tmp_path / "run")
        assert bits(rows(tmp_path / "run")) == whole and os.listdir(tmp_path) == []


@pytest.mark.parametrize("buffer", ["words", "bignum"])
@pytest.mark.parametrize("make", [rg.Adam, rg.HeavyBall])
def test_other_optimizers_and_buffers(make, buffer, tmp_path, monkeypatch):
    def run(params, save=None):
        return rg.train(
            loss, params, make(rg.per_step(np.full(STEPS, 0.01))), batches_of(STEPS),
            hyper=hyper_of(), arithmetic=rg.FixedPoint(buffer=buffer), save=save,
            save_every=save and 3, state={"t": 7}, adjoint=rg.Reversible(),
        )  # fmt: skip

    gradient = rg.grad(lambda p, save=None: validation_loss(run(p, save)))
    whole = bits(gradient(params_of()))
    for kill in (20, 70):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            until(patch, kill)
            gradient(params_of(), tmp_path / "run")
        assert bits(gradient(params_of(), tmp_path / "run")) == whole


def test_a_run_that_a_callback_ended(tmp_path, monkeypatch):
    def stop(step, metrics):
        if step == 25:
            raise rg.StopRun

    def run(rate, save=None):
        trained, state = rg.train(
            loss, params_of(), rg.Momentum(rate), batches_of(STEPS), hyper=hyper_of(),
            callback=stop, return_state=True, save=save, save_every=save and 4,
        )  # fmt: skip
        return validation_loss(trained) + state["t"]

    whole = rg.value_and_grad(run)(0.05)
    for kill in (12, 30, 45):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            until(patch, kill)
            rg.value_and_grad(run)(0.05, tmp_path / "run")
        assert rg.value_and_grad(run)(0.05, tmp_path / "run") == whole


def test_by_default_it_is_saved_by_the_clock(tmp_path, monkeypatch):
    path = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        until(patch, 20)
        answer(path, "reversible", every=None)
    assert not path.exists()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(resume, "SECONDS", 0.0)
        until(patch, 20)
        answer(path, "reversible", every=None)
    assert path.exists()
    assert bits(answer(path, "reversible", every=None)) == expected("reversible")


# Files that are not this run's.


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """Path of the file of a run that was killed on its way `there` or `back`."""

    def make(kill, name="reversible"):
        path = tmp_path / "run"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            until(patch, kill)
            answer(path, name)
        return path

    return make


OTHER = {
    "a loss": ({"loss": lambda p, h, b: 1.01 * loss(p, h, b)}, "another (loss|first gradient)"),
    "data": ({"batches": batches_of(STEPS, "float32", seed=5)}, "another loss, or other data"),
    "fewer steps": ({"steps": 30}, r"another number of steps \(40, now 30\)"),
    "a dtype": ({"kind": "float64"}, "another tree, shapes or dtypes of the params"),
    "a state": ({"state": {"t": 3}}, r"another state\['t'\]"),
    "bits": ({"arithmetic": rg.FixedPoint({"params": 50})}, "another arithmetic"),
    "an adjoint": ({"name": "checkpointed"}, r"another adjoint \(Reversible\(\), now Checkpoi"),
}


@pytest.mark.parametrize("kill", [25, 70], ids=["there", "back"])
@pytest.mark.parametrize(("changes", "message"), OTHER.values(), ids=OTHER)
def test_a_file_of_another_run_is_refused_with_the_likely_cause(
    interrupted, kill, changes, message
):
    path = interrupted(kill)
    before = path.read_bytes()
    with pytest.raises(rg.NotResumed, match=message):
        answer(path, **{"name": "reversible"} | changes)
    assert path.read_bytes() == before
    assert bits(answer(path, "reversible")) == expected("reversible")


def test_data_changed_in_the_saved_step_alone_are_noticed(interrupted):
    path = interrupted(25)
    batches = batches_of(STEPS, "float32")
    with files.Reader(path, resume.FORM) as file:
        t = file.facts["t"]
    batches[t] = (batches[t][0] + np.float32(1e-3), batches[t][1])
    with pytest.raises(rg.NotResumed, match=rf"^the gradient of step {t} is not the one that"):
        answer(path, "reversible", batches=batches)


@pytest.mark.parametrize("name", ["NumPy", "processor", "revgrad"])
def test_a_file_of_another_machine_is_refused(interrupted, name, monkeypatch):
    path = interrupted(70)
    here = resume.environment
    with monkeypatch.context() as patch:
        patch.setattr(resume, "environment", lambda threads: here(threads) | {name: "other"})
        with pytest.raises(rg.NotResumed, match=rf"with another {name} \(.*, now other\)"):
            answer(path, "reversible")
    assert bits(answer(path, "reversible")) == expected("reversible")


@pytest.mark.skipif(blas.threads() in (None, 1), reason="BLAS has one thread")
def test_a_file_of_another_number_of_threads_is_refused(interrupted):
    path = interrupted(70)
    with threadpool_limits(1, "blas"):
        message = r"another number of BLAS threads \(\d+, now 1\)"
        with pytest.raises(rg.NotResumed, match=message):
            answer(path, "reversible")


@pytest.mark.parametrize("kill", [25, 70], ids=["there", "back"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_any_byte_changed_added_or_cut_is_refused(interrupted, kill, name):
    path = interrupted(min(kill, STEPS - 5) if name == "forward" else kill, name)
    whole, rng = path.read_bytes(), random.Random(0)
    places = range(len(whole)) if DEEP else sorted(rng.sample(range(len(whole)), 60))
    damaged = [whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :] for k in places]
    damaged += [whole[:k] for k in places[::3]] + [
        whole[:k] + b"\0" + whole[k:] for k in places[::3]
    ]
    for content in [*damaged, whole + b"\0", b"", b"\xff" * 99, json.dumps({}).encode()]:
        path.write_bytes(content)
        with pytest.raises(rg.NotResumed, match="is damaged or no saved run"):
            answer(path, name)
    path.write_bytes(whole)
    assert bits(answer(path, name)) == expected(name)


def test_lengths_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    path = tmp_path / "run"
    files.write(path, resume.FORM, {}, [("state params", "I64", 16)], [b"0" * 16])
    huge = path.read_bytes().replace(
        b'"shape":[2],"data_offsets":[0,16]', b'"shape":[1],"data_offsets":[0,9]'
    )
    for content in (huge, (2**62).to_bytes(8, "little") + huge[8:]):
        path.write_bytes(content)
        with pytest.raises(rg.NotResumed, match="its header is not one of revgrad's"):
            answer(path, "reversible")


REFUSED = {
    "Stored": (
        {"adjoint": rg.Stored()},
        ValueError,
        r"with Stored\(\): a run can be taken up with",
    ),
    "Unrolled": ({"adjoint": rg.Unrolled()}, ValueError, r"with Unrolled\(\): a run can be"),
    "Truncated": ({"adjoint": rg.Truncated(2)}, ValueError, "a run can be taken up with Reversibl"),
    "no folder": ({"save": "/nowhere/run"}, FileNotFoundError, "there is no folder /nowhere; make"),
    "often": ({"save_every": 0}, ValueError, "save_every=0; a whole number, 1 or more"),
    "nowhere": ({"save": None, "save_every": 3}, ValueError, "^save_every=3 without save=; pass a"),
}


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_saved_is_refused_at_the_door(changes, error, message, tmp_path):
    what = {"save": tmp_path / "run", "hyper": hyper_of()} | changes
    with pytest.raises(error, match=message):
        rg.train(loss, params_of(), rg.Momentum(0.1), batches_of(3), **what)


def test_auto_takes_what_can_be_saved(tmp_path):
    report = rg.Report()
    for optimizer, start in ((rg.Momentum(0.1), "Reversible()"), (rg.SGD(0.1), "Checkpointed(")):
        rg.train(
            loss, params_of(), optimizer, batches_of(3), hyper=hyper_of(), report=report,
            save=tmp_path / "run",
        )  # fmt: skip
        assert report.adjoint.startswith(start)


# What interrupts a run leaves the caller's arrays and the file as they were.


def interrupted_by(tmp_path, monkeypatch, act, error):
    """Run into `act` on the way there and back; whatever it does, the run ends well afterwards."""
    start, batches, path = params_of("float32"), batches_of(STEPS, "float32"), tmp_path / "run"

    def gradient():
        hyper = hyper_of("float32")
        run = lambda p: rg.train(
            loss, p, rg.Momentum(0.05), batches, hyper=hyper, save=path, save_every=3,
            adjoint=rg.Reversible(),
        )  # fmt: skip
        return rg.grad(lambda p: validation_loss(run(p)))(start)

    before, whole = bits((start, batches)), bits(gradient())
    for kill in (20, 75):
        with monkeypatch.context() as patch:
            until(patch, kill, act)
            with pytest.raises(error):
                gradient()
        assert bits((start, batches)) == before and os.listdir(tmp_path) == ["run"]
        with files.Reader(path, resume.FORM) as file:
            assert file.facts["t"] > 0
        assert blas._pin["runs"] == 0
        assert bits(gradient()) == whole and os.listdir(tmp_path) == []


def test_ctrl_c(tmp_path, monkeypatch):
    interrupt = lambda: signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        interrupted_by(tmp_path, monkeypatch, interrupt, KeyboardInterrupt)
    finally:
        signal.signal(signal.SIGINT, before)


def test_memory_that_runs_out(tmp_path, monkeypatch):
    def exhaust():
        raise MemoryError("none left")

    interrupted_by(tmp_path, monkeypatch, exhaust, MemoryError)


def test_a_full_disk(tmp_path, monkeypatch):
    """Files may not grow beyond some bytes: the operating system refuses to write, as when full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        start, path = params_of("float32"), tmp_path / "run"
        batches, before = batches_of(STEPS, "float32"), bits(start)
        gradient = rg.grad(lambda p, **options: validation_loss(rg.train(
            loss, p, rg.Momentum(0.05), batches, hyper=hyper_of("float32"), **options
        )))  # fmt: skip
        whole = bits(gradient(start))
        for kill in (20, 75):
            with monkeypatch.context() as patch:
                until(patch, kill, fill)
                with pytest.raises(OSError, match="File too large"):
                    gradient(start, save=path, save_every=3)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert bits(start) == before and os.listdir(tmp_path) == ["run"]
            assert bits(gradient(start, save=path, save_every=3)) == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(blas.threads() in (None, 1), reason="BLAS has one thread")
def test_a_run_that_ends_leaves_the_pin_of_another_thread():
    """Two runs at once, the first pinned at one thread; the second ends while it is under way."""
    held, ended, seen = threading.Event(), threading.Event(), []

    def long_loss(params, hyper, batch):
        if batch == 1:
            held.set()
            assert ended.wait(20)
        seen.append(blas.threads())
        return np.sum(params**2) + 0.0 * batch

    def first():
        with blas.pinned(1):
            rg.train(long_loss, np.ones(3), rg.Momentum(0.1), range(4))

    thread, before = threading.Thread(target=first), blas.threads()
    thread.start()
    try:
        assert held.wait(20)
        rg.train(lambda p, h, b: np.sum(p**2), np.ones(3), rg.Momentum(0.1), [0, 1])
    finally:
        ended.set()
        thread.join(20)
    assert blas.threads() == before
    assert set(seen) == {1} and blas._pin["runs"] == 0


# The outer loop.


def search(save=None, factor=1.0, **changes):
    def hyperloss(hyper, step):
        if (act := changes.get("act")) and step == changes["at"]:
            act()
        return factor * np.sum((hyper["a"] - 1) ** 2) * (1 + 0.1 * step) + hyper["b"] ** 2

    start = {"a": np.ones(3, np.float32) * 3, "b": 0.5}
    optimizer = changes.get("optimizer", rg.Adam(rg.per_step(np.linspace(0.3, 0.1, 12))))
    return rg.minimize(hyperloss, start, optimizer, until=12, progress=False, save=save)


def kill():
    raise Killed


def the_same(found):
    return bits((found.hyper, found.best_hyper, found.values, found.best_value))


@pytest.mark.parametrize("at", [1, 5, 11])
def test_a_search_goes_on_at_the_step_it_was_in(at, tmp_path):
    path, whole = tmp_path / "search", the_same(search())
    with pytest.raises(Killed):
        search(path, at=at, act=kill)
    first = []
    found = search(path, at=at - 1, act=lambda: first.append(1))
    assert the_same(found) == whole and first and os.listdir(tmp_path) == []


def test_another_search_is_refused(tmp_path):
    path = tmp_path / "search"
    with pytest.raises(Killed):
        search(path, at=5, act=kill)
    before = path.read_bytes()
    with pytest.raises(rg.NotResumed, match="the hyperloss or its gradient at outer step 4 is not"):
        search(path, factor=1.01)
    with pytest.raises(rg.NotResumed, match="by a search with another optimizer"):
        search(path, optimizer=rg.Adam(0.1))
    for damaged in (before[:-1], before + b"\0", before[:300] + b"\0" + before[301:]):
        path.write_bytes(damaged)
        with pytest.raises(rg.NotResumed, match="is damaged or no saved search"):
            search(path)
    path.write_bytes(before)
    assert the_same(search(path)) == the_same(search())


def test_digests_tell_dtypes_and_shapes_apart():
    x = np.arange(4.0)
    found = {digest(x), digest(x.reshape(2, 2)), digest(x.astype("f")), digest(x, x), digest(-x)}
    assert len(found) == 5 and digest(*optree.tree_leaves({"a": x})) == digest(x.copy())
