"""scipy.special: the functions that are no ufuncs. All other names are SciPy's own."""

import numpy as np
import scipy.special as _special

from revgrad.rules.row import shape_of


def logsumexp(a, axis=None, b=None, keepdims=False, return_sign=False):
    """log(sum(b * exp(a))) over axes, without overflow. return_sign is not supported."""
    if return_sign:
        raise TypeError("logsumexp(return_sign=True) has no rule; sum b * exp(a - max) yourself.")
    top = np.max(a, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    terms = np.exp(a - top)
    terms = terms if b is None else b * terms
    out = np.log(np.sum(terms, axis=axis, keepdims=True)) + top
    if keepdims:
        return out
    shape = np.sum(np.empty(shape_of(a), bool), axis=axis).shape
    return np.reshape(out, shape) if shape else np.reshape(out, -1)[0]


def softmax(x, axis=None):
    """exp(x) / sum(exp(x)) over axes."""
    return np.exp(log_softmax(x, axis))


def log_softmax(x, axis=None):
    """x - log(sum(exp(x))) over axes."""
    return x - logsumexp(x, axis, keepdims=True)


def polygamma(n, x):
    """The n-th derivative of the digamma function; n is an int."""
    if n == 0:
        return _special.psi(x)
    factor = float((-1) ** (n + 1) * _special.factorial(n))
    return factor * _special._ufuncs._zeta(n + 1.0, x)


def zeta(x, q):
    """Hurwitz's zeta function; its derivative in q."""
    return _special._ufuncs._zeta(x, q)


def multigammaln(a, d):
    """Log of the multivariate gamma function of dimension d."""
    terms = [_special.gammaln(a + (1.0 - j) / 2) for j in range(1, d + 1)]
    return sum(terms) + d * (d - 1) * 0.25 * float(np.log(np.pi))


def __getattr__(name):
    return getattr(_special, name)
