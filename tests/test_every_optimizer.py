"""The laws, for every optimizer: what returns returns exactly, and all derivatives agree."""

from inspect import isclass

import numpy as np
import optree
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training import (
    batches_of,
    bits,
    flat,
    hyper_of,
    loss,
    params_of,
    program_of,
    there_and_back,
    validation_loss,
)

import revgrad as rg
from revgrad.extend import Optimizer, Wrapper
from revgrad.testing import check_reversible, optimizers

STEPS = 8
ALL = {
    "Momentum": rg.Momentum(0.2),
    "Momentum, decay": rg.Momentum(0.2, 0.8, weight_decay=0.1),
    "HeavyBall": rg.HeavyBall(0.05),
    "HeavyBall, decay": rg.HeavyBall(0.05, 0.8, weight_decay=0.1),
    "Nesterov": rg.Nesterov(0.05),
    "Nesterov, decay": rg.Nesterov(0.05, 0.8, weight_decay=0.1),
    "SGD": rg.SGD(0.1),
    "SGD, decay": rg.SGD(0.1, weight_decay=0.1),
    "Adam": rg.Adam(0.05, b2=0.99),
    "Adam, both eps": rg.Adam(0.05, b2=0.9, eps=1e-3, eps_root=1e-4, initial_scale=1e-2),
    "AdamW": rg.AdamW(0.05, b2=0.99, weight_decay=0.1),
    "AdamW, no decay": rg.AdamW(0.05, b2=0.99, weight_decay=None),
    "RMSProp": rg.RMSProp(0.02, eps=1e-3),
    "RMSProp, momentum": rg.RMSProp(0.02, eps=1e-3, momentum=0.9),
    "RMSProp, eps_root": rg.RMSProp(0.02, momentum=0.9, eps=1e-3, eps_root=1e-3),
    "AdaGrad": rg.AdaGrad(0.1, eps=1e-3),
    "AdaGrad, momentum": rg.AdaGrad(
        0.05, eps=1e-3, momentum=0.9, initial_accumulator_value=0.1
    ),
    "AdaDelta": rg.AdaDelta(0.7, 0.9, 1e-2),
    "Lion": rg.Lion(0.01, weight_decay=0.1),
    "SignDescent": rg.SignDescent(0.01),
    "Leapfrog": rg.Leapfrog(0.1),
    "Leapfrog, all": rg.Leapfrog(0.1, mass=2.0, tempering=0.9),
    "Leapfrog, tempered": rg.Leapfrog(
        0.1, tempering=rg.per_step(np.repeat([1.25, 0.8], STEPS // 2))
    ),
    "Clip": rg.Clip(rg.Momentum(0.2), 0.3),
    "Clip, Adam": rg.Clip(rg.Adam(0.05, b2=0.9, eps=1e-3), 0.3),
    "ClipByGlobalNorm": rg.ClipByGlobalNorm(rg.HeavyBall(0.05), 0.7),
    "clipped twice": rg.ClipByGlobalNorm(rg.Clip(rg.Adam(0.05, b2=0.9, eps=1e-3), 0.3), 0.7),
    "norm clipped twice": rg.ClipByGlobalNorm(rg.ClipByGlobalNorm(rg.Momentum(0.1), 0.5), 0.7),
    "WeightAverage": rg.WeightAverage(rg.Momentum(0.2), 0.8),
    "averaged twice": rg.WeightAverage(rg.WeightAverage(rg.RMSProp(0.02, eps=0.1), 0.8), 0.7),
    "AuxAverage": rg.AuxAverage(rg.Momentum(0.2), 0.8),
    "clipped and averaged": rg.AuxAverage(
        rg.WeightAverage(rg.Clip(rg.AdamW(0.05, b2=0.9, eps=1e-3), 0.3), 0.8), 0.9
    ),
}  # fmt: skip
REVERSIBLE = {name: o for name, o in ALL.items() if o.reversible}
ONE_WAY = {name: o for name, o in ALL.items() if not o.reversible}
ADAM_LIKE = ("second_moment",)  # whose root amplifies rounding

every = pytest.mark.parametrize("name", ALL)


def every_reversible(test):
    return pytest.mark.parametrize("name", REVERSIBLE)(test)


def with_aux(params, hyper, batch):
    """The loss, with statistics of the hidden layer that depend on params and hyper."""
    x, _ = batch
    hidden = np.tanh(x @ params["hidden"]["weights"] + params["hidden"]["bias"])
    aux = {"mean": np.mean(hidden, axis=0), "scale": hyper["shift"] * np.mean(hidden**2)}
    return loss(params, hyper, batch), aux


def settings_of(optimizer, kind="float64", steps=STEPS):
    """Arguments of train for an optimizer: params, optimizer, batches and options."""
    aux = "aux" in optimizer.reads
    return (
        with_aux if aux else loss, params_of(kind), optimizer, batches_of(steps, kind),
        {"hyper": hyper_of(kind), "has_aux": aux},
    )  # fmt: skip


def hyperloss(optimizer, adjoint, values, params, hyper, kind="float64"):
    """A function of all that there is a derivative of, which also sees the final state."""
    f, _, _, batches, options = settings_of(optimizer, kind)
    trained, state = rg.train(
        f, params, optimizer.with_hyper(values), batches, adjoint=adjoint, return_state=True,
        **options | {"hyper": hyper},
    )  # fmt: skip
    seen = sum(
        np.sum(np.cos(k + np.arange(np.size(x))) * np.ravel(x))
        for k, x in enumerate(optree.tree_leaves({k: x for k, x in state.items() if k != "t"}))
    )
    return validation_loss(trained) + 0.1 * seen


def hypergradient(name, adjoint, kind="float64"):
    optimizer = ALL[name]

    def f(numbers, params, hyper):
        return hyperloss(optimizer, adjoint, numbers, params, hyper, kind)

    at = numbers_of(optimizer), params_of(kind), hyper_of(kind)
    return rg.value_and_grad(f, argnums=(0, 1, 2))(*at)


def numbers_of(optimizer):
    """Its hyperparameters, but for those that vary in time."""
    return {k: v for k, v in optimizer.hyper.items() if isinstance(v, float)}


def test_the_table_holds_every_optimizer():
    exported = {
        x for x in vars(rg).values()
        if isclass(x) and issubclass(x, Optimizer) and x not in (Optimizer, Wrapper)
    }  # fmt: skip
    assert {type(o) for o in ALL.values()} == exported


@every_reversible
def test_retreat_undoes_advance_bit_for_bit(name):
    f, params, optimizer, batches, options = settings_of(REVERSIBLE[name])
    there_and_back(program_of(f, params, optimizer, batches, **options), STEPS)


@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Stored()], ids=repr)
def test_a_factor_of_numbers_per_layer_and_per_weight(adjoint):
    params, weights = {"a": np.ones(3), "b": np.ones(2)}, np.array([0.1, 0.2, 0.3])

    def squares(params, _, target):
        return sum(np.sum((x - target) ** 2) for x in params.values())

    def trained(weights, adjoint):
        rates, decays = {"a": 0.01, "b": 0.02}, {"a": weights, "b": np.float64(0.1)}
        optimizer = rg.AdamW(rates, weight_decay=decays)
        end = rg.train(squares, params, optimizer, np.arange(6.0), adjoint=adjoint)
        return sum(np.sum(x) for x in end.values())

    found, floats = (rg.grad(trained)(weights, a) for a in (adjoint, rg.Unrolled()))
    np.testing.assert_allclose(found, floats, rtol=1e-6)


@pytest.mark.parametrize("kind", ["float64", "float32", "mixed"])
@every_reversible
def test_reversible_and_stored_agree_bit_for_bit(name, kind):
    found = [hypergradient(name, adjoint, kind) for adjoint in (rg.Reversible(), rg.Stored())]
    assert bits(found[0]) == bits(found[1])


@every
def test_stored_agrees_with_unrolled(name):
    (value, found), (expected_value, expected) = (
        hypergradient(name, adjoint) for adjoint in (rg.Stored(), rg.Unrolled())
    )
    amplified = any(v in ADAM_LIKE for v in ALL[name].variables)
    assert value == pytest.approx(expected_value, rel=1e-8 if amplified else 1e-12)
    off = np.max(np.abs(flat(found) - flat(expected))) / np.max(np.abs(flat(expected)))
    assert off < (1e-6 if amplified else 1e-9)


@every
def test_forward_agrees_with_stored(name):
    _, found = hypergradient(name, rg.Forward())
    _, expected = hypergradient(name, rg.Stored())
    off = np.max(np.abs(flat(found) - flat(expected))) / np.max(np.abs(flat(expected)))
    assert off < 1e-9


@every
def test_checkpointed_agrees_with_stored_bit_for_bit(name):
    found = [hypergradient(name, adjoint) for adjoint in (rg.Checkpointed(3), rg.Stored())]
    assert bits(found[0]) == bits(found[1])


@every
def test_unrolled_agrees_with_difference_quotients(name):
    optimizer = ALL[name]
    numbers = numbers_of(optimizer)
    primals, step = (numbers, params_of(), hyper_of()), 1e-6
    _, found = hypergradient(name, rg.Unrolled())
    rng = np.random.default_rng(3)
    for direction in range(3):
        ts = optree.tree_map(lambda x: rng.standard_normal(np.shape(x)), primals)
        ts = (optree.tree_map(lambda t, x: 0.1 * t * x, ts[0], numbers), *ts[1:])

        def at(h, ts=ts):
            moved = optree.tree_map(lambda x, t: x + h * t, primals, ts)
            return hyperloss(optimizer, rg.Unrolled(), *moved)

        quotient = (at(step) - at(-step)) / (2 * step)
        along = np.sum(flat(ts) * flat(found))
        scale = np.linalg.norm(flat(ts) * flat(found))
        assert abs(quotient - along) <= 1e-5 * scale, f"direction {direction}"


@pytest.mark.parametrize("name", ONE_WAY)
def test_what_cannot_be_undone_is_refused_with_advice_and_trains_otherwise(name):
    f, params, optimizer, batches, options = settings_of(ONE_WAY[name])
    advice = (
        r"^Reversible\(\) cannot undo .*adjoint=Checkpointed\(20\), Stored\(\) or Unrolled\(\)\.$"
    )
    with pytest.raises(TypeError, match=advice):
        rg.train(f, params, optimizer, batches, adjoint=rg.Reversible(), **options)
    report = rg.Report()
    rg.train(f, params, optimizer, batches, report=report, **options)
    assert report.adjoint.startswith("Stored()")


# Hyperparameters of every shape.


def shaped(value, shape):
    """Values per layer, per weight, per step, or per step and layer."""

    def some(shape):  # in a few digits, so that factors are taken as they are
        rows = np.linspace(0.8, 1, int(np.prod(shape))).reshape(shape) * value
        return np.round(rows, 3) if value > 1e-2 else rows

    return {
        "per layer": {"hidden": some(1)[0], "out": value},
        "per weight": optree.tree_map(lambda x: some(x.shape), params_of()),
        "per step": rg.per_step(some(STEPS)),
        "per step and layer": rg.per_step({"hidden": some(STEPS), "out": some(STEPS)[::-1]}),
    }[shape]


@pytest.mark.parametrize("shape", ["per layer", "per weight", "per step", "per step and layer"])
@pytest.mark.parametrize(
    "name", [name for name in ALL if name not in ("Leapfrog, tempered", "clipped and averaged")]
)
def test_each_hyperparameter_is_learnable_in_every_shape(name, shape):
    optimizer = ALL[name]
    f, params, _, batches, options = settings_of(optimizer)
    adjoints = [rg.Stored(), rg.Unrolled(), *([rg.Reversible()] if optimizer.reversible else [])]
    for k, value in optimizer.hyper.items():
        if k in optimizer.aux_names and shape != "per step":
            continue  # the tree of aux is not that of the params
        if k in ("initial_scale", "initial_accumulator_value") and "step" in shape:
            continue  # read once
        found = []
        for adjoint in adjoints:

            def trained(tree, adjoint=adjoint, k=k):
                one = optimizer.with_hyper({k: like_per_step(shape, tree)})
                return validation_loss(
                    rg.train(f, params, one, batches, adjoint=adjoint, **options)
                )

            found.append(flat(rg.grad(trained)(without_per_step(shaped(value, shape)))))
        largest = np.max(np.abs(found[1]))
        assert np.max(np.abs(found[0] - found[1])) <= 1e-5 * largest + 1e-15
        if len(found) > 2:
            assert bits(found[0]) == bits(found[2])


def without_per_step(tree):
    return tree.values if hasattr(tree, "every") else tree


def like_per_step(shape, tree):
    return rg.per_step(tree) if "step" in shape else tree


DRAWN = [
    rg.Momentum, rg.HeavyBall, rg.AdamW, rg.RMSProp, rg.AdaGrad, rg.Clip, rg.ClipByGlobalNorm,
    rg.WeightAverage,
]  # fmt: skip


@pytest.mark.parametrize("kind", DRAWN)
@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(st.data())
def test_drawn_instances_are_reversible(kind, data):
    optimizer = data.draw(optimizers(kind))
    # bias corrections with decays near 1 in some steps and far from it in others overflow
    scaled = {k: min(v, 0.99) for k, v in optimizer.hyper.items() if k in ("b1", "b2", "decay")}
    check_reversible(optimizer.with_hyper(scaled), steps=6, seed=data.draw(st.integers(0, 9)))
