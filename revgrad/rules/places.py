"""Functions that put entries in other places, take some out, or put some in between.

Where every entry goes, NumPy's own function says, of an array of the places that they come from.
"""

from itertools import accumulate
from math import prod

import numpy as np

from revgrad.arrays import functions, plain
from revgrad.rules.row import (
    cast,
    composite,
    derived,
    dtype_of,
    filled_like,
    formula,
    settled,
    shape_of,
)
from revgrad.tape import Primitive


def _moved(function, *arrays):
    """function(*arrays), of one that only moves entries."""
    sizes = [prod(shape_of(a)) for a in arrays]
    starts = accumulate(sizes[:-1], initial=0)
    places = function(
        *(
            np.reshape(np.arange(b, b + n), shape_of(a))
            for a, b, n in zip(arrays, starts, sizes, strict=True)
        )
    )
    flat = [np.ravel(a) for a in arrays]
    return np.take(np.concatenate(flat) if len(flat) > 1 else flat[0], places)


@formula(np.insert, arrays=3, shaping=(1,))
def _insert(arr, obj, values, axis=None):
    values = cast(values, dtype_of(arr))  # as NumPy casts them
    return _moved(lambda a, v: np.insert(a, obj, v, axis), arr, values)


@formula(np.delete, arrays=2, shaping=(1,))
def _delete(arr, obj, axis=None):
    return _moved(lambda a: np.delete(a, obj, axis), arr)


@formula(np.compress, arrays=2, shaping=(0,))
def _compress(condition, a, axis=None):
    a, axis = (np.ravel(a), 0) if axis is None else (a, axis)
    return np.take(a, np.flatnonzero(condition), axis)


@formula(np.extract, arrays=2, shaping=(0,))
def _extract(condition, arr):
    return np.take(np.ravel(arr), np.flatnonzero(condition))


@formula(np.resize)
def _resize(a, new_shape):
    if not prod(shape_of(a)):
        return filled_like(np.zeros_like, plain(a), shape=new_shape)
    return _moved(lambda a: np.resize(a, new_shape), a)


_choose = derived(
    "choose",
    lambda a, *choices, mode: np.choose(a, choices, mode=mode),
    lambda a, *choices, mode: _moved(lambda *p: np.choose(a, p, mode=mode), *choices),
)


@composite(np.choose)
def _np_choose(a, choices, mode="raise"):
    return _choose(a, *choices, mode=mode)


@composite(np.trim_zeros)
def _trim_zeros(filt, trim="fb"):
    settled(filt, "trim_zeros")
    if len(shape_of(filt)) != 1:
        raise TypeError("np.trim_zeros of a traced array of several axes; slice it.")
    there = np.flatnonzero(filt)
    if not shape_of(there)[0]:
        return filt[:0]
    last = int(there[-1]) + 1 if "b" in trim.lower() else None
    return filt[int(there[0]) if "f" in trim.lower() else 0 : last]


# Entries that differ, each taken from where it comes first.

_first_places = Primitive(
    "first places", lambda x: np.unique(x, return_index=True)[1], constant=True
)
_unique = derived("unique", np.unique, lambda x: np.take(np.ravel(x), _first_places(x)))


@composite(np.unique)
def _np_unique(ar, return_index=False, return_inverse=False, return_counts=False):
    settled(ar, "unique")
    flags = return_index, return_inverse, return_counts
    values = _unique(ar)
    return (values, *np.unique(plain(ar), *flags)[1:]) if any(flags) else values


@composite(np.setdiff1d)
def _setdiff1d(ar1, ar2, assume_unique=False):
    settled(ar2, "setdiff1d")
    ar1 = np.ravel(ar1) if assume_unique else np.unique(ar1)
    return np.compress(np.isin(ar1, ar2, assume_unique=True, invert=True), ar1)


# Blocks and slices.


def _depth(blocks):
    return 1 + max(map(_depth, blocks)) if isinstance(blocks, list) else 0


def _leaves(blocks):
    return [x for b in blocks for x in _leaves(b)] if isinstance(blocks, list) else [blocks]


def _block_of(blocks, axis, ndim):
    if isinstance(blocks, list):
        return np.concatenate([_block_of(b, axis + 1, ndim) for b in blocks], axis)
    return np.reshape(blocks, (1,) * (ndim - len(shape_of(blocks))) + shape_of(blocks))


@composite(np.block)
def _block(arrays):
    depth = _depth(arrays)
    ndim = max(depth, *(len(shape_of(x)) for x in _leaves(arrays)), 0)
    return _block_of(arrays, -depth, ndim) if depth else functions["copy"](arrays, order="C")


if hasattr(np, "unstack"):  # from NumPy 2.1 on

    @composite(np.unstack)
    def _unstack(x, /, *, axis=0):
        rows = np.moveaxis(x, axis, 0)
        return tuple(rows[i] for i in range(shape_of(rows)[0]))
