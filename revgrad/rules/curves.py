"""Lines, powers and polynomials: functions that fill in between ends or knots."""

import numpy as np

from revgrad.arrays import plain
from revgrad.rules.linear import take
from revgrad.rules.row import (
    cast,
    composite,
    define,
    derived,
    dtype_of,
    filled_like,
    formula,
    shape_of,
)

# Between two ends.

_linspace = derived(
    "linspace",
    lambda start, stop, *, num, endpoint: np.linspace(start, stop, num, endpoint=endpoint),
    lambda start, stop, *, num, endpoint: line(start, stop, num, endpoint),
)


def line(start, stop, num, endpoint):
    """np.linspace along a first axis."""
    ends = np.broadcast_shapes(shape_of(start), shape_of(stop))
    home = plain(stop) if shape_of(stop) else plain(start)
    count = np.cumsum(filled_like(np.ones_like, home, shape=num)) - 1
    weights = np.reshape(count / max(num - endpoint, 1), (num,) + (1,) * len(ends))
    return start * (1 - weights) + stop * weights


@composite(np.linspace)
def _np_linspace(start, stop, num=50, endpoint=True, *, axis=0):
    out = _linspace(start, stop, num=num, endpoint=endpoint)
    return out if axis == 0 else np.moveaxis(out, 0, axis)


@composite(np.logspace)
def _logspace(start, stop, num=50, endpoint=True, base=10.0, *, axis=0):
    if shape_of(base):
        raise TypeError("np.logspace of a traced array takes one number as base.")
    return np.power(base, np.linspace(start, stop, num, endpoint, axis=axis))


@formula(np.geomspace, arrays=2)
def _geomspace(start, stop, num=50, endpoint=True, *, axis=0):
    sign = np.sign(start)
    ends = np.log(start / sign), np.log(stop / sign)
    return np.moveaxis(sign * np.exp(line(*ends, num, endpoint)), 0, axis)


# Through knots.


def _wrapped(x, xp, fp, period):
    """Knots in order within one period, and one more on either side."""
    x, xp = x % period, xp % period
    order = np.argsort(xp)
    xp, fp = take(xp, order, axis=0), take(fp, order, axis=0)
    xp = np.concatenate([xp[-1:] - period, xp, xp[:1] + period])
    return x, xp, np.concatenate([fp[-1:], fp, fp[:1]])


def _on_segments(x, xp, fp, left, right, *, period):
    if period is not None:
        x, xp, fp = _wrapped(x, xp, fp, abs(period))
        left = right = None
    last = shape_of(xp)[0] - 1
    k = np.clip(np.searchsorted(xp, x, side="right") - 1, 0, max(last - 1, 0))
    (x0, y0), (x1, y1) = (
        (take(xp, i, axis=0), take(fp, i, axis=0)) for i in (k, np.minimum(k + 1, last))
    )
    width = np.where(x1 == x0, 1.0, x1 - x0)
    out = y0 + (x - x0) / width * (y1 - y0)
    out = np.where(x < xp[0], fp[0] if left is None else left, out)
    return np.where(x > xp[last], fp[last] if right is None else right, out)


_interp = derived(
    "interp",
    lambda x, xp, fp, left, right, *, period: np.interp(x, xp, fp, left, right, period),
    _on_segments,
)


@composite(np.interp)
def _np_interp(x, xp, fp, left=None, right=None, period=None):
    x, xp, fp = (np.asarray(a) if isinstance(a, (list, tuple)) else a for a in (x, xp, fp))
    return _interp(x, xp, fp, left, right, period=period)


# Powers.


@formula(np.polyval, arrays=2)
def _polyval(p, x):
    out = x * 0.0
    for k in range(shape_of(p)[0]):
        out = out * x + p[k]
    return out


def _aligned(a, b):
    """Coefficients of two polynomials, led by zeros to one length."""
    size = max(shape_of(a)[0], shape_of(b)[0])
    return (np.pad(x, (size - shape_of(x)[0], 0)) for x in (a, b))


@composite(np.polyadd)
def _polyadd(a1, a2):
    return np.add(*_aligned(a1, a2))


@composite(np.polysub)
def _polysub(a1, a2):
    return np.subtract(*_aligned(a1, a2))


@formula(np.polyder)
def _polyder(p, m=1):
    for _ in range(m):
        p = (p * np.arange(shape_of(p)[0])[::-1])[:-1]
    return p


@formula(np.polyfit, arrays=2)
def _polyfit(x, y, deg):
    """Through full rank, as least squares have it; without weights."""
    matrix = np.vander(x, deg + 1)
    size = np.sqrt(np.sum(matrix * matrix, axis=0))
    return np.linalg.pinv(matrix / size) @ y / np.reshape(size, (-1,) + (1,) * (y.ndim - 1))


@formula(np.vander)
def _vander(x, N=None, increasing=False):
    count = shape_of(x)[0] if N is None else N
    powers = [np.ones_like(plain(x))]
    for _ in range(count - 1):
        powers.append(powers[-1] * x)
    powers = np.stack(powers, axis=1)[:, :count]
    return powers if increasing else np.flip(powers, 1)


# A whole number of periods more or less changes no derivative.
_unwrap = define(
    "unwrap",
    lambda p, *, discont, axis, period: np.unwrap(p, discont, axis, period=period),
    [lambda t, out, p, **_: cast(t, dtype_of(out))],
    [lambda ct, out, p, **_: cast(ct, dtype_of(p))],
)


@composite(np.unwrap)
def _np_unwrap(p, discont=None, axis=-1, *, period=2 * np.pi):
    return _unwrap(p, discont=discont, axis=axis, period=period)
