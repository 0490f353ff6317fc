"""Functions that move, copy or cast entries: linear, so the push rule is the function itself."""

import operator

import numpy as np

from revgrad.arrays import functions, plain
from revgrad.rules.row import (
    cast,
    composite,
    constant,
    define,
    derived,
    dtype_of,
    filled_like,
    is_complex,
    match,
    shape_of,
    unbroadcast,
)
from revgrad.tape import Box, Primitive

_LINEAR = ("linear",)


def _linear(key, run, transpose, **options):
    return define(key, run, _LINEAR, [transpose], **options)


_reshape = _linear(
    "reshape",
    lambda x, *, shape: np.reshape(x, shape),
    lambda ct, out, x, shape: np.reshape(ct, shape_of(x)),
)
_transpose = _linear(
    "transpose",
    lambda x, *, axes: np.transpose(x, axes),
    lambda ct, out, x, axes: np.transpose(ct, tuple(np.argsort(axes).tolist())),
)
_broadcast_to = _linear(
    "broadcast_to",
    lambda x, *, shape: np.broadcast_to(x, shape),
    lambda ct, out, x, shape: unbroadcast(ct, x),
)
_flip = _linear(
    "flip",
    lambda x, *, axis: np.flip(x, axis),
    lambda ct, out, x, axis: np.flip(ct, axis),
)


# Copies matter: what a later sum or exp gives depends on the order of entries in memory.
_ravel = _linear(
    "ravel",
    lambda x: np.ravel(x),
    lambda ct, out, x: np.reshape(ct, shape_of(x)),
)
_linear("copy", lambda x, *, order: x.copy(order=order), lambda ct, out, x, order: ct)
_np_copy = _linear(
    "np.copy",
    lambda x, *, order: np.copy(x, order=order),
    lambda ct, out, x, order: ct,
    register=False,
)


def _run_astype(x, *, dtype, copy):
    return x.astype(dtype, copy=copy) if hasattr(x, "astype") else np.asarray(x, dtype)[()]


_astype = _linear(
    "astype",
    _run_astype,
    lambda ct, out, x, dtype, copy: cast(ct, dtype_of(x)),
    register=False,
)
_to_integers = Primitive("astype", _run_astype, constant=True)


@composite("astype")
def _cast(x, *, dtype, copy=True):
    astype = _astype if np.issubdtype(dtype, np.inexact) else _to_integers
    if np.issubdtype(dtype, np.floating) and is_complex(x):
        raise TypeError(f"astype({dtype}) of a complex traced array; take np.real(x) first.")
    return astype(x, dtype=dtype, copy=copy)


if hasattr(np, "astype"):  # from NumPy 2.1 on

    @composite(np.astype)
    def _np_astype(x, dtype, /, *, copy=True):
        return _cast(x, dtype=np.dtype(dtype), copy=copy)


@composite(np.reshape)
def _np_reshape(a, /, shape, order="C"):
    if order != "C":
        raise TypeError(f"reshape(order={order!r}) of a traced array; use transpose, then reshape.")
    return _reshape(a, shape=shape)


@composite(np.ravel)
def _np_ravel(a, order="C"):
    return _ravel(a) if order == "C" else _np_reshape(a, -1, order)


@composite(np.squeeze)
def _squeeze(a, axis=None):
    return _reshape(a, shape=np.squeeze(np.empty(shape_of(a), bool), axis).shape)


@composite(np.expand_dims)
def _expand_dims(a, axis):
    return _reshape(a, shape=np.expand_dims(np.empty(shape_of(a), bool), axis).shape)


@composite(np.atleast_1d)
def _atleast_1d(*arrays):
    arrays = [a if shape_of(a) else _reshape(a, shape=(1,)) for a in arrays]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _permutation(function, a, *args):
    """The axes of a in the order in which `function` leaves them: sizes that tell them apart."""
    return function(np.empty(range(len(shape_of(a))), bool), *args).shape


@composite(np.transpose, np.permute_dims)
def _np_transpose(a, axes=None):
    return _transpose(a, axes=_permutation(np.transpose, a, axes))


@composite(np.matrix_transpose)
def _matrix_transpose(x):
    return _transpose(x, axes=_permutation(np.matrix_transpose, x))


@composite(np.swapaxes)
def _swapaxes(a, axis1, axis2):
    return _transpose(a, axes=_permutation(np.swapaxes, a, axis1, axis2))


@composite(np.moveaxis)
def _moveaxis(a, source, destination):
    return _transpose(a, axes=_permutation(np.moveaxis, a, source, destination))


@composite(np.broadcast_to)
def _np_broadcast_to(array, shape):
    return _broadcast_to(array, shape=shape)


@composite(np.flip)
def _np_flip(m, axis=None):
    return _flip(m, axis=axis)


def _join(*arrays, axis):
    return np.concatenate(arrays, axis)


def _push_join(tangents, *, out, args, static):
    parts = [
        match(np.zeros_like(plain(a)) if t is None else t, a)
        for t, a in zip(tangents, args, strict=True)
    ]
    return _concatenate(*(cast(p, dtype_of(out)) for p in parts), **static)


def _pull_join(ct, *, wanted, out, args, static):
    axis = static["axis"] % len(shape_of(out))
    ends = np.cumsum([shape_of(a)[axis] for a in args]).tolist()
    spans = [slice(b, e) for b, e in zip([0, *ends], ends, strict=False)]
    return [cast(ct[(slice(None),) * axis + (spans[i],)], dtype_of(args[i])) for i in wanted]


_concatenate = Primitive("concatenate", _join, _push_join, _pull_join)


@composite(np.concatenate)
def _np_concatenate(arrays, axis=0):
    arrays = [np.asarray(a) if isinstance(a, (list, tuple)) else a for a in arrays]
    if axis is None:
        arrays, axis = [np.ravel(a) for a in arrays], 0
    return _concatenate(*arrays, axis=axis)


@composite(np.stack)
def _stack(arrays, axis=0):
    return _np_concatenate([np.expand_dims(a, axis) for a in arrays], axis)


@composite(np.hstack)
def _hstack(arrays):
    arrays = [np.atleast_1d(a) for a in arrays]
    return _np_concatenate(arrays, 0 if len(shape_of(arrays[0])) == 1 else 1)


@composite(np.vstack)
def _vstack(arrays):
    return _np_concatenate([np.reshape(a, (1, -1)) if len(shape_of(a)) < 2 else a for a in arrays])


# Indexing: slices, axes and ellipses are structure; index arrays and masks are arguments, so that
# a recording sees them. `structure` holds None-marked holes where the arrays go.
class _Hole:
    def __repr__(self):
        return "array"


_HOLE = _Hole()


def fill(structure, arrays):
    arrays = iter(arrays)
    index = tuple(next(arrays) if part is _HOLE else part for part in structure)
    return index[0] if len(index) == 1 else index


def _put(ct, *arrays, structure, shape, unique=False):
    """The transpose of indexing: zeros of `shape` with ct added at the index, in a fixed order.

    unique: no place comes twice.
    """
    out = filled_like(np.zeros_like, ct, shape=shape, order="C")
    index = fill(structure, arrays)
    if unique or all(dtype_of(a).kind == "b" for a in arrays):
        out[index] = ct
        return out
    places = np.ravel(np.reshape(_count_up(out), shape)[index])
    order = np.argsort(places, kind="stable")
    places, starts = np.unique(places[order], return_index=True)
    if places.size:
        np.reshape(out, -1)[places] = np.add.reduceat(np.ravel(ct)[order], starts)
    return out


def _count_up(like):
    """0, 1, ... to like.size - 1, in like's array type."""
    return np.cumsum(filled_like(np.ones_like, like, shape=like.size, dtype=np.intp)) - 1


def _linear_in_first(function):
    def push(tangents, *, out, args, static):
        return None if tangents[0] is None else function()(tangents[0], *args[1:], **static)

    return push


def _pull_getitem(ct, *, wanted, out, args, static):
    return [_put_p(ct, *args[1:], shape=shape_of(args[0]), **static)]


def _pull_put(ct, *, wanted, out, args, static):
    return [getitem(ct, *args[1:], structure=static["structure"])]


def _pull_take(ct, *, wanted, out, args, static):
    structure = (slice(None),) * static["axis"] + (_HOLE,)
    return [_put_p(ct, args[1], structure=structure, shape=shape_of(args[0]))]


getitem = Primitive(
    "getitem",
    lambda x, *arrays, structure: x[fill(structure, arrays)],
    _linear_in_first(lambda: getitem),
    _pull_getitem,
)
_put_p = Primitive("put", _put, _linear_in_first(lambda: _put_p), _pull_put)
take = Primitive(
    "take",
    lambda x, indices, *, axis: np.take(x, indices, axis),
    _linear_in_first(lambda: take),
    _pull_take,
)


def put(ct, index, shape, *, unique=False):
    """Zeros of `shape` with ct added at the index: the transpose of x[index].

    unique: no place comes twice, so that nothing need be put in order.
    """
    arrays = [p for p in index if hasattr(p, "dtype")]
    structure = tuple(_HOLE if hasattr(p, "dtype") else p for p in index)
    return _put_p(ct, *arrays, structure=structure, shape=shape, unique=unique)


def parts_of(index):
    """(structure, arrays) of an index."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(_as_index(p) if isinstance(p, list) else p for p in parts)
    is_array = [hasattr(p, "dtype") for p in parts]
    structure = tuple(_HOLE if a else p for a, p in zip(is_array, parts, strict=True))
    arrays = [p for a, p in zip(is_array, parts, strict=True) if a]
    for a in arrays:
        _check_index(a, "x[index]")
    return structure, arrays


@composite(operator.getitem)
def _getitem(x, index):
    structure, arrays = parts_of(index)
    return getitem(x, *arrays, structure=structure)


def _check_index(index, where):
    """Refuse traced indices but integers, which a recording takes as inputs."""
    kind = dtype_of(index).kind if isinstance(index, Box) else "i"
    if kind == "b":
        raise TypeError(
            f"{where} with a traced mask: its values decide the shape of the answer. Write "
            "np.where(mask, x, 0), or find the places outside and pass them."
        )
    if kind not in "iu":
        raise TypeError(f"{where} with a traced array of floats as index; pass integers.")


def _as_index(numbers):
    indices = np.asarray(numbers)
    return indices if indices.size else indices.astype(np.intp)


@composite(np.take)
def _np_take(a, indices, axis=None):
    indices = _as_index(indices) if isinstance(indices, (list, tuple)) else indices
    _check_index(indices, "np.take")
    if axis is None:
        return take(np.ravel(a), indices, axis=0)
    return take(a, indices, axis=range(len(shape_of(a)))[axis])


@composite(np.take_along_axis)
def _take_along_axis(arr, indices, axis=-1):
    if axis is None:
        arr, axis = np.ravel(arr), 0
    index = list(np.indices(shape_of(arr), sparse=True))
    index[axis] = indices
    return functions[operator.getitem](arr, tuple(index))


@composite(np.split)
def _split(ary, indices_or_sections, axis=0):
    spans = np.split(np.arange(shape_of(ary)[axis]), indices_or_sections)
    head = (slice(None),) * (axis % len(shape_of(ary)))
    return [ary[(*head, slice(int(s[0]), int(s[-1]) + 1) if s.size else slice(0))] for s in spans]


# Facts about an array that no trace needs to see.
for _fact in (
    *(np.shape, np.ndim, np.size, np.result_type, np.iscomplexobj, np.isrealobj, np.can_cast),
    *(np.common_type, np.min_scalar_type, np.einsum_path, np.may_share_memory, np.shares_memory),
):
    functions[_fact] = lambda *xs, _fact=_fact, **options: _fact(*map(plain, xs), **options)


@composite(np.copy)
def _copy(a, order="K"):
    return _np_copy(a, order=order)


@composite(np.full_like)
def _full_like(a, fill_value, dtype=None, order="K", subok=True, shape=None):
    own = {} if subok else {"subok": False}  # which CuPy does not know
    if shape is None:
        like = np.empty_like(plain(a), dtype, order, **own)
    else:
        like = filled_like(np.empty_like, plain(a), dtype, order, shape=shape, **own)
    if not isinstance(fill_value, Box):
        return np.full_like(like, fill_value)
    return _filled(like, fill_value)


_filled = derived(
    "full_like",
    np.full_like,
    lambda a, fill_value: np.broadcast_to(cast(fill_value, dtype_of(a)), shape_of(a)),
)


constant(np.zeros_like, np.ones_like, np.empty_like, np.argsort, np.searchsorted, np.nonzero)
