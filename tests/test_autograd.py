"""For users of autograd: what it differentiates is differentiated here, and its examples run."""

import runpy
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.optimize
import scipy.signal
import scipy.special

import revgrad.rules.special
import revgrad.scipy.linalg
import revgrad.scipy.signal
import revgrad.scipy.special
import revgrad.scipy.stats
from revgrad import (
    checkpoint,
    custom_rule,
    elementwise_grad,
    grad,
    hessian,
    hvp,
    jacrev,
    jvp,
    value_and_grad,
    vjp,
)
from revgrad.arrays import functions
from revgrad.extend import define
from revgrad.testing import check_grads

DOCS = Path(__file__).parents[1] / "docs"
NOT_HERE = runpy.run_path(str(DOCS / "make_functions.py"))["NOT_HERE"]
DENSITIES = ("beta", "chi2", "dirichlet", "gamma", "multivariate_normal", "norm", "poisson", "t")
HOMES = {
    "numpy": (np, ()),
    "numpy.linalg": (np.linalg, ()),
    "numpy.fft": (np.fft, ()),
    "scipy.special": (scipy.special, vars(revgrad.scipy.special)),
    "scipy.linalg": (scipy.linalg, vars(revgrad.scipy.linalg)),
    "scipy.signal": (scipy.signal, vars(revgrad.scipy.signal)),
    "scipy.integrate": (scipy.integrate, ()),
}


def differentiated(name):
    """The names in one of autograd's modules that have rules there."""
    pytest.importorskip("autograd")
    module = import_module(f"autograd.{name}")  # which writes its rules into this table:
    wrapped = {id(f) for f in import_module("autograd.core").primitive_vjps}
    return [n for n, f in vars(module).items() if id(f) in wrapped]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HOMES)
def test_what_autograd_differentiates_is_differentiated(name):
    home, under_their_names = HOMES[name]
    theirs = differentiated(name)
    missing = {
        f"{name}.{n}"
        for n in theirs
        if n not in under_their_names and getattr(home, n, None) not in functions
    }
    assert theirs
    assert missing == {n for n in NOT_HERE if n.rpartition(".")[0] == name}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DENSITIES)
def test_the_densities_that_autograd_differentiates_are_here(name):
    ours = getattr(revgrad.scipy.stats, name)
    kinds = ("pdf", "pmf", "cdf", "sf", "logpdf", "logpmf", "logcdf", "logsf", "entropy")
    theirs = [n for n in differentiated(f"scipy.stats.{name}") if n in kinds]
    assert theirs and all(hasattr(ours, n) for n in theirs)


# What autograd's readme and tutorial do, with the import changed.


def tanh(x):
    return (1.0 - np.exp(-2 * x)) / (1.0 + np.exp(-2 * x))


def test_a_function_of_a_number_and_its_derivative():
    assert grad(tanh)(1.0) == pytest.approx(0.419974341614026, 1e-14)
    assert grad(tanh)(1.0) == pytest.approx((tanh(1.0001) - tanh(0.9999)) / 0.0002, 1e-7)


def test_six_derivatives_over_a_range():
    x, derivative, closed = np.linspace(-7, 7, 200), tanh, np.polynomial.Polynomial([0.0, 1.0])
    for _ in range(6):
        derivative = elementwise_grad(derivative)
        closed = closed.deriv() * np.polynomial.Polynomial([1.0, 0.0, -1.0])
        np.testing.assert_allclose(derivative(x), closed(np.tanh(x)), rtol=1e-6, atol=1e-8)


def test_loops_and_branches_that_hang_on_values():
    def taylor_sine(x):
        total = term = x
        k = 0
        while np.abs(term) > 1e-9:
            term = -term * x**2 / ((2 * k + 3) * (2 * k + 2))
            total = total + term
            k += 1
        return total

    assert grad(taylor_sine)(np.pi) == pytest.approx(-1, abs=1e-6)
    assert grad(grad(taylor_sine))(1.0) == pytest.approx(-np.sin(1), abs=1e-6)


def test_logistic_regression_learns():
    inputs = np.array([[0.5, 1.1, 0.8], [0.9, -1.1, 0.1], [0.1, 0.1, -1.2], [0.7, 2.5, 0.1]])
    targets = np.array([True, True, False, True])

    def loss(weights):
        probabilities = 0.5 * (np.tanh(np.dot(inputs, weights) / 2) + 1)
        right = probabilities * targets + (1 - probabilities) * (1 - targets)
        return -np.sum(np.log(right))

    weights, start = np.zeros(3), loss(np.zeros(3))
    for _ in range(100):
        weights -= grad(loss)(weights) * 0.1
    assert loss(weights) < start / 4
    assert np.linalg.eigvalsh(hessian(loss)(weights)).min() > 0


def test_dicts_lists_and_tuples_of_arguments():
    f = lambda p: np.sum(p["w"] * p["b"][0]) + p["b"][1] ** 2
    g = grad(f)({"w": np.ones(2), "b": (np.array([3.0, 4.0]), 5.0)})
    assert g["w"].tolist() == [3, 4] and g["b"][0].tolist() == [1, 1] and g["b"][1] == 10


def test_products_with_a_jacobian_both_ways():
    f, x = (lambda x: np.stack([np.sum(x**2), np.prod(x)])), np.array([1.0, 2.0, 3.0])
    assert jvp(f, (x,), (np.ones(3),))[1].tolist() == [12, 11]
    assert vjp(f, x)[1](np.array([1.0, 1.0]))[0].tolist() == [8, 7, 8]


def test_a_loss_goes_to_scipy_with_its_gradient():
    rng = np.random.default_rng(0)
    inputs, true = rng.standard_normal((100, 10)), rng.standard_normal(10)
    predict = lambda w: 0.5 * (np.tanh(np.dot(inputs, w)) + 1.0)
    targets = rng.uniform(size=100) < predict(true)

    def loss(weights):
        p = predict(weights)
        likelihood = np.sum(np.log(p) * targets) + np.sum(np.log(1 - p) * (1 - targets))
        return -likelihood + 0.1 * np.sum(weights**2)

    start = 0.1 * rng.standard_normal(10)
    check_grads(loss, (start,))
    found = scipy.optimize.minimize(value_and_grad(loss), start, jac=True, method="CG")
    assert found.success and found.fun < loss(start) / 2
    assert np.abs(grad(loss)(found.x)).max() < 1e-3


def logsumexp(x):
    top = np.max(x)
    return top + np.log(np.sum(np.exp(x - top)))


def of_logsumexp(ct, out, x):
    return ct * np.exp(x - out)


@pytest.mark.parametrize("how", ["define", "custom_rule"])
def test_a_primitive_of_the_users(how):
    push = lambda t, out, x: np.sum(t * np.exp(x - out))
    rules = {"push": [push], "pull": [of_logsumexp]}
    if how == "define":
        own = define("own logsumexp", logsumexp, rules["push"], rules["pull"], register=False)
    else:
        own = custom_rule(**rules)(logsumexp)
    f = lambda y: np.sum(own(y**2))
    x = np.array([0.5, -1.0, 2.0, 0.1])
    closed = 2 * x * np.exp(x**2) / np.sum(np.exp(x**2))
    np.testing.assert_allclose(grad(f)(x), closed, 1e-13)
    np.testing.assert_allclose(hessian(f)(x), hessian(lambda y: logsumexp(y**2))(x), 1e-12)


def test_what_the_table_for_its_users_says():
    f, x, v = (lambda x: np.sum(x**3) * x[0]), np.array([1.0, 2.0, -1.0]), np.array([1.0, 0.0, 2.0])
    np.testing.assert_allclose(hvp(f, (x,), (v,))[1], hessian(f)(x) @ v, 1e-13)
    assert jvp(lambda s: s**3, (2.0,), (1.0,))[1] == 12
    assert jacrev(lambda x: x**2)(x).tolist() == np.diag(2 * x).tolist()
    assert grad(lambda x: (np.sum(x), x), has_aux=True)(x)[1].tolist() == x.tolist()
    assert grad(lambda a, b: a * b, (0, 1))(2.0, 3.0) == (3.0, 2.0)
    assert grad(lambda z: np.real(z**3))(1 + 2j) == pytest.approx(3 * (1 + 2j) ** 2)
    np.testing.assert_allclose(grad(checkpoint(f))(x), grad(f)(x), 1e-14)
