"""Hyperparameters over time and over the params: many ways to say the same thing."""

from functools import partial
from math import ceil

import numpy as np
import optree
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import batches_of, bits, distance, hyper_of, loss, params_of, validation_loss

import revgrad as rg
from revgrad.hyper import Spread, is_per_step, resolve
from revgrad.state import Layout

STEPS = 7
ADJOINTS = (rg.Reversible(), rg.Stored(), rg.Unrolled())
RATES = np.linspace(0.1, 0.4, STEPS)


def train(learning_rate, momentum=0.9, adjoint=ADJOINTS[0], hyper=None):
    hyper = hyper_of() if hyper is None else hyper
    optimizer = rg.Momentum(learning_rate, momentum)
    return rg.train(loss, params_of(), optimizer, batches_of(STEPS), hyper=hyper, adjoint=adjoint)


# One thing said in many ways: equal bits.


def everywhere(x):
    return optree.tree_map(lambda w: np.full(w.shape, x), params_of())


SPELLINGS = {
    "per layer": {"hidden": 0.2, "out": 0.2},
    "per leaf": {"hidden": {"bias": 0.2, "weights": 0.2}, "out": 0.2},
    "per weight": everywhere(0.2),
    "per row": {"hidden": {"bias": 0.2, "weights": np.full((3, 1), 0.2)}, "out": np.full(1, 0.2)},
    "per step": rg.per_step(np.full(STEPS, 0.2)),
    "per three steps": rg.per_step(np.full(3, 0.2), every=3),
    "once for all steps": rg.per_step(np.full(1, 0.2), every=100),
    "as a function of the step": rg.per_step(lambda t: 0.2),
    "per step and layer": {"hidden": rg.per_step(np.full(STEPS, 0.2)), "out": 0.2},
    "per step and weight": rg.per_step(
        optree.tree_map(lambda x: np.broadcast_to(x, (4, *x.shape)), everywhere(0.2)), every=2
    ),
    "as an array": np.array(0.2),
    "as a NumPy number": np.float64(0.2),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_spellings_of_one_value_give_one_run(adjoint, spelling):
    assert bits(train(spelling, adjoint=adjoint)) == bits(train(0.2, adjoint=adjoint))


@pytest.mark.parametrize("every", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_every_repeats_values_and_sums_derivatives(adjoint, every):
    values = RATES[: ceil(STEPS / every)]

    def hyperloss(values, every):
        return validation_loss(train(rg.per_step(values, every), adjoint=adjoint))

    repeated = np.repeat(values, every)[:STEPS]
    value, slope = rg.value_and_grad(hyperloss)(values, every)
    value_of_repeated, slopes = rg.value_and_grad(hyperloss)(repeated, 1)
    assert value == value_of_repeated
    summed = [slopes[k : k + every].sum() for k in range(0, STEPS, every)]
    np.testing.assert_allclose(slope, summed, rtol=1e-13)


def test_a_function_of_the_step_is_asked_once_for_each_value():
    asked = []

    def schedule(t):
        asked.append(t)
        return RATES[t]

    assert bits(train(rg.per_step(schedule, every=3))) == bits(train(rg.per_step(RATES[::3], 3)))
    assert asked == [0, 3, 6]
    tree = rg.per_step(lambda t: {"hidden": RATES[t], "out": 2 * RATES[t]})
    same = rg.per_step({"hidden": RATES, "out": 2 * RATES})
    assert bits(train(tree)) == bits(train(same))


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_schedules_may_be_traced(adjoint):
    """A warm-up and a decay of two learned numbers, as a function and as an array."""
    t = np.arange(STEPS)

    def by_function(h, adjoint):
        warm_up = rg.per_step(lambda t: h["peak"] * min(1.0, (t + 1) / 3))
        return train(warm_up, rg.per_step(lambda t: h["momentum"] ** (1 / (1 + t))), adjoint)

    def by_array(h, adjoint):
        warm_up = rg.per_step(h["peak"] * np.minimum(1.0, (t + 1) / 3))
        return train(warm_up, rg.per_step(h["momentum"] ** (1 / (1 + t))), adjoint)

    def slope(f, adjoint=adjoint):
        return rg.grad(lambda h: validation_loss(f(h, adjoint)))(h)

    h = {"peak": 0.3, "momentum": 0.7}
    assert distance(slope(by_function), slope(by_array)) < 1e-12
    # in floats momenta are not snapped to n / 2**16
    assert distance(slope(by_array), slope(by_array, rg.Unrolled())) < 1e-4
    quotient = {
        k: validation_loss(by_array(h | {k: h[k] + 1e-5}, rg.Unrolled())) / 2e-5
        - validation_loss(by_array(h | {k: h[k] - 1e-5}, rg.Unrolled())) / 2e-5
        for k in h
    }
    assert distance(slope(by_array, rg.Unrolled()), quotient) < 1e-6


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_hyper_of_the_loss_varies_in_time(adjoint):
    shifts, seen = np.linspace(-1, 1, 4), []

    def noting(params, hyper, batch):
        seen.append(float(rg.stop_gradient(hyper["shift"])))
        return loss(params, hyper, batch)

    def hyperloss(shifts):
        trained = rg.train(
            noting, params_of(), rg.Momentum(0.2), batches_of(STEPS), adjoint=adjoint,
            hyper=hyper_of() | {"shift": rg.per_step(shifts, every=2)},
        )  # fmt: skip
        return validation_loss(trained)

    hyperloss(shifts)
    assert seen[-STEPS:] == np.repeat(shifts, 2)[:STEPS].tolist()
    e = 1e-5 * np.eye(4)
    quotient = [(hyperloss(shifts + d) - hyperloss(shifts - d)) / 2e-5 for d in e]
    np.testing.assert_allclose(rg.grad(hyperloss)(shifts), quotient, rtol=1e-6)


def test_trees_may_mix_what_varies_and_what_does_not():
    tree = {"hidden": rg.per_step({"bias": RATES, "weights": 2 * RATES}), "out": 0.1}
    resolved = resolve(tree, STEPS)
    leaves = optree.tree_leaves(resolved, is_leaf=is_per_step)
    assert [is_per_step(x) for x in leaves] == [True, True, False]
    assert [x.values.tolist() for x in leaves[:2]] == [RATES.tolist(), (2 * RATES).tolist()]


# A Spread and its transpose.

LAYOUT = Layout(optree.tree_leaves(params_of()), optree.tree_structure(params_of()))
SHAPES = {"bias": [(), (1,), (4,)], "weights": [(), (4,), (3, 1), (3, 4)], "out": [(), (4,)]}


@st.composite
def prefixes(draw, steps=5):
    """A tree prefix of the params, some of its leaves per step."""

    def leaf(shapes):
        shape = draw(st.sampled_from(shapes))
        every = draw(st.sampled_from([None, 1, 2, 9]))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        if every is None:
            return rng.standard_normal(shape)
        return rg.per_step(rng.standard_normal((ceil(steps / every), *shape)), every)

    if draw(st.booleans()):
        return leaf([(), (4,)])
    inner = {k: leaf(SHAPES[k]) for k in ("bias", "weights")}
    return {"hidden": draw(st.sampled_from([leaf([()]), inner])), "out": leaf(SHAPES["out"])}


@given(prefixes())
def test_collect_is_the_transpose_of_flat(tree):
    steps, rng = 5, np.random.default_rng(0)
    spread, values = Spread.of("rate", resolve(tree, steps), LAYOUT)
    cts = rng.standard_normal((steps, LAYOUT.size))
    found = [np.zeros(np.shape(v)) for v in values]
    left = 0.0
    for t, ct in enumerate(cts):
        flat = spread.flat(values, t, LAYOUT)
        left += np.sum(flat * ct)
        spread.collect(found, np.sum(ct) if spread.scalar else ct, t, LAYOUT)
        for k, part in enumerate(LAYOUT.split(np.broadcast_to(flat, LAYOUT.size))):
            np.testing.assert_array_equal(
                part, np.broadcast_to(spread.at_leaf(values, k, t), part.shape)
            )
    right = sum(np.sum(v * f) for v, f in zip(values, found, strict=True))
    assert left == pytest.approx(right, rel=1e-12, abs=1e-12)


@given(prefixes())
def test_exact_and_float_runs_read_the_same_values(tree):
    positive = optree.tree_map(
        lambda x: rg.per_step(0.1 + x.values**2, x.every) if is_per_step(x) else 0.1 + x**2,
        tree, is_leaf=is_per_step,
    )  # fmt: skip
    run = partial(
        rg.train, lambda p, h, b: np.sum(p["out"]) + np.sum(p["hidden"]["weights"]), params_of(),
        rg.HeavyBall(positive, 0.5), range(5),
    )  # fmt: skip
    exact, in_floats = (run(adjoint=a) for a in (rg.Reversible(), rg.Unrolled()))
    assert distance(exact, in_floats) < 1e-12
