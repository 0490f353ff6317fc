"""Products over chosen axes: tensordot, inner, einsum, kron, cross, convolve."""

import string
from math import prod

import numpy as np

from revgrad.arrays import functions, plain
from revgrad.rules.linear import put
from revgrad.rules.row import (
    cast,
    composite,
    define,
    derived,
    dtype_of,
    filled_like,
    formula,
    shape_of,
    unbroadcast,
)


def _contract(a, b, axes_a, axes_b):
    """np.tensordot in its own steps: transpose, reshape, one product."""
    free_a = [i for i in range(len(shape_of(a))) if i not in axes_a]
    free_b = [i for i in range(len(shape_of(b))) if i not in axes_b]
    rows, columns = [shape_of(a)[i] for i in free_a], [shape_of(b)[i] for i in free_b]
    inner = prod(shape_of(a)[i] for i in axes_a)
    left = np.reshape(np.transpose(a, free_a + axes_a), (prod(rows), inner))
    right = np.reshape(np.transpose(b, axes_b + free_b), (inner, prod(columns)))
    return np.reshape(np.dot(left, right), rows + columns)


def _pull_factor(ct, a, b, axes, first):
    """The cotangent of a: that of the product, contracted with b over b's free axes."""
    axes_a, axes_b = axes
    free_a = [i for i in range(len(shape_of(a))) if i not in axes_a]
    free_b = [i for i in range(len(shape_of(b))) if i not in axes_b]
    start = len(free_a) if first else 0
    over = tuple(range(start, start + len(free_b)))
    pulled = np.tensordot(ct, b, (over, tuple(free_b)))
    order = free_a + [axes_a[k] for k in np.argsort(axes_b)]
    return cast(np.transpose(pulled, np.argsort(order).tolist()), dtype_of(a))


_tensordot = define(
    "tensordot",
    lambda a, b, *, axes: np.tensordot(a, b, axes),
    ("linear", "linear"),
    [
        lambda ct, out, a, b, *, axes: _pull_factor(ct, a, b, axes, True),
        lambda ct, out, a, b, *, axes: _pull_factor(ct, b, a, axes[::-1], False),
    ],
    register=False,
)


@composite(np.tensordot)
def _np_tensordot(a, b, axes=2):
    ndim_a, ndim_b = len(shape_of(a)), len(shape_of(b))
    if np.ndim(axes) == 0:
        axes = range(ndim_a - axes, ndim_a), range(axes)
    axes_a, axes_b = (np.atleast_1d(list(x) if np.ndim(x) else x).tolist() for x in axes)
    axes = tuple(i % ndim_a for i in axes_a), tuple(i % ndim_b for i in axes_b)
    return _tensordot(a, b, axes=axes)


def _last_axes(a, b):
    return (len(shape_of(a)) - 1,), (len(shape_of(b)) - 1,)


_inner = define(
    "inner",
    np.inner,
    ("linear", "linear"),
    [
        lambda ct, out, a, b: _pull_factor(ct, a, b, _last_axes(a, b), True),
        lambda ct, out, a, b: _pull_factor(ct, b, a, _last_axes(b, a), False),
    ],
)


@composite(np.inner)
def _np_inner(a, b):
    return _inner(a, b) if shape_of(a) and shape_of(b) else np.multiply(a, b)


functions["dot over many axes"] = derived(
    "dot over many axes",
    np.dot,
    lambda a, b: _contract(a, b, [len(shape_of(a)) - 1], [len(shape_of(b)) - 2]),
)


def _spread_blocks(a, b):
    """Shapes of two arrays of as many axes, and how each lies in their products: block by block."""
    ndim = max(len(shape_of(a)), len(shape_of(b)))
    of_a, of_b = ((1,) * (ndim - len(shape_of(x))) + shape_of(x) for x in (a, b))
    pairs = [*zip(of_a, of_b, strict=True)]
    whole = [n for pair in pairs for n in pair]
    return whole, [n for m, _ in pairs for n in (m, 1)], [n for _, m in pairs for n in (1, m)]


def _pull_block(ct, a, b, first):
    whole, in_a, in_b = _spread_blocks(a, b) if first else _spread_blocks(b, a)
    like, other = (a, in_b) if first else (a, in_a)
    products = np.reshape(ct, whole) * np.reshape(b, other)
    axes = tuple(range(1 if first else 0, len(whole), 2))
    return cast(np.reshape(np.sum(products, axis=axes), shape_of(like)), dtype_of(like))


_kron = define(
    "kron",
    np.kron,
    ("linear", "linear"),
    [
        lambda ct, out, a, b: _pull_block(ct, a, b, True),
        lambda ct, out, a, b: _pull_block(ct, b, a, False),
    ],
)


@composite(np.kron)
def _np_kron(a, b):
    return _kron(a, b)


_cross = define(
    "cross",
    np.cross,
    ("linear", "linear"),
    [
        lambda ct, out, a, b: unbroadcast(np.cross(b, ct), a),
        lambda ct, out, a, b: unbroadcast(np.cross(ct, a), b),
    ],
)


@composite(np.cross, np.linalg.cross)
def _np_cross(a, b, axisa=-1, axisb=-1, axisc=-1, axis=None):
    axisa, axisb, axisc = (axisa, axisb, axisc) if axis is None else (axis,) * 3
    a, b = np.moveaxis(a, axisa, -1), np.moveaxis(b, axisb, -1)
    if shape_of(a)[-1] != 3 or shape_of(b)[-1] != 3:
        raise TypeError("np.cross of traced arrays takes vectors of three components.")
    out = _cross(a, b)
    return out if axisc == -1 else np.moveaxis(out, -1, axisc)


def _windows(a, v, mode):
    """np.convolve as a product with a matrix of shifted copies."""
    a, v = (a, v) if shape_of(a)[0] >= shape_of(v)[0] else (v, a)
    n, m = shape_of(a)[0], shape_of(v)[0]
    padded = np.pad(a, m - 1)
    places = np.arange(n + m - 1)[:, None] + np.arange(m)[::-1]
    first, last = {
        "full": (0, n + m - 1),
        "same": ((m - 1) // 2, (m - 1) // 2 + n),
        "valid": (m - 1, n),
    }[mode]
    return np.dot(np.take(padded, places[first:last]), v)


_convolve = derived(
    "convolve",
    lambda a, v, *, mode: np.convolve(a, v, mode),
    lambda a, v, *, mode: _windows(a, v, mode),
)


@composite(np.convolve)
def _np_convolve(a, v, mode="full"):
    return _convolve(a, v, mode=mode)


@formula(np.correlate, arrays=2)
def _correlate(a, v, mode="valid"):
    """NumPy runs over the longer one, which "same" sees."""
    if shape_of(a)[0] < shape_of(v)[0]:
        return np.conj(np.flip(_correlate(v, a, mode)))
    return np.convolve(a, np.conj(np.flip(v)), mode)


# einsum. `call`: the subscripts as given, which NumPy's bits may hang on; `subscripts`: without
# ellipses and with the result spelled out, for the rules.


def _pull_einsum(k, ct, out, *operands, call, subscripts, optimize):
    inputs, result = subscripts.split("->")
    inputs = inputs.split(",")
    own, unique = inputs[k], "".join(dict.fromkeys(inputs[k]))
    others = [i for i in range(len(operands)) if i != k]
    given = set(result).union(*(inputs[i] for i in others))
    reachable = "".join(s for s in unique if s in given)
    text = ",".join([result, *(inputs[i] for i in others)]) + "->" + reachable
    ct = np.einsum(text, ct, *(operands[i] for i in others), optimize=optimize)
    sizes = dict(zip(own, shape_of(operands[k]), strict=True))
    for axis, s in enumerate(unique):
        if s not in given:
            ct = np.expand_dims(ct, axis)
    wide = zip(unique, shape_of(ct), strict=True)
    ct = np.broadcast_to(ct, tuple(sizes[s] if n == 1 else n for s, n in wide))
    ct = unbroadcast(ct, np.broadcast_to(_nothing(operands[k]), [sizes[s] for s in unique]))
    if own == unique:
        return cast(ct, dtype_of(operands[k]))
    grid = np.indices([sizes[s] for s in unique], sparse=True)
    return put(ct, tuple(grid[unique.index(s)] for s in own), shape_of(operands[k]))


def _nothing(x):
    return filled_like(np.zeros_like, plain(x), shape=())


def _einsum_primitive(count):
    return define(
        "einsum",
        lambda *xs, call, subscripts, optimize: np.einsum(call, *xs, optimize=optimize),
        ["linear"] * count,
        [lambda ct, out, *xs, k=k, **static: _pull_einsum(k, ct, out, *xs, **static)
         for k in range(count)],
        register=False,
    )  # fmt: skip


_einsums = [_einsum_primitive(n) for n in range(9)]


def _spelled_out(subscripts, operands):
    """Subscripts without ellipses and with the result: "...i,i" -> "AB i,i->AB"."""
    subscripts = subscripts.replace(" ", "")
    inputs, arrow, result = subscripts.partition("->")
    inputs = inputs.split(",")
    if len(inputs) != len(operands):
        raise ValueError(f"{len(inputs)} subscripts but {len(operands)} operands in np.einsum.")
    free = [s for s in string.ascii_letters[::-1] if s not in subscripts]
    extra = [
        len(shape_of(x)) - len(s.replace("...", "")) for s, x in zip(inputs, operands, strict=True)
    ]
    most = max((n for n, s in zip(extra, inputs, strict=True) if "..." in s), default=0)
    dots = "".join(free[:most])
    inputs = [
        s.replace("...", dots[most - n :] if n else "") for s, n in zip(inputs, extra, strict=True)
    ]
    if not arrow:
        seen = "".join(inputs)
        named = sorted(s for s in set(seen) if seen.count(s) == 1 and s not in dots)
        result = ("..." if dots else "") + "".join(named)
    return ",".join(inputs) + "->" + result.replace("...", dots)


def _as_text(operands):
    """The form einsum(x, [0, 1], y, [1]) as subscripts and operands."""
    lists = operands[1::2]
    names = sorted({i for part in lists for i in part if i is not Ellipsis})
    letter = dict(zip(names, string.ascii_letters, strict=False)) | {Ellipsis: "..."}
    parts = ["".join(letter[i] for i in part) for part in lists]
    result = ""
    if len(operands) % 2:
        result = "->" + "".join(letter[i] for i in operands[-1])
    return ",".join(parts) + result, operands[:-1:2] if len(operands) % 2 else operands[::2]


@composite(np.einsum)
def _einsum(*operands, optimize=False):
    if isinstance(operands[0], str):
        subscripts, *operands = operands
    else:
        subscripts, operands = _as_text(operands)
    operands = [np.asarray(x) if isinstance(x, (list, tuple)) else x for x in operands]
    if len(operands) >= len(_einsums):
        raise TypeError(f"np.einsum of {len(operands)} traced operands; write it as several.")
    spelled = _spelled_out(subscripts, operands)
    path = optimize if isinstance(optimize, (bool, str)) else list(optimize)
    return _einsums[len(operands)](*operands, call=subscripts, subscripts=spelled, optimize=path)
