"""The recorder: primitives, boxes, and the two modes of differentiation.

A *primitive* is a function that knows its derivatives. Called on plain values it just runs. A
*box* is a plain value under observation by a *trace*; a primitive that meets one hands the call to
the trace, and the trace's class is the mode:

    Pull    writes a node per call, for the pull-back (reverse mode);
    Push    carries a tangent beside each value (forward mode);
    Record  (in record.py) writes an instruction list, for replay.

Traces nest. In `jvp(grad(f))` a value is a box of the inner Pull whose value is a box of the outer
Push. The youngest trace among the arguments handles the call: it unwraps its own boxes and calls
the primitive again, which then meets the older trace, and at last plain values. Rules are written
in primitives, so they too are observed by the older traces: that is every higher order.

A trace ends with the function it watched. A box that outlives it is refused, never silently reused.

Nothing here knows what an array is. Source: the design of HIPS/autograd, without its level counter.
"""

import itertools
import operator
from functools import partial

from revgrad.errors import ClosureError, LeakedBox, MissingRule

_clock = itertools.count()  # one count for traces and nodes: age orders both


class Box:
    """A value under observation. `owner` is the trace, `node` what its mode keeps for the value.

    Names that no array has: a box has the methods of an array, x.trace() among them.
    """

    __slots__ = ("node", "owner", "value")

    def __init__(self, value, owner, node):
        self.value, self.owner, self.node = value, owner, node

    def __deepcopy__(self, _memo):
        return self  # a copy would belong to no trace, and its derivative be lost

    def __reduce__(self):
        raise TypeError("a traced value cannot be pickled; pickle stop_gradient(x).")


class Trace:
    """One observation in progress; use as a context manager around the observed call."""

    __slots__ = ("age", "box", "live")

    def __init__(self, box=Box):
        self.age, self.box, self.live = next(_clock), box, True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.live = False

    def unwrap(self, value):
        """(plain value, node) of this trace's box; (value, None) of anything else."""
        if not isinstance(value, Box):
            return value, None
        if value.owner is self:
            return value.value, value.node
        return _live(value, "a traced function's result"), None

    def refuse_closure(self, primitive, outs):
        """Arguments hold boxes of older traces only; an answer that is another's came by closure.

        A function run by the primitive brought it in: this trace would wrap it, or not see it.
        """
        if any(isinstance(o, Box) and o.owner.age >= self.age for o in outs):
            raise ClosureError(
                f"{primitive.name} uses a traced value that was not passed to it, so its "
                "derivative would be lost; pass it as an argument."
            )


class Node:
    """One call of a primitive on the way forward, or (primitive None) an input.

    `parents`: (argument position, node, which of the node's outputs).
    `out`, `args`, `static`: of the call.
    `pullback`: of a staged primitive, which made its own.
    `many`: how many outputs a primitive with a tuple answer gave; 0 for a single value.
    """

    __slots__ = ("age", "args", "many", "out", "parents", "primitive", "pullback", "static")

    def __init__(self, primitive=None, parents=(), out=None, args=(), static=None, pullback=None):
        self.age, self.primitive, self.parents = next(_clock), primitive, parents
        self.out, self.args, self.static, self.pullback = out, args, static, pullback
        self.many = len(out) if primitive is not None and primitive.many else 0

    def pull(self, ct):
        """Cotangent(s) of the output(s) -> cotangents of the parents, in order."""
        if self.pullback is not None:
            return self.pullback(ct)
        wanted = [i for i, _, _ in self.parents]
        return self.primitive.pull(
            ct, wanted=wanted, out=self.out, args=self.args, static=self.static
        )


class Pull(Trace):
    """Reverse mode. A box's node is (Node, output index)."""

    __slots__ = ()

    def input(self, value):
        return self.box(value, self, (Node(), 0))

    def apply(self, primitive, args, static):
        raw, parents, observed = list(args), [], False
        for i, a in enumerate(args):
            if isinstance(a, Box):
                if a.owner is self:
                    raw[i] = a.value
                    parents.append((i, *a.node))
                observed = observed or isinstance(raw[i], Box)
        run = primitive if observed else primitive.run  # by an older trace, or by none
        if primitive.constant:
            return run(*raw, **static)
        pullback = None
        if primitive.stage is not None:
            out, pullback = primitive.stage([i for i, _, _ in parents], raw, static)
        else:
            out = run(*raw, **static)
        if primitive.many or isinstance(out, Box):
            self.refuse_closure(primitive, out if primitive.many else (out,))
        kept = (out, raw) if primitive.keeps is None else primitive.keeps(out, raw)
        node = Node(primitive, parents, *kept, static, pullback)
        if primitive.many:
            return tuple(self.box(o, self, (node, k)) for k, o in enumerate(out))
        return self.box(out, self, (node, 0))


class Push(Trace):
    """Forward mode. A box's node is its tangent; a missing tangent is an exact zero."""

    __slots__ = ()

    def input(self, value, tangent):
        return self.box(value, self, tangent)

    def apply(self, primitive, args, static):
        raw, tangents = zip(*map(self.unwrap, args), strict=True)
        out = primitive(*raw, **static)
        if primitive.constant:
            return out
        if primitive.many or isinstance(out, Box):
            self.refuse_closure(primitive, out if primitive.many else (out,))
        tangent = primitive.push(tangents, out=out, args=raw, static=static)
        if primitive.many:
            pairs = zip(out, tangent, strict=True)
            return tuple(o if t is None else self.box(o, self, t) for o, t in pairs)
        return out if tangent is None else self.box(out, self, tangent)


class Primitive:
    """A function with derivative rules.

    run(*args, **static): the function on plain values. Arrays are positional, the rest keywords.
    push(tangents, *, out, args, static) -> tangent of out; None in `tangents` or as answer is zero.
    pull(cotangent, *, wanted, out, args, static) -> a cotangent (or None, zero) for each argument
        position in `wanted`.
    stage(wanted, args, static) -> (out, pullback), instead of pull, for a primitive that must
        prepare its pull-back while it runs.
    many: out is a tuple, and so are its tangents and cotangents.
    constant: the derivative is zero everywhere (comparisons, shapes, integer answers).
    true_derivative: False where the rules are no derivative of `run`, so that second derivatives
        are not symmetric.
    keeps(out, args) -> what of them the pull-back reads, where that is less than all.
    """

    __slots__ = (
        "constant", "keeps", "many", "name", "pull", "push", "run", "stage", "true_derivative",
    )  # fmt: skip

    def __init__(self, name, run, push=None, pull=None, *, stage=None, many=False, constant=False):
        self.name, self.run, self.stage = name, run, stage
        self.push = push or partial(_missing, name, "forward mode")
        self.pull = pull or partial(_missing, name, "reverse mode")
        self.many, self.constant, self.true_derivative = many, constant, True
        self.keeps = None

    def __call__(self, *args, **static):
        youngest = None
        for a in args:
            if isinstance(a, Box):
                trace = a.owner
                if not trace.live:
                    _live(a, self.name)
                if youngest is None or trace.age > youngest.age:
                    youngest = trace
        if youngest is None:
            return self.run(*args, **static)
        return youngest.apply(self, args, static)

    def __repr__(self):
        return f"<primitive {self.name}>"


def _live(box, where):
    if not box.owner.live:
        raise LeakedBox(
            f"{where} met a traced value whose trace has ended; return values from the traced "
            "function instead of storing them, pass them to inner functions as arguments, or "
            "store stop_gradient(x)."
        )
    return box


def _missing(name, mode, *_, **__):
    raise MissingRule(
        f"{name} has no derivative rule in {mode}; write one with revgrad.extend, or pass the "
        "value through stop_gradient if no derivative is wanted."
    )


def pull_back(cotangents, inputs):
    """Pull cotangents of outputs back to inputs.

    cotangents: pairs (box node, cotangent); inputs: box nodes as `Pull.input` made them.
    Returns one cotangent, or None for zero, per input. May be called any number of times. The
    order of every sum is the order of the recording: no bit depends on chance.
    """
    found, own = {}, set()
    for (node, index), ct in cotangents:
        _add(found, own, node, index, ct)
    for node in _youngest_first([node for (node, _), _ in cotangents]):
        if node not in found or node.primitive is None:
            continue
        ct = found.pop(node)
        if node.many:
            ct = [formed(ct.get(k)) for k in range(node.many)]
        elif isinstance(ct, Deferred):
            ct = ct.form()
        for (_, parent, index), c in zip(node.parents, node.pull(ct), strict=True):
            if c is None:
                continue
            if parent in found or parent.many:
                _add(found, own, parent, index, c)
            else:
                found[parent] = c
    return [formed(found.get(node)) for node, _ in inputs]


class Deferred:
    """A cotangent that is better formed once all others have joined it.

    Subclasses have join(other) -> their sum, still to be formed, and form() -> the cotangent.
    """

    __slots__ = ()


def formed(ct):
    """A cotangent, formed if it was deferred."""
    return ct.form() if isinstance(ct, Deferred) else ct


def _add(found, own, node, index, ct):
    """Add a cotangent to what a node has; in place only into sums made here."""
    slots, key = (found.setdefault(node, {}), index) if node.many else (found, node)
    if key not in slots:
        slots[key] = ct
        return
    old = slots[key]
    if isinstance(old, Deferred) and isinstance(ct, Deferred):
        slots[key] = old.join(ct)
        return
    old, ct = formed(old), formed(ct)
    if (node, index) in own and _adds_alike(old, ct):
        slots[key] = operator.iadd(old, ct)
    else:
        slots[key] = old + ct
        own.add((node, index))


def _adds_alike(a, b):
    """Whether a += b leaves what a + b would, to the order of entries in memory.

    Boxes take the second form, and a pull-back must not depend on who is watching it.
    """
    boxed = isinstance(a, Box) or isinstance(b, Box)
    return not boxed and getattr(a, "strides", None) == getattr(b, "strides", None)


def _youngest_first(roots):
    seen, stack = set(roots), list(roots)
    while stack:
        for _, parent, _ in stack.pop().parents:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=operator.attrgetter("age"), reverse=True)
