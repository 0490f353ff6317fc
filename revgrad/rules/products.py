"""Products that contract an axis."""

import operator
from math import prod

import numpy as np

from revgrad.arrays import functions
from revgrad.rules.row import (
    args_alone,
    cast,
    composite,
    define,
    derived,
    dtype_of,
    keep,
    shape_of,
    unbroadcast,
)
from revgrad.tape import Deferred


def _as_matrices(x, y, ct):
    """Give vectors the axis that matmul gives them, and ct the axes that it then drops."""
    if len(shape_of(y)) == 1:
        y, ct = np.expand_dims(y, -1), np.expand_dims(ct, -1)
    if len(shape_of(x)) == 1:
        x, ct = np.expand_dims(x, 0), np.expand_dims(ct, -2)
    return x, y, ct


class _Products(Deferred):
    """Sum of left_k @ right_k: one product of stacked factors, instead of a sum of large matrices.

    For the weights of a network that is run many times on little, as in a recurrent one.
    """

    __slots__ = ("dtype", "factors")

    def __init__(self, factors, dtype):
        self.factors, self.dtype = factors, dtype

    def join(self, other):
        return _Products(self.factors + other.factors, self.dtype)

    def form(self):
        left, right = zip(*self.factors, strict=True)
        if len(left) > 1:
            left, right = [np.concatenate(left, axis=1)], [np.concatenate(right, axis=0)]
        return cast(left[0] @ right[0], self.dtype)


def _product(left, right, like):
    """left @ right, a cotangent of `like`; put off where the factors are smaller than it is."""
    product = _Products([(left, right)], dtype_of(like))
    return (
        product
        if prod(shape_of(left)) + prod(shape_of(right)) < prod(shape_of(like))
        else product.form()
    )


def _pull_left(ct, out, x, y):
    if len(shape_of(x)) == 2 and len(shape_of(y)) <= 2:
        _, y, ct = _as_matrices(x, y, ct)
        return _product(ct, np.transpose(y), x)
    matrix, y, ct = _as_matrices(x, y, ct)
    return np.reshape(unbroadcast(ct @ np.swapaxes(y, -1, -2), matrix), shape_of(x))


def _pull_right(ct, out, x, y):
    if len(shape_of(y)) == 2 and len(shape_of(x)) <= 2:
        x, _, ct = _as_matrices(x, y, ct)
        return _product(np.transpose(x), ct, y)
    x, matrix, ct = _as_matrices(x, y, ct)
    return np.reshape(unbroadcast(np.swapaxes(x, -1, -2) @ ct, matrix), shape_of(y))


for _matmul in (operator.matmul, np.matmul):
    define(_matmul, _matmul, ("linear", "linear"), (_pull_left, _pull_right))
    keep(args_alone, _matmul)
_dot = define("dot", np.dot, ("linear", "linear"), (_pull_left, _pull_right))
_dot_number = define(
    "dot with a number",
    np.dot,
    ("linear", "linear"),
    (
        lambda ct, out, x, y: unbroadcast(ct * y, x),
        lambda ct, out, x, y: unbroadcast(ct * x, y),
    ),
)
_vdot = define(
    "vdot",
    np.vdot,
    ("linear", "linear"),
    (
        lambda ct, out, x, y: cast(np.conj(ct * np.reshape(y, shape_of(x))), dtype_of(x)),
        lambda ct, out, x, y: cast(ct * np.conj(np.reshape(x, shape_of(y))), dtype_of(y)),
    ),
)


@composite(np.dot)
def _np_dot(a, b):
    if not shape_of(a) or not shape_of(b):
        return _dot_number(a, b)
    if len(shape_of(b)) > 2:
        return functions["dot over many axes"](a, b)
    return _dot(a, b)


@composite(np.vdot)
def _np_vdot(a, b):
    return _vdot(a, b)


@composite(np.outer)
def _outer(a, b):
    return functions[np.multiply](np.reshape(a, (-1, 1)), np.reshape(b, (1, -1)))


if hasattr(np, "matvec"):  # from NumPy 2.2 on

    @composite(np.matvec)
    def _matvec(x1, x2, /):
        return _matvec_of(x1, x2)

    @composite(np.vecmat)
    def _vecmat(x1, x2, /):
        return _vecmat_of(x1, x2)

    _matvec_of = derived("matvec", np.matvec, lambda a, x: (a @ np.expand_dims(x, -1))[..., 0])
    _vecmat_of = derived(
        "vecmat", np.vecmat, lambda x, a: (np.expand_dims(np.conj(x), -2) @ a)[..., 0, :]
    )


def _outer_of(ufunc):
    @composite((ufunc, "outer"))
    def outer(a, b):
        a = np.reshape(a, shape_of(a) + (1,) * len(shape_of(b)))
        return functions[ufunc](a, b)


for _ufunc in (np.add, np.subtract, np.multiply, np.divide, np.maximum, np.minimum, np.power):
    _outer_of(_ufunc)
