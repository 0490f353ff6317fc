"""For users of autograd: what it differentiates is differentiated here, and its examples run."""

from importlib import import_module

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.signal
import scipy.special

import revgrad.rules.special
import revgrad.scipy.linalg
import revgrad.scipy.signal
import revgrad.scipy.special
import revgrad.scipy.stats
from revgrad import elementwise_grad, grad, hessian, jvp, vjp
from revgrad.arrays import functions

NOT_HERE = {
    "numpy.full": "asks no protocol; np.broadcast_to(value, shape), or np.ones(shape) * value",
    "numpy.make_diagonal": "autograd's own; np.diag, or np.where with a mask",
    "numpy.concatenate_args": "inside autograd's np.concatenate",
    "numpy.array_from_args": "inside autograd's np.array, which here asks no protocol; np.stack",
    "numpy._original_where": "inside autograd's np.where",
    "numpy.linalg._primitive_norm": "inside autograd's np.linalg.norm",
    "numpy.fft.truncate_pad": "inside autograd's transforms",
    "scipy.integrate.odeint": "a solver of its own with an adjoint; no part of training",
}
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
    assert grad(tanh)(1.0) == pytest.approx((tanh(1.0001) - tanh(0.9999)) / 0.0002, 1e-7)


def test_derivatives_of_many_orders_over_a_range():
    x, derivative = np.linspace(-3, 3, 50), tanh
    closed = lambda y: [1 - y**2, -2 * y * (1 - y**2), (1 - y**2) * (6 * y**2 - 2)]
    for expected in closed(tanh(x)):
        derivative = elementwise_grad(derivative)
        np.testing.assert_allclose(derivative(x), expected, rtol=1e-9, atol=1e-9)


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
