"""Linear algebra. Matrices are the last two axes, any others are a batch.

Functions of a symmetric matrix (cholesky, eigh, eigvalsh) read one triangle of it; their rules take
the derivative of the function of (A + A^H) / 2, so that a gradient is symmetric like its matrix.
Eigenvalues and singular values that are equal have no derivative of their vectors: NaN or inf.
"""

from math import prod

import numpy as np

from revgrad.arrays import ArrayBox, functions, plain
from revgrad.rules.row import (
    cast,
    composite,
    define,
    derived,
    dtype_of,
    is_complex,
    match,
    shape_of,
    unbroadcast,
)
from revgrad.tape import Primitive, Pull, pull_back


def _t(x):
    return np.swapaxes(x, -1, -2)


def _h(x):
    return np.conj(_t(x)) if is_complex(x) else _t(x)


def _symmetric(x):
    return (x + _h(x)) * 0.5


def _eye(x):
    """The identity in x's array type, of the size of its last axis."""
    n = shape_of(x)[-1]
    return np.diag(np.ones_like(plain(x), shape=n))


def _diagonal(x):
    return np.diagonal(x, 0, -2, -1)


def pushed(name, run, push, *, many=False):
    """A primitive of one argument from its push rule: the pull is that one's transpose."""

    def push_all(tangents, *, out, args, static):
        return None if tangents[0] is None else push(tangents[0], out, *args, **static)

    def pull_all(ct, *, wanted, out, args, static):
        cts, outs = (ct, out) if many else ((ct,), (out,))
        with Pull(ArrayBox) as trace:
            t = trace.input(np.zeros_like(plain(args[0])))
            images = push(t, out, *args, **static)
            nodes = [trace.unwrap(y)[1] for y in (images if many else (images,))]
        cts = [c if c is None else match(c, o) for c, o in zip(cts, outs, strict=True)]
        pairs = [(n, c) for n, c in zip(nodes, cts, strict=True) if n is not None and c is not None]
        return [cast_to(c, args[0]) for c in pull_back(pairs, [t.node])]

    return Primitive(name, run, push_all, pull_all, many=many)


def cast_to(ct, like):
    return ct if ct is None else cast(ct, dtype_of(like))


# Products, inverses, determinants.

_inv = define(
    np.linalg.inv,
    np.linalg.inv,
    [lambda t, out, a: -(out @ t @ out)],
    [lambda ct, out, a: -(_t(out) @ ct @ _t(out))],
)


def _is_vector(b):
    return len(shape_of(b)) == 1


def _push_solve_matrix(t, out, a, b):
    """-(a \\ (t out)), of columns where b is a vector."""
    columns = np.expand_dims(out, -1) if _is_vector(b) else out
    pushed_columns = -np.linalg.solve(a, t @ columns)
    return pushed_columns[..., 0] if _is_vector(b) else pushed_columns


define(
    np.linalg.solve,
    np.linalg.solve,
    [
        lambda t, out, a, b: _push_solve_matrix(t, out, a, b),
        lambda t, out, a, b: np.linalg.solve(a, t),
    ],
    [
        lambda ct, out, a, b: _pull_solve_matrix(ct, out, a, b),
        lambda ct, out, a, b: _pull_solve_side(ct, out, a, b),
    ],
)


def _solved_transposed(ct, a, b):
    """a^T \\ ct, as columns."""
    if _is_vector(b):
        ct = np.expand_dims(ct, -1)
    return np.linalg.solve(_t(a), ct)


def _pull_solve_matrix(ct, out, a, b):
    columns = np.expand_dims(out, -1) if _is_vector(b) else out
    return unbroadcast(-(_solved_transposed(ct, a, b) @ _t(columns)), a)


def _pull_solve_side(ct, out, a, b):
    pulled = _solved_transposed(ct, a, b)
    return unbroadcast(pulled[..., 0] if _is_vector(b) else pulled, b)


def _as_matrix(a, ndim):
    """An array with `ndim` axes for rows, the rest for columns, as a matrix."""
    return np.reshape(a, (prod(shape_of(a)[:ndim]), -1))


@composite(np.linalg.tensorsolve)
def _tensorsolve(a, b, axes=None):
    if axes is not None:
        a = np.moveaxis(a, axes, range(len(shape_of(a)) - len(axes), len(shape_of(a))))
    rows = len(shape_of(b))
    x = np.linalg.solve(_as_matrix(a, rows), np.ravel(b))
    return np.reshape(x, shape_of(a)[rows:])


@composite(np.linalg.tensorinv)
def _tensorinv(a, ind=2):
    shape = shape_of(a)
    return np.reshape(np.linalg.inv(_as_matrix(a, ind)), shape[ind:] + shape[:ind])


def _over_matrices(c):
    return np.expand_dims(c, (-2, -1)) if shape_of(c) else c


def _push_log(t, a):
    return np.trace(np.linalg.solve(a, t), 0, -2, -1)


_det = define(
    "det",
    np.linalg.det,
    [lambda t, out, a: out * _push_log(t, a)],
    [lambda ct, out, a: _over_matrices(ct * out) * _t(np.linalg.inv(a))],
    register=False,
)
_slogdet = Primitive(
    "slogdet",
    lambda a: tuple(np.linalg.slogdet(a)),
    lambda tangents, *, out, args, static: (None, _push_log(tangents[0], args[0])),
    lambda ct, *, wanted, out, args, static: [
        None if ct[1] is None else _over_matrices(ct[1]) * _t(np.linalg.inv(args[0]))
    ],
    many=True,
)
_result_of = {
    f: type(f(np.eye(2))) for f in (np.linalg.slogdet, np.linalg.eig, np.linalg.eigh, np.linalg.svd)
}


@composite(np.linalg.det)
def _np_det(a):
    return _det(a)


def _push_slogdet(t, out, a):
    log = _push_log(t, a)
    return out[0] * (np.imag(log) * 1j), np.real(log)


_complex_slogdet = pushed(
    "slogdet", lambda a: tuple(np.linalg.slogdet(a)), _push_slogdet, many=True
)


@composite(np.linalg.slogdet)
def _np_slogdet(a):
    slogdet = _complex_slogdet if is_complex(a) else _slogdet
    return _result_of[np.linalg.slogdet](*slogdet(a))


@composite(np.linalg.matrix_power)
def _matrix_power(a, n):
    if n < 0:
        a, n = np.linalg.inv(a), -n
    if n == 0:
        return a * 0 + _eye(a)
    if n == 3:  # as NumPy does it
        return (a @ a) @ a
    power, out = None, None
    while n:
        power = a if power is None else power @ power
        n, bit = divmod(n, 2)
        if bit:
            out = power if out is None else out @ power
    return out


@composite(np.linalg.multi_dot)
def _multi_dot(arrays):
    """From left to right: the order that is cheapest is not looked for."""
    out = arrays[0]
    for a in arrays[1:]:
        out = np.dot(out, a)
    return out


@composite(np.linalg.matrix_transpose)
def _matrix_transpose(x):
    return _t(x)


@composite(np.linalg.outer)
def _outer(x1, x2):
    return np.outer(x1, x2)


@composite(np.linalg.trace)
def _trace(x, *, offset=0):
    return np.trace(x, offset, -2, -1)


_vecdot = derived(
    "vecdot",
    lambda x1, x2, *, axis: np.linalg.vecdot(x1, x2, axis=axis),  # type: ignore[call-overload]
    lambda x1, x2, *, axis: np.sum((np.conj(x1) if is_complex(x1) else x1) * x2, axis=axis),
)


@composite(np.linalg.vecdot, np.vecdot)
def _np_vecdot(x1, x2, /, *, axis=-1):
    return _vecdot(x1, x2, axis=axis)


# Factorisations.


def _push_cholesky(t, out, a, *, upper):
    lower = _h(out) if upper else out
    half = np.linalg.solve(lower, _h(np.linalg.solve(lower, _symmetric(t))))
    mask = np.tril(np.ones_like(plain(half), dtype=dtype_of(np.real(half))), -1) + _eye(half) * 0.5
    pushed_lower = lower @ (half * cast(mask, dtype_of(half)))
    return _h(pushed_lower) if upper else pushed_lower


def _pull_cholesky(ct, out, a, *, upper):
    lower, ct = (_h(out), _h(ct)) if upper else (out, ct)
    half = np.tril(_t(lower) @ ct) / (1.0 + cast(_eye(lower), dtype_of(lower)))
    left = np.linalg.solve(_t(lower), half)
    return _symmetric(_t(np.linalg.solve(_h(lower), _t(left))))


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
    one = cast(_eye(w), dtype_of(w))
    return (1 - one) / (gaps + one)


def _push_eigh(t, out, a, *, UPLO):
    w, v = out
    m = _h(v) @ _symmetric(t) @ v
    return np.real(_diagonal(m)), v @ (_gaps(w) * m)


def _push_eigvalsh(t, out, a, *, UPLO):
    v = np.linalg.eigh(a, UPLO)[1]
    return np.real(_diagonal(_h(v) @ _symmetric(t) @ v))


_eigh = pushed("eigh", lambda a, *, UPLO: tuple(np.linalg.eigh(a, UPLO)), _push_eigh, many=True)
_eigvalsh = pushed("eigvalsh", lambda a, *, UPLO: np.linalg.eigvalsh(a, UPLO), _push_eigvalsh)


@composite(np.linalg.eigh)
def _np_eigh(a, UPLO="L"):
    return _result_of[np.linalg.eigh](*_eigh(a, UPLO=UPLO))


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
    return _diagonal(m), dv + v * cast(along, dtype_of(v))


_eig = pushed("eig", lambda a: tuple(np.linalg.eig(a)), _push_eig, many=True)
_eigvals = pushed(
    "eigvals",
    np.linalg.eigvals,
    lambda t, out, a: _matched_values(t, out, a),
)


def _matched_values(t, out, a):
    """Derivatives in the order of the values that were given out."""
    w, v = np.linalg.eig(a)
    d = _diagonal(np.linalg.solve(v, t @ v))
    apart = np.absolute(np.expand_dims(out, -1) - np.expand_dims(w, -2))
    return np.take_along_axis(d, np.argmin(apart, -1), -1)


@composite(np.linalg.eig)
def _np_eig(a):
    return _result_of[np.linalg.eig](*_eig(a))


@composite(np.linalg.eigvals)
def _np_eigvals(a):
    return _eigvals(a)


def _push_svd(t, out, a):
    u, s, vh = out
    v = _h(vh)
    ds = _h(u) @ t @ v
    s = cast(s, dtype_of(ds))
    row, column = np.expand_dims(s, -2), np.expand_dims(s, -1)
    one = cast(_eye(s), dtype_of(ds))
    f = (1 - one) / ((row - column) * (row + column) + one)
    left, right = ds * row, column * ds
    du = u @ (f * (left + _h(left)))
    dv = v @ (f * (right + _h(right)))
    if is_complex(a):
        du = du + u @ (one * (ds - _h(ds)) * 0.5 / row)
    rest = t @ v - u @ (_h(u) @ t @ v)
    du = du + rest / row if shape_of(a)[-2] > shape_of(s)[-1] else du
    rest = _h(t) @ u - v @ (_h(v) @ _h(t) @ u)
    dv = dv + rest / row if shape_of(a)[-1] > shape_of(s)[-1] else dv
    return du, np.real(_diagonal(ds)), _h(dv)


def _pull_svd(cts, *, wanted, out, args, static):
    """The transpose of the above, in gradients G = conj(ct) so that <G, dX> = Re tr(G^H dX)."""
    u, s, vh = out
    gu, gs, gvh = (c if c is None else np.conj(c) for c in cts)
    core, rest = _spread_diagonal(gs, u, s), None
    scale = cast(np.expand_dims(s, -2), dtype_of(u))
    if gu is not None:
        k = _h(u) @ gu
        core = core + _turned(k, s) * scale
        if is_complex(u):
            core = core + _spread_diagonal(np.imag(_diagonal(k)) / s, u, s) * 1j
        if shape_of(u)[-2] > shape_of(u)[-1]:
            rest = ((gu - u @ k) / scale) @ vh
    if gvh is not None:
        gv = _h(gvh)
        k = vh @ gv
        core = core + _t(scale) * _turned(k, s)
        if shape_of(vh)[-1] > shape_of(vh)[-2]:
            beyond = (u / scale) @ (gvh - _h(k) @ vh)
            rest = beyond if rest is None else rest + beyond
    g = u @ core @ vh
    return [np.conj(g if rest is None else g + rest)]


def _spread_diagonal(d, u, s):
    """A diagonal matrix of u's dtype, in whatever batch there is."""
    eye = cast(_eye(s), dtype_of(u))
    return eye * 0.0 if d is None else eye * np.expand_dims(d, -1)


def _turned(k, s):
    """F * k and its adjoint together, F being 1 / (s_j^2 - s_i^2)."""
    row, column, one = np.expand_dims(s, -2), np.expand_dims(s, -1), _eye(s)
    k = k * cast((1.0 - one) / ((row - column) * (row + column) + one), dtype_of(k))
    return k + _h(k)


_svd = Primitive(
    "svd",
    lambda a: tuple(np.linalg.svd(a, False)),
    lambda tangents, *, out, args, static: _push_svd(tangents[0], out, args[0]),
    _pull_svd,
    many=True,
)


def _push_svdvals(t, out, a):
    u, _, vh = np.linalg.svd(a, False)
    return np.real(np.sum(np.conj(u) * (t @ _h(vh)), axis=-2))


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
    return _result_of[np.linalg.svd](*_svd(a))


@composite(np.linalg.svdvals)
def _svdvals(x):
    return _singular_values(x)


def _push_pinv(t, out, a, **_):
    p, th = out, _h(t)
    left = p @ _h(p) @ th
    right = th @ _h(p) @ p
    return -(p @ t @ p) + left - (left @ a) @ p + right - p @ (a @ right)


def _pull_pinv(ct, out, a, **_):
    p, ph, gh = out, _h(out), _t(ct)  # in gradients G = conj(ct), as in _pull_svd
    left, right = gh @ (p @ ph), (ph @ p) @ gh
    g = -(ph @ _h(gh) @ ph) + left - a @ (p @ left) + right - (right @ p) @ a
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
    step = _t(np.linalg.solve(_t(r), _t(t)))
    m = _h(q) @ step
    lower = np.tril(m, -1)
    turn = lower - _h(lower)
    if is_complex(a):  # LAPACK's r has a real diagonal
        turn = turn + 1j * np.imag(m) * _eye(m)
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
        residuals = np.zeros_like(plain(a), shape=0, dtype=dtype_of(s))
    return x, np.reshape(residuals, -1), s


@composite(np.linalg.lstsq)
def _np_lstsq(a, b, rcond=None):
    x, residuals, s = _lstsq(a, b, rcond=rcond)
    if not shape_of(residuals)[0] and shape_of(a)[0] > shape_of(a)[1]:
        raise TypeError("np.linalg.lstsq of a traced array whose columns depend on one another.")
    return x, residuals, shape_of(s)[0], s


# Norms: the run is NumPy's, the rule that of the formula.


def _vector_norm(x, ord, axis):
    """Of the orders that are no power: the others have primitives."""
    if ord in (np.inf, -np.inf):
        return (np.max if ord > 0 else np.min)(np.absolute(x), axis=axis)
    return np.sum(cast(x != 0, dtype_of(np.real(x))), axis=axis)


def _matrix_norm(x, ord, axis):
    x = np.moveaxis(x, axis, (-2, -1))
    if ord in ("nuc", 2, -2):
        s = np.linalg.svdvals(x)
        return {"nuc": np.sum, 2: np.max, -2: np.min}[ord](s, axis=-1)
    rows = np.sum(np.absolute(x), axis=-2 if abs(ord) == 1 else -1)
    return (np.max if ord > 0 else np.min)(rows, axis=-1)


def _norm_formula(x, *, ord, axis, keepdims):
    ndim = len(shape_of(x))
    if axis is None:
        axis = tuple(range(ndim)) if ord is None or ndim == 2 else (0,)
    axes = tuple(i % ndim for i in axis) if isinstance(axis, tuple) else (axis % ndim,)
    is_matrix = len(axes) == 2 and ord is not None
    out = (_matrix_norm if is_matrix else _vector_norm)(x, ord, axes)
    if keepdims:
        out = np.reshape(out, [1 if i in axes else n for i, n in enumerate(shape_of(x))])
    return out


_norm = derived(
    "norm",
    lambda x, *, ord, axis, keepdims: np.linalg.norm(x, ord, axis, keepdims),
    _norm_formula,
)


def _kept(c, x, axis):
    """A number for each norm, in a shape that broadcasts with x."""
    if not shape_of(c):
        return c
    axes = np.atleast_1d(axis) % len(shape_of(x))
    return np.reshape(c, [1 if i in axes else n for i, n in enumerate(shape_of(x))])


def _conj(x):
    return np.conj(x) if is_complex(x) else x


def _pull_euclidean(ct, out, x, *, ord, axis, keepdims):
    """ct conj(x) / |x|, and 0 at 0."""
    return _kept(ct / np.where(out == 0, 1.0, out), x, axis) * _conj(x)


def _push_euclidean(t, out, x, *, ord, axis, keepdims):
    steps = np.real(_conj(x) * t) if is_complex(x) else x * t
    return np.sum(steps, axis=axis, keepdims=keepdims) / np.where(out == 0, 1.0, out)


def _slope_of_power(out, x, ord, axis):
    """The slope of (sum |x|^p)^(1/p): (|x| / norm)^(p - 1) times the direction, and 0 at 0."""
    size = np.absolute(x)
    there = size > 0
    share = np.where(there, size, 1.0) / _kept(np.where(out == 0, 1.0, out), x, axis)
    direction = _conj(x) / np.where(there, size, 1.0) if is_complex(x) else np.sign(x)
    return np.where(there, share ** (ord - 1), 0.0) * direction


def _push_power(t, out, x, *, ord, axis, keepdims):
    steps = _slope_of_power(out, x, ord, axis) * t
    return np.sum(np.real(steps) if is_complex(x) else steps, axis=axis, keepdims=keepdims)


def _pull_power(ct, out, x, *, ord, axis, keepdims):
    return _kept(ct, x, axis) * _slope_of_power(out, x, ord, axis)


def _norm_with(name, push, pull):
    run = lambda x, *, ord, axis, keepdims: np.linalg.norm(x, ord, axis, keepdims)
    return define(name, run, [push], [pull])


_euclidean = _norm_with("euclidean norm", _push_euclidean, _pull_euclidean)
_power_norm = _norm_with("norm of powers", _push_power, _pull_power)


@composite(np.linalg.norm)
def _np_norm(x, ord=None, axis=None, keepdims=False):
    axis = tuple(axis) if isinstance(axis, list) else axis
    is_vector = not isinstance(axis, tuple) if axis is not None else len(shape_of(x)) == 1
    if ord in (None, "fro") or (ord == 2 and is_vector):
        return _euclidean(x, ord=ord, axis=axis, keepdims=keepdims)
    if is_vector and ord and np.isfinite(ord):
        return _power_norm(x, ord=ord, axis=axis, keepdims=keepdims)
    return _norm(x, ord=ord, axis=axis, keepdims=keepdims)


@composite(np.linalg.vector_norm)
def _np_vector_norm(x, /, *, axis=None, keepdims=False, ord=2):
    if axis is None:
        shape = (1,) * len(shape_of(x)) if keepdims else ()
        return np.reshape(np.linalg.norm(np.ravel(x), ord), shape)
    return np.linalg.norm(x, ord, axis, keepdims)


@composite(np.linalg.matrix_norm)
def _np_matrix_norm(x, /, *, keepdims=False, ord="fro"):
    return np.linalg.norm(x, ord, (-2, -1), keepdims)


@composite(np.linalg.cond)
def _cond(x, p=None):
    if p in (None, 2, -2):
        s = np.linalg.svdvals(x)
        return s[..., 0] / s[..., -1] if p != -2 else s[..., -1] / s[..., 0]
    norm = lambda m: np.linalg.norm(m, p, (-2, -1))
    return norm(x) * norm(np.linalg.inv(x))


functions[np.linalg.matrix_rank] = Primitive("matrix_rank", np.linalg.matrix_rank, constant=True)


@composite(np.linalg.matmul)
def _matmul(x1, x2, /):
    return np.matmul(x1, x2)


@composite(np.linalg.tensordot)
def _tensordot(x1, x2, /, *, axes=2):
    return np.tensordot(x1, x2, axes)
