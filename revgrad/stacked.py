"""Products of one large matrix with two narrow ones, x @ [y, z], in one pass over it.

BLAS reads and packs all of x for few columns, so that twice the columns take 1.2 of the time. A
gradient and its product with the Hessian are full of such pairs: x @ weights beside x @ direction,
x.T @ cotangent beside x.T @ tangent. Whether the bits stay is tried on random numbers.
"""

from functools import lru_cache
from heapq import heappop, heappush

import numpy as np

from revgrad.blas import threads
from revgrad.narrow import operands, random
from revgrad.record import Instruction, Var
from revgrad.tape import Primitive

AT_MOST = 16  # columns of each
STACKED = Primitive("stacked products", lambda x, y, z: (x @ y, x @ z), many=True)


class StackedProduct:
    """(x, y, z, out, out) -> None, for results of one shape and dtype; x in C or Fortran order."""

    def __init__(self, left, like):
        (rows, columns), self.columns = like.shape, like.shape[1]
        self.right = np.empty((left.shape[1], 2 * columns), like.dtype)
        self.turned = left.strides[0] < left.strides[1]
        shape = (2 * columns, rows) if self.turned else (rows, 2 * columns)
        self.both = np.empty(shape, like.dtype)

    def __call__(self, x, y, z, first, second):
        n, both = self.columns, self.both
        np.copyto(self.right[:, :n], y)
        np.copyto(self.right[:, n:], z)
        if self.turned:
            np.matmul(self.right.T, x.T, out=both)
            both = both.T
        else:
            np.matmul(x, self.right, out=both)
        np.copyto(first, both[:, :n])
        np.copyto(second, both[:, n:])


def stacked(instructions):
    """The instructions with pairs of products as one, in an order that works; None: no pairs."""
    waiting, pairs, behind = {}, {}, {}  # behind: what could be stacked, that a value depends on
    for i in instructions:
        needs = set().union(*(behind.get(x, ()) for x in i.inputs if isinstance(x, Var)))
        if _fits(i):
            others = waiting.setdefault(i.inputs[0], [])
            free = [other for other in others if id(other) not in needs and _alike(other, i)]
            if free:
                pairs[id(free[0])] = pairs[id(i)] = _pair(free[0], i)
                others.remove(free[0])
            else:
                others.append(i)
            needs.add(id(i))
        behind |= dict.fromkeys(i.outputs, needs)
    return _in_order(instructions, pairs) if pairs else None


def _fits(i):
    values = operands(i)
    if not values or not isinstance(i.inputs[0], Var) or values[2].shape[1] > AT_MOST:
        return False
    left, _, out = values
    order = "C" if left.flags.c_contiguous else "F"
    return _same_bits(left.shape, order, out.shape[1], out.dtype, threads())


def _alike(one, other):
    (one,), (other,) = one.outputs, other.outputs
    return (one.value.shape, one.value.dtype) == (other.value.shape, other.value.dtype)


def _pair(one, other):
    inputs = (one.inputs[0], one.inputs[1], other.inputs[1])
    return Instruction(STACKED, inputs, {}, (*one.outputs, *other.outputs))


@lru_cache(256)
def _same_bits(shape, order, columns, dtype, _threads):
    left, right = random(shape, dtype, order), random((2, shape[1], columns), dtype)
    expected = left @ right[0], left @ right[1]
    found = [np.empty_like(x) for x in expected]
    StackedProduct(left, found[0])(left, *right, *found)
    return all(x.tobytes() == y.tobytes() for x, y in zip(found, expected, strict=True))


def _in_order(instructions, pairs):
    """Each after what it reads, else as they were; None where one of a pair needs the other."""
    nodes = list({id(n): n for n in (pairs.get(id(i), i) for i in instructions)}.values())
    maker = {v: k for k, n in enumerate(nodes) for v in n.outputs}
    needs = [{maker[x] for x in n.inputs if isinstance(x, Var) and x in maker} for n in nodes]
    readers = {k: [] for k in range(len(nodes))}
    for k, makers in enumerate(needs):
        for m in makers:
            readers[m].append(k)
    ready, placed = [k for k, makers in enumerate(needs) if not makers], []
    while ready:
        k = heappop(ready)
        placed.append(nodes[k])
        for reader in readers[k]:
            needs[reader].remove(k)
            if not needs[reader]:
                heappush(ready, reader)
    return placed if len(placed) == len(nodes) else None
