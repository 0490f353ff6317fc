"""Functions that put entries in order."""

import numpy as np

from revgrad.rules.row import cast, composite, constant, define, derived, dtype_of, shape_of
from revgrad.tape import Primitive

# Where each entry of an ordered array came from; found by values, as NumPy's partition and
# argpartition need not agree on the order of the rest.
_came_from = Primitive(
    "came_from",
    lambda a, out, *, axis: np.take_along_axis(
        np.argsort(a, axis=axis, kind="stable"),
        np.argsort(np.argsort(out, axis=axis, kind="stable"), axis=axis, kind="stable"),
        axis,
    ),
    constant=True,
)


def _push_order(t, out, a, *, axis, **_):
    return np.take_along_axis(t, _came_from(a, out, axis=axis), axis)


def _pull_order(ct, out, a, *, axis, **_):
    back = _inverse(_came_from(a, out, axis=axis), axis=axis)
    return np.take_along_axis(ct, back, axis)


_inverse = Primitive("inverse", lambda p, *, axis: np.argsort(p, axis=axis), constant=True)
_sort = define(
    "sort", lambda a, *, axis, kind: np.sort(a, axis, kind), [_push_order], [_pull_order]
)
_partition = define(
    "partition", lambda a, *, kth, axis: np.partition(a, kth, axis), [_push_order], [_pull_order]
)


def _flat(a, axis):
    return (np.ravel(a), 0) if axis is None else (a, axis % len(shape_of(a)))


@composite(np.sort)
def _np_sort(a, axis=-1, kind=None):
    a, axis = _flat(a, axis)
    return _sort(a, axis=axis, kind=kind)


@composite(np.partition)
def _np_partition(a, kth, axis=-1):
    a, axis = _flat(a, axis)
    return _partition(a, kth=tuple(np.atleast_1d(kth).tolist()), axis=axis)


def _middle(a, *, axis, keepdims):
    shape, ndim = shape_of(a), len(shape_of(a))
    axes = tuple(range(ndim)) if axis is None else tuple(i % ndim for i in np.atleast_1d(axis))
    kept = [n for i, n in enumerate(shape) if i not in axes]
    rows = np.reshape(np.moveaxis(a, axes, range(-len(axes), 0)), (*kept, -1)) if axes else a
    size = shape_of(rows)[-1]
    ordered = np.sort(rows, axis=-1)
    out = (ordered[..., (size - 1) // 2] + ordered[..., size // 2]) / 2
    if not keepdims:
        return out
    return np.reshape(out, [1 if i in axes else n for i, n in enumerate(shape)])


_median = derived(
    "median", lambda a, *, axis, keepdims: np.median(a, axis, keepdims=keepdims), _middle
)


@composite(np.median)
def _np_median(a, axis=None, *, keepdims=False):
    return _median(a, axis=axis, keepdims=keepdims)


@composite(np.ptp)
def _ptp(a, axis=None, *, keepdims=False):
    high = np.max(a, axis=axis, keepdims=keepdims)
    return np.subtract(high, np.min(a, axis=axis, keepdims=keepdims))


# Sums that leave NaN out.


def _without_nan(a, instead=0.0):
    return np.where(np.isnan(a), instead, a)


@composite(np.nansum)
def _nansum(a, axis=None, *, keepdims=False):
    return np.sum(_without_nan(a), axis=axis, keepdims=keepdims)


@composite(np.nanmean)
def _nanmean(a, axis=None, *, keepdims=False):
    there = cast(np.where(np.isnan(a), 0.0, 1.0), dtype_of(a))
    return _nansum(a, axis, keepdims=keepdims) / np.sum(there, axis=axis, keepdims=keepdims)


@composite(np.average)
def _average(a, axis=None, weights=None, *, keepdims=False):
    if weights is None:
        return np.mean(a, axis=axis, keepdims=keepdims)
    if shape_of(weights) != shape_of(a):
        shape = [1] * len(shape_of(a))
        shape[axis] = shape_of(weights)[0]
        weights = np.broadcast_to(np.reshape(weights, tuple(shape)), shape_of(a))
    scale = np.sum(weights, axis=axis, keepdims=keepdims)
    return np.sum(np.multiply(a, weights), axis=axis, keepdims=keepdims) / scale


constant(np.argpartition, np.digitize, np.flatnonzero, np.nanargmax, np.nanargmin)
