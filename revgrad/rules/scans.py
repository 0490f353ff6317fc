"""Functions that run along an axis: cumulative sums and products, products, differences."""

from math import prod

import numpy as np

from revgrad.arrays import plain
from revgrad.rules.reduce import kept, reduction
from revgrad.rules.row import composite, define, derived, formula, shape_of


def _along(a, axis):
    """Flatten where no axis is given or there is none, as NumPy does."""
    ndim = len(shape_of(a))
    return (np.ravel(a), 0) if axis is None or not ndim else (a, axis % ndim)


_cumsum = define(
    "cumsum",
    lambda a, *, axis: np.cumsum(a, axis),
    ("linear",),
    [lambda ct, out, a, *, axis: np.flip(np.cumsum(np.flip(ct, axis), axis), axis)],
)


@composite(np.cumsum)
def _np_cumsum(a, axis=None):
    a, axis = _along(a, axis)
    return _cumsum(a, axis=axis)


@composite((np.add, "accumulate"))
def _accumulate(a, axis=0):
    return _np_cumsum(a, axis)


def _with_start(function, total, start):
    """np.cumulative_sum and its like: one axis, and the empty sum in front where asked for."""

    @formula(function)
    def cumulative(x, /, *, axis=None, include_initial=False):
        axis = 0 if axis is None else axis
        out = total(x, axis)
        if not include_initial:
            return out
        first = np.full_like(plain(out), start, shape=_of_length(1, out, axis))
        return np.concatenate([first, out], axis)


def _of_length(n, x, axis):
    shape = list(shape_of(x))
    shape[axis] = n
    return tuple(shape)


if hasattr(np, "cumulative_sum"):  # from NumPy 2.1 on
    _with_start(np.cumulative_sum, np.cumsum, 0.0)
    _with_start(np.cumulative_prod, np.cumprod, 1.0)


def _shifted(out):
    """The product of all entries before each, along the first axis."""
    return np.concatenate([np.ones_like(out[:1]), out[:-1]])


def _recurrence(factors, terms):
    """r[i] = factors[i] * r[i-1] + terms[i] along the first axis, in log2(n) rounds."""
    step, size = 1, shape_of(terms)[0]
    while step < size:
        carried = terms[step:] + factors[step:] * terms[:-step]
        terms = np.concatenate([terms[:step], carried])
        factors = np.concatenate([factors[:step], factors[step:] * factors[:-step]])
        step *= 2
    return terms


# No division by entries, which may be zero.
def _push_cumprod(t, out, a, *, axis):
    t, out, a = (np.moveaxis(x, axis, 0) for x in (t, out, a))
    return np.moveaxis(_recurrence(a, _shifted(out) * t), 0, axis)


def _pull_cumprod(ct, out, a, *, axis):
    ct, out, a = (np.moveaxis(x, axis, 0) for x in (ct, out, a))
    later = np.concatenate([a[1:], np.ones_like(a[:1])])
    sums = np.flip(_recurrence(np.flip(later, 0), np.flip(ct, 0)), 0)
    return np.moveaxis(_shifted(out) * sums, 0, axis)


_cumprod = define(
    "cumprod", lambda a, *, axis: np.cumprod(a, axis), [_push_cumprod], [_pull_cumprod]
)


@composite(np.cumprod)
def _np_cumprod(a, axis=None):
    a, axis = _along(a, axis)
    return _cumprod(a, axis=axis)


def _others(a, axis):
    """For each entry, the product of all others along the axes; no division by what may be 0."""
    shape, ndim = shape_of(a), len(shape_of(a))
    if axis is None or ndim < 2:
        return np.reshape(_others_in_first(np.reshape(a, -1)), shape)
    axes = [i % ndim for i in np.atleast_1d(axis).tolist()]
    order = axes + [i for i in range(ndim) if i not in axes]
    moved = np.transpose(a, order)
    rows = np.reshape(moved, (prod(shape[i] for i in axes), *(shape_of(moved)[len(axes) :])))
    others = np.reshape(_others_in_first(rows), shape_of(moved))
    return np.transpose(others, np.argsort(order).tolist())


def _others_in_first(rows):
    one = np.ones_like(plain(rows[:1]))
    before = np.cumprod(np.concatenate([one, rows[:-1]]), 0)
    after = np.cumprod(np.concatenate([one, rows[:0:-1]]), 0)
    return before * after[::-1]


def _pull_prod(ct, out, a, *, axis, keepdims):
    return kept(ct, a, axis) * _others(a, axis)


_prod = define(
    "prod",
    lambda a, *, axis, keepdims: np.prod(a, axis=axis, keepdims=keepdims),
    [lambda t, out, a, *, axis, keepdims: np.sum(
        t * _others(a, axis), axis=axis, keepdims=keepdims)],
    [_pull_prod],
)  # fmt: skip
composite(np.prod)(reduction(np.prod, _prod, np.multiply, 1.0))


@composite((np.multiply, "accumulate"))
def _accumulated_product(a, axis=0):
    return _np_cumprod(a, axis)


composite((np.multiply, "reduce"))(reduction(np.prod, _prod, np.multiply, 1.0, 0))


def _slices(a, axis, *spans):
    head = (slice(None),) * (axis % len(shape_of(a)))
    return [a[(*head, slice(*span))] for span in spans]


@composite(np.diff)
def _diff(a, n=1, axis=-1, prepend=None, append=None):
    ends = [x if x is None else _border(a, x, axis) for x in (prepend, append)]
    parts = [x for x in (ends[0], a, ends[1]) if x is not None]
    a = np.concatenate(parts, axis) if len(parts) > 1 else a
    for _ in range(n):
        later, earlier = _slices(a, axis, (1, None), (None, -1))
        a = np.subtract(later, earlier)
    return a


def _border(a, x, axis):
    return x if shape_of(x) else np.broadcast_to(x, _of_length(1, a, axis))


@formula(np.ediff1d, arrays=3)
def _ediff1d(ary, to_end=None, to_begin=None):
    ary = np.ravel(ary)
    parts = to_begin, ary[1:] - ary[:-1], to_end
    return np.concatenate([np.ravel(x) for x in parts if x is not None])


def _along_axis(x, like, axis):
    """A number, or a vector that lies along an axis of `like`."""
    return np.reshape(x, [-1 if i == axis else 1 for i in range(len(shape_of(like)))])


def _slope(f, step, axis, edge_order):
    """NumPy's differences of second order inside, and one-sided ones of `edge_order` at the ends.

    step: one distance, or the places of the entries.
    """
    gaps = _along_axis(np.diff(step), f, axis) if shape_of(step) else step
    ahead, behind = _slices(f, axis, (1, None), (None, -1))
    slopes = (ahead - behind) / gaps
    s1, s2 = _slices(slopes, axis, (None, -1), (1, None))
    if shape_of(step):
        g1, g2 = _slices(gaps, axis, (None, -1), (1, None))
        before, after = g1 / (g1 + g2), g2 / (g1 + g2)
    else:
        before = after = 0.5
    first, last = _slices(slopes, axis, (0, 1), (-1, None))
    if edge_order == 2:
        bend = s2 - s1
        first = first - _slices(before * bend, axis, (0, 1))[0]
        last = last + _slices(after * bend, axis, (-1, None))[0]
    return np.concatenate([first, after * s1 + before * s2, last], axis)


def _slopes(f, *steps, axes, edge_order):
    pairs = zip(axes, steps, strict=True)
    slopes = tuple(_slope(f, h, i, edge_order) for i, h in pairs)
    return slopes if len(axes) > 1 else slopes[0]


def _run_gradient(f, *steps, axes, edge_order):
    return np.gradient(f, *steps, axis=axes, edge_order=edge_order)


_gradient = derived("gradient", _run_gradient, _slopes)
_gradients = derived("gradients", _run_gradient, _slopes, many=True)


@composite(np.gradient)
def _np_gradient(f, *varargs, axis=None, edge_order=1):
    ndim = len(shape_of(f))
    axes = tuple(range(ndim)) if axis is None else tuple(int(i) % ndim for i in np.atleast_1d(axis))
    steps = [np.asarray(h) if isinstance(h, (list, tuple)) else h for h in varargs or (1.0,)]
    steps = steps * len(axes) if len(steps) == 1 and not shape_of(steps[0]) else steps
    if len(steps) != len(axes):
        raise TypeError(f"np.gradient over {len(axes)} axes takes no {len(steps)} distances.")
    if not axes:
        return ()
    primitive = _gradients if len(axes) > 1 else _gradient
    return primitive(f, *steps, axes=axes, edge_order=edge_order)


@composite(np.trapezoid)
def _trapezoid(y, x=None, dx=1.0, axis=-1):
    if x is not None:
        dx = np.diff(x) if len(shape_of(x)) == 1 else np.diff(x, axis=axis)
        if len(shape_of(x)) == 1:
            shape = [1] * len(shape_of(y))
            shape[axis] = shape_of(dx)[0]
            dx = np.reshape(dx, tuple(shape))
    later, earlier = _slices(y, axis, (1, None), (None, -1))
    return np.sum(dx * (later + earlier) / 2.0, axis=axis)
