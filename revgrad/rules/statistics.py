"""Averages with weights, covariances, counts with weights."""

import numpy as np

from revgrad.rules.row import (
    cast,
    composite,
    define,
    derived,
    dtype_of,
    formula,
    settled,
    shape_of,
)


@composite(np.average)
def _average(a, axis=None, weights=None, *, keepdims=False):
    if weights is None:
        return np.mean(a, axis=axis, keepdims=keepdims)
    if shape_of(weights) != shape_of(a):
        shape = [1] * len(shape_of(a))
        shape[axis] = shape_of(weights)[0]
        weights = np.broadcast_to(np.reshape(weights, tuple(shape)), shape_of(a))
    scale = np.sum(weights, axis=axis, keepdims=keepdims)
    return np.sum(np.multiply(a, weights), axis=axis, keepdims=keepdims) / scale


def _as_rows(x, rowvar):
    x = np.reshape(x, (1, -1)) if len(shape_of(x)) < 2 else x
    return x if rowvar or shape_of(x)[0] == 1 else np.transpose(x)


def _divisor(weights, aweights, count, ddof):
    if weights is None:
        return count - ddof if count > ddof else float("nan")
    total = np.sum(weights)
    if ddof and aweights is not None:
        ddof = ddof * np.sum(weights * aweights) / total
    return np.maximum(total - ddof, 0.0)


def _products(m, y, fweights, aweights, *, rowvar, ddof):
    x = _as_rows(m, rowvar)
    x = x if y is None else np.concatenate([x, _as_rows(y, rowvar)], 0)
    given = [w for w in (fweights, aweights) if w is not None]
    weights = given[0] * given[-1] if len(given) > 1 else (given or [None])[0]
    centred = x - np.expand_dims(np.average(x, axis=1, weights=weights), -1)
    weighted = centred if weights is None else centred * weights
    products = centred @ np.conj(np.transpose(weighted))
    return np.squeeze(products / _divisor(weights, aweights, shape_of(x)[1], ddof))


_cov = derived(
    "cov",
    lambda m, y, fweights, aweights, *, rowvar, ddof: np.cov(
        m, y, rowvar, ddof=ddof, fweights=fweights, aweights=aweights
    ),
    _products,
)


@composite(np.cov)
def _np_cov(m, y=None, rowvar=True, bias=False, ddof=None, fweights=None, aweights=None):
    arrays = (np.asarray(x) if isinstance(x, list) else x for x in (m, y, fweights, aweights))
    return _cov(*arrays, rowvar=bool(rowvar), ddof=int(not bias) if ddof is None else ddof)


@formula(np.corrcoef, arrays=2)
def _corrcoef(x, y=None, rowvar=True):
    c = np.cov(x, y, rowvar)
    if not shape_of(c):
        return c / c
    size = np.sqrt(np.real(np.diagonal(c)))
    return c / (np.expand_dims(size, -1) * size)


_bincount = define(
    "bincount",
    lambda x, weights, *, minlength: np.bincount(x, weights, minlength),
    [None, "linear"],
    [None, lambda ct, out, x, weights, *, minlength: cast(np.take(ct, x), dtype_of(weights))],
)


@composite(np.bincount)
def _np_bincount(x, /, weights=None, minlength=0):
    settled(x, "bincount")
    return _bincount(x, weights, minlength=minlength)
