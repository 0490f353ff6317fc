"""Fourier transforms: linear, and symmetric matrices, so that a full one is its own transpose."""

import numpy as np

from revgrad.arrays import plain
from revgrad.rules.row import cast, composite, define, dtype_of, shape_of

_SWAPPED = {None: "forward", "backward": "forward", "ortho": "ortho", "forward": "backward"}


def _resized(x, size, axis):
    """x cut, or filled up with zeros, to `size` along an axis."""
    have = shape_of(x)[axis]
    if have == size:
        return x
    if have > size:
        return x[(slice(None),) * axis + (slice(0, size),)]
    width = [(0, size - have if i == axis else 0) for i in range(len(shape_of(x)))]
    return np.pad(x, width)


def _full(function):
    """fft or ifft: run, and pull with the same transform, of the length that it had."""

    def pull(ct, out, a, *, n, axis, norm):
        pulled = function(ct, None, axis, norm)
        return cast(_resized(pulled, shape_of(a)[axis], axis), dtype_of(a))

    name = function.__name__
    run = lambda a, *, n, axis, norm: function(a, n, axis, norm)
    primitive = define(name, run, ("linear",), [pull], register=False)

    @composite(function)
    def transform(a, n=None, axis=-1, norm=None):
        return primitive(a, n=n, axis=axis % len(shape_of(a)), norm=norm)

    return transform


_fft, _ifft = _full(np.fft.fft), _full(np.fft.ifft)


def _pull_rfft(ct, out, a, *, n, axis, norm):
    size = n or shape_of(a)[axis]
    pulled = np.real(np.fft.fft(_resized(ct, size, axis), None, axis, norm))
    return cast(_resized(pulled, shape_of(a)[axis], axis), dtype_of(a))


def _pull_irfft(ct, out, a, *, n, axis, norm):
    """Every frequency but the first, and the last of an even length, stands for two."""
    size = shape_of(out)[axis]
    pulled = np.conj(np.fft.rfft(ct, None, axis, _SWAPPED[norm]))
    weights = np.ones_like(plain(ct), shape=size // 2 + 1) * 2
    weights[0] = 1
    if size % 2 == 0:
        weights[-1] = 1
    weights = np.reshape(weights, (-1, *(1,) * (len(shape_of(a)) - axis - 1)))
    return cast(_resized(pulled * weights, shape_of(a)[axis], axis), dtype_of(a))


_rfft_p = define(
    "rfft",
    lambda a, *, n, axis, norm: np.fft.rfft(a, n, axis, norm),
    ("linear",),
    [_pull_rfft],
    register=False,
)
_irfft_p = define(
    "irfft",
    lambda a, *, n, axis, norm: np.fft.irfft(a, n, axis, norm),
    ("linear",),
    [_pull_irfft],
    register=False,
)


@composite(np.fft.rfft)
def _rfft(a, n=None, axis=-1, norm=None):
    return _rfft_p(a, n=n, axis=axis % len(shape_of(a)), norm=norm)


@composite(np.fft.irfft)
def _irfft(a, n=None, axis=-1, norm=None):
    return _irfft_p(a, n=n, axis=axis % len(shape_of(a)), norm=norm)


@composite(np.fft.hfft)
def _hfft(a, n=None, axis=-1, norm=None):
    return np.fft.irfft(np.conjugate(a), n, axis, _SWAPPED[norm])


@composite(np.fft.ihfft)
def _ihfft(a, n=None, axis=-1, norm=None):
    return np.conjugate(np.fft.rfft(a, n, axis, _SWAPPED[norm]))


# Over several axes: one transform after the other, in NumPy's order.


def _sizes(a, s, axes):
    ndim = len(shape_of(a))
    if axes is None:
        axes = range(ndim) if s is None else range(ndim - len(s), ndim)
    axes = [i % ndim for i in axes]
    return axes, [None] * len(axes) if s is None else [n if n != -1 else None for n in s]


def _over_axes(one):
    def transform(a, s=None, axes=None, norm=None):
        axes, s = _sizes(a, s, axes)
        for n, axis in zip(s[::-1], axes[::-1], strict=True):
            a = one(a, n, axis, norm)
        return a

    return transform


_fftn, _ifftn = composite(np.fft.fftn)(_over_axes(_fft)), composite(np.fft.ifftn)(_over_axes(_ifft))


@composite(np.fft.rfftn)
def _rfftn(a, s=None, axes=None, norm=None):
    axes, s = _sizes(a, s, axes)
    a = _rfft(a, s[-1], axes[-1], norm)
    for n, axis in zip(s[-2::-1], axes[-2::-1], strict=True):
        a = _fft(a, n, axis, norm)
    return a


@composite(np.fft.irfftn)
def _irfftn(a, s=None, axes=None, norm=None):
    axes, s = _sizes(a, s, axes)
    for n, axis in zip(s[:-1], axes[:-1], strict=True):
        a = _ifft(a, n, axis, norm)
    return _irfft(a, s[-1], axes[-1], norm)


def _over_two(several):
    return lambda a, s=None, axes=(-2, -1), norm=None: several(a, s, axes, norm)


for _key, _several in (
    (np.fft.fft2, _fftn),
    (np.fft.ifft2, _ifftn),
    (np.fft.rfft2, _rfftn),
    (np.fft.irfft2, _irfftn),
):
    composite(_key)(_over_two(_several))


def _shift(x, axes, sign):
    ndim = len(shape_of(x))
    axes = tuple(range(ndim)) if axes is None else tuple(int(i) for i in np.atleast_1d(axes))
    sizes = [shape_of(x)[i] for i in axes]
    return np.roll(x, tuple(n // 2 if sign > 0 else -(n // 2) for n in sizes), axes)


@composite(np.fft.fftshift)
def _fftshift(x, axes=None):
    return _shift(x, axes, 1)


@composite(np.fft.ifftshift)
def _ifftshift(x, axes=None):
    return _shift(x, axes, -1)
