"""Products x.T @ y with few columns, computed as the transpose of y.T @ x.

BLAS walks over the many rows of such a result; over its few columns, with rows as long as those of
x, it takes .5 to .9 of the time. Whether the bits stay is tried on random numbers, for the number
of BLAS threads that there is.
"""

import operator
from functools import lru_cache

import numpy as np

from revgrad.blas import threads
from revgrad.record import Instruction, kind_of, value_of
from revgrad.tape import Primitive

COLUMNS = range(6, 12)  # 12 has other bits in float64, with one thread alone
LARGE = 2**17  # entries of x from which on it is faster
NARROW = Primitive("narrow product", operator.matmul)


class NarrowProduct:
    """(x.T, y, out) -> None, for results of one shape and dtype."""

    def __init__(self, like):
        self.scratch = np.empty(like.shape[::-1], like.dtype)

    def __call__(self, left, right, out):
        np.matmul(right.T, left.T, out=self.scratch)
        np.copyto(out, self.scratch.T)


def narrow(i):
    """The instruction, as a narrow product where it is one and that gives NumPy's bits."""
    values = operands(i)
    if not values or values[2].shape[1] not in COLUMNS:
        return i
    left, _, out = values
    if not left.flags.f_contiguous or not _same_bits(
        left.shape, out.shape[1], out.dtype, threads()
    ):
        return i
    return Instruction(NARROW, i.inputs, i.static, i.outputs)


def operands(i):
    """(left, right, out) of a product of a large dense matrix with another one, or None.

    Not of a matrix with its own transpose, for which BLAS takes another path.
    """
    if i.primitive.run not in (operator.matmul, np.matmul):
        return None
    values = [value_of(x) for x in (*i.inputs, *i.outputs)]
    if not all(kind_of(x) is np.ndarray and x.ndim == 2 for x in values):
        return None
    left, right, out = values
    if len({getattr(x, "root", id(x)) for x in i.inputs}) < 2:
        return None
    dense = (left.flags.c_contiguous or left.flags.f_contiguous) and out.flags.c_contiguous
    dense = dense and right.flags.c_contiguous
    floats = out.dtype.kind == "f" and left.dtype == right.dtype == out.dtype
    return values if dense and floats and left.size >= LARGE else None


def random(shape, dtype, order="C"):
    numbers = np.random.default_rng(0).standard_normal(shape)
    return numbers.astype(dtype, order=order)


@lru_cache(256)
def _same_bits(shape, columns, dtype, _threads):
    left, right = random(shape, dtype, "F"), random((shape[1], columns), dtype)
    expected = left @ right
    out = np.empty_like(expected)
    NarrowProduct(out)(left, right, out)
    return out.tobytes() == expected.tobytes()
