"""A gradient and its product with a direction that is known before it, from stacked products."""

from dataclasses import dataclass

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import revgrad as rg
from revgrad import stacked as stacked_module
from revgrad._ext.fused import cotangent_before
from revgrad.compiled import TwoPhase, gradient_with_products
from revgrad.nn import softmax_cross_entropy
from revgrad.optimizers import Add, Optimizer, Scale
from revgrad.passes import _pull
from revgrad.record import record
from revgrad.stacked import STACKED, StackedProduct, stacked

ROWS, PIXELS, CLASSES, STEPS = 420, 400, 7, 5
ORDERS = {"C": np.ascontiguousarray, "F": np.asfortranarray}


def loss(params, penalty, batch):
    """Of a logistic regression with a penalty per weight."""
    x, y = batch
    losses = softmax_cross_entropy(x @ params["w"] + params["b"], y)
    return losses + np.sum(np.exp(penalty) * params["w"] ** 2)


def hypergradient(adjoint, dtype=np.float64, optimizer=rg.Momentum):
    """[of a rate per step, of the penalties]"""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * ROWS, PIXELS)).astype(dtype)
    y = rng.integers(0, CLASSES, 2 * ROWS)
    start = {"w": np.zeros((PIXELS, CLASSES), dtype), "b": np.zeros(CLASSES, dtype)}
    batches = rg.minibatches((x, y), ROWS, seed=1)

    def validation(rates, penalty):
        how = {"steps": STEPS, "hyper": penalty, "adjoint": adjoint}
        trained = rg.train(loss, start, optimizer(rg.per_step(rates), 0.9), batches, **how)
        return softmax_cross_entropy(x @ trained["w"] + trained["b"], y)

    at = np.linspace(0.02, 0.05, STEPS), np.full((PIXELS, CLASSES), -6.0, dtype)
    return rg.grad(validation, (0, 1))(*at)


@pytest.fixture
def calls(monkeypatch):
    """One entry for each stacked product that is computed."""
    found, call = [], StackedProduct.__call__
    counting = lambda *args: found.append(call(*args))
    monkeypatch.setattr(StackedProduct, "__call__", counting)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adjoints_that_stack_have_the_same_bits(calls, dtype):
    first = hypergradient(rg.Reversible(), dtype)
    for adjoint in (rg.Reversible(), rg.Stored(), rg.Checkpointed(2)):
        calls.clear()
        found = hypergradient(adjoint, dtype)
        assert [x.tobytes() for x in found] == [x.tobytes() for x in first]
        assert len(calls) == 2 * STEPS


def test_stacked_or_not_the_hypergradient_is_the_same_but_for_rounding(calls, monkeypatch):
    together = hypergradient(rg.Reversible())
    monkeypatch.setattr(TwoPhase, "pays_at_once", False)
    calls.clear()
    apart = hypergradient(rg.Reversible())
    assert not calls
    for x, y in zip(together, apart, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-15)


def test_a_direction_that_depends_on_the_gradient_is_not_known_before(calls):
    hypergradient(rg.Reversible(), optimizer=lambda rate, b1: rg.Adam(rate, b1))
    calls.clear()
    hypergradient(rg.Reversible(), optimizer=lambda rate, b1: rg.Adam(rate, b1))
    assert not calls


KNOWN = {
    rg.Momentum: lambda params, velocity: -0.75 * (velocity + 0.25 * params),
    rg.SGD: lambda params: -0.25 * params,
}


@pytest.mark.parametrize("optimizer", [rg.Momentum, rg.SGD, rg.Adam, rg.RMSProp])
def test_what_is_known_before_a_gradient(optimizer):
    """Its cotangent, unless statements take powers of it; hyperparameters here are 1/4."""
    made = optimizer(0.1)
    names = "params", *made.variables
    found = cotangent_before("g", made.statements[::-1], names, _pull)
    assert (found is None) == (optimizer not in KNOWN)
    if found is not None:
        cts = dict(zip(names, np.random.default_rng(0).standard_normal((2, 5)), strict=False))
        known = {f"ct {k}": ct for k, ct in cts.items()}
        known |= dict.fromkeys((*made.hyper, "factor velocity"), 0.25)
        np.testing.assert_allclose(found(known)[0], KNOWN[optimizer](**cts), rtol=1e-15)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stacked_products_are_the_products(order, dtype):
    rng = np.random.default_rng(0)
    x = ORDERS[order](rng.standard_normal((500, 300)).astype(dtype))
    y, z = rng.standard_normal((2, 300, 9)).astype(dtype)
    out = np.empty((2, 500, 9), dtype)
    StackedProduct(x, out[0])(x, y, z, *out)
    np.testing.assert_allclose(out, (x @ y, x @ z), rtol=1e-5 if dtype == np.float32 else 1e-12)


def recorded(f):
    x, w = np.ones((500, 300)), np.linspace(0, 1, 2700).reshape(300, 9)
    return gradient_with_products(f, [w], [], x, borrow=True)


def quadratic(params, _, x):
    return np.sum((x @ params[0]) ** 2)


def test_both_phases_at_once_give_what_they_give_apart():
    phases = recorded(quadratic)
    assert phases.pays_at_once
    rng = np.random.default_rng(1)
    x, w, v = rng.standard_normal((500, 300)), *rng.standard_normal((2, 300, 9))
    (g, found), vectors = phases.at_once([w, x], [v])
    g, found = g[0].copy(), found[0].copy()
    again, then = phases.start([w, x])
    assert again[0].tobytes() == g.tobytes() and vectors[0] is not None
    np.testing.assert_allclose(found, then([v])[0], rtol=1e-12)
    np.testing.assert_allclose(found, 2 * x.T @ (x @ v), rtol=1e-12)


def test_a_stacked_product_with_other_bits_is_not_used(monkeypatch):
    call = StackedProduct.__call__

    def wrong(self, x, y, z, first, second):
        call(self, x, y, z, first, second)
        first[-1, -1] = np.nextafter(first[-1, -1], 9e9)

    monkeypatch.setattr(StackedProduct, "__call__", wrong)
    stacked_module._same_bits.cache_clear()
    assert not recorded(quadratic).pays_at_once
    stacked_module._same_bits.cache_clear()


def test_products_that_need_each_other_are_left_apart():
    x, y = np.ones((500, 300)), np.ones((300, 9))
    program = record(lambda x, y: [x @ (x.T @ (x @ y))], [x, y])
    assert stacked(program.instructions) is None
    program = record(lambda x, y: [x @ (x.T @ (x @ y)), x @ np.tanh(y) - 1], [x, y])
    (pair,) = [i for i in stacked(program.instructions) if i.primitive is STACKED]
    assert [v.value.shape for v in pair.outputs] == [(500, 9)] * 2


def hypergradients(loss, start, batches, optimizer=rg.Momentum):
    """By Reversible and Stored, of the learning rate."""

    def final(rate, adjoint):
        trained = rg.train(loss, start, optimizer(rate), batches, steps=6, adjoint=adjoint)
        return sum(np.sum(x**2) for x in trained.values())

    return [rg.grad(final)(0.01, adjoint) for adjoint in (rg.Reversible(), rg.Stored())]


def data(rows, columns, dtype=np.float64):
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transposed_weights_are_reversed(dtype):
    """Of a transposed right factor BLAS may make other bits."""
    x, start = data(2000, 70, dtype), {"w": data(2, 70, dtype) / 10}
    reversible, stored = hypergradients(lambda p, _, x: np.mean((x @ p["w"].T) ** 2), start, [x])
    assert reversible == stored


def test_a_product_of_a_matrix_with_itself_is_reversed():
    """BLAS takes another path for x.T @ x."""
    x, start = data(43_690, 6, np.float32), {"w": data(6, 6, np.float32)}

    def loss(p, _, x):
        y = np.tanh(x @ p["w"])
        return np.mean(((x.T @ x) / len(x) - (x.T @ y) / len(x)) ** 2)

    reversible, stored = hypergradients(loss, start, [x])
    assert reversible == stored


@pytest.mark.parametrize("columns", [6, 7, 10])
def test_a_recording_is_for_one_number_of_blas_threads(columns):
    x, start = data(400, 420), {"w": data(420, columns) / 20}
    loss = lambda p, _, x: np.mean(np.tanh(x @ p["w"]) ** 2)
    for threads in (2, 1, 2):
        with threadpool_limits(threads, user_api="blas"):
            reversible, stored = hypergradients(loss, start, [x])
        assert reversible == stored


def test_a_direction_that_is_zero_is_not_stacked():
    @dataclass(frozen=True, eq=False)
    class Signs(Optimizer):
        learning_rate: object
        statements = (
            Scale("velocity", 0.5),
            Add("velocity", lambda g: np.sign(g)),
            Add("params", lambda velocity, learning_rate: -learning_rate * velocity),
        )

    x, start = data(420, 400, np.float32), {"w": data(400, 7, np.float32)}
    loss = lambda p, _, x: np.mean(np.tanh(x @ p["w"]) ** 2)
    reversible, stored = hypergradients(loss, start, [x], Signs)
    assert reversible == stored
