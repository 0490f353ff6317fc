"""Functions that run along an axis: cumulative sums and products, products, differences."""

import numpy as np

from revgrad.rules.row import composite, define, derived, shape_of


def _along(a, axis):
    """Flatten where no axis is given, as NumPy does."""
    return (np.ravel(a), 0) if axis is None else (a, axis % max(len(shape_of(a)), 1))


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


def _last_of_cumprod(a, *, axis, keepdims):
    ndim = len(shape_of(a))
    axes = range(ndim) if axis is None else [i % ndim for i in np.atleast_1d(axis).tolist()]
    if not ndim or not axes:
        return a
    kept = [n for i, n in enumerate(shape_of(a)) if i not in axes]
    size = [n for i, n in enumerate(shape_of(a)) if i in axes]
    rows = np.moveaxis(a, tuple(axes), tuple(range(len(axes))))
    rows = np.reshape(rows, (int(np.prod(size)), *kept))
    out = np.cumprod(rows, 0)[-1] if shape_of(rows)[0] else np.sum(rows, 0) + 1.0
    if keepdims:
        out = np.reshape(out, [1 if i in axes else n for i, n in enumerate(shape_of(a))])
    return out


_prod = derived(
    "prod",
    lambda a, *, axis, keepdims: np.prod(a, axis=axis, keepdims=keepdims),
    _last_of_cumprod,
)


@composite(np.prod)
def _np_prod(a, axis=None, *, keepdims=False):
    return _prod(a, axis=axis, keepdims=keepdims)


@composite((np.multiply, "reduce"))
def _product(a, axis=0, *, keepdims=False):
    return _prod(a, axis=axis, keepdims=keepdims)


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
    if shape_of(x):
        return x
    shape = list(shape_of(a))
    shape[axis] = 1
    return np.broadcast_to(x, tuple(shape))


def _slope(f, axis, dx, edge_order):
    """NumPy's central differences at equal distances, and its one-sided ones at the ends."""
    size = shape_of(f)[axis]
    if size < edge_order + 1:
        raise ValueError(f"np.gradient needs {edge_order + 1} entries along an axis, not {size}.")
    ahead, behind = _slices(f, axis, (2, None), (None, -2))
    inner = (ahead - behind) / (2.0 * dx)
    if edge_order == 1:
        a, b = _slices(f, axis, (0, 1), (1, 2))
        y, z = _slices(f, axis, (-2, -1), (-1, None))
        return np.concatenate([(b - a) / dx, inner, (z - y) / dx], axis)
    a, b, c = _slices(f, axis, (0, 1), (1, 2), (2, 3))
    x, y, z = _slices(f, axis, (-3, -2), (-2, -1), (-1, None))
    first = -1.5 / dx * a + 2.0 / dx * b + -0.5 / dx * c
    last = 0.5 / dx * x + -2.0 / dx * y + 1.5 / dx * z
    return np.concatenate([first, inner, last], axis)


def _slopes(f, *, steps, axes, edge_order):
    pairs = zip(axes, steps, strict=True)
    slopes = tuple(_slope(f, i, h, edge_order) for i, h in pairs)
    return slopes if len(axes) > 1 else slopes[0]


def _run_gradient(f, *, steps, axes, edge_order):
    return np.gradient(f, *steps, axis=axes, edge_order=edge_order)


_gradient = derived("gradient", _run_gradient, _slopes)
_gradients = derived("gradients", _run_gradient, _slopes, many=True)


@composite(np.gradient)
def _np_gradient(f, *varargs, axis=None, edge_order=1):
    ndim = len(shape_of(f))
    axes = tuple(range(ndim)) if axis is None else tuple(int(i) % ndim for i in np.atleast_1d(axis))
    steps = (varargs or (1.0,)) * (len(axes) if len(varargs) < 2 else 1)
    if len(steps) != len(axes) or any(shape_of(h) for h in steps):
        raise TypeError(
            "np.gradient of a traced array takes one number as distance, or one for each axis; "
            "unequal distances can be written with np.diff."
        )
    primitive = _gradients if len(axes) > 1 else _gradient
    return primitive(f, steps=tuple(map(float, steps)), axes=axes, edge_order=edge_order)


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
