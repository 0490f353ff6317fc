"""Find chains of elementwise instructions that may run block by block, in cache.

A Group stands for several instructions on arrays of one shape and layout. It runs where its last
member stood, so no member may be read in between by anything else. Whether the chain gives NumPy's
bits is tried on the recorded values before it is believed.
"""

import operator

import numpy as np

from revgrad._ext.chains import Chain, loop_index
from revgrad.narrow import narrow
from revgrad.record import SAMPLE, Sample, Var, in_memory_order, kind_of, value_of
from revgrad.tape import Primitive

BLOCK = 8192  # bytes that a chain takes at a time; its operands then fit in the first cache
UFUNCS = {
    operator.add: np.add,
    operator.sub: np.subtract,
    operator.mul: np.multiply,
    operator.truediv: np.divide,
    operator.neg: np.negative,
}
KINDS = {np.dtype(np.float32): "f", np.dtype(np.float64): "d"}

# Sums in float64, 0-d, of arrays of one shape and layout. In a chain they are no trip to memory.
total = Primitive("total", lambda x: np.float64(x.sum()))
dot = Primitive("dot", lambda x, y: np.float64(x.dot(y) if x.ndim == 1 else np.vdot(x, y)))
SUMS = (total, dot)


class Group:
    """Several instructions as one; inputs are what they read from outside, outputs what is read.

    like: a value of their shape and layout.
    """

    __slots__ = ("constants", "inputs", "kinds", "like", "members", "outputs", "steps")

    def __init__(self, members):
        self.members, self.inputs, self.outputs, self.like = members, (), (), None

    def plan(self, needed):
        """Give every operand a slot. needed: values that others read. False if it cannot be."""
        made = [i.outputs[0] for i in self.members]
        self.outputs = tuple(v for v in made if v in needed)
        self.like = next(_shaped(i) for i in self.members)
        like, slots, self.kinds, self.constants, inputs = self.like.value, {}, [], {}, []
        for x in (x for i in self.members for x in i.inputs):
            if _key(x) in slots or (isinstance(x, Var) and x in made):
                continue
            slots[_key(x)], kind = len(self.kinds), operand_kind(x, like)
            if kind == "scalar" and not isinstance(x, Var):
                self.constants[len(self.kinds)], kind = x, "constant"
            else:
                inputs.append(x)
            self.kinds.append(kind)
        self.inputs = tuple(inputs)
        self.steps = self._allotted(slots, like.dtype)
        return all(step[1] >= 0 for step in self.steps) and self._gives_numpys_bits(like)

    def _allotted(self, slots, dtype):
        """The steps, with slots for what they make: scratch is used again, to stay in cache."""
        last = {x: k for k, i in enumerate(self.members) for x in i.inputs if isinstance(x, Var)}
        steps, free = [], []
        for k, i in enumerate(self.members):
            dying = {slots[_key(x)] for x in i.inputs if isinstance(x, Var) and last[x] == k}
            free += [slot for slot in dying if self.kinds[slot] == "scratch"]
            out, kind = i.outputs[0], "array" if i.outputs[0] in self.outputs else "scratch"
            kind = "sum" if i.primitive in SUMS else kind
            inputs = [slots[_key(x)] for x in i.inputs]
            if kind == "scratch" and free:
                slots[out] = free.pop()
            else:
                slots[out] = len(self.kinds)
                self.kinds.append(kind)
            steps.append(_step(i, dtype, [*inputs, slots[out]]))
        return steps

    def chain(self, size=None):
        """The chain, for arrays of a size or of that which was recorded."""
        like, period = self.like.value, self._period()
        block = period * max(1, BLOCK // like.itemsize // period)
        size = like.size if size is None else size
        return Chain(self.steps, self.kinds, self.constants, size, block, like.dtype)

    def _period(self):
        """The least number of entries after which all tiles begin anew."""
        periods = [np.size(value_of(x)) for x, kind in self._passed() if kind == "tile"]
        return int(np.lcm.reduce(periods)) if periods else 1

    def _passed(self):
        kinds = [kind for kind in self.kinds if kind != "constant"]
        return zip(self.inputs, kinds, strict=False)

    def _gives_numpys_bits(self, like):
        """Tried on all entries, or on as many as there are samples of."""
        size = like.size if kind_of(like) is type(like) else SAMPLE - SAMPLE % self._period()
        given = [_first(x, size) if kind == "array" else value_of(x) for x, kind in self._passed()]
        sums = {i.outputs[0] for i in self.members if i.primitive in SUMS}  # have no bits to keep
        expected = [None if v in sums else _first(v, size) for v in self.outputs]
        outs = [np.empty(()) if x is None else np.empty_like(x) for x in expected]
        with np.errstate(all="ignore"):  # what is to be said was said while recording
            self.chain(size)(*given, *outs)
        return size > 0 and all(map(_same_bytes, outs, expected))


def operand_kind(x, like):
    """What an operand is to a chain on arrays like `like`, or None if it cannot be one."""
    x = value_of(x)
    if type(x) in (int, float) or (isinstance(x, (np.ndarray, np.generic)) and x.ndim == 0):
        return "scalar" if getattr(x, "dtype", like.dtype) == like.dtype else None
    if kind_of(x) is not np.ndarray or x.dtype != like.dtype:
        return None
    if x.shape == like.shape and x.strides == like.strides:
        return "array"
    trailing = x.shape == like.shape[like.ndim - x.ndim :] and x.ndim < like.ndim
    contiguous = like.flags.c_contiguous and x.flags.c_contiguous
    return "tile" if trailing and contiguous and x.nbytes <= 8 * BLOCK else None


def fuse(instructions, outputs):
    """Instructions with chains of two and more replaced by Groups, and narrow products."""
    instructions = [narrow(i) for i in instructions]
    needed_at_end = {x for x in outputs if isinstance(x, Var)}
    group_of, blocked = {}, set()
    for i in instructions:
        fits = _fits(i)
        mine = None
        for x in i.inputs:
            g = group_of.get(x) if isinstance(x, Var) else None
            if g is None:
                continue
            same = fits and _layout(_shaped(g.members[0]).value) == _layout(_shaped(i).value)
            if not same or g in blocked:
                blocked.add(g)  # something outside reads it before it could run
            elif mine is None:
                mine = g
            elif mine is not g:
                _join(mine, g, group_of)
        if fits:
            if mine is None or mine in blocked:
                mine = Group([])
            mine.members.append(i)
            group_of[i.outputs[0]] = mine
    return _place(instructions, group_of, needed_at_end)


def _join(mine, other, group_of):
    mine.members += other.members
    for i in other.members:
        group_of[i.outputs[0]] = mine


def _place(instructions, group_of, needed):
    """Put each group that works out where its last member stood."""
    order = {id(i): k for k, i in enumerate(instructions)}
    needed = set(needed)
    for i in instructions:
        mine = group_of.get(i.outputs[0])
        needed.update(x for x in i.inputs if isinstance(x, Var) and group_of.get(x) is not mine)
    placed, works = [], {}
    for i in instructions:
        g = group_of.get(i.outputs[0])
        if g is not None and g not in works:
            g.members.sort(key=lambda i: order[id(i)])
            works[g] = len(g.members) > 1 and g.plan(needed)
        if g is None or not works[g]:
            placed.append(i)
        elif g.members[-1] is i:
            placed.append(g)
    return placed


def _fits(i):
    """Whether an instruction is elementwise on dense float arrays that a chain can take."""
    ufunc = UFUNCS.get(i.primitive.run, i.primitive.run)
    out = _shaped(i).value
    if i.primitive in SUMS:
        return out.dtype in KINDS and all(operand_kind(x, out) == "array" for x in i.inputs)
    if not isinstance(ufunc, np.ufunc) or ufunc.nout != 1 or ufunc.signature or ufunc is np.power:
        return False
    if kind_of(out) is not np.ndarray or out.ndim == 0 or out.size == 0 or out.dtype not in KINDS:
        return False
    if not (out.flags.c_contiguous or out.flags.f_contiguous):
        return False
    return len(i.inputs) <= 3 and all(operand_kind(x, out) for x in i.inputs)


def _shaped(i):
    """A Var of the shape that an instruction goes over."""
    return i.inputs[0] if i.primitive in SUMS else i.outputs[0]


def _step(i, dtype, operands):
    if i.primitive in SUMS:
        return None, 0, operands
    ufunc = UFUNCS.get(i.primitive.run, i.primitive.run)
    return ufunc, loop_index(ufunc, KINDS[dtype] * len(operands)), operands


def _key(x):
    return x if isinstance(x, Var) else (type(x), id(x) if isinstance(x, np.ndarray) else repr(x))


def _first(x, size):
    """The first entries of a dense value in memory order."""
    x = value_of(x)
    return (x.head if type(x) is Sample else in_memory_order(x))[:size]


def _same_bytes(x, expected):
    return expected is None or x.tobytes() == expected.tobytes()


def _layout(x):
    return x.shape, x.strides, x.dtype
