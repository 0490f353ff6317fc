"""Run a function once, keep the list of what it did, and replay the list without Python's dispatch.

Recording is the outermost trace: every call of a primitive that reaches it becomes an Instruction
on Vars. Constants fold by themselves, as a call on plain values never arrives here. `simplify`
drops what is dead or repeated and rewrites only what is exact; `replay` turns the rest into calls
that reuse buffers. A replay has the bits of the function it replays: same operations, same order,
same memory layouts. That is law 4, and every rewrite here is bound by it.
"""

import operator
import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from revgrad import rules  # noqa: F401  (importing it fills the registry)
from revgrad.arrays import ArrayBox, functions
from revgrad.tape import Primitive, Trace

LARGE = 2**20  # bytes of a result from which on a recording keeps a sample of it
SAMPLE = 2**14  # entries of that
SHAPE_ONLY = {functions[f] for f in (np.zeros_like, np.ones_like, np.empty_like)}


class Var:
    """A value of the recorded program: an input, or an instruction's output.

    value: what it was when recorded, or a Sample of it; the layout of its buffer follows from that.
    base: the Var whose memory it shows, where it is a view.
    """

    __slots__ = ("base", "value")

    def __init__(self, value, base=None):
        self.value, self.base = value, base

    @property
    def root(self):
        """The Var that owns the memory."""
        var = self
        while var.base is not None:
            var = var.base
        return var


class Spec:
    """What remains of a recorded value: its layout."""

    __slots__ = ("dtype", "itemsize", "kind", "nbytes", "ndim", "shape", "size", "strides")

    def __init__(self, x):
        self.kind = kind_of(x)
        self.shape, self.dtype = np.shape(x), getattr(x, "dtype", None)
        for name in ("itemsize", "nbytes", "ndim", "size", "strides"):
            setattr(self, name, getattr(x, name, 0))


class Sample(Spec):
    """Stands for a large recorded array: its layout, and its first entries in memory order.

    So that recording holds no more than the function itself does. array(): it, while it lives.
    """

    __slots__ = ("array", "flags", "head")

    def __init__(self, x):
        super().__init__(x)
        self.array, self.head = weakref.ref(x), in_memory_order(x)[:SAMPLE].copy()
        in_c, in_fortran = x.flags.c_contiguous, x.flags.f_contiguous
        self.flags = SimpleNamespace(c_contiguous=in_c, f_contiguous=in_fortran)

    @staticmethod
    def of(x):
        """One for what is large and dense, else x."""
        if type(x) is not np.ndarray or x.nbytes < LARGE:
            return x
        return Sample(x) if x.flags.c_contiguous or x.flags.f_contiguous else x


def kind_of(x):
    """The type of a value, or of that which a Spec stands for."""
    return getattr(x, "kind", type(x))


def in_memory_order(x):
    """The entries of a dense array, as a view."""
    return x.reshape(-1, order="C" if x.flags.c_contiguous else "F")


@dataclass(eq=False, slots=True)
class Instruction:
    primitive: Primitive
    inputs: tuple  # Vars, and constants as they are
    static: dict
    outputs: tuple  # Vars

    def __repr__(self):
        return f"{self.primitive.name}({len(self.inputs)})"


class Record(Trace):
    """Recording mode. A box's node is its Var. sampled: of large results, keep samples alone."""

    __slots__ = ("instructions", "kept")

    def __init__(self, sampled=False):
        super().__init__(ArrayBox)
        self.instructions, self.kept = [], Sample.of if sampled else lambda x: x

    def input(self, value):
        return self.box(value, self, Var(value))

    def constant(self, value):
        """A box of what does not change: only so can a plain array be indexed by an input."""
        return self.box(value, self, None)

    def apply(self, primitive, args, static):
        raw, variables = zip(*map(self.unwrap, args), strict=True)
        out = primitive(*raw, **static)
        if primitive in SHAPE_ONLY or not any(variables):
            return out
        inputs = tuple(x if v is None else v for x, v in zip(raw, variables, strict=True))
        outs = out if primitive.many else (out,)
        made = tuple(self._made(o, base_of(o, variables)) for o in outs)
        self.instructions.append(Instruction(primitive, inputs, static, made))
        boxes = tuple(self.box(o, self, v) for o, v in zip(outs, made, strict=True))
        return boxes if primitive.many else boxes[0]

    def _made(self, out, base):
        return Var(self.kept(out) if base is None else out, base)


def base_of(out, variables):
    """Which of some Vars (or None) has the memory that `out` shows, if any."""
    if not isinstance(out, np.ndarray):
        return None
    for v in variables:
        value = v.value.array() if v is not None and type(v.value) is Sample else v and v.value
        if isinstance(value, np.ndarray) and np.may_share_memory(out, value):
            return v
    return None


@dataclass(eq=False)
class Program:
    """A recorded function: outputs are Vars, or constants as they are."""

    inputs: list
    instructions: list
    outputs: list
    replaced: dict = field(default_factory=dict)


def record(f, leaves, sampled=False):
    """Run f(*boxes of leaves) -> list of leaves, and keep the program."""
    with Record(sampled) as trace:
        boxes = [trace.input(x) for x in leaves]
        pairs = [trace.unwrap(x) for x in f(*boxes)]
    outputs = [x if v is None else v for x, v in pairs]
    return simplify(Program([b.node for b in boxes], trace.instructions, outputs))


def in_layout(x, spec):
    """x, copied if need be, with the strides that a recorded program was planned for."""
    if not isinstance(x, np.ndarray) or x.strides == spec.strides:
        return x
    copy = np.ndarray(spec.shape, spec.dtype, np.empty(spec.nbytes, np.uint8), strides=spec.strides)
    copy[...] = x
    return copy


def forget(instructions, inputs):
    """Drop the recorded values, keeping their layouts; call when nothing is planned any more."""
    for v in [*inputs, *(v for i in instructions for v in i.outputs)]:
        if type(v.value) is not Spec:
            v.value = Spec(v.value)


# Exact rewrites.


def simplify(program):
    """Aliases, exact algebra, common subexpressions, dead code; bits stay what they were."""
    merge = _Merge(program)
    kept = []
    for old in program.instructions:
        new = Instruction(old.primitive, tuple(map(merge.now, old.inputs)), old.static, old.outputs)
        for v in new.outputs:
            v.base = merge.now(v.base)
        if not merge.absorb(new):
            kept.append(new)
    outputs = [merge.now(x) for x in program.outputs]
    return Program(program.inputs, live(kept, outputs), outputs)


def live(instructions, outputs):
    """The instructions that outputs depend on."""
    needed, kept = {x for x in outputs if isinstance(x, Var)}, []
    for i in reversed(instructions):
        if needed.intersection(i.outputs):
            kept.append(i)
            needed.update(x for x in i.inputs if isinstance(x, Var))
    return kept[::-1]


class _Merge:
    """Value numbering: which Var stands for which."""

    def __init__(self, program):
        self.stands, self.seen, self.maker = {}, {}, {}
        self.shown = set(_shown(program.outputs))
        self.apart, self.merged = _products(program.instructions), {}

    def now(self, x):
        return self.stands.get(x, x) if isinstance(x, Var) else x

    def absorb(self, i):
        """Try to let an existing value stand for an instruction's; says whether it did."""
        if len(i.outputs) != 1:
            return False
        _rewrite(i, self.maker)
        same = _identity(i, self.maker, i.outputs[0] in self.shown)
        if same is None:
            same = self.seen.setdefault(_key(i), i.outputs[0])
        if same is not i.outputs[0] and self._may_merge(i.outputs[0], same):
            self.stands[i.outputs[0]] = same
            return True
        self.maker[i.outputs[0]] = i
        return False

    def _may_merge(self, var, same):
        """Two operands of one product must not become one: BLAS takes another path for A'A."""
        if not isinstance(same, Var):
            return True
        group = self.merged.setdefault(same.root, {same.root})
        if any((var.root, other) in self.apart for other in group):
            return False
        group.add(var.root)
        return True


def _shown(outputs):
    """Outputs, and what they are views of: memory that the caller is given."""
    for x in outputs:
        while isinstance(x, Var):
            yield x
            x = x.base


def _products(instructions):
    """Pairs of different roots that meet in a matrix product, both ways round."""
    pairs = set()
    for i in instructions:
        if i.primitive.run in (np.matmul, operator.matmul, np.dot):
            roots = [x.root if isinstance(x, Var) else x for x in i.inputs]
            if all(isinstance(r, Var) for r in roots) and roots[0] is not roots[1]:
                pairs |= {tuple(roots), tuple(roots[::-1])}
    return pairs


_NEGATIVE = (np.negative, operator.neg)
_BROADCASTING = {
    np.add, np.subtract, np.multiply, np.divide, np.maximum, np.minimum, np.where,
    operator.add, operator.sub, operator.mul, operator.truediv,
}  # fmt: skip
_BROADCAST_TO = functions["broadcast_to"]


def _rewrite(i, maker):
    """Exact algebra in place: a + (-b) = a - b; broadcasting an operand is left to the ufunc."""
    run = i.primitive.run
    if run in _BROADCASTING:
        i.inputs = tuple(_unbroadcasted(x, i, maker) for x in i.inputs)
    negated = run in (np.add, operator.add) and _made_by(i.inputs[1], maker, _NEGATIVE)
    if negated and _is_float(negated.inputs[0]):  # unsigned integers wrap before they are widened
        key = np.subtract if run is np.add else operator.sub
        i.primitive, i.inputs = functions[key], (i.inputs[0], negated.inputs[0])


def _is_float(x):
    x = value_of(x)
    return np.result_type(getattr(x, "dtype", x)).kind == "f"


def _unbroadcasted(x, i, maker):
    """The operand below a broadcast_to, where the other operands broadcast it as well."""
    made = maker.get(x) if isinstance(x, Var) else None
    if made is None or made.primitive is not _BROADCAST_TO:
        return x
    others = [np.shape(value_of(o)) for o in i.inputs if o is not x]
    below = made.inputs[0]
    full = np.shape(i.outputs[0].value)
    fits = np.broadcast_shapes(np.shape(value_of(below)), *others) == full
    return below if fits and issubclass(kind_of(value_of(below)), (np.ndarray, np.generic)) else x


def _identity(i, maker, shown):
    """The operand that an instruction just gives back, or None; a copy stays one if it is shown."""
    run, x = i.primitive.run, i.inputs[0]
    if i.primitive.name == "stop_gradient":
        return x
    if run in _NEGATIVE and (made := _made_by(x, maker, _NEGATIVE)):
        return made.inputs[0] if not shown and _alike(made.inputs[0], i.outputs[0]) else None
    if i.primitive.name == "reshape" and i.outputs[0].value.shape == np.shape(value_of(x)):
        return x if isinstance(x, Var) else None
    if run in (np.multiply, operator.mul) and not shown:
        for a, b in (i.inputs, i.inputs[::-1]):
            if type(b) in (int, float) and b == 1 and _alike(a, i.outputs[0]):
                return a
    return None


def _alike(a, b):
    """Whether two values are of one type, dtype and layout."""
    a, b = value_of(a), value_of(b)
    names = "dtype", "strides"
    return kind_of(a) is kind_of(b) and all(getattr(a, n, n) == getattr(b, n, n) for n in names)


def _made_by(x, maker, runs):
    made = maker.get(x) if isinstance(x, Var) else None
    return made if made is not None and made.primitive.run in runs else None


def value_of(x):
    """Of an operand: that of a Var, or the constant itself."""
    return x.value if isinstance(x, Var) else x


def _key(i):
    """Equal for instructions that compute the same: constants by identity, scalars by repr."""
    inputs = [_name(x) for x in i.inputs]
    if i.primitive.run in (np.add, np.multiply, operator.add, operator.mul):
        inputs.sort(key=repr)  # commutative, also in floating point
    static = tuple(sorted((k, repr(v)) for k, v in i.static.items()))
    return i.primitive, tuple(inputs), static


def _name(x):
    if isinstance(x, Var) or hasattr(x, "shape"):
        return "id", id(x)
    return type(x).__name__, repr(x)
