"""Factors of matrices: cholesky, eigenvectors, singular values, pseudo-inverse, qr, least squares.

Functions of a symmetric matrix (cholesky, eigh, eigvalsh) read one triangle of it; their rules take
the derivative of the function of (A + A^H) / 2, so that a gradient is symmetric like its matrix.
Eigenvalues and singular values that are equal have no derivative of their vectors: NaN or inf.
"""

import numpy as np

from revgrad.arrays import plain
from revgrad.rules.linalg import RESULTS, adjoint, diagonal, identity, pushed, symmetric, transposed
from revgrad.rules.row import (
    cast,
    composite,
    define,
    derived,
    dtype_of,
    filled_like,
    is_complex,
    shape_of,
)
from revgrad.tape import Primitive


def _lower_half(x):
    """The lower triangle, with half of the diagonal."""
    return np.tril(x) / (1.0 + cast(identity(x), dtype_of(x)))


def _push_cholesky(t, out, a, *, upper):
    lower = adjoint(out) if upper else out
    half = np.linalg.solve(lower, adjoint(np.linalg.solve(lower, symmetric(t))))
    mask = (
        np.tril(np.ones_like(plain(half), dtype=dtype_of(np.real(half))), -1) + identity(half) * 0.5
    )
    pushed_lower = lower @ (half * cast(mask, dtype_of(half)))
    return adjoint(pushed_lower) if upper else pushed_lower


def _pull_cholesky(ct, out, a, *, upper):
    lower, ct = (adjoint(out), adjoint(ct)) if upper else (out, ct)
    left = np.linalg.solve(transposed(lower), _lower_half(transposed(lower) @ ct))
    return symmetric(transposed(np.linalg.solve(adjoint(lower), transposed(left))))


_cholesky = define(
    "cholesky",
    lambda a, *, upper: np.linalg.cholesky(a, upper=upper),
    [_push_cholesky],
    [_pull_cholesky],
    register=False,
)


@composite(np.linalg.cholesky)
def _np_cholesky(a, /, *, upper=False):
    return _cholesky(a, upper=upper)


def _gaps(w):
    """1 / (w_j - w_i), and 0 where i = j."""
    gaps = np.expand_dims(w, -2) - np.expand_dims(w, -1)
    one = cast(identity(w), dtype_of(w))
    return (1 - one) / (gaps + one)


def _push_eigh(t, out, a, *, UPLO):
    w, v = out
    m = adjoint(v) @ symmetric(t) @ v
    return np.real(diagonal(m)), v @ (_gaps(w) * m)


def _push_eigvalsh(t, out, a, *, UPLO):
    v = np.linalg.eigh(a, UPLO)[1]
    return np.real(diagonal(adjoint(v) @ symmetric(t) @ v))


_eigh = pushed("eigh", lambda a, *, UPLO: tuple(np.linalg.eigh(a, UPLO)), _push_eigh, many=True)
_eigvalsh = pushed("eigvalsh", lambda a, *, UPLO: np.linalg.eigvalsh(a, UPLO), _push_eigvalsh)


@composite(np.linalg.eigh)
def _np_eigh(a, UPLO="L"):
    return RESULTS[np.linalg.eigh](*_eigh(a, UPLO=UPLO))


@composite(np.linalg.eigvalsh)
def _np_eigvalsh(a, UPLO="L"):
    return _eigvalsh(a, UPLO=UPLO)


def _push_eig(t, out, a):
    """Vectors keep the norm 1 and, where complex, a real largest entry, as LAPACK makes them."""
    w, v = out
    m = np.linalg.solve(v, t @ v)
    dv = v @ (_gaps(w) * m)
    along = -np.sum(np.real(np.conj(v) * dv), axis=-2, keepdims=True)
    if is_complex(v):
        largest = np.argmax(np.absolute(v), -2, keepdims=True)
        top, turned = (np.take_along_axis(x, largest, -2) for x in (v, dv))
        along = along - 1j * np.imag(turned) / np.real(top)
    return diagonal(m), dv + v * cast(along, dtype_of(v))


_eig = pushed("eig", lambda a: tuple(np.linalg.eig(a)), _push_eig, many=True)
_eigvals = pushed(
    "eigvals",
    np.linalg.eigvals,
    lambda t, out, a: _matched_values(t, out, a),
)


def _matched_values(t, out, a):
    """Derivatives in the order of the values that were given out."""
    w, v = np.linalg.eig(a)
    d = diagonal(np.linalg.solve(v, t @ v))
    apart = np.absolute(np.expand_dims(out, -1) - np.expand_dims(w, -2))
    return np.take_along_axis(d, np.argmin(apart, -1), -1)


@composite(np.linalg.eig)
def _np_eig(a):
    return RESULTS[np.linalg.eig](*_eig(a))


@composite(np.linalg.eigvals)
def _np_eigvals(a):
    return _eigvals(a)


def _push_svd(t, out, a):
    u, s, vh = out
    v = adjoint(vh)
    ds = adjoint(u) @ t @ v
    s = cast(s, dtype_of(ds))
    row, column = np.expand_dims(s, -2), np.expand_dims(s, -1)
    one = cast(identity(s), dtype_of(ds))
    f = (1 - one) / ((row - column) * (row + column) + one)
    left, right = ds * row, column * ds
    du = u @ (f * (left + adjoint(left)))
    dv = v @ (f * (right + adjoint(right)))
    if is_complex(a):
        du = du + u @ (one * (ds - adjoint(ds)) * 0.5 / row)
    rest = t @ v - u @ (adjoint(u) @ t @ v)
    du = du + rest / row if shape_of(a)[-2] > shape_of(s)[-1] else du
    rest = adjoint(t) @ u - v @ (adjoint(v) @ adjoint(t) @ u)
    dv = dv + rest / row if shape_of(a)[-1] > shape_of(s)[-1] else dv
    return du, np.real(diagonal(ds)), adjoint(dv)


def _pull_svd(cts, *, wanted, out, args, static):
    """The transpose of the above, in gradients G = conj(ct) so that <G, dX> = Re tr(G^H dX)."""
    u, s, vh = out
    gu, gs, gvh = (c if c is None else np.conj(c) for c in cts)
    core, rest = _spread_diagonal(gs, u, s), None
    scale = cast(np.expand_dims(s, -2), dtype_of(u))
    if gu is not None:
        k = adjoint(u) @ gu
        core = core + _turned(k, s) * scale
        if is_complex(u):
            core = core + _spread_diagonal(np.imag(diagonal(k)) / s, u, s) * 1j
        if shape_of(u)[-2] > shape_of(u)[-1]:
            rest = ((gu - u @ k) / scale) @ vh
    if gvh is not None:
        gv = adjoint(gvh)
        k = vh @ gv
        core = core + transposed(scale) * _turned(k, s)
        if shape_of(vh)[-1] > shape_of(vh)[-2]:
            beyond = (u / scale) @ (gvh - adjoint(k) @ vh)
            rest = beyond if rest is None else rest + beyond
    g = u @ core @ vh
    return [np.conj(g if rest is None else g + rest)]


def _spread_diagonal(d, u, s):
    """A diagonal matrix of u's dtype, in whatever batch there is."""
    eye = cast(identity(s), dtype_of(u))
    return eye * 0.0 if d is None else eye * np.expand_dims(d, -1)


def _turned(k, s):
    """F * k and its adjoint together, F being 1 / (s_j^2 - s_i^2)."""
    row, column, one = np.expand_dims(s, -2), np.expand_dims(s, -1), identity(s)
    k = k * cast((1.0 - one) / ((row - column) * (row + column) + one), dtype_of(k))
    return k + adjoint(k)


_svd = Primitive(
    "svd",
    lambda a: tuple(np.linalg.svd(a, False)),
    lambda tangents, *, out, args, static: _push_svd(tangents[0], out, args[0]),
    _pull_svd,
    many=True,
)


def _push_svdvals(t, out, a):
    u, _, vh = np.linalg.svd(a, False)
    return np.real(np.sum(np.conj(u) * (t @ adjoint(vh)), axis=-2))


def _pull_svdvals(ct, out, a):
    u, _, vh = np.linalg.svd(a, False)
    return (np.conj(u) * np.expand_dims(ct, -2)) @ np.conj(vh)


_singular_values = define(
    "svdvals",
    lambda a: np.linalg.svd(a, compute_uv=False),
    [_push_svdvals],
    [_pull_svdvals],
)


@composite(np.linalg.svd)
def _np_svd(a, full_matrices=True, compute_uv=True, hermitian=False):
    if hermitian:
        raise TypeError("np.linalg.svd(hermitian=True) of a traced array; use np.linalg.eigh.")
    if not compute_uv:
        return _singular_values(a)
    if full_matrices and shape_of(a)[-2] != shape_of(a)[-1]:
        raise TypeError(
            f"np.linalg.svd of a traced array of shape {shape_of(a)}: the vectors of no singular "
            "value have no derivative; pass full_matrices=False."
        )
    return RESULTS[np.linalg.svd](*_svd(a))


@composite(np.linalg.svdvals)
def _svdvals(x):
    return _singular_values(x)


def _push_pinv(t, out, a, **_):
    p, th = out, adjoint(t)
    left = p @ adjoint(p) @ th
    right = th @ adjoint(p) @ p
    return -(p @ t @ p) + left - (left @ a) @ p + right - p @ (a @ right)


def _pull_pinv(ct, out, a, **_):
    p, ph, gh = out, adjoint(out), transposed(ct)  # in gradients G = conj(ct), as in _pull_svd
    left, right = gh @ (p @ ph), (ph @ p) @ gh
    g = -(ph @ adjoint(gh) @ ph) + left - a @ (p @ left) + right - (right @ p) @ a
    return np.conj(g)


_pinv = define(
    "pinv",
    lambda a, *, rcond, hermitian: np.linalg.pinv(a, rcond, hermitian),
    [_push_pinv],
    [_pull_pinv],
)


@composite(np.linalg.pinv)
def _np_pinv(a, rcond=None, hermitian=False, *, rtol=None):
    rcond = rtol if rcond is None else rcond
    if rcond is None:
        rcond = max(shape_of(a)[-2:]) * float(np.finfo(dtype_of(a)).eps)
    return _pinv(a, rcond=rcond, hermitian=hermitian)


# Qr: of matrices with at least as many rows as columns, or square ones.


def _push_qr(t, out, a):
    q, r = out
    step = transposed(np.linalg.solve(transposed(r), transposed(t)))
    m = adjoint(q) @ step
    lower = np.tril(m, -1)
    turn = lower - adjoint(lower)
    if is_complex(a):  # LAPACK's r has a real diagonal
        turn = turn + 1j * np.imag(m) * identity(m)
    return q @ (turn - m) + step, (m - turn) @ r


_qr = pushed("qr", lambda a: tuple(np.linalg.qr(a)), _push_qr, many=True)
_QR = type(np.linalg.qr(np.eye(2)))


@composite(np.linalg.qr)
def _np_qr(a, mode="reduced"):
    if mode != "reduced" or shape_of(a)[-2] < shape_of(a)[-1]:
        raise TypeError(
            f"np.linalg.qr(mode={mode!r}) of a traced array of shape {shape_of(a)}; matrices with "
            "no more columns than rows have a rule, in mode='reduced'."
        )
    return _QR(*_qr(a))


# Least squares, for matrices of full rank.


def _least_squares(a, b):
    x = np.linalg.pinv(a) @ b
    residual = np.real((b - a @ x) * np.conj(b - a @ x))
    return x, np.sum(residual, axis=0), np.linalg.svdvals(a)


def _run_lstsq(a, b, *, rcond):
    x, residuals, _, s = np.linalg.lstsq(a, b, rcond)
    return x, residuals, s


_lstsq = derived(
    "lstsq",
    _run_lstsq,
    lambda a, b, *, rcond: _given_residuals(a, b),
    many=True,
)


def _given_residuals(a, b):
    """NumPy gives residuals, of one axis, where rows are more than columns; else an empty array."""
    x, residuals, s = _least_squares(a, b)
    if shape_of(a)[0] <= shape_of(a)[1]:
        residuals = filled_like(np.zeros_like, plain(a), shape=0, dtype=dtype_of(s))
    return x, np.reshape(residuals, -1), s


@composite(np.linalg.lstsq)
def _np_lstsq(a, b, rcond=None):
    x, residuals, s = _lstsq(a, b, rcond=rcond)
    if not shape_of(residuals)[0] and shape_of(a)[0] > shape_of(a)[1]:
        raise TypeError("np.linalg.lstsq of a traced array whose columns depend on one another.")
    return x, residuals, shape_of(s)[0], s
