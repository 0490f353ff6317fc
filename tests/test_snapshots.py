"""The plan of snapshots takes the fewest steps there are: against a search, and the formula."""

from functools import cache
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import batches_of, hyper_of, loss, params_of

import revgrad as rg
from revgrad.memories import Snapshots
from revgrad.snapshots import advances, repeats, replays, stride


@cache
def fewest(steps, snapshots):
    """By trying every place of the next snapshot."""
    if steps <= 1:
        return 0
    if snapshots == 1:
        return steps * (steps - 1) // 2
    places = range(1, steps)
    return min(j + fewest(steps - j, snapshots - 1) + fewest(j, snapshots) for j in places)


@cache
def planned(steps, snapshots):
    if steps <= 1:
        return 0
    j = stride(steps, snapshots)
    assert 1 <= j < steps
    if snapshots == 1:
        return j + planned(steps - 1, 1)
    return j + planned(steps - j, snapshots - 1) + planned(j, snapshots)


@pytest.mark.parametrize("snapshots", range(1, 9))
def test_the_plan_is_the_best_and_the_formula_says_so(snapshots):
    for steps in range(1, 90):
        wanted = fewest(steps, snapshots)
        assert planned(steps, snapshots) == advances(steps, snapshots) == wanted


@given(st.integers(1, 600), st.integers(2, 40))
def test_the_plan_follows_the_formula_far_out(steps, snapshots):
    assert planned(steps, snapshots) == advances(steps, snapshots)
    r = repeats(steps, snapshots)
    assert comb(snapshots + r, r) >= steps and (r == 0 or comb(snapshots + r - 1, r - 1) < steps)


def test_known_values():
    assert advances(5_151, 100) == 2 * 5_151 - 102  # C(102, 2) = 5,151
    assert advances(10_000, 100) == 3 * 10_000 - comb(103, 2)
    assert replays(100, 100) == 0 and replays(101, 100) == 1
    assert replays(1, 1) == replays(0, 5) == 0


class Counting:
    """A program whose states are step numbers."""

    def __init__(self, steps):
        self.report = rg.Report()
        self.run = type("Run", (), {"steps": steps, "report": self.report})
        self.taken, self.most = 0, 0

    def advance(self, state, t):
        assert state.t == t
        state.t, self.taken = t + 1, self.taken + 1

    def visit_and_pull(self, state, t, cts):
        assert state.t == t
        return t


class Number:
    variables, buffers = {}, {}

    def __init__(self, t):
        self.t = t

    def copy(self):
        return Number(self.t)


@given(st.integers(0, 120), st.integers(1, 12), st.integers(0, 120))
def test_every_state_is_met_with_the_fewest_replays_and_no_more_than_k_states(steps, k, stop):
    program = Counting(steps)
    memory, end = Snapshots(program, k), min(steps, stop)
    for t in range(end):
        memory.before(t, Number(t))
        assert len(memory.kept) <= k
    for again in range(2):
        program.report.replays = program.taken = 0
        seen = []
        for t, visited in memory.back(None, end, None):
            assert t == visited and len(memory.kept) <= k
            seen.append(t)
        assert seen == [*reversed(range(end))]
        assert program.taken == program.report.replays
        if again:
            assert program.taken == advances(end, k)  # from the start alone
        elif end == steps:
            assert program.taken == replays(steps, k)


@pytest.mark.parametrize("snapshots", [1, 2, 3, 7, 50])
def test_a_run_reports_its_replays_and_its_memory(snapshots):
    steps, report = 31, rg.Report()

    def run(params):
        return rg.train(
            loss, params, rg.Momentum(0.1), batches_of(steps), hyper=hyper_of(),
            adjoint=rg.Checkpointed(snapshots), report=report,
        )  # fmt: skip

    out, pullback = rg.vjp(run, params_of())
    each = 20 * (8 + 8 + 4)  # params, velocity and heads
    assert report.bytes_kept <= snapshots * each
    assert report.replays == 0
    pullback(out)
    assert report.replays == replays(steps, snapshots)


@pytest.mark.parametrize(
    ("memory", "count"),
    [("1kB", 2), (1200, 3), ("0.0012MB", 3), ("1 KiB", 2), (np.float64(400), 1), ("1GB", 2500000)],
)
def test_as_many_snapshots_as_fit(memory, count):
    kept = []

    class Watched(rg.Checkpointed):
        def remember(self, program):
            kept.append(super().remember(program))
            return kept[0]

    adjoint = Watched(memory=memory)
    run = lambda p: rg.train(
        loss, p, rg.Momentum(0.1), batches_of(3), hyper=hyper_of(), adjoint=adjoint
    )
    rg.vjp(run, params_of())
    assert kept[0].count == count


REFUSED = {
    "neither": ((), TypeError, r"^Checkpointed needs either .* Checkpointed\(20\), or"),
    "both": ((20, "1GB"), TypeError, "^Checkpointed needs either"),
    "no snapshot": ((0,), ValueError, r"^snapshots=0; a whole number, 1 or more"),
    "half a snapshot": ((2.5,), ValueError, r"^snapshots=2\.5"),
    "a memory in words": ((None, "lots"), ValueError, "^memory='lots'; a number of bytes or a"),
    "a negative memory": ((None, -1), ValueError, "^memory=-1; a number"),
    "an unknown unit": ((None, "3kkB"), ValueError, "^memory='3kkB'"),
    "infinite memory": ((None, float("inf")), ValueError, "^memory=inf"),
}


@pytest.mark.parametrize(("args", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_at_construction(args, error, message):
    with pytest.raises(error, match=message):
        rg.Checkpointed(*args)


def test_a_memory_for_no_state_is_refused():
    run = lambda p: rg.train(
        loss, p, rg.Momentum(0.1), batches_of(3), hyper=hyper_of(),
        adjoint=rg.Checkpointed(memory=399),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"memory=399\) holds no state, which takes 400 bytes"):
        rg.vjp(run, params_of())
