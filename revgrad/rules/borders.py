"""np.pad in all its modes, axis by axis as NumPy does it."""

import numpy as np

from revgrad.arrays import plain
from revgrad.rules.curves import line
from revgrad.rules.row import composite, define, derived, shape_of

_STATISTICS = {"maximum": np.max, "minimum": np.min, "mean": np.mean, "median": np.median}
_PLACES = ("edge", "reflect", "symmetric", "wrap")


def _part(a, axis, start, stop):
    return a[(*(slice(None),) * axis, slice(start, stop))]


def _of_length(n, a, axis):
    return tuple(n if i == axis else m for i, m in enumerate(shape_of(a)))


def _by_places(a, axis, before, after, *, mode):
    """Borders that repeat entries."""
    return np.take(a, np.pad(np.arange(shape_of(a)[axis]), (before, after), mode), axis)


def _by_statistics(a, axis, before, after, *, mode, lengths):
    """Borders of a statistic of the entries next to them."""
    size, function = shape_of(a)[axis], _STATISTICS[mode]
    first, last = (min(n, size) for n in (lengths[axis] if lengths else (size, size)))
    low = function(_part(a, axis, 0, first), axis=axis, keepdims=True)
    high = function(_part(a, axis, size - last, size), axis=axis, keepdims=True)
    low = np.broadcast_to(low, _of_length(before, a, axis))
    return np.concatenate([low, a, np.broadcast_to(high, _of_length(after, a, axis))], axis)


def _by_ramps(a, axis, before, after, *, values):
    """Borders along straight lines from a value to the edge."""
    rows = np.moveaxis(a, axis, 0)
    pairs = _pairs(values, len(shape_of(a)))[axis]
    ends, edges = [np.full_like(plain(rows[0]), v) for v in pairs], (rows[0], rows[-1])
    low, high = map(line, ends, edges, (before, after), (False, False))
    return np.moveaxis(np.concatenate([low, rows, np.flip(high, 0)], 0), 0, axis)


def _padding(name, along_axis, arguments):
    """A primitive of some modes; arguments(**static): NumPy's keywords."""

    def padded(a, *, width, **static):
        for axis, (before, after) in enumerate(width):
            if before or after:
                a = along_axis(a, axis, before, after, **static)
        return a

    return derived(name, lambda a, *, width, **s: np.pad(a, width, **arguments(**s)), padded)


_with_places = _padding("pad", _by_places, lambda **s: s)
_with_constants = define(
    "pad with constants",
    lambda a, *, width, values: np.pad(a, width, constant_values=values),
    [lambda t, out, a, *, width, values: np.pad(t, width)],
    [lambda ct, out, a, *, width, values: ct[_inside(a, width)]],
)
_with_statistics = _padding(
    "pad with statistics",
    _by_statistics,
    lambda mode, lengths: {"mode": mode} | ({"stat_length": lengths} if lengths else {}),
)
_with_ramps = _padding(
    "pad with ramps", _by_ramps, lambda values: {"mode": "linear_ramp", "end_values": values}
)


def _inside(a, width):
    return tuple(slice(b, b + n) for (b, _), n in zip(width, shape_of(a), strict=True))


def _pairs(x, ndim):
    """Two for each axis, as NumPy spreads what it is given."""
    return tuple(map(tuple, np.broadcast_to(x, (ndim, 2)).tolist()))


@composite(np.pad)
def _np_pad(
    array,
    pad_width,
    mode="constant",
    *,
    constant_values=0,
    end_values=0,
    stat_length=None,
):
    ndim = len(shape_of(array))
    if not ndim:
        return np.copy(array)
    if isinstance(pad_width, dict):
        pad_width = [pad_width.get(i, pad_width.get(i - ndim, 0)) for i in range(ndim)]
        pad_width = [(w, w) if np.ndim(w) == 0 else w for w in pad_width]
    width = _pairs(pad_width, ndim)
    if mode == "constant":
        return _with_constants(array, width=width, values=_pairs(constant_values, ndim))
    if mode == "linear_ramp":
        return _with_ramps(array, width=width, values=end_values)  # whose form has a say in bits
    if isinstance(mode, str) and mode in _STATISTICS:
        lengths = stat_length and _pairs(stat_length, ndim)
        return _with_statistics(array, width=width, mode=mode, lengths=lengths)
    if not isinstance(mode, str) or mode not in _PLACES:
        raise TypeError(
            f"np.pad(mode={mode!r}) of a traced array: this mode leaves entries undefined or fills "
            "them in place; put the parts together with np.concatenate."
        )
    return _with_places(array, width=width, mode=mode)
