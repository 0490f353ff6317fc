"""SciPy's functions under their own names: the values are SciPy's, the derivatives true."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.special
import scipy.stats
from strategies import random_array

import revgrad.scipy.linalg
import revgrad.scipy.signal
import revgrad.scipy.special
import revgrad.scipy.stats
from revgrad import grad, nn, vjp
from revgrad._ext import homes
from revgrad.errors import MissingRule
from revgrad.scipy import linalg, signal
from revgrad.testing import ForeignArray, check_duality, check_grads

X = random_array((2, 3))
Q = random_array((3,), seed=1)
P = 0.5 + 0.4 * random_array((3,), seed=2)
M = 3 * np.eye(3) + 0.3 * random_array((3, 3), seed=3)
COV = M @ M.T
SIMPLEX = np.array([0.2, 0.3, 0.5])

CALLS = {
    "special": {
        "logsumexp": [(X,), (X, 0), (X, -1, None, True), (X, (0, 1)), (X, 1, np.abs(X) + 1)],
        "softmax": [(X, 0), (X,)],
        "log_softmax": [(X, 1), (X,)],
        "polygamma": [(0, P), (1, P), (3, P)],
        "multigammaln": [(2.5, 3)],
        "erf": [(X,)],
    },
    "linalg": {
        "solve_triangular": [(M, Q), (M, X.T, 1, True), (M, Q, 0, True, True)],
        "solve_banded": [((1, 1), M + 3, Q), ((0, 2), M + 3, X.T)],
        "solve_sylvester": [(M, M.T, np.outer(Q, Q))],
        "sqrtm": [(COV,)],
        "expm": [(M / 3,)],
        "block_diag": [(X, M, X.T)],
    },
    "signal": {
        "convolve": [(Q, P), (P, X[0, :2], "same"), (Q, X[0, :2], "valid"), (X[0, :2], Q, "valid")]
        + [(M, X[:, :2], mode) for mode in ("full", "same", "valid")],
        "correlate": [(M, X[:, :2], mode) for mode in ("full", "valid")],
    },
    "stats": {
        "norm.pdf": [(X, 0.3, 1.5)],
        "norm.logpdf": [(X, Q, P), (X,)],
        "norm.cdf": [(X, 0.3, 1.5)],
        "norm.sf": [(X, 0.3, 1.5)],
        "norm.logcdf": [(X, 0.3, 1.5)],
        "norm.logsf": [(X, 0.3, 1.5)],
        "t.logpdf": [(X, 3.5, 0.2, 1.5)],
        "t.pdf": [(X, 3.5)],
        "beta.logpdf": [(P, 2.0, 3.0)],
        "beta.pdf": [(P, 2.0, 3.0)],
        "gamma.logpdf": [(P, 2.5, 0.0, 1.5)],
        "gamma.pdf": [(P, 2.5)],
        "chi2.logpdf": [(P, 4.0)],
        "chi2.pdf": [(P, 4.0)],
        "dirichlet.logpdf": [(SIMPLEX, P + 1)],
        "dirichlet.pdf": [(SIMPLEX, P + 1)],
        "multivariate_normal.logpdf": [(X, Q, COV), (Q, P, COV)],
        "multivariate_normal.pdf": [(X, Q, COV)],
        "multivariate_normal.entropy": [(Q, COV)],
    },
}
CASES = [
    pytest.param(module, name, args, id=f"{module}.{name}-{k}")
    for module, table in CALLS.items()
    for name, calls in table.items()
    for k, args in enumerate(calls)
]


def named(package, name):
    for part in name.split("."):
        package = getattr(package, part)
    return package


def theirs(module, name):
    return named(getattr(scipy, module), name)


def ours(module, name):
    return named(getattr(revgrad.scipy, module), name)


@pytest.mark.parametrize(("module", "name", "args"), CASES)
def test_values_are_scipys_and_derivatives_are_true(module, name, args):
    f = ours(module, name)
    np.testing.assert_allclose(f(*args), theirs(module, name)(*args), 1e-10, 1e-12)
    chosen = [i for i, x in enumerate(args) if isinstance(x, (float, np.ndarray))]
    if name.startswith("dirichlet"):
        chosen = [1]  # SciPy refuses points off the simplex, where a quotient would step

    def g(*xs):
        every = list(args)
        for i, x in zip(chosen, xs, strict=True):
            every[i] = symmetric(x) if x.shape == COV.shape and args[i] is COV else x
        return f(*every)

    check_grads(g, tuple(np.asarray(args[i])[()] for i in chosen))
    narrow = tuple(np.asarray(args[i], np.float32)[()] for i in chosen)
    check_duality(g, narrow)
    if len(chosen) == len(args):
        assert all(x.dtype == np.float32 for x in vjp(g, *narrow)[1](g(*narrow)))


def symmetric(x):
    return (x + np.swapaxes(x, 0, 1)) / 2


CDFS = {"t": (X, 3.5), "beta": (P, 2.0, 3.0), "gamma": (P, 2.5), "chi2": (P, 4.0)}


@pytest.mark.parametrize("name", CDFS)
def test_distribution_functions_have_a_derivative_in_x(name):
    x, *rest = CDFS[name]
    f = ours("stats", f"{name}.cdf")
    np.testing.assert_allclose(f(x, *rest), theirs("stats", f"{name}.cdf")(x, *rest), 1e-12)
    check_grads(lambda x: f(x, *rest), (x,))
    with pytest.raises(MissingRule, match=r"has no derivative rule for its .*closed form"):
        grad(lambda p: np.sum(f(x, p, *rest[1:])))(rest[0])


def test_poisson_has_a_derivative_in_mu():
    k, mu = np.array([0.0, 2.0, 5.0]), P + 1
    for name in ("logpmf", "pmf", "cdf"):
        f = ours("stats", f"poisson.{name}")
        np.testing.assert_allclose(f(k, mu), theirs("stats", f"poisson.{name}")(k, mu), 1e-12)
        check_grads(lambda mu, f=f: f(k, mu), (mu,))


def test_logsumexp_does_not_overflow():
    f = revgrad.scipy.special.logsumexp
    assert grad(f)(np.array([1000.0, 1000.0])).tolist() == [0.5, 0.5]
    assert grad(f)(np.array([-np.inf, 0.0])).tolist() == [0, 1]


def test_xlogy_is_safe_at_zero():
    g = grad(scipy.special.xlogy, (0, 1))
    assert g(0.0, 2.0) == (0.0, 0.0) and g(0.0, 0.0)[0] == 0


def test_parameters_without_closed_form_are_refused_by_name():
    for name, args in (("gammainc", (1.0, 2.0)), ("jv", (1.0, 2.0)), ("betainc", (1.0, 2.0, 0.5))):
        f = getattr(scipy.special, name)
        with pytest.raises(MissingRule, match=rf"scipy.special.{name} has no derivative rule for"):
            grad(f)(*args)
        assert np.isfinite(grad(f, len(args) - 1)(*args))


@pytest.fixture
def elsewhere(monkeypatch):
    """Foreign arrays have a home; the names of the functions that it was asked for."""
    asked = []

    def function(module, name):
        def f(*args, **options):
            asked.append(name)
            args = [x.home if isinstance(x, ForeignArray) else x for x in args]
            return ForeignArray(getattr(module, name)(*args, **options))

        return f

    for module in (scipy.special, scipy.linalg, scipy.signal):
        last = module.__name__.split(".")[-1]
        names = {
            "special": ("erf",),
            "linalg": ("expm", "solve_triangular"),
            "signal": ("convolve",),
        }
        home = SimpleNamespace(**{name: function(module, name) for name in names[last]})
        monkeypatch.setitem(sys.modules, f"elsewhere.scipy.{last}", home)
    monkeypatch.setitem(homes.HOMES, "revgrad", "elsewhere.scipy")
    return asked


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("erf", scipy.special.erf),
        ("erf", lambda x: nn.gelu(x, approximate=False)),
        ("expm", linalg.expm),
        ("solve_triangular", lambda x: linalg.solve_triangular(x, x)),
        ("convolve", lambda x: signal.convolve(x, x, "same")),
    ],
)
def test_arrays_from_elsewhere_go_to_the_functions_of_their_home(name, f, elsewhere):
    x = np.eye(3) + 0.1
    out, pullback = vjp(f, ForeignArray(x))
    assert set(elsewhere) == {name} and isinstance(out, ForeignArray)
    there = pullback(out)[0]
    expected, pullback = vjp(f, x)
    assert isinstance(there, ForeignArray)
    assert np.array_equal(out.home, expected)
    assert np.array_equal(there.home, pullback(expected)[0])


def test_functions_that_a_home_lacks_are_named(elsewhere):
    with pytest.raises(NotImplementedError, match=r"elsewhere\.scipy\.linalg has no sqrtm"):
        linalg.sqrtm(ForeignArray(np.eye(2)))


def test_arrays_without_a_home_are_not_converted():
    with pytest.raises(TypeError, match="expm takes NumPy arrays, not ForeignArray"):
        linalg.expm(ForeignArray(np.eye(2)))


def test_revgrad_does_not_import_scipy():
    code = "import sys, revgrad; assert not any(m.startswith('scipy') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_special_rules_load_when_they_are_met():
    code = (
        "import scipy.special as s, revgrad as rg\n"
        "assert abs(rg.grad(s.erf)(0.0) - 1.1283791670955126) < 1e-15"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
