"""scipy.linalg: functions that NumPy lacks. All other names are SciPy's own, without rules."""

from types import SimpleNamespace

import numpy as np
import scipy.linalg as _linalg

from revgrad._ext.homes import at_home
from revgrad.rules.row import define, derived, shape_of

_names = ("expm", "solve_banded", "solve_sylvester", "solve_triangular", "sqrtm")
_plain = SimpleNamespace(**{name: at_home(getattr(_linalg, name), "linalg") for name in _names})
_t = np.transpose
_TRANSPOSED = {0: False, "N": False, 1: True, "T": True}


def _triangle(a, *, trans, lower, unit_diagonal):
    a = np.tril(a) if lower else np.triu(a)
    if unit_diagonal:
        a = a - np.diag(np.diag(a)) + np.eye(shape_of(a)[0])
    return _t(a) if trans else a


_solve_triangular = derived(
    "solve_triangular",
    lambda a, b, *, trans, **how: _plain.solve_triangular(a, b, trans=int(trans), **how),
    lambda a, b, **how: np.linalg.solve(_triangle(a, **how), b),
)


def solve_triangular(a, b, trans=0, lower=False, unit_diagonal=False):
    """As scipy.linalg.solve_triangular; trans is 0, 1, "N" or "T"."""
    return _solve_triangular(
        a, b, trans=_TRANSPOSED[trans], lower=lower, unit_diagonal=unit_diagonal
    )


def _banded(ab, below, above):
    """The matrix whose diagonals are the rows of ab, as LAPACK stores them."""
    n = shape_of(ab)[1]
    rows = ((above - k, k) for k in range(-below, above + 1))
    return sum(
        np.diag(ab[row, k:] if k >= 0 else ab[row, : n + k], k) for row, k in rows if abs(k) < n
    )


_solve_banded = derived(
    "solve_banded",
    lambda ab, b, *, below, above: _plain.solve_banded((below, above), ab, b),
    lambda ab, b, *, below, above: np.linalg.solve(_banded(ab, below, above), b),
)


def solve_banded(l_and_u, ab, b):
    """As scipy.linalg.solve_banded."""
    return _solve_banded(ab, b, below=int(l_and_u[0]), above=int(l_and_u[1]))


def _pulled(ct, a, b):
    return solve_sylvester(_t(a), _t(b), ct)


_sylvester = define(
    "solve_sylvester",
    _plain.solve_sylvester,
    [
        lambda t, out, a, b, q: solve_sylvester(a, b, -(t @ out)),
        lambda t, out, a, b, q: solve_sylvester(a, b, -(out @ t)),
        lambda t, out, a, b, q: solve_sylvester(a, b, t),
    ],
    [
        lambda ct, out, a, b, q: -(_pulled(ct, a, b) @ _t(out)),
        lambda ct, out, a, b, q: -(_t(out) @ _pulled(ct, a, b)),
        lambda ct, out, a, b, q: _pulled(ct, a, b),
    ],
    register=False,
)


def solve_sylvester(a, b, q):
    """The x with a @ x + x @ b = q."""
    return _sylvester(a, b, q)


_sqrtm = define(
    "sqrtm",
    _plain.sqrtm,
    [lambda t, out, a: solve_sylvester(out, out, t)],
    [lambda ct, out, a: solve_sylvester(_t(out), _t(out), ct)],
    register=False,
)


def sqrtm(a):
    """The square root of a matrix. Raises where it is singular."""
    return _sqrtm(a)


def _direction(a, t):
    """The derivative of expm at a in direction t: a corner of expm of a matrix twice as large."""
    n = shape_of(a)[0]
    upper, lower = np.concatenate([a, t], 1), np.concatenate([np.zeros_like(a), a], 1)
    return expm(np.concatenate([upper, lower]))[:n, n:]


_expm = define(
    "expm",
    _plain.expm,
    [lambda t, out, a: _direction(a, t)],
    [lambda ct, out, a: _direction(_t(a), ct)],
    register=False,
)


def expm(a):
    """The exponential of a matrix."""
    return _expm(a)


def block_diag(*arrays):
    """Matrices along the diagonal of one."""
    width = sum(shape_of(a)[1] for a in arrays)
    rows, start = [], 0
    for a in arrays:
        end = start + shape_of(a)[1]
        rows.append(np.pad(a, ((0, 0), (start, width - end))))
        start = end
    return np.concatenate(rows)


def __getattr__(name):
    return getattr(_linalg, name)
