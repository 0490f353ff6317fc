"""Norms and condition numbers: the run is NumPy's, the rule that of a formula."""

import numpy as np

from revgrad.rules.row import cast, composite, define, derived, dtype_of, is_complex, shape_of


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
