"""Median and quantiles: values between entries in order."""

from math import prod

import numpy as np

from revgrad.arrays import functions, plain
from revgrad.rules.row import composite, derived, filled_like, shape_of


def _ends(ordered, q, last):
    """The entries below and above the q-quantile of ordered rows, and how far it is in between.

    q: a number or a vector; last: the place of the last entry that counts.
    """
    place = q * last
    if isinstance(place, (int, float)):
        low, high = int(place), min(int(place) + 1, last)
        return ordered[..., low : low + 1], ordered[..., high : high + 1], place - low
    place = np.broadcast_to(place, (*shape_of(ordered)[:-1], shape_of(place)[-1]))
    low = functions["astype"](np.floor(place), dtype=np.dtype(np.intp))
    high = np.minimum(low + 1, last)
    taken = (np.take_along_axis(ordered, i, -1) for i in (low, high))
    return *taken, place - np.floor(place)


def _between(a, q, *, axis, keepdims, left_out=False):
    """The q-quantile of what lies along some axes, by the straight line between two entries.

    left_out: NaN does not count.
    """
    shape, ndim = shape_of(a), len(shape_of(a))
    axes = tuple(range(ndim)) if axis is None else tuple(i % ndim for i in np.atleast_1d(axis))
    kept = [n for i, n in enumerate(shape) if i not in axes]
    size = prod(shape[i] for i in axes)
    rows = np.reshape(np.moveaxis(a, axes, range(-len(axes), 0)), (*kept, size))
    last = size - 1
    if left_out:
        there = np.logical_not(np.isnan(rows))
        last = np.maximum(np.sum(there, axis=-1, keepdims=True) - 1, 0)
    if keepdims:
        kept = [1 if i in axes else n for i, n in enumerate(shape)]
    if not size:
        return filled_like(np.full_like, plain(a), np.nan, shape=(*shape_of(q), *kept))
    numbers = q if isinstance(q, (int, float)) else np.reshape(q, -1)
    low, high, share = _ends(np.sort(rows, axis=-1), numbers, last)
    out = np.moveaxis(low + (high - low) * share, -1, 0)
    return np.reshape(out, (*shape_of(q), *kept))


_median = derived(
    "median",
    lambda a, *, axis, keepdims: np.median(a, axis, keepdims=keepdims),
    lambda a, *, axis, keepdims: _between(a, 0.5, axis=axis, keepdims=keepdims),
)
_nanmedian = derived(
    "nanmedian",
    lambda a, *, axis, keepdims: np.nanmedian(a, axis, keepdims=keepdims),
    lambda a, *, axis, keepdims: _between(a, 0.5, axis=axis, keepdims=keepdims, left_out=True),
)


@composite(np.median)
def _np_median(a, axis=None, *, keepdims=False):
    return _median(a, axis=axis, keepdims=keepdims)


@composite(np.nanmedian)
def _np_nanmedian(a, axis=None, *, keepdims=False):
    return _nanmedian(a, axis=axis, keepdims=keepdims)


def _quantile(function, whole, left_out):
    """Of a function that calls the last entry `whole`."""
    primitive = derived(
        function.__name__,
        lambda a, q, *, axis, keepdims: function(a, q, axis, keepdims=keepdims),
        lambda a, q, *, axis, keepdims: _between(
            a, q / whole, axis=axis, keepdims=keepdims, left_out=left_out
        ),
    )

    @composite(function)
    def handler(a, q, axis=None, *, method="linear", keepdims=False):
        if method != "linear":
            raise TypeError(
                f"np.{function.__name__}(method={method!r}) of a traced array; the derivative is "
                "that of method='linear', others can be written with np.sort and np.take."
            )
        q = np.asarray(q) if isinstance(q, (list, tuple)) else q
        return primitive(a, q, axis=axis, keepdims=keepdims)


_quantile(np.quantile, 1, False)
_quantile(np.nanquantile, 1, True)
_quantile(np.percentile, 100, False)
_quantile(np.nanpercentile, 100, True)
