"""Functions that reduce axes."""

import numpy as np

from revgrad.arrays import functions
from revgrad.rules.row import composite, constant, define, shape_of


def _kept(c, x, axis):
    """Reshape a reduced array so that it broadcasts with x."""
    shape = list(shape_of(x))
    for i in range(len(shape)) if axis is None else np.atleast_1d(axis):
        shape[i] = 1
    return np.reshape(c, tuple(shape)) if shape_of(c) != tuple(shape) else c


def _spread(ct, out, x, *, axis, keepdims):
    return np.broadcast_to(_kept(ct, x, axis), shape_of(x))


def _count(out, x):
    return max(1, int(np.prod(shape_of(x)))) / max(1, int(np.prod(shape_of(out))))


def _attained(out, x, axis):
    """Weights of the entries that attain an extremum: ties share equally."""
    hits = functions["astype"](x == _kept(out, x, axis), dtype=x.dtype)
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
    [lambda ct, out, x, **static: _spread(ct, out, x, **static) / _count(out, x)],
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
    total = np.sum(centred * centred, axis=axis, keepdims=keepdims)
    return total / (_count(total, a) - ddof)


@composite(np.std)
def _std(a, axis=None, *, ddof=0, keepdims=False):
    return np.sqrt(_var(a, axis, ddof=ddof, keepdims=keepdims))


constant(np.argmax, np.argmin, np.any, np.all, np.count_nonzero)
