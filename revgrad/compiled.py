"""compile: record a function once per signature, replay it ever after.

    step = rg.compile(f)        # or @rg.compile
    step(x)                     # records
    step(x)                     # replays: same bits, no dispatch
    rg.show(f, x)               # what was recorded

A signature is the trees of the arguments, the shape, dtype and strides of each array in them, the
value of everything else that is not a float, and what the function captures. Python floats are
inputs, Python ints are part of the program.
"""

import threading
from collections import OrderedDict
from functools import partial, update_wrapper
from types import MethodType

import numpy as np
import optree

from revgrad.captures import PLAIN, Captured, with_open_captures
from revgrad.errors import MissingRule
from revgrad.fuse import fuse
from revgrad.record import Program, Record, Var, forget, in_layout, live, record, simplify
from revgrad.replay import Replay
from revgrad.stacked import stacked
from revgrad.tape import Box, Primitive, Pull
from revgrad.transforms import grad, jvp, vjp, zeros_like

KEPT = 64  # recordings of a function, the last used


def compile(f):
    """f, recorded at its first call with each signature and replayed afterwards, bit for bit.

    f must be pure: what it draws at random or prints happens once. A branch on a traced value
    raises TypeError while recording. Outputs are new arrays, except that an output which is an
    input or a view of one is so again.

    Captured values: what is bound to a name or an attribute that f and its functions use, and what
    containers hold, leads to a new recording when it changes; so does a change inside a captured
    array of up to 64 KiB. Of larger ones a sample of 512 entries is looked at: pass arrays that
    change as arguments. Read-only arrays (`x.flags.writeable = False`) are not looked at.

    The 64 recordings used last are kept: `len(f.entries)` tells how many there are, and that a
    Python int that changes, which a recording takes as fixed, should be a NumPy one.
    """
    return Compiled(f)


class Compiled:
    """What `compile` returns: call it like the function."""

    def __init__(self, f):
        update_wrapper(self, f)
        self.f, self.captured = f, Captured(f)
        self.entries, self.two_phase, self.watched = _Recent(), _Recent(), _Recent()
        name = getattr(f, "__name__", "compiled")
        self.primitive = Primitive(name, f, stage=self._stage, many=True)

    def __call__(self, *args, **kwargs):
        leaves, tree = optree.tree_flatten((args, kwargs))
        boxes = [x for x in leaves if isinstance(x, Box)]
        if boxes and _must_inline(boxes):
            return self.f(*args, **kwargs)
        dynamic = [x for x in leaves if is_dynamic(x)]
        statics = tuple((type(x), x) if not is_dynamic(x) else None for x in leaves)
        captured = self._captured([s[1] for s in statics if s and not isinstance(s[1], PLAIN)])
        if captured is None:  # a traced value: its trace must see what is done with it
            return self.f(*args, **kwargs)
        form = (tree, statics, captured)
        entry = self._entry(dynamic, form)
        run = partial(self.primitive, form=form) if boxes else entry.replay().run[0]
        return optree.tree_unflatten(entry.out_tree, run(*dynamic))

    def __deepcopy__(self, _memo):
        return self  # as a function is

    def __get__(self, instance, owner=None):
        return self if instance is None else MethodType(self, instance)

    def _captured(self, objects):
        """What f captures now, and the static objects among its arguments."""
        if not objects:
            return self.captured.now()
        make = lambda: Captured(self.f, *objects)
        return self.watched.find(tuple(map(id, objects)), make).now()

    def _entry(self, dynamic, form):
        key = form, *map(signature, dynamic)
        make = lambda: Entry(_flat(self.f, form), [_bare(x) for x in dynamic])
        return self._found(self.entries, key, make)

    def _found(self, kept, key, make):
        try:
            return kept.find(key, make)
        except _Unhashable:
            raise TypeError(_unhashable(self.primitive.name, key[0][1])) from None

    def _stage(self, wanted, dynamic, static):
        """Outputs, and a pull-back that replays: for reverse mode over a compiled function."""
        form = static["form"]
        key = form, tuple(wanted), *map(signature, dynamic)
        make = lambda: _pull_phases(_flat(self.f, form), dynamic, wanted)
        return self._found(self.two_phase, key, make).start(dynamic)


class _Recent(OrderedDict):
    """Values by key, the KEPT that were asked for last."""

    def find(self, key, make):
        try:
            found = self.get(key)
        except TypeError as error:
            raise _Unhashable from error
        if found is None:
            found = self[key] = make()
            if len(self) > KEPT:
                self.popitem(last=False)
        elif len(self) > KEPT // 2:  # before that, nothing is near its end
            self.move_to_end(key)
        return found


class _Unhashable(Exception):
    """A key of _Recent is not hashable."""


def _unhashable(name, statics):
    came = next(type(x).__name__ for _, x in filter(None, statics) if type(x).__hash__ is None)
    return (
        f"{name}: an argument holds a {came}, which is no array or float, so its value is part of "
        "the recording; but it cannot be hashed. Pass a tuple, a frozen dataclass or an array."
    )


def _flat(f, form):
    """f as a function of its dynamic leaves: (leaves of the result, its tree)."""
    tree, statics, _ = form

    def flat(*dynamic):
        dynamic = iter(dynamic)
        leaves = [next(dynamic) if s is None else s[1] for s in statics]
        args, kwargs = optree.tree_unflatten(tree, leaves)
        return optree.tree_flatten(f(*args, **kwargs))

    return flat


class Entry:
    """One recording, and a replay of it per thread, as buffers are not shared."""

    def __init__(self, flat, leaves, **options):
        self.local, self.options = threading.local(), options
        self.program = with_open_captures(flat, lambda flat: self._record(flat, leaves))
        self.fused = fuse(self.program.instructions, self.program.outputs)
        forget(self.program.instructions, self.program.inputs)

    def _record(self, flat, leaves):
        def outputs(*boxes):
            out, self.out_tree = flat(*boxes)
            return out

        return record(outputs, leaves, sampled=True)

    def replay(self, turn=0):
        """A replay; that of turn 1 leaves the vectors of turn 0 alone, and shares all else."""
        if not hasattr(self.local, "replays"):
            parts = [self.program.inputs], [self.fused], [self.program.outputs]
            self.local.replays = [Replay(*parts, **self.options)]
        if turn == len(self.local.replays):
            self.local.replays.append(self.local.replays[0].twin())
        return self.local.replays[turn]

    def rest(self):
        """Give back this thread's buffers, until the next call."""
        for replay in vars(self.local).pop("replays", ()):
            replay.space.clear()  # which its functions belong to: a cycle


class TwoPhase:
    """A recorded pair: f(*first) -> (outputs, then), and then(*second) -> results.

    Where outputs come with the results, f gives (None, then) and then gives (outputs, results).
    The recorded list is split by what depends on `second`. Phase 1 keeps what phase 2 needs in
    place, so phase 2 belongs to the last run of phase 1: see `start`.
    """

    def __init__(self, f, first, make_second, **options):
        self.options, self.local, self.parts_at_once = options, threading.local(), None
        self.parts = with_open_captures(f, lambda f: self._record(f, first, make_second))

    def _record(self, f, first, make_second):
        inputs, (early, late), ends, self.symmetric = in_two(f, first, make_second, sampled=True)
        read_late = [x for i in late for x in i.inputs]
        phases = [fuse(early, [*ends[0], *ends[1], *read_late]), fuse(late, ends[1])]
        if self.options.get("borrow") and (joint := stacked([*early, *late])):
            every = [*inputs[0], *inputs[1]], [*ends[0], *ends[1]]
            self.parts_at_once = [every[0]], [fuse(joint, every[1])], [every[1]]
        forget([*early, *late], [*inputs[0], *inputs[1]])
        return inputs, phases, ends

    def replay(self):
        if not hasattr(self.local, "replay"):
            self.local.replay = Replay(*self.parts, **self.options)
        return self.local.replay

    @property
    def pays_at_once(self):
        """Whether `at_once` is faster than the two phases, because products can be stacked."""
        return self.parts_at_once is not None

    def at_once(self, first, second):
        """((outputs, results), vectors) of both phases run as one."""
        count = len(self.parts[2][0])
        if not hasattr(self.local, "at_once"):
            first_ones, then = (s for _, s in self.options["together"])
            then = slice(count, count + then.stop)
            options = self.options | {"together": ((0, first_ones), (0, then))}
            self.local.at_once = Replay(*self.parts_at_once, **options)
        replay = self.local.at_once
        out = replay.run[0](*first, *self._laid_out(second))
        return (out[:count], out[count:]), replay.vectors

    def _laid_out(self, second):
        pairs = zip(second, self.parts[0][1], strict=True)
        return [in_layout(x, v.value) for x, v in pairs]

    def start(self, first):
        """Run phase 1; returns (outputs, then). A `then` that was overtaken runs phase 1 again."""
        run = object()  # and not a number: every thread has buffers, and a last run, of its own
        outputs = self._first(first, run)

        def then(second):
            replay = self.replay()
            if getattr(self.local, "run", None) is not run:
                self._first(first, run)
            return replay.run[1](*self._laid_out(second))

        return tuple(outputs), then

    def _first(self, first, run):
        replay, self.local.run = self.replay(), None
        outputs = replay.run[0](*first)
        self.local.run = run
        return outputs


def in_two(f, first, make_second, sampled=False):
    """Record f as TwoPhase takes it: (inputs, instructions, outputs), a pair each; and symmetric.

    symmetric: whether every derivative in it is a true one.
    """
    with Record(sampled) as trace:
        boxes = [trace.input(x) for x in first]
        outputs, then = f(*boxes)
        second = [trace.input(x) for x in make_second([_bare(x) for x in outputs or ()])]
        results = then(*second)
        if outputs is None:
            outputs, results = results
        pairs = [trace.unwrap(x) for x in [*outputs, *results]]
    symmetric = all(i.primitive.true_derivative for i in trace.instructions)
    out = [x if v is None else v for x, v in pairs]
    inputs = [b.node for b in boxes], [b.node for b in second]
    whole = simplify(Program([*inputs[0], *inputs[1]], trace.instructions, out))
    ends = whole.outputs[: len(outputs)], whole.outputs[len(outputs) :]
    late = _depending(whole.instructions, inputs[1])
    early = [i for i in whole.instructions if i not in late]
    late = live([i for i in whole.instructions if i in late], ends[1])
    read_late = [x for i in late for x in i.inputs]
    early = live(early, [*ends[0], *ends[1], *read_late])
    return inputs, (early, late), ends, symmetric


def _depending(instructions, inputs):
    found, seen = set(), set(inputs)
    for i in instructions:
        if seen.intersection(x for x in i.inputs if isinstance(x, Var)):
            found.add(i)
            seen.update(i.outputs)
    return found


def _pull_phases(flat, dynamic, wanted):
    """TwoPhase whose `then` is the pull-back to the wanted arguments."""

    def f(*boxes):
        def chosen(*some):
            args = list(boxes)
            for i, x in zip(wanted, some, strict=True):
                args[i] = x
            return flat(*args)[0]

        outputs, pullback = vjp(chosen, *(boxes[i] for i in wanted))
        return outputs, lambda *cts: pullback(list(cts))

    return _FillZeros(TwoPhase(f, dynamic, lambda outs: [ones_like(x) for x in outs]))


class _FillZeros:
    """Cotangents of None are zeros, which the recorded pull-back takes as arrays."""

    def __init__(self, phases):
        self.phases = phases

    def start(self, first):
        outputs, then = self.phases.start(first)

        def pullback(cts):
            return then(
                [zeros_like(o) if c is None else c for c, o in zip(cts, outputs, strict=True)]
            )

        return outputs, pullback


def ones_like(x):
    """Ones of x's shape and dtype; a Python float stays one."""
    return np.ones_like(x) if hasattr(x, "dtype") else 1.0


def gradient_with_products(loss, params, hyper, *rest, borrow=False):
    """The two-phase program of a loss(params, hyper, *rest): its gradient, then products with it.

    borrow: what is returned is overwritten by the next run; the leaves of the gradient, and of the
    first product, are put together in `replay().vectors` where they can be.
    Phase 1 takes the leaves of params, hyper and rest and gives the gradient's leaves. Phase 2
    takes a direction v, leaves like params, and gives the leaves of (d2L/dparams2) v and of
    (d2L/dhyper dparams) v: the tangent of the joint gradient in direction (v, 0), which by symmetry
    is the cotangent of the gradient's pull-back. Where a rule in the loss is no true derivative, or
    has no forward mode, it is that pull-back itself, reverse over reverse.
    """
    leaves, tree = optree.tree_flatten((params, hyper, rest))
    count = optree.tree_structure(params).num_leaves
    total = count + optree.tree_structure(hyper).num_leaves

    def gradient(*boxes):
        params, hyper, rest = optree.tree_unflatten(tree, boxes)
        return optree.tree_leaves(grad(loss, (0, 1))(params, hyper, *rest))

    def forward(*boxes):
        def then(*v):
            g, products = jvp(lambda *p: gradient(*p, *boxes[count:]), boxes[:count], v)
            return g[:count], products

        return None, then

    def reverse(*boxes):
        def params_gradient(*some):
            return gradient(*some, *boxes[total:])[:count]

        g, pullback = vjp(params_gradient, *boxes[:total])
        return g, lambda *v: pullback(list(v))

    directions = lambda _: [ones_like(x) for x in leaves[:count]]
    together = ((0, slice(count)), (1, slice(count))) if borrow else ()
    options = {"borrow": borrow, "together": together}
    try:
        phases = TwoPhase(forward, leaves, directions, **options)
    except MissingRule:
        return TwoPhase(reverse, leaves, directions, **options)
    if phases.symmetric:
        return phases
    return TwoPhase(reverse, leaves, directions, **options)


# What a call looks like.


def is_dynamic(x):
    return type(x) is float or (hasattr(x, "dtype") and not isinstance(x, type))


def _bare(x):
    while isinstance(x, Box):
        x = x.value
    return x


def signature(x):
    x = _bare(x)
    if isinstance(x, np.ndarray):
        return x.shape, x.dtype, x.strides
    return type(x), getattr(x, "dtype", None), getattr(x, "shape", None)


def _must_inline(boxes):
    """Under any trace but one Pull of plain values, the function itself is traced."""
    return any(not isinstance(b.owner, Pull) or isinstance(b.value, Box) for b in boxes)


# Reading.


def show(f, *args, **kwargs):
    """Print the program that compiling f for these arguments records, a line per instruction."""
    print(listing(f, *args, **kwargs))


def listing(f, *args, **kwargs):
    """The text that `show` prints: inputs, then one instruction a line with its result's shape."""
    leaves, tree = optree.tree_flatten((args, kwargs))
    dynamic = [x for x in leaves if is_dynamic(x)]
    statics = tuple(None if is_dynamic(x) else (type(x), x) for x in leaves)
    form = (tree, statics, ())
    program = Entry(_flat(getattr(f, "f", f), form), dynamic).program
    names = {v: f"in{k}" for k, v in enumerate(program.inputs)}
    lines = [f"{name:>6} : {_kind(v.value)}" for v, name in names.items()]
    for i in program.instructions:
        for v in i.outputs:
            names[v] = f"%{len(names) - len(program.inputs)}"
        args = [_text(x, names) for x in i.inputs] + [f"{k}={v!r}" for k, v in i.static.items()]
        outs = ", ".join(names[v] for v in i.outputs)
        call = f"{i.primitive.name}({', '.join(args)})"
        lines.append(f"{outs:>6} = {call} : {_kind(i.outputs[0].value)}")
    ends = ", ".join(_text(x, names) for x in program.outputs)
    return "\n".join([*lines, f"return {ends}"])


def _text(x, names):
    if isinstance(x, Var):
        return names[x]
    return _kind(x) if np.size(x) > 1 else repr(x)


def _kind(x):
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
