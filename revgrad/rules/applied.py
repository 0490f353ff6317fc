"""Functions that call a function of the user's on parts of an array."""

import numpy as np

from revgrad.arrays import plain
from revgrad.rules.indexing import at
from revgrad.rules.row import composite, shape_of


@composite(np.apply_along_axis)
def _apply_along_axis(func1d, axis, arr, *args, **kwargs):
    axis = range(len(shape_of(arr)))[axis]
    rows = np.moveaxis(arr, axis, -1)
    kept = shape_of(rows)[:-1]
    if 0 in kept:
        raise ValueError("np.apply_along_axis of a traced array without entries on other axes.")
    outs = [func1d(rows[i], *args, **kwargs) for i in np.ndindex(kept)]
    out = np.reshape(np.stack(outs), kept + shape_of(outs[0]))
    ndim = len(shape_of(outs[0]))
    return np.moveaxis(out, range(len(kept), len(kept) + ndim), range(axis, axis + ndim))


@composite(np.apply_over_axes)
def _apply_over_axes(func, a, axes):
    for axis in np.atleast_1d(axes).tolist():
        axis = range(len(shape_of(a)))[axis]
        out = func(a, axis)
        a = out if len(shape_of(out)) == len(shape_of(a)) else np.expand_dims(out, axis)
    return a


@composite(np.piecewise)
def _piecewise(x, condlist, funclist, *args, **kw):
    """As NumPy does it: each function is called on the entries of its own."""
    x = x if shape_of(x) else np.reshape(x, ())  # an array, whose entry can be picked
    conditions = _conditions(x, condlist)
    if len(conditions) == len(funclist) - 1:
        conditions.append(~np.any(np.stack(conditions), axis=0))
    if len(conditions) != len(funclist):
        raise ValueError(f"{len(conditions)} conditions and {len(funclist)} functions.")
    out = np.zeros_like(plain(x))
    for condition, function in zip(conditions, funclist, strict=True):
        if not callable(function):
            out = at(out, condition).set(function)
        elif shape_of(part := x[condition])[0]:
            out = at(out, condition).set(function(part, *args, **kw))
    return out


def _conditions(x, condlist):
    """A list of masks, of which NumPy lets a single one come bare."""
    if not isinstance(condlist, (list, tuple)):
        condlist = condlist if len(shape_of(condlist)) > len(shape_of(x)) else [condlist]
    elif not shape_of(condlist[0]) and shape_of(x):
        condlist = [condlist]
    return [np.asarray(c, bool) if isinstance(c, (list, tuple, bool)) else c for c in condlist]
