"""Primitives of networks: convolution, pooling, lookup, stacking, and a few elementwise functions.

Images are (N, H, W, C), but lie in memory as (H, C, W, N): the batch last ("batch-last" below). An
image in any other order of memory is copied into that one; answers come in it, so that a chain of
layers copies once. What this buys: moving a window by a column or a row moves a pointer, so every
copy and sum runs over stretches of W*N numbers, and of the kh*kw-fold matrix of patches only the
factor kw is ever written; the other is a view with overlapping rows, which BLAS takes as it is.

No sum here depends on chance or on the order of memory that the arguments came in.
"""

import threading
from functools import cache, partial, reduce
from hashlib import blake2b
from math import pi, prod, sqrt
from operator import add

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from revgrad._ext.homes import at_home
from revgrad.arrays import plain
from revgrad.rules.row import define, shape_of
from revgrad.tape import Primitive

define = partial(define, register=False)
SCRATCH = 2**20  # numbers
_kept_memory = threading.local()


# Convolution. `stride` and `padding` are ((rows, columns)) and ((top, bottom), (left, right)).
# conv2d, its pull to the image and its pull to the kernel are the three faces of one trilinear
# form <conv2d(x, w), ct>, so the pulls of each are the other two.


def batch_last(x):
    """(N, H, W, C) -> contiguous (H, C, W, N): a view if it lies so already, else a copy."""
    x = np.transpose(x, (1, 3, 2, 0))
    flags = getattr(x, "flags", None)
    if flags is not None and flags.c_contiguous:
        return x
    copy = np.empty_like(x, shape=x.shape, order="C")
    copy[...] = x
    return copy


def images(x):
    """(H, C, W, N) -> a view (N, H, W, C)."""
    return np.transpose(x, (3, 0, 2, 1))


def _span(offset, stride, low, size, count):
    """Window positions whose entry `offset` lies on the image, and where: two slices.

    Position k of `count` meets index k * stride + offset - low of an axis of `size`.
    """
    first = max(0, -(-(low - offset) // stride))
    last = min(count, (size - 1 + low - offset) // stride + 1)
    last, start = max(first, last), first * stride + offset - low
    end = start + (last - first - 1) * stride + 1 if last > first else start
    return slice(first, last), slice(start, end, stride)


def _scratch(like, shape, use):
    """Memory to write in, not cleared; the same at each call in one thread, unless it is large.

    Fresh memory of this size costs more to get from the system than to fill.
    """
    size, kept = prod(shape), vars(_kept_memory)
    if not isinstance(like, np.ndarray) or size > 4 * SCRATCH:
        return np.empty_like(like, shape=shape, order="C")
    if use not in kept or kept[use].nbytes < size * like.itemsize:
        kept[use] = np.empty(size * like.itemsize, np.uint8)
    return np.reshape(kept[use][: size * like.itemsize].view(like.dtype), shape)


def _widen(x, width, columns, stride, padding):
    """(H, C, W, N) -> (padded H, width * C, columns * N): each column's window, side by side.

    A view of x where it can be, else scratch memory, good until the next call.
    """
    (top, bottom), sides = padding
    h, c, w, n = x.shape
    if width == stride == 1 and not any((top, bottom, *sides)):
        return np.reshape(x, (h, c, w * n))
    wide = _scratch(x, (top + h + bottom, width, c, columns, n), "wide")
    wide[:top] = wide[top + h :] = 0
    for j in range(width):
        to, by = _span(j, stride, sides[0], w, columns)
        column = wide[top : top + h, j]
        column[:, :, to] = x[:, :, by]
        column[:, :, : to.start] = column[:, :, to.stop :] = 0
    return np.reshape(wide, (top + h + bottom, width * c, columns * n))


def _blocks(rows, window, stride, top, height, numbers):
    """Rows of the answer in blocks, each seeing few enough rows of the image.

    numbers: how many are written for each row seen; a block keeps within SCRATCH of them. Yields
    the answer's rows, the image's rows that they see, and how many of the padding above and below.
    """
    block = max(window, SCRATCH // max(1, stride * numbers))
    for first in range(0, rows, block):
        last = min(rows, first + block)
        low, high = first * stride - top, (last - 1) * stride + window - top
        seen = slice(*(min(max(0, k), height) for k in (low, high)))
        above = min(max(0, -low), high - low)
        yield slice(first, last), seen, (above, high - low - above - (seen.stop - seen.start))


def _patches(x, window, out, stride, padding):
    """For blocks of rows of the answer: the rows, and (rows, kh * kw * C, columns * N) patches.

    The patches are a view with overlapping rows, good until the next block.
    """
    x, (kh, kw) = batch_last(x), window
    h, c, _, n = x.shape
    numbers = kw * c * out[1] * n
    for rows, seen, ends in _blocks(out[0], kh, stride[0], padding[0][0], h, numbers):
        wide = _widen(x[seen], kw, out[1], stride[1], (ends, padding[1]))
        yield rows, _overlapping(wide, rows.stop - rows.start, kh, stride[0])


def _overlapping(wide, rows, window, stride):
    """(H, K, M) -> a view (rows, window * K, M) of the windows that begin at every stride-th H."""
    _, k, m = wide.shape
    shape = rows, window * k, m
    if isinstance(wide, np.ndarray) and wide.flags.c_contiguous:
        row, line, item = wide.strides
        return np.ndarray(shape, wide.dtype, wide, strides=(stride * row, line, item))
    windows = np.transpose(sliding_window_view(wide, window, axis=0)[::stride], (0, 3, 1, 2))
    return np.reshape(windows, shape)


def _as_rows(x):
    """(N, H, W, C) -> (H, C, W * N)."""
    x = batch_last(x)
    return np.reshape(x, (*x.shape[:2], -1))


def out_shape(size, window, stride, padding):
    """Rows and columns of the answer."""
    return tuple(
        (n + sum(p) - k) // s + 1 for n, k, s, p in zip(size, window, stride, padding, strict=True)
    )


def _conv(x, w, b=None, *, stride, padding):
    kh, kw, _, o = w.shape
    n, *size, _ = x.shape
    out = out_shape(size, (kh, kw), stride, padding)
    matrix = np.copy(np.transpose(np.reshape(w, (-1, o))), order="C")
    y = np.empty_like(x, shape=(out[0], o, out[1] * n), order="C")
    cut = _stretch(out[1] * n, w.size)
    for rows, patches in _patches(x, (kh, kw), out, stride, padding):
        np.matmul(matrix, _cut(patches, cut), out=_cut(y[rows], cut))
    if b is not None:
        y += np.expand_dims(b, -1)
    return images(np.reshape(y, (out[0], o, out[1], n)))


@cache
def _stretch(columns, weights):
    """Columns to multiply at a time: OpenBLAS does not repack small products (a third faster)."""
    most = 10**6 // max(1, weights)
    fitting = (k for k in range(min(most, columns), 63, -1) if columns % k == 0)
    return next(fitting, max(1, columns))


def _cut(x, columns):
    """(rows, K, M) -> a view (rows, M / columns, K, columns)."""
    rows, k, m = x.shape
    return np.transpose(np.reshape(x, (rows, k, m // columns, columns)), (0, 2, 1, 3))


def _conv_to_image(ct, w, *, stride, padding, size):
    kh, kw, c, o = w.shape
    n, rows, columns, _ = ct.shape
    matrix, ct, left = np.reshape(w, (-1, o)), _as_rows(ct), padding[1][0]
    x = np.zeros_like(ct, shape=(size[0], c, size[1], n), order="C")
    part = _scratch(ct, (kh * kw * c, columns * n), "part")
    numbers = kw * c * columns * n
    for block, seen, (top, bottom) in _blocks(rows, kh, stride[0], padding[0][0], size[0], numbers):
        height = top + seen.stop - seen.start + bottom
        wide = _scratch(ct, (height, kw * c, columns * n), "wide")
        wide[...] = 0
        for k, row in enumerate(ct[block]):
            np.matmul(matrix, row, out=part)
            wide[k * stride[0] : k * stride[0] + kh] += np.reshape(part, (kh, kw * c, columns * n))
        wide = np.reshape(wide, (height, kw, c, columns, n))[top : height - bottom]
        for j in range(kw):
            by, to = _span(j, stride[1], left, size[1], columns)
            x[seen, :, to] += wide[:, j, :, by]
    return images(x)


def _conv_to_kernel(x, ct, *, stride, padding, window):
    _, rows, columns, o = ct.shape
    ct = np.transpose(_as_rows(ct), (0, 2, 1))
    blocks = _patches(x, window, (rows, columns), stride, padding)
    w = reduce(add, (np.sum(np.matmul(patches, ct[at]), axis=0) for at, patches in blocks))
    return np.reshape(w, (*window, x.shape[-1], o))


def _size(x):
    return shape_of(x)[1:3]


_BILINEAR = ("linear", "linear")
_PULL_CONV = (
    lambda ct, out, x, w, *b, **at: conv2d_to_image(ct, w, **at, size=_size(x)),
    lambda ct, out, x, w, *b, **at: conv2d_to_kernel(x, ct, **at, window=shape_of(w)[:2]),
)
conv2d = define("conv2d", _conv, _BILINEAR, _PULL_CONV)
conv2d_bias = define(
    "conv2d_bias",
    _conv,
    [
        lambda t, out, x, w, b, **at: conv2d(t, w, **at),
        lambda t, out, x, w, b, **at: conv2d(x, t, **at),
        lambda t, out, x, w, b, **at: np.broadcast_to(t, shape_of(out)),
    ],
    [*_PULL_CONV, lambda ct, out, x, w, b, **at: np.sum(ct, axis=(0, 1, 2))],
)
conv2d_to_image = define(
    "conv2d_to_image",
    _conv_to_image,
    _BILINEAR,
    [
        lambda u, out, ct, w, size, **at: conv2d(u, w, **at),
        lambda u, out, ct, w, size, **at: conv2d_to_kernel(u, ct, **at, window=shape_of(w)[:2]),
    ],
)
conv2d_to_kernel = define(
    "conv2d_to_kernel",
    _conv_to_kernel,
    _BILINEAR,
    [
        lambda u, out, x, ct, window, **at: conv2d_to_image(ct, u, **at, size=_size(x)),
        lambda u, out, x, ct, window, **at: conv2d(x, u, **at),
    ],
)


# Pooling. A window's entries are numbered row by row; `choice` holds the number of the first that
# attains the maximum. Given the choice, taking the maximum is linear, and putting is its transpose.


def _entries(x, window, out, stride):
    """For each entry of a window, row by row, its view over all windows of (H, C, W, N)."""
    for i in range(window[0]):
        for j in range(window[1]):
            yield x[_every(i, out[0], stride[0]), :, _every(j, out[1], stride[1])]


def _every(start, count, stride):
    return slice(start, start + stride * (count - 1) + 1, stride) if count else slice(0)


def _padded(x, padding, fill):
    """(N, H, W, C) -> (H, C, W, N), the first and third padded with `fill`."""
    x = batch_last(x)
    (top, bottom), (left, right) = padding
    if not any((top, bottom, left, right)):
        return x
    h, c, w, n = x.shape
    padded = np.full_like(x, fill, shape=(top + h + bottom, c, left + w + right, n), order="C")
    padded[top : top + h, :, left : left + w] = x
    return padded


def _pool(x, window, stride, padding, fill):
    """The entries of the windows of (N, H, W, C)."""
    out = out_shape(x.shape[1:3], window, stride, padding)
    return _entries(_padded(x, padding, fill), window, out, stride)


def _unpool(like, size, window, stride, padding):
    """Zeros (H, C, W, N) as seen through the windows, and without the padding (N, H, W, C)."""
    n, *out, c = like.shape
    (top, bottom), (left, right) = padding
    shape = (top + size[0] + bottom, c, left + size[1] + right, n)
    zeros = np.zeros_like(like, shape=shape, order="C")
    inner = zeros[top : top + size[0], :, left : left + size[1]]
    return _entries(zeros, window, out, stride), images(inner)


def _fold(ufunc, entries):
    """Reduce the entries of windows to (N, rows, columns, C), never a view of what came."""
    first, *others = entries
    folded = ufunc(first, others[0]) if others else np.copy(first)
    for entry in others[1:]:
        ufunc(folded, entry, out=folded)
    return images(folded)


def _max_pool(x, *, window, stride, padding):
    return _fold(np.maximum, _pool(x, window, stride, padding, -np.inf))


def _choose(x, out, *, window, stride, padding):
    entries, best = list(_pool(x, window, stride, padding, -np.inf)), batch_last(out)
    choice = np.zeros_like(best, dtype=np.uint8 if len(entries) <= 256 else np.int64)
    passed = True
    for entry in entries[:-1]:  # how many leading entries are not the maximum
        passed = np.logical_and(passed, entry != best)
        choice += passed
    return images(choice)


# Products with zeros and ones instead of np.where, which is ten times slower on masks like these.
def _take(x, choice, *, window, stride, padding):
    choice = batch_last(choice)
    entries = _pool(x, window, stride, padding, 0)
    return _fold(np.add, (entry * (choice == k) for k, entry in enumerate(entries)))


def _put(ct, choice, *, window, stride, padding, size):
    entries, x = _unpool(ct, size, window, stride, padding)
    ct, choice = batch_last(ct), batch_last(choice)
    apart = window[0] <= stride[0] and window[1] <= stride[1]
    for k, entry in enumerate(entries):
        if apart:
            np.multiply(ct, choice == k, out=entry)
        else:
            entry += ct * (choice == k)
    return x


def _sum_pool(x, *, window, stride, padding):
    return _fold(np.add, _pool(x, window, stride, padding, 0))


def _spread(ct, *, window, stride, padding, size):
    entries, x = _unpool(ct, size, window, stride, padding)
    ct = batch_last(ct)
    for entry in entries:
        entry += ct
    return x


choose = Primitive("pool_choose", _choose, constant=True)
put = define(
    "pool_put",
    _put,
    ("linear", None),
    [lambda u, out, ct, choice, size, **at: take(u, choice, **at), None],
)
take = define(
    "pool_take",
    _take,
    ("linear", None),
    [lambda ct, out, x, choice, **at: put(ct, choice, **at, size=_size(x)), None],
)
max_pool = define(
    "max_pool",
    _max_pool,
    [lambda t, out, x, **at: take(t, choose(x, out, **at), **at)],
    [lambda ct, out, x, **at: put(ct, choose(x, out, **at), **at, size=_size(x))],
)
sum_pool = define(
    "sum_pool", _sum_pool, ("linear",), [lambda ct, out, x, **at: spread(ct, **at, size=_size(x))]
)
spread = define(
    "pool_spread", _spread, ("linear",), [lambda u, out, ct, size, **at: sum_pool(u, **at)]
)


# Lookup. Its transpose sorts the rows by id and adds neighbours pair by pair, so that the order of
# every sum follows from the ids alone.


def _sum_by_id(rows, ids, *, count):
    table = np.zeros_like(rows, shape=(count, *rows.shape[ids.ndim :]))
    if not ids.size:
        return table
    ids, rows = np.ravel(ids) % count, np.reshape(rows, (ids.size, *table.shape[1:]))
    order = np.argsort(ids, kind="stable")
    ids, rows = ids[order], rows[order]
    odd = _odd(ids)
    while np.any(odd):
        kept = np.logical_not(odd)
        sums, at = rows[kept], np.cumsum(kept)[odd] - 1
        sums[at] = sums[at] + rows[odd]
        ids, rows = ids[kept], sums
        odd = _odd(ids)
    table[ids] = rows
    return table


def _odd(ids):
    """Which of sorted ids are the second, fourth, ... of their kind."""
    places = np.cumsum(np.ones_like(ids, dtype=np.int64)) - 1
    return (places - np.searchsorted(ids, ids)) % 2 == 1


lookup = define(
    "lookup",
    lambda table, ids: table[ids],
    ("linear", None),
    [lambda ct, out, table, ids: sum_by_id(ct, ids, count=shape_of(table)[0]), None],
)
sum_by_id = define(
    "sum_by_id",
    _sum_by_id,
    ("linear", None),
    [lambda u, out, rows, ids, count: lookup(u, ids), None],
)


# Taking apart and putting together, each the transpose of the other: no zero-filled copies.


def _push_unstack(tangents, *, out, args, static):
    return unstack(*tangents)


def _pull_unstack(cts, *, wanted, out, args, static):
    return [stack(*_filled(cts, out))]


def _push_stack(tangents, *, out, args, static):
    return stack(*_filled(tangents, args))


def _pull_stack(ct, *, wanted, out, args, static):
    parts = unstack(ct)
    return [parts[i] for i in wanted]


def _push_split(tangents, *, out, args, static):
    return split(*tangents, **static)


def _pull_split(cts, *, wanted, out, args, static):
    return [np.concatenate(_filled(cts, out), axis=-1)]


def _filled(parts, like):
    return [np.zeros_like(plain(x)) if p is None else p for p, x in zip(parts, like, strict=True)]


def _slices(size, parts):
    return (slice(k * size // parts, (k + 1) * size // parts) for k in range(parts))


unstack = Primitive(
    "unstack", lambda x: tuple(x[i] for i in range(len(x))), _push_unstack, _pull_unstack, many=True
)
stack = Primitive("stack", lambda *xs: np.stack(xs), _push_stack, _pull_stack)
split = Primitive(
    "split",
    lambda x, *, parts: tuple(x[..., part] for part in _slices(x.shape[-1], parts)),
    _push_split,
    _pull_split,
    many=True,
)


# Constants of the step. Ids and keys are arguments, so that a recording sees them change.


def _one_hot(ids, like, *, classes):
    return (np.expand_dims(ids, -1) == _at_home(np.arange(classes), like)).astype(like.dtype)


def _kept(x, *key, rate):
    """What dropout multiplies x by: 1 / (1 - rate), or 0 with probability `rate`, from the key."""
    seed = blake2b(repr(tuple(map(int, key))).encode(), digest_size=16).digest()
    words = np.random.Philox(key=np.frombuffer(seed, "<u8")).random_raw(-(-x.size // 2))
    drawn = words.astype("<u8", copy=False).view("<u4")[: x.size].reshape(x.shape)
    kept = (drawn >= round(rate * 2**32)).astype(x.dtype)
    return _at_home(kept * np.asarray(1 / (1 - rate), x.dtype), x)


def _at_home(array, like):
    """An array in the array type of another."""
    return array if isinstance(like, (np.ndarray, np.generic)) else np.asarray(array, like=like)


one_hot = Primitive("one_hot", _one_hot, constant=True)
dropout_mask = Primitive("dropout_mask", _kept, constant=True)


# Entry by entry.


def _sigmoid(x):
    with np.errstate(over="ignore"):  # exp(-x) is infinite where the answer is 0
        return 1 / (1 + np.exp(-x))


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.absolute(x)))


def _erf(x):
    try:
        from scipy.special import erf
    except ImportError as error:
        raise ImportError("gelu(approximate=False) needs SciPy: pip install scipy.") from error
    return at_home(erf, "special")(x)


def _unary(name, run, slope):
    times = lambda c, out, x: c * slope(out, x)
    return define(name, run, [times], [times])


sigmoid = _unary("sigmoid", _sigmoid, lambda out, x: out * (1 - out))
softplus = _unary("softplus", _softplus, lambda out, x: sigmoid(x))
erf = _unary("erf", _erf, lambda out, x: 2 / sqrt(pi) * np.exp(-x * x))
# Called as relu(x, 0), so that a replay sees the ufunc that it is.
relu = define(
    "relu",
    np.maximum,
    [lambda t, out, x, zero: t * (out > 0), None],
    [lambda ct, out, x, zero: ct * (out > 0), None],
)
