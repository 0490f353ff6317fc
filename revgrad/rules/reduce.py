"""Functions that reduce axes."""

from math import prod

import numpy as np

from revgrad.arrays import functions
from revgrad.rules.row import (
    cast,
    composite,
    constant,
    define,
    derived,
    dtype_of,
    is_complex,
    shape_of,
)
from revgrad.tape import Primitive


def _axes(x, axis):
    """The reduced axes; NumPy lets a number have any."""
    ndim = len(shape_of(x))
    return range(ndim) if axis is None or not ndim else np.atleast_1d(axis).tolist()


def kept(c, x, axis):
    """Reshape a reduced array so that it broadcasts with x; a number does as it is."""
    if not shape_of(c):
        return c
    shape = list(shape_of(x))
    for i in _axes(x, axis):
        shape[i] = 1
    return np.reshape(c, tuple(shape)) if shape_of(c) != tuple(shape) else c


def _spread(ct, out, x, *, axis, keepdims):
    return np.broadcast_to(kept(ct, x, axis), shape_of(x))


def _count(x, axis):
    """How many entries of x make one of its mean."""
    return prod(shape_of(x)[i] for i in _axes(x, axis))


def _attained(out, x, axis):
    """Weights of the entries that attain an extremum: ties share equally."""
    hits = functions["astype"](x == kept(out, x, axis), dtype=dtype_of(x))
    return hits / np.sum(hits, axis=axis, keepdims=True)


_extremum = {
    "push": [lambda t, out, x, *, axis, keepdims: np.sum(
        t * _attained(out, x, axis), axis=axis, keepdims=keepdims)],
    "pull": [lambda ct, out, x, *, axis, keepdims: kept(ct, x, axis) * _attained(out, x, axis)],
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


def _with_options(function, join, identity):
    """The reduction of some entries only, in a dtype of its own, or from a start: seldom asked for.

    join: the function of two entries that it repeats, or None; identity: what join leaves as it is.
    """

    def run(x, where, initial, *, dtype, **kept):
        given = {"dtype": dtype, "initial": initial}
        given = {name: value for name, value in given.items() if value is not None}
        return function(x, where=where, **given, **kept)

    def equal(x, where, initial, *, dtype, axis, keepdims):
        x = x if dtype is None else cast(x, np.dtype(dtype))
        if join is None:  # a mean, of as many entries as there are
            total = np.sum(np.where(where, x, 0.0), axis=axis, keepdims=keepdims)
            there = np.where(np.broadcast_to(where, shape_of(x)), 1.0, 0.0)
            return total / np.sum(there, axis=axis, keepdims=keepdims)
        if initial is not None and not prod(shape_of(x)):
            return np.sum(x, axis=axis, keepdims=keepdims) * 0.0 + initial
        out = function(np.where(where, x, identity), axis=axis, keepdims=keepdims)
        return out if initial is None else join(out, initial)

    return derived(f"{function.__name__} with options", run, equal)


def reduction(function, primitive, join, identity, default_axis=None):
    """The handler of a reduction, by `primitive` where nothing but axes is asked for."""
    with_options = _with_options(function, join, identity)

    def reduced(a, axis=default_axis, dtype=None, *, keepdims=False, initial=None, where=True):
        if where is True and dtype is None and initial is None:
            return primitive(a, axis=axis, keepdims=keepdims)
        if dtype is not None and np.dtype(dtype).kind not in "fc":
            raise TypeError(f"np.{function.__name__}(dtype={dtype}) of a traced array of floats.")
        return with_options(a, where, initial, dtype=dtype, axis=axis, keepdims=keepdims)

    return reduced


composite(np.sum)(reduction(np.sum, _sum, np.add, 0.0))
composite((np.add, "reduce"))(reduction(np.sum, _sum, np.add, 0.0, 0))
composite(np.mean)(reduction(np.mean, _mean, None, 0.0))
composite(np.max, np.amax)(reduction(np.max, _max, np.maximum, -np.inf))
composite((np.maximum, "reduce"))(reduction(np.max, _max, np.maximum, -np.inf, 0))
composite(np.min, np.amin)(reduction(np.min, _min, np.minimum, np.inf))
composite((np.minimum, "reduce"))(reduction(np.min, _min, np.minimum, np.inf, 0))

# The sum of exponentials, from the largest one on.


def _largest(x, *, axis):
    top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return np.where(np.isfinite(top), top, 0.0)


_top = Primitive("top", _largest, constant=True)  # which changes no sum, and so no derivative


def _log_of_sum(x, *, axis, keepdims):
    top = _top(x, axis=axis)
    sums = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return sums if keepdims else np.reshape(sums, np.sum(np.empty(shape_of(x)), axis=axis).shape)


_logaddexp = derived(
    "logaddexp.reduce",
    lambda x, *, axis, keepdims: np.logaddexp.reduce(x, axis=axis, keepdims=keepdims),
    _log_of_sum,
)


@composite((np.logaddexp, "reduce"))
def _logaddexp_reduce(a, axis=0, *, keepdims=False):
    return _logaddexp(a, axis=axis, keepdims=keepdims)


# Spread. Of complex numbers, that of their distances from the mean.


def _centred(x, axis):
    centred = x - np.mean(x, axis=axis, keepdims=True)
    return np.conj(centred) if is_complex(x) else centred


def _freedom(x, axis, ddof):
    return _count(x, axis) - ddof if _count(x, axis) > ddof else float("nan")


def _along(t, x, axis, keepdims):
    """The sum of the steps t in the directions of x from its mean."""
    steps = t * _centred(x, axis)
    return np.sum(np.real(steps) if is_complex(x) else steps, axis=axis, keepdims=keepdims)


_var = define(
    "var",
    lambda x, *, axis, ddof, keepdims: np.var(x, axis=axis, ddof=ddof, keepdims=keepdims),
    [lambda t, out, x, *, axis, ddof, keepdims:
        _along(t, x, axis, keepdims) * (2 / _freedom(x, axis, ddof))],
    [lambda ct, out, x, *, axis, ddof, keepdims:
        kept(ct * (2 / _freedom(x, axis, ddof)), x, axis) * _centred(x, axis)],
)  # fmt: skip
_std = define(
    "std",
    lambda x, *, axis, ddof, keepdims: np.std(x, axis=axis, ddof=ddof, keepdims=keepdims),
    [lambda t, out, x, *, axis, ddof, keepdims:
        _along(t, x, axis, keepdims) / (out * _freedom(x, axis, ddof))],
    [lambda ct, out, x, *, axis, ddof, keepdims:
        kept(ct / (out * _freedom(x, axis, ddof)), x, axis) * _centred(x, axis)],
)  # fmt: skip


@composite(np.var)
def _np_var(a, axis=None, *, ddof=0, keepdims=False):
    return _var(a, axis=axis, ddof=ddof, keepdims=keepdims)


@composite(np.std)
def _np_std(a, axis=None, *, ddof=0, keepdims=False):
    return _std(a, axis=axis, ddof=ddof, keepdims=keepdims)


constant(np.argmax, np.argmin, np.any, np.all, np.count_nonzero)
