"""Functions that put entries in order."""

import numpy as np

from revgrad.rules.row import composite, constant, define, shape_of
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


@composite(np.ptp)
def _ptp(a, axis=None, *, keepdims=False):
    high = np.max(a, axis=axis, keepdims=keepdims)
    return np.subtract(high, np.min(a, axis=axis, keepdims=keepdims))


_lexsort = Primitive("lexsort", lambda *keys, axis: np.lexsort(keys, axis=axis), constant=True)


@composite(np.lexsort)
def _np_lexsort(keys, axis=-1):
    return _lexsort(*keys, axis=axis)


constant(
    *(np.argpartition, np.digitize, np.flatnonzero, np.nanargmax, np.nanargmin, np.argwhere),
    *(np.isin, np.array_equiv),
)
