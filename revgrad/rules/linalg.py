"""Linear algebra. Matrices are the last two axes, any others are a batch."""

from math import prod

import numpy as np

from revgrad.arrays import ArrayBox, functions, plain
from revgrad.rules.row import (
    cast,
    composite,
    define,
    derived,
    dtype_of,
    filled_like,
    is_complex,
    match,
    shape_of,
    unbroadcast,
)
from revgrad.tape import Primitive, Pull, pull_back


def transposed(x):
    return np.swapaxes(x, -1, -2)


def adjoint(x):
    return np.conj(transposed(x)) if is_complex(x) else transposed(x)


def symmetric(x):
    return (x + adjoint(x)) * 0.5


def identity(x):
    """The identity in x's array type, of the size of its last axis."""
    n = shape_of(x)[-1]
    return np.diag(filled_like(np.ones_like, plain(x), shape=n))


def diagonal(x):
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
    [lambda ct, out, a: -(transposed(out) @ ct @ transposed(out))],
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
    return np.linalg.solve(transposed(a), ct)


def _pull_solve_matrix(ct, out, a, b):
    columns = np.expand_dims(out, -1) if _is_vector(b) else out
    return unbroadcast(-(_solved_transposed(ct, a, b) @ transposed(columns)), a)


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
    [lambda ct, out, a: _over_matrices(ct * out) * transposed(np.linalg.inv(a))],
    register=False,
)
_slogdet = Primitive(
    "slogdet",
    lambda a: tuple(np.linalg.slogdet(a)),
    lambda tangents, *, out, args, static: (None, _push_log(tangents[0], args[0])),
    lambda ct, *, wanted, out, args, static: [
        None if ct[1] is None else _over_matrices(ct[1]) * transposed(np.linalg.inv(args[0]))
    ],
    many=True,
)
RESULTS = {
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
    return RESULTS[np.linalg.slogdet](*slogdet(a))


@composite(np.linalg.matrix_power)
def _matrix_power(a, n):
    if n < 0:
        a, n = np.linalg.inv(a), -n
    if n == 0:
        return a * 0 + identity(a)
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
    return transposed(x)


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


functions[np.linalg.matrix_rank] = Primitive("matrix_rank", np.linalg.matrix_rank, constant=True)


@composite(np.linalg.matmul)
def _matmul(x1, x2, /):
    return np.matmul(x1, x2)


@composite(np.linalg.tensordot)
def _tensordot(x1, x2, /, *, axes=2):
    return np.tensordot(x1, x2, axes)
