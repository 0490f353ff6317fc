"""Functions that reduce axes."""

from math import prod

import numpy as np

from revgrad.arrays import functions
from revgrad.rules.row import composite, constant, define, dtype_of, is_complex, shape_of


def _axes(x, axis):
    """The reduced axes; NumPy lets a number have any."""
    ndim = len(shape_of(x))
    return range(ndim) if axis is None or not ndim else np.atleast_1d(axis).tolist()


def _kept(c, x, axis):
    """Reshape a reduced array so that it broadcasts with x; a number does as it is."""
    if not shape_of(c):
        return c
    shape = list(shape_of(x))
    for i in _axes(x, axis):
        shape[i] = 1
    return np.reshape(c, tuple(shape)) if shape_of(c) != tuple(shape) else c


def _spread(ct, out, x, *, axis, keepdims):
    return np.broadcast_to(_kept(ct, x, axis), shape_of(x))


def _count(x, axis):
    """How many entries of x make one of its mean."""
    return prod(shape_of(x)[i] for i in _axes(x, axis))


def _attained(out, x, axis):
    """Weights of the entries that attain an extremum: ties share equally."""
    hits = functions["astype"](x == _kept(out, x, axis), dtype=dtype_of(x))
    return hits / np.sum(hits, axis=axis, keepdims=True)


_extremum = {
    "push": [lambda t, out, x, *, axis, keepdims: np.sum(
        t * _attained(out, x, axis), axis=axis, keepdims=keepdims)],
    "pull": [lambda ct, out, x, *, axis, keepdims: _kept(ct, x, axis) * _attained(out, x, axis)],
}  # fmt: skip

_sum = define(
    "sum",
    lambda x, *, axis, keepdims: np.sum(x, axis=axis, keepdims=keepdims),
    ("linear",),
    [_spread],
)
_mean = define(
    "mean",
    lambda x, *, axis, keepdims: np.mean(x, axis=axis, keepdims=keepdims),
    ("linear",),
    [
        lambda ct, out, x, *, axis, keepdims: _spread(
            ct / _count(x, axis), out, x, axis=axis, keepdims=keepdims
        )
    ],
)
_max = define(
    "max", lambda x, *, axis, keepdims: np.max(x, axis=axis, keepdims=keepdims), **_extremum
)
_min = define(
    "min", lambda x, *, axis, keepdims: np.min(x, axis=axis, keepdims=keepdims), **_extremum
)


def _reduction(primitive, default_axis=None):
    def reduction(a, axis=default_axis, *, keepdims=False):
        return primitive(a, axis=axis, keepdims=keepdims)

    return reduction


for _keys, _primitive in (
    ((np.sum,), _sum),
    ((np.mean,), _mean),
    ((np.max, np.amax), _max),
    ((np.min, np.amin), _min),
):
    composite(*_keys)(_reduction(_primitive))
composite((np.add, "reduce"))(_reduction(_sum, 0))
composite((np.maximum, "reduce"))(_reduction(_max, 0))
composite((np.minimum, "reduce"))(_reduction(_min, 0))


@composite(np.var)
def _var(a, axis=None, *, ddof=0, keepdims=False):
    centred = a - np.mean(a, axis=axis, keepdims=True)
    if is_complex(a):
        squares = np.real(centred) * np.real(centred) + np.imag(centred) * np.imag(centred)
    else:
        squares = centred * centred
    total = np.sum(squares, axis=axis, keepdims=keepdims)
    return total / max(_count(a, axis) - ddof, 0)


@composite(np.std)
def _std(a, axis=None, *, ddof=0, keepdims=False):
    return np.sqrt(_var(a, axis, ddof=ddof, keepdims=keepdims))


constant(np.argmax, np.argmin, np.any, np.all, np.count_nonzero)
