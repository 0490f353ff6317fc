"""Products x.T @ y with few columns, computed as the transpose of y.T @ x.

BLAS walks over the many rows of such a result; over its few columns, with rows as long as those of
x, it takes .5 to .9 of the time. Whether the bits stay is tried on the recorded values.
"""

import operator

import numpy as np

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
    if i.primitive.run not in (operator.matmul, np.matmul) or not _fits(*i.inputs, i.outputs[0]):
        return i
    value = i.outputs[0].value
    out = np.empty_like(value)
    NarrowProduct(value)(*(getattr(x, "value", x) for x in i.inputs), out)
    same = out.tobytes() == value.tobytes()
    return type(i)(NARROW, i.inputs, i.static, i.outputs) if same else i


def _fits(left, right, out):
    left, right, out = (getattr(x, "value", x) for x in (left, right, out))
    if not all(type(x) is np.ndarray and x.ndim == 2 for x in (left, right, out)):
        return False
    turned = left.flags.f_contiguous and right.flags.c_contiguous and out.flags.c_contiguous
    return turned and out.dtype.kind == "f" and out.shape[1] in COLUMNS and left.size >= LARGE
