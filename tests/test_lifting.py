"""Slopes without a vector written: the lifted program against the function that it came from."""

import numpy as np
import pytest
from revgrad._ext.chains import Chain

from revgrad.fuse import SUMS, Group, dot, fuse, total
from revgrad.online import lifting
from revgrad.online.lifting import Lifted
from revgrad.record import record
from revgrad.transforms import vjp

SIZE = 5_000  # several blocks, and entries left over


def vectors(count, kind=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [(0.1 + rng.random(SIZE)).astype(kind) for _ in range(count)]


def adam(m, v, g, rate, b1, b2, t):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return m, v, -rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)


def slopes(m, v, g, rate, b1, b2, t, ct):
    """The next moments, and the cotangents of rate, b1 and b2."""
    step = lambda *hyper: adam(m, v, g, *hyper, t)[2]
    return [*adam(m, v, g, rate, b1, b2, t)[:2], *vjp(step, rate, b1, b2)[1](ct)]


def scaled_otherwise(x, y, a, b, ct):
    """Equal factors, a product met twice, a vector as a result, a sum that is no product."""
    f = lambda a, b: np.sum(-(a * x - a * y) / (b / x)) + np.sum(np.exp(a * y)) * b
    return [*vjp(f, a, b)[1](1.0), -(a * (ct * y)) / b, np.sum(x * y) - a * np.sum(y * x)]


def through_a_norm(x, y, a, ct):
    """A sum that vectors depend on."""
    f = lambda a: x * a / np.sqrt(np.sum(x * x) + a) + y
    return list(vjp(f, a)[1](ct))


CASES = {
    "adam": (slopes, [*vectors(3), 1e-3, 0.9, 0.999, 3.0, *vectors(1, seed=1)], 2),
    "factors": (scaled_otherwise, [*vectors(2), 0.3, 0.7, *vectors(1, seed=1)], 0),
    "norm": (through_a_norm, [*vectors(2), 0.3, *vectors(1, seed=1)], 0),
}


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("f, args, known", CASES.values(), ids=CASES)
def test_results_are_those_of_the_function(f, args, known, kind):
    cast = lambda x, factor: (x * factor).astype(kind) if isinstance(x, np.ndarray) else x * factor
    lifted = None
    for factor in (1.0, 0.9, 0.5):  # recorded with the first ones, replayed with others
        now = [cast(x, factor) for x in args]
        expected = f(*now)
        lifted = lifted or Lifted(f, now, expected[:known])
        found = lifted(now, expected[:known])
        assert lifted.run is not None and len(found) == len(expected) - known
        for a, b in zip(found, expected[known:], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12 if kind is np.float64 else 2e-5)
            assert np.asarray(a).dtype == np.asarray(b).dtype or np.ndim(b) == 0


def test_the_slopes_of_adam_are_one_chain_that_writes_no_vector():
    args = CASES["adam"][1]
    program = record(lambda *x: slopes(*x[:8]), [*args, *slopes(*args)[:2]])
    lifted = lifting._Lift(program, len(args), 2).program
    fused = fuse(lifted.instructions, lifted.outputs)
    (group,) = [i for i in fused if isinstance(i, Group)]
    assert {v.value.shape for v in group.outputs} == {()} and len(group.outputs) == 6
    of_vectors = [i for i in fused if i is not group and any(map(_is_vector, i.inputs))]
    assert not of_vectors and len(group.members) <= 18


def _is_vector(x):
    return np.ndim(getattr(x, "value", x)) > 0


def test_what_cannot_be_recorded_runs_as_it_is():
    branching = lambda x, a: [a * x, np.sum(x) if np.sum(x) > 0 else 0.0]
    x = vectors(1)[0]
    lifted = Lifted(branching, [x, 2.0], [2.0 * x])
    assert lifted.run is None and lifted([-x, 2.0], [-2.0 * x]) == [0.0]


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("size", [1, 31, 32, 1000, SIZE])
def test_sums_of_a_chain(kind, size):
    x, y = (v[:size] for v in vectors(2, kind))
    found = np.zeros(()), np.zeros(())
    steps = [(None, 0, [0, 1, 2]), (None, 0, [1, 3])]
    chain = Chain(steps, ["array", "array", "sum", "sum"], {}, size, 1024, kind)
    for _ in range(2):  # begins anew at every call
        chain(x, y, *found)
        exact = [np.sum(x.astype(float) * y), np.sum(y.astype(float))]
        np.testing.assert_allclose(found, exact, rtol=1e-13 if kind is np.float64 else 1e-6)
        assert [float(p.run(*a)) for p, a in zip(SUMS[::-1], ((x, y), (y,)), strict=True)] == (
            pytest.approx(exact, rel=1e-13 if kind is np.float64 else 1e-5)
        )
    assert (total, dot) == SUMS


def test_a_sum_needs_a_place():
    for slots in ([0], [0, 0], [0, 0, 0, 0]):
        with pytest.raises(ValueError, match="no sum goes over"):
            Chain([(None, 0, slots)], ["array"], {}, 4, 4, np.float64)
