"""SciPy's special functions. Loaded by the first one that a traced array meets: SciPy is optional.

Derivatives with respect to an order or a shape parameter exist where they have a closed form; the
others are refused by name.
"""

import numpy as np
from scipy import special

from revgrad._ext.homes import at_home
from revgrad.arrays import functions
from revgrad.errors import MissingRule
from revgrad.rules.row import elementwise_primitive

ZETA = special._ufuncs._zeta  # special.zeta is a Python function that ends in this


def _ufunc(name):
    return ZETA if name == "zeta" else getattr(special, name)


def _row(name, *partials):
    ufunc = _ufunc(name)
    functions[ufunc] = elementwise_primitive(at_home(ufunc, "special"), partials)


def _refused(name, argument):
    def partial(*_):
        raise MissingRule(
            f"scipy.special.{name} has no derivative rule for {argument}: none in closed form; "
            "pass it through stop_gradient, or write a rule with revgrad.extend."
        )

    return partial


def _call(name):
    """A special function inside a rule: it meets traced values too, and arrays from elsewhere."""
    ufunc = _ufunc(name)
    return lambda *args: functions[ufunc](*args)


psi, zeta, gammaln = map(_call, ("psi", "zeta", "gammaln"))
j0, j1, jv, y0, y1, yv = map(_call, ("j0", "j1", "jv", "y0", "y1", "yv"))
i0, i1, iv, k0, k1, kv = map(_call, ("i0", "i1", "iv", "k0", "k1", "kv"))
i0e, i1e, ive, k0e, k1e, kve = map(_call, ("i0e", "i1e", "ive", "k0e", "k1e", "kve"))
expit, xlogy = map(_call, ("expit", "xlogy"))
ROOT_PI, ROOT_2PI = float(np.sqrt(np.pi)), float(np.sqrt(2 * np.pi))


# Error functions and the normal distribution.
_row("erf", lambda out, x: np.exp(-x * x) * (2 / ROOT_PI))
_row("erfc", lambda out, x: np.exp(-x * x) * (-2 / ROOT_PI))
_row("erfcx", lambda out, x: 2 * x * out - 2 / ROOT_PI)
_row("erfi", lambda out, x: np.exp(x * x) * (2 / ROOT_PI))
_row("erfinv", lambda out, x: np.exp(out * out) * (ROOT_PI / 2))
_row("erfcinv", lambda out, x: np.exp(out * out) * (-ROOT_PI / 2))
_row("dawsn", lambda out, x: 1 - 2 * x * out)
_row("ndtr", lambda out, x: np.exp(-x * x * 0.5) * (1 / ROOT_2PI))
_row("ndtri", lambda out, x: np.exp(out * out * 0.5) * ROOT_2PI)
_row("log_ndtr", lambda out, x: np.exp(-x * x * 0.5 - out) * (1 / ROOT_2PI))

# Logistic functions and logarithms that are safe at 0.
_row("expit", lambda out, x: out * (1 - out))
_row("logit", lambda out, x: 1 / (x * (1 - x)))
_row("log_expit", lambda out, x: expit(-x))


def _logarithm(x, y):
    """log(y), and 0 where x is."""
    return np.where(x == 0, 0.0, np.log(np.where(x == 0, 1.0, y)))


_row("xlogy", lambda out, x, y: _logarithm(x, y), lambda out, x, y: x / np.where(x == 0, 1.0, y))
_row(
    "xlog1py",
    lambda out, x, y: _logarithm(x, 1 + y),
    lambda out, x, y: x / (1 + y),
)
_row("entr", lambda out, x: -1 - np.log(x))
_row("rel_entr", lambda out, x, y: np.log(x / y) + 1, lambda out, x, y: -x / y)
_row("kl_div", lambda out, x, y: np.log(x / y), lambda out, x, y: 1 - x / y)
_row("exp10", lambda out, x: out * float(np.log(10)))
_row("cbrt", lambda out, x: 1 / (3 * out * out))
_row("expm1", lambda out, x: out + 1)
_row("log1p", lambda out, x: 1 / (1 + x))
_row("huber", lambda out, d, r: _huber_in_delta(d, r), lambda out, d, r: np.clip(r, -d, d))


def _huber_in_delta(d, r):
    return np.where(np.absolute(r) <= d, 0.0, np.absolute(r) - d)


# Gamma and beta functions.
_row("gamma", lambda out, x: out * psi(x))
_row("gammaln", lambda out, x: psi(x))
_row("loggamma", lambda out, x: psi(x))
_row("rgamma", lambda out, x: -out * psi(x))
_row("psi", lambda out, x: zeta(2.0, x))
_row("zeta", _refused("zeta", "its first argument"), lambda out, s, x: -s * zeta(s + 1, x))
_row(
    "beta",
    lambda out, a, b: out * (psi(a) - psi(a + b)),
    lambda out, a, b: out * (psi(b) - psi(a + b)),
)
_row("betaln", lambda out, a, b: psi(a) - psi(a + b), lambda out, a, b: psi(b) - psi(a + b))
_row("poch", lambda out, z, m: out * (psi(z + m) - psi(z)), lambda out, z, m: out * psi(z + m))


def _gamma_density(out, a, x):
    return np.exp(xlogy(a - 1, x) - x - gammaln(a))


def _beta_density(out, a, b, x):
    return np.exp(xlogy(a - 1, x) + xlogy(b - 1, 1 - x) + gammaln(a + b) - gammaln(a) - gammaln(b))


_row("gammainc", _refused("gammainc", "its first argument"), _gamma_density)
_row(
    "gammaincc",
    _refused("gammaincc", "its first argument"),
    lambda out, a, x: -_gamma_density(out, a, x),
)
_row(
    "betainc",
    _refused("betainc", "its first argument"),
    _refused("betainc", "its second argument"),
    _beta_density,
)
_row("gammasgn", None)


def _t_density(out, df, x):
    scale = np.exp(gammaln((df + 1) / 2) - gammaln(df / 2)) / np.sqrt(df * float(np.pi))
    return scale * (1 + x * x / df) ** (-(df + 1) / 2)


_row("stdtr", _refused("stdtr", "its degrees of freedom"), _t_density)

# Bessel functions: of an order that is not traced.
_row("j0", lambda out, x: -j1(x))
_row("y0", lambda out, x: -y1(x))
_row("j1", lambda out, x: (j0(x) - jv(2.0, x)) / 2)
_row("y1", lambda out, x: (y0(x) - yv(2.0, x)) / 2)
_row("i0", lambda out, x: i1(x))
_row("i1", lambda out, x: (i0(x) + iv(2.0, x)) / 2)
_row("k0", lambda out, x: -k1(x))
_row("k1", lambda out, x: -(k0(x) + kv(2.0, x)) / 2)
_row("i0e", lambda out, x: i1e(x) - np.sign(x) * out)
_row("i1e", lambda out, x: (i0e(x) + ive(2.0, x)) / 2 - np.sign(x) * out)
_row("k0e", lambda out, x: out - k1e(x))
_row("k1e", lambda out, x: out - (k0e(x) + kve(2.0, x)) / 2)


def _bessel(name, below, above):
    f = _call(name)
    _row(
        name,
        _refused(name, "its order"),
        lambda out, n, x: (below * f(n - 1, x) + above * f(n + 1, x)) / 2,
    )


_bessel("jv", 1, -1)
_bessel("yv", 1, -1)
_bessel("iv", 1, 1)
_bessel("kv", -1, -1)
_row("yn", _refused("yn", "its order"), lambda out, n, x: (yv(n - 1.0, x) - yv(n + 1.0, x)) / 2)
_row(
    "ive",
    _refused("ive", "its order"),
    lambda out, n, x: (ive(n - 1, x) + ive(n + 1, x)) / 2 - np.sign(x) * out,
)
_row(
    "kve",
    _refused("kve", "its order"),
    lambda out, n, x: out - (kve(n - 1, x) + kve(n + 1, x)) / 2,
)
