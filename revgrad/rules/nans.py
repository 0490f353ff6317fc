"""Reductions and scans that leave NaN out."""

import numpy as np

from revgrad.rules.row import cast, composite, dtype_of, formula, is_complex


def _without(a, instead=0.0):
    return np.where(np.isnan(a), instead, a)


def _count(a, axis, keepdims):
    there = cast(np.where(np.isnan(a), 0.0, 1.0), dtype_of(np.real(a)))
    return np.sum(there, axis=axis, keepdims=keepdims)


@composite(np.nansum)
def _nansum(a, axis=None, *, keepdims=False):
    return np.sum(_without(a), axis=axis, keepdims=keepdims)


@composite(np.nanmean)
def _nanmean(a, axis=None, *, keepdims=False):
    return _nansum(a, axis, keepdims=keepdims) / _count(a, axis, keepdims)


@formula(np.nanprod)
def _nanprod(a, axis=None, *, keepdims=False):
    return np.prod(_without(a, 1.0), axis=axis, keepdims=keepdims)


@formula(np.nancumsum)
def _nancumsum(a, axis=None):
    return np.cumsum(_without(a), axis)


@formula(np.nancumprod)
def _nancumprod(a, axis=None):
    return np.cumprod(_without(a, 1.0), axis)


@formula(np.nanmax)
def _nanmax(a, axis=None, *, keepdims=False):
    return np.max(_without(a, -np.inf), axis=axis, keepdims=keepdims)


@formula(np.nanmin)
def _nanmin(a, axis=None, *, keepdims=False):
    return np.min(_without(a, np.inf), axis=axis, keepdims=keepdims)


@formula(np.nanvar)
def _nanvar(a, axis=None, *, ddof=0, keepdims=False):
    centred = _without(a - np.nanmean(a, axis=axis, keepdims=True))
    squares = np.real(centred * np.conj(centred)) if is_complex(a) else centred * centred
    total = np.sum(squares, axis=axis, keepdims=keepdims)
    return total / (_count(a, axis, keepdims) - ddof)


@formula(np.nanstd)
def _nanstd(a, axis=None, *, ddof=0, keepdims=False):
    return np.sqrt(_nanvar(a, axis, ddof=ddof, keepdims=keepdims))
