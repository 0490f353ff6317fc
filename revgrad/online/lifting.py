"""Replays of functions that end in sums over long vectors, in as few passes as can be.

A derivative with respect to a few numbers is a sum over all weights of a product. Written out, each
factor of it is a vector; here none is written. Factors common to a whole vector, as rates and bias
corrections are, go along beside it and are multiplied with the sum at the end; sums of products are
dot products; vectors are divided by one another once. Then one chain, block by block, makes what
the sums need and adds it up. Last bits change, so this is for derivatives alone.
"""

import operator
from typing import Any, NamedTuple

import numpy as np

from revgrad.arrays import functions
from revgrad.captures import with_open_captures
from revgrad.fuse import SUMS, dot, fuse, total
from revgrad.record import Instruction, Program, Var, base_of, forget, live, record, value_of
from revgrad.replay import Replay


class Lifted:
    """f(*inputs) -> [*again, *results], replayed for the results alone, which are lists of floats.

    known: how many of the results are at hand anyway when the others are wanted; a call takes them
    behind the inputs. inputs: values like those to come. What cannot be recorded runs as it is.
    Results are overwritten by the next call.
    """

    def __init__(self, f, inputs, known):
        self.f, self.count, self.known, self.run = f, len(inputs), len(known), None
        try:
            program = with_open_captures(
                lambda *boxes: f(*boxes[: self.count]), lambda f: record(f, [*inputs, *known])
            )
            lifted = _Lift(program, self.count, self.known).program
            with np.errstate(all="ignore"):
                fused = fuse(lifted.instructions, lifted.outputs)
            forget(lifted.instructions, lifted.inputs)
        except Exception:  # whatever a statement may do that cannot be recorded
            return
        self.run = Replay([lifted.inputs], [fused], [lifted.outputs], borrow=True).run[0]

    def __call__(self, inputs, known):
        if self.run is None:
            return self.f(*inputs)[self.known :]
        return self.run(*inputs, *known)


class Scaled(NamedTuple):
    """factor * core: a Python float or the Var of one, and a vector."""

    factor: Any
    core: Any


class _Lift:
    """Walks a program, and writes another one."""

    def __init__(self, old, count, known):
        self.instructions, self.seen, self.stands = [], {}, {}
        self.products, self.pairs, self.sums = {}, {}, {}
        given = zip(old.outputs, old.inputs[count:], strict=False)
        at_hand = {made: var for made, var in given if isinstance(made, Var)}
        for i in old.instructions:
            if len(i.outputs) == 1 and i.outputs[0] in at_hand:
                self.stands[i.outputs[0]] = at_hand[i.outputs[0]]
            else:
                self._walk(i)
        outputs = [self._plain(self._now(x)) for x in old.outputs[known:]]
        self.program = Program(
            old.inputs, _sums_together(live(self.instructions, outputs)), outputs
        )

    def _walk(self, i):
        inputs = [self._now(x) for x in i.inputs]
        rule = _RULES.get(i.primitive.run) or _RULES.get(i.primitive.name)
        found = rule(self, i, *inputs) if rule else None
        if found is None:
            made = self._emit(i.primitive, *map(self._plain, inputs), many=True, **i.static)
            self.stands.update(zip(i.outputs, made, strict=True))
        else:
            self.stands[i.outputs[0]] = found

    def _emit(self, primitive, *inputs, many=False, **static):
        """The Var, or with `many` the Vars, that a call of a primitive makes; once for each."""
        key = primitive, tuple(map(_key, inputs)), repr(static)
        if key not in self.seen:
            with np.errstate(all="ignore"):
                out = primitive.run(*map(value_of, inputs), **static)
            outs = out if primitive.many else (out,)
            shown = [x if isinstance(x, Var) else None for x in inputs]
            made = tuple(Var(x, base_of(x, shown)) for x in outs)
            self.instructions.append(Instruction(primitive, inputs, static, made))
            self.seen[key] = made
        return self.seen[key] if many else self.seen[key][0]

    def _now(self, x):
        return self.stands.get(x, x) if isinstance(x, Var) else x

    def _plain(self, x):
        if not isinstance(x, Scaled):
            return x
        if _is_one(x.factor):
            return x.core
        return self._emit(functions[np.multiply], x.factor, x.core)

    def _factor(self, run, a, b):
        """operator.mul or truediv of two factors."""
        if _is_one(b) or (_is_one(a) and run is operator.mul):
            return a if _is_one(b) else b
        if not (isinstance(a, Var) or isinstance(b, Var)):
            return run(a, b)
        return self._emit(functions[run], a, b)

    # Rules: what an instruction's result is, or None where it has to stay as it is.

    def _mul(self, i, a, b):
        if _is_factor(a) or _is_factor(b):
            (factor, (inner, core)) = (a, _scaled(b)) if _is_factor(a) else (b, _scaled(a))
            both = (operator.mul, factor, inner)
            return Scaled(self._factor(*both), core) if _is_vector(core) else None
        if not (_is_vector(a) and _is_vector(b)):
            return None
        (f, x), (g, y) = _scaled(a), _scaled(b)
        return Scaled(self._factor(operator.mul, f, g), self._product(x, y))

    def _product(self, x, y):
        """x * y; as (x * p) * q where y is p * q, and x * p is there."""
        for one, other in ((x, y), (y, x)):
            parts = self.products.get(other, ())
            for p, q in (parts, parts[::-1]) if parts else ():
                if (known := self.pairs.get(frozenset((one, p)))) is not None:
                    x, y = known, q
        made = self._emit(functions[np.multiply], x, y)
        self.products[made] = x, y
        self.pairs[frozenset((x, y))] = made
        return made

    def _atoms(self, x):
        """What x is the product of, in an order of their own."""
        if x not in self.products:
            return [id(x)]
        return sorted(k for part in self.products[x] for k in self._atoms(part))

    def _truediv(self, i, a, b):
        if _is_factor(b) and _is_vector(a):
            factor, core = _scaled(a)
            return Scaled(self._factor(operator.truediv, factor, b), core)
        if not _is_vector(b) or not (_is_factor(a) or _is_vector(a)):
            return None
        factor, core = _scaled(b)
        inverse = self._emit(functions[np.divide], 1.0, core)
        return self._mul(i, a, Scaled(self._factor(operator.truediv, 1.0, factor), inverse))

    def _neg(self, i, a):
        return self._mul(i, -1.0, a) if _is_vector(a) else None

    def _add(self, i, a, b):
        (f, x), (g, y) = _scaled(a), _scaled(b)
        if not (_is_vector(a) and _is_vector(b)) or _key(f) != _key(g):
            return None
        as_ufunc = {operator.add: np.add, operator.sub: np.subtract}
        run = as_ufunc.get(i.primitive.run, i.primitive.run)
        return Scaled(f, self._emit(functions[run], x, y))

    def _sum(self, i, a):
        axes, ndim = i.static["axis"], np.ndim(i.inputs[0].value)
        if i.static["keepdims"] or not (axes is None or len(axes) == ndim) or not _is_vector(a):
            return None
        factor, core = _scaled(a)
        of = tuple(self._atoms(core)), core.value.shape
        if of not in self.sums:
            product = self.products.get(core, ())
            is_dot = product and all(_alike(x, core) for x in product)
            self.sums[of] = self._emit(dot, *product) if is_dot else self._emit(total, core)
        found = self.sums[of]
        return found if _is_one(factor) else self._emit(functions[operator.mul], factor, found)

    def _astype(self, i, a):
        wide = not _is_vector(a) and getattr(value_of(a), "dtype", None) == np.float64
        return a if wide and i.static["dtype"] == np.float64 else None


_RULES = {
    "sum": _Lift._sum,
    "astype": _Lift._astype,
    **dict.fromkeys((np.multiply, operator.mul), _Lift._mul),
    **dict.fromkeys((np.divide, operator.truediv), _Lift._truediv),
    **dict.fromkeys((np.negative, operator.neg), _Lift._neg),
    **dict.fromkeys((np.add, operator.add, np.subtract, operator.sub), _Lift._add),
}


def _sums_together(instructions):
    """The same in an order in which nothing that reads a sum comes before another one."""
    rank = {}
    for i in instructions:
        latest = max((rank.get(x, 0) for x in i.inputs if isinstance(x, Var)), default=0)
        rank |= dict.fromkeys(i.outputs, latest + (i.primitive in SUMS))
    return sorted(instructions, key=lambda i: rank[i.outputs[0]] - (i.primitive in SUMS))


def _scaled(x):
    return x if isinstance(x, Scaled) else Scaled(1.0, x)


def _is_vector(x):
    core = x.core if isinstance(x, Scaled) else x
    x = core.value if isinstance(core, Var) else None
    return isinstance(x, np.ndarray) and x.ndim > 0 and x.dtype.kind == "f"


def _is_factor(x):
    """Python's own numbers alone: they leave a vector's dtype as it is."""
    return type(value_of(x)) in (int, float)


def _is_one(x):
    return not isinstance(x, Var) and x == 1


def _alike(x, y):
    x, y = value_of(x), value_of(y)
    return (x.shape, x.strides, x.dtype) == (y.shape, y.strides, y.dtype)


def _key(x):
    named = isinstance(x, Var) or hasattr(x, "shape")
    return ("id", id(x)) if named else (type(x), repr(x))
