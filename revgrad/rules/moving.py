"""More functions that move entries: pieces, diagonals, triangles, tiles and borders."""

import numpy as np

from revgrad.rules.linear import put
from revgrad.rules.row import composite, define, derived, shape_of

_LINEAR = ("linear",)


def _axes_of(a):
    return tuple(range(len(shape_of(a))))


# Pieces, and putting pieces together.


def _pieces(a, sections, axis):
    """np.array_split: unequal pieces are allowed."""
    size = shape_of(a)[axis]
    if isinstance(sections, (int, np.integer)):
        each, extra = divmod(size, int(sections))
        cuts = np.cumsum([each + (k < extra) for k in range(sections)])[:-1].tolist()
    else:
        cuts = [int(c) for c in sections]
    head = (slice(None),) * (axis % len(shape_of(a)))
    return [a[(*head, slice(b, e))] for b, e in zip([0, *cuts], [*cuts, size], strict=True)]


@composite(np.array_split)
def _array_split(ary, indices_or_sections, axis=0):
    return _pieces(ary, indices_or_sections, axis)


@composite(np.vsplit)
def _vsplit(ary, indices_or_sections):
    return np.split(ary, indices_or_sections, 0)


@composite(np.hsplit)
def _hsplit(ary, indices_or_sections):
    return np.split(ary, indices_or_sections, 0 if len(shape_of(ary)) == 1 else 1)


@composite(np.dsplit)
def _dsplit(ary, indices_or_sections):
    return np.split(ary, indices_or_sections, 2)


@composite(np.atleast_2d)
def _atleast_2d(*arrays):
    arrays = [a if len(shape_of(a)) > 1 else np.reshape(a, (1, -1)) for a in arrays]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _three_axes(a):
    shape = shape_of(a)
    if len(shape) > 2:
        return a
    return np.reshape(a, (1, -1, 1) if len(shape) < 2 else (*shape, 1))


@composite(np.atleast_3d)
def _atleast_3d(*arrays):
    arrays = [*map(_three_axes, arrays)]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


@composite(np.dstack)
def _dstack(arrays):
    return np.concatenate([*map(_three_axes, arrays)], 2)


@composite(np.column_stack)
def _column_stack(arrays):
    columns = [np.reshape(a, (-1, 1)) if len(shape_of(a)) < 2 else a for a in arrays]
    return np.concatenate(columns, 1)


@composite(np.append)
def _append(arr, values, axis=None):
    values = np.asarray(values) if isinstance(values, (list, tuple, int, float)) else values
    return np.concatenate([arr, values], axis)


def _first_that_holds(default, *pairs):
    out, half = default, len(pairs) // 2
    for condition, choice in zip(pairs[half - 1 :: -1], pairs[: half - 1 : -1], strict=True):
        out = np.where(condition, choice, out)
    return out


_select = derived(
    "select",
    lambda default, *pairs: np.select(pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :], default),
    _first_that_holds,
)


@composite(np.select)
def _np_select(condlist, choicelist, default=0):
    if len(condlist) != len(choicelist):
        raise ValueError(f"{len(condlist)} conditions and {len(choicelist)} choices in np.select.")
    return _select(default, *condlist, *choicelist)


@composite(np.broadcast_arrays)
def _broadcast_arrays(*args):
    shape = np.broadcast_shapes(*map(shape_of, args))
    return tuple(np.broadcast_to(a, shape) if shape_of(a) != shape else a for a in args)


# Turned, rolled, repeated.


@composite(np.fliplr)
def _fliplr(m):
    return m[:, ::-1]


@composite(np.flipud)
def _flipud(m):
    return m[::-1, ...]


_rot90 = define(
    "rot90",
    lambda m, *, k, axes: np.rot90(m, k, axes),
    _LINEAR,
    [lambda ct, out, m, *, k, axes: np.rot90(ct, -k, axes)],
)


@composite(np.rot90)
def _np_rot90(m, k=1, axes=(0, 1)):
    return _rot90(m, k=k, axes=tuple(axes))


_roll = define(
    "roll",
    lambda a, *, shift, axis: np.roll(a, shift, axis),
    _LINEAR,
    [lambda ct, out, a, *, shift, axis: np.roll(ct, _negated(shift), axis)],
)


def _negated(shift):
    return tuple(-s for s in shift) if isinstance(shift, tuple) else -shift


def _fixed(x):
    """An int, or a tuple of ints, of what NumPy takes for one: repr tells them apart."""
    return tuple(np.asarray(x).tolist()) if np.ndim(x) else x if x is None else int(x)


@composite(np.roll)
def _np_roll(a, shift, axis=None):
    return _roll(a, shift=_fixed(shift), axis=_fixed(axis))


@composite(np.rollaxis)
def _rollaxis(a, axis, start=0):
    axes = np.rollaxis(np.empty(range(len(shape_of(a))), bool), axis, start).shape
    return np.transpose(a, axes)


def _pull_repeat(ct, out, a, *, repeats, axis):
    if isinstance(repeats, int):
        shape = shape_of(a)
        ct = np.reshape(ct, (*shape[: axis + 1], repeats, *shape[axis + 1 :]))
        return np.sum(ct, axis=axis + 1)
    places = np.repeat(np.arange(shape_of(a)[axis]), repeats)
    return put(ct, (slice(None),) * axis + (places,), shape_of(a))


_repeat = define(
    "repeat", lambda a, *, repeats, axis: np.repeat(a, repeats, axis), _LINEAR, [_pull_repeat]
)


@composite(np.repeat)
def _np_repeat(a, repeats, axis=None):
    if axis is None:
        a, axis = np.ravel(a), 0
    repeats = _fixed(repeats)
    if isinstance(repeats, tuple) and len(repeats) == 1:
        (repeats,) = repeats
    return _repeat(a, repeats=repeats, axis=axis % len(shape_of(a)))


def _pull_tile(ct, out, a, *, reps):
    reps = (1,) * (len(shape_of(a)) - len(reps)) + reps
    shape = (1,) * (len(reps) - len(shape_of(a))) + shape_of(a)
    pairs = [n for pair in zip(reps, shape, strict=True) for n in pair]
    ct = np.sum(np.reshape(ct, pairs), axis=tuple(range(0, len(pairs), 2)))
    return np.reshape(ct, shape_of(a))


_tile = define("tile", lambda a, *, reps: np.tile(a, reps), _LINEAR, [_pull_tile])


@composite(np.tile)
def _np_tile(A, reps):
    reps = _fixed(reps)
    return _tile(A, reps=reps if isinstance(reps, tuple) else (reps,))


# Diagonals and triangles.


def _pull_diagonal(ct, out, a, *, offset, axis1, axis2):
    return _on_diagonal(ct, shape_of(a), offset, axis1, axis2)


def _on_diagonal(ct, shape, offset, axis1, axis2):
    """Zeros of `shape` with ct, whose last axis they are, on one diagonal."""
    full = (
        *(n for i, n in enumerate(shape) if i not in (axis1, axis2)),
        shape[axis1],
        shape[axis2],
    )
    size = shape_of(ct)[-1]
    rows, columns = np.arange(size) + max(-offset, 0), np.arange(size) + max(offset, 0)
    return np.moveaxis(put(ct, (..., rows, columns), full, unique=True), (-2, -1), (axis1, axis2))


_diagonal = define(
    "diagonal",
    lambda a, *, offset, axis1, axis2: np.diagonal(a, offset, axis1, axis2),
    _LINEAR,
    [_pull_diagonal],
)
_make_diagonal = define(
    "diag",
    lambda v, *, k: np.diag(v, k),
    _LINEAR,
    [lambda ct, out, v, *, k: np.diagonal(ct, k)],
)


def _triangle(function):
    primitive = define(
        function.__name__,
        lambda m, *, k: function(m, k),
        _LINEAR,
        [lambda ct, out, m, *, k: function(ct, k)],
    )
    composite(function)(lambda m, k=0: primitive(m, k=k))


_triangle(np.tril)
_triangle(np.triu)


@composite(np.diagonal, np.linalg.diagonal)
def _np_diagonal(a, offset=0, axis1=0, axis2=1):
    ndim = len(shape_of(a))
    return _diagonal(a, offset=offset, axis1=axis1 % ndim, axis2=axis2 % ndim)


@composite(np.diag)
def _np_diag(v, k=0):
    return _make_diagonal(v, k=k) if len(shape_of(v)) == 1 else np.diagonal(v, k)


@composite(np.diagflat)
def _diagflat(v, k=0):
    return np.diag(np.ravel(v), k)


def _pull_trace(ct, out, a, *, offset, axis1, axis2):
    rows, columns = shape_of(a)[axis1] + min(offset, 0), shape_of(a)[axis2] - max(offset, 0)
    size = max(min(rows, columns), 0)
    if not shape_of(out) and rows == columns and axis1 < axis2:
        return np.diag(np.broadcast_to(ct, size), offset)
    ct = np.broadcast_to(np.expand_dims(ct, -1), (*shape_of(out), size))
    return _on_diagonal(ct, shape_of(a), offset, axis1, axis2)


_trace = define(
    "trace",
    lambda a, *, offset, axis1, axis2: np.trace(a, offset, axis1, axis2),
    _LINEAR,
    [_pull_trace],
)


@composite(np.trace)
def _np_trace(a, offset=0, axis1=0, axis2=1):
    ndim = len(shape_of(a))
    return _trace(a, offset=offset, axis1=axis1 % ndim, axis2=axis2 % ndim)


# Grids.


@composite(np.meshgrid)
def _meshgrid(*xi, indexing="xy", sparse=False, copy=True):
    shapes = np.meshgrid(
        *(np.empty(shape_of(x)[0] if shape_of(x) else 1, bool) for x in xi),
        indexing=indexing,
        sparse=True,
    )
    grids = tuple(np.reshape(x, s.shape) for x, s in zip(xi, shapes, strict=True))
    full = np.broadcast_shapes(*(s.shape for s in shapes))
    grids = grids if sparse else tuple(np.broadcast_to(g, full) for g in grids)
    return tuple(np.copy(g, order="C") for g in grids) if copy else grids
