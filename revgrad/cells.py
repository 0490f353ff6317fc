"""One step of a recurrent cell: a statement list without a loss, done, undone and pulled through.

The statements are an optimizer's, `Scale` and `Add`, but act on whole arrays of any shapes, one
tree for each state variable, and read the step's input besides. A Scale's factor may read other
variables, which is what a forget gate does: the gate of one half of the state is a function of the
other half, and so can be computed again when the step is undone.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import optree

from revgrad._ext import homes
from revgrad.compiled import compile
from revgrad.errors import ClosureError, FixedOverflow, RatioRefused
from revgrad.fixed import FixedArray
from revgrad.rules.row import cast, shape_of
from revgrad.schedule import ratio_of
from revgrad.state import BUFFERS, State
from revgrad.statements import Add, Scale
from revgrad.tape import Box
from revgrad.transforms import vjp

BITS = 52  # fraction bits of a state variable, unless others are given
OWN_NAMES = {"x", "t"}


@dataclass(frozen=True, eq=False)
class Cell:
    """A statement list, checked against the names of the state and of the params."""

    statements: tuple
    state: tuple
    params: tuple
    takes_inputs: bool

    def __post_init__(self):
        for s in self.statements:
            if not isinstance(s, (Scale, Add)):
                raise TypeError(
                    f"the cell holds a {type(s).__name__}; pass a sequence of Scale and Add."
                )
        changed = {s.target for s in self.statements}
        if not self.state or changed != {*self.state}:
            raise TypeError(
                f"the cell changes {sorted(changed)}, but the state holds {sorted(self.state)}; "
                "give every variable a start and a statement, and pass constants in params."
            )
        names = [*self.state, *self.params, *OWN_NAMES]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TypeError(
                f"{twice} are names of more than one of state, params, the input x and the step t; "
                "rename them."
            )
        for s in self.statements:
            self._check(s)

    def _check(self, s):
        known = {*self.state, *self.params, "t"} | ({"x"} if self.takes_inputs else set())
        what = f"the statement that changes {s.target!r}"
        if unknown := sorted({*s.reads} - known):
            raise TypeError(f"{what} reads {unknown}, which is none of {sorted(known)}.")
        if s.target in s.reads:
            raise TypeError(
                f"{what} reads its own target, so it could not be undone; split the variable in "
                "two, each changed by a function of the other."
            )
        if s.given or s.unless:
            raise TypeError(
                f"{what} has given= or unless=, which are for optimizers; leave it out."
            )

    name = "the cell"

    @property
    def refused(self):
        """The statement that cannot be undone, as far as the list tells, or None."""
        return next((s for s in self.statements if not s.can_be_undone), None)

    @property
    def undone(self):
        """The statements in the order that undoes a step."""
        return self.statements[::-1]


@dataclass(frozen=True, eq=False)
class CellRun:
    """Everything about a scan but its numbers."""

    cell: Cell
    layouts: dict  # state variable -> Layout
    params_tree: Any  # float leaves of the params -> {name: tree}
    inputs: Any  # (float leaves of the inputs, t) -> the tree of step t
    labels: dict  # "x" and params: trees with a Slot in place of each float leaf
    steps: int
    arithmetic: Any
    report: Any
    callback: Any = None

    def layout_of(self, name):
        return self.layouts[name]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where the cotangent of one float leaf that a statement reads belongs."""

    kind: str  # variables, params or inputs
    key: Any
    leaf: int = 0


@dataclass(slots=True, eq=False)
class CellCotangents:
    """Float64: of variables flat; of params and inputs by leaf, None where none is wanted."""

    variables: dict
    params: list
    inputs: list


@dataclass(slots=True, eq=False)
class _Done:
    """A statement as it was executed."""

    statement: Any
    reads: dict
    before: Any = None  # of a Scale: what it scaled, and by what
    factor: Any = None


class CellProgram:
    """A step of a scan, as adjoints and memories want it: see `revgrad.program.Program`.

    values: (state variable -> leaves, params leaves, inputs leaves), all plain. Functions see
    arrays of the state's dtype; the state itself is integers.
    """

    def __init__(self, run, values, *, exact, keep):
        self.run, self.exact, self.keep = run, exact, keep
        self.given, params, self.inputs = values
        self.params, self.bound = run.params_tree(params), 0.0
        self.slots = {}
        self._visited = None

    def start(self):
        """The state that the scan begins with."""
        bits = dict.fromkeys(self.run.cell.state, BITS) | self.run.arithmetic.fraction_bits
        scales = [s for s in self.run.cell.statements if isinstance(s, Scale)]
        rising = {s.target for s in scales if s.above_one}  # whose bits depend on the words
        make = BUFFERS[self.run.arithmetic.buffer]
        buffers = {
            name: make(layout.size, keep=self.keep or name in rising, like=layout.like)
            for name, layout in ((s.target, self.run.layouts[s.target]) for s in scales)
        }
        return State(self.variables(bits), buffers)

    def variables(self, bits):
        """The integers that the scan begins with, for fraction bits by variable."""
        return {name: self._encode(name, bits[name]) for name in self.run.cell.state}

    def _encode(self, name, bits):
        layout = self.run.layouts[name]
        flat = layout.join(self.given[name])
        try:
            return FixedArray.encode(flat, bits)
        except FixedOverflow as error:
            raise FixedOverflow(
                f"{layout.name(error.index)} starts at {float(flat[error.index]):.6g}, outside the "
                f"range of +-{2.0 ** (63 - bits):g} that {bits} fraction bits leave; scale the "
                f"state, or pass FixedPoint(fraction_bits={{{name!r}: ...}}) with fewer.",
                error.index,
            ) from None

    # One step.

    def advance(self, state, t):
        """Take step t in place."""
        for s in self.run.cell.statements:
            self._do(s, state, t)

    def retreat_and_pull(self, state, t, cotangents):
        """Undo step t and pull cotangents through it, both in place."""
        for s in self.run.cell.undone:
            self._pull(self._undo(s, state, t), t, cotangents)

    def visit_and_pull(self, state, t, cotangents):
        """Pull cotangents in place through step t from a state, which stays as it is."""
        if self._visited is None:
            self._visited = state.copy()
        else:
            self._visited.load(state)
        done = [self._do(s, self._visited, t) for s in self.run.cell.statements]
        for point in reversed(done):
            self._pull(point, t, cotangents)

    def _do(self, s, state, t):
        done, out = self._evaluate(s, state, t)
        target = state.variables[s.target]
        try:
            if isinstance(s, Scale):
                ratio, done.factor = self._ratio(s, out, t)
                done.before = target.decode()
                if ratio is None:
                    target.round_scale(done.factor)
                else:
                    self.bound += _bits(ratio, target.values.size)
                    target.scale(ratio, state.buffers[s.target])
            else:
                target.add(out)
        except FixedOverflow as error:
            raise FixedOverflow(
                f"step {t}: {self.run.layouts[s.target].name(error.index)} left the range of its "
                "fixed point numbers, or was not finite. Bound what is added, or use "
                f"FixedPoint(fraction_bits={{{s.target!r}: ...}}) with fewer bits.",
                error.index,
            ) from None
        return done

    def _undo(self, s, state, t):
        done, out = self._evaluate(s, state, t)
        target = state.variables[s.target]
        if isinstance(s, Scale):
            ratio, done.factor = self._ratio(s, out, t)
            target.unscale(ratio, state.buffers[s.target])
            done.before = target.decode()
        else:
            target.subtract(out)
        return done

    def _evaluate(self, s, state, t):
        """(what a statement reads, its factor or delta: a number, or a flat vector)."""
        reads = {name: self._read(name, state, t) for name in s.reads}
        out = _value_of(s)(reads)
        if any(isinstance(x, Box) for x in optree.tree_leaves(out)):
            raise ClosureError(
                f"the statement that changes {s.target!r} uses a traced value that it does not "
                "read, so its derivative would be lost; pass it in params or inputs."
            )
        if not optree.tree_is_leaf(out) or shape_of(out):
            layout = self.run.layouts[s.target]
            out = layout.join(like(out, layout, s))
        return _Done(s, reads), out

    def _read(self, name, state, t):
        if name in state.variables:
            layout = self.run.layouts[name]
            return layout.unflatten(layout.leaves(state.variables[name]))
        if name == "t":
            return np.int64(t + 1)
        return self.run.inputs(self.inputs, t) if name == "x" else self.params[name]

    def _ratio(self, s, factor, t):
        """(Ratio or None, float) of a Scale; None: no ratio, a rounding scale must do."""
        rounding = self.run.arithmetic.rounding
        if np.ndim(factor) and rounding == "nearest":
            rounding = "binary"
        try:
            ratio = ratio_of(homes.home(factor), rounding, s.above_one)
        except RatioRefused as error:
            if self.exact:
                raise RatioRefused(
                    f"step {t}, factor of {s.target!r}: {error} A gate can be kept inside, as "
                    "0.001 + 0.998 * sigmoid(...)."
                ) from None
            return None, factor
        return ratio, self._beside(ratio.value, s)

    def _beside(self, factor, s):
        """A factor per number where the numbers are."""
        return homes.beside(factor, self.run.layouts[s.target].like) if np.ndim(factor) else factor

    # Its derivative.

    def _pull(self, done, t, cotangents):
        """The derivative is that of the unrounded step; a gate's passes through its snapping."""
        s, cts = done.statement, cotangents.variables
        ct = cts[s.target]
        if isinstance(s, Scale):
            cts[s.target] = ct * done.factor
            ct = ct * done.before
        if isinstance(s, Scale) and s.literal:
            return
        leaves, tree = optree.tree_flatten(done.reads)
        slots = self._slots(s, done.reads, cotangents)
        if not slots:
            return
        layout = self.run.layouts[s.target]
        picked = tuple(i for i, _ in slots)
        rest = [x for i, x in enumerate(leaves) if i not in picked]
        pull = _pull_of(s, tree, picked, _Frozen(layout))
        found = pull([leaves[i] for i in picked], rest, layout.cast(ct))
        for (_, slot), x in zip(slots, found, strict=True):
            self._collect(slot, x, t, cotangents)

    def _slots(self, s, reads, cotangents):
        """[(place among the leaves of what a statement reads, Slot)] of what is wanted."""
        if id(s) not in self.slots:
            labels = {name: self._labelled(name, tree) for name, tree in reads.items()}
            kept = enumerate(optree.tree_leaves(labels))
            self.slots[id(s)] = [(i, x) for i, x in kept if _wanted(x, cotangents)]
        return self.slots[id(s)]

    def _labelled(self, name, tree):
        if name not in self.run.layouts:
            return self.run.labels.get(name, tree)
        layout = self.run.layouts[name]
        parts = range(len(layout.shapes))
        return layout.unflatten([Slot("variables", name, k) for k in parts])

    def _collect(self, slot, ct, t, cotangents):
        if slot.kind == "variables":
            layout = self.run.layouts[slot.key]
            part = slice(layout.ends[slot.leaf], layout.ends[slot.leaf + 1])
            cotangents.variables[slot.key][part] += np.ravel(ct)
        elif slot.kind == "params":
            homes.put(cotangents.params[slot.key], ..., ct)
        else:
            homes.put(cotangents.inputs[slot.key], t, ct)


def like(out, layout, s):
    """The leaves of what a statement's function gave, each of its variable's shape and dtype."""
    leaves, tree = optree.tree_flatten(out)
    if tree != layout.tree:
        if not optree.tree_is_leaf(out):
            raise TypeError(
                f"the function that changes {s.target!r} returned the tree {tree}; "
                f"{layout.tree}, that of the variable, or one number is wanted."
            )
        leaves = leaves * len(layout.shapes)
    triples = zip(leaves, layout.shapes, layout.dtypes, strict=True)
    return [_spread(x, shape, dtype, s, layout.like) for x, shape, dtype in triples]


def _spread(x, shape, dtype, s, at):
    x = cast(x if hasattr(x, "dtype") else np.float64(x), dtype)
    if shape_of(x) == shape:
        return x
    try:
        return homes.spread(x, shape, at)
    except ValueError:
        raise ValueError(
            f"the function that changes {s.target!r} returned shape {shape_of(x)}, which does not "
            f"broadcast to {shape}, that of the variable."
        ) from None


def _bits(ratio, size):
    """log2(d/n), summed over elements: what a scale destroys."""
    bits = np.sum(np.log2(np.asarray(ratio.d, float) / np.asarray(ratio.n, float)))
    return float(bits) * (1 if np.ndim(ratio.n) else size)


def _wanted(slot, cotangents):
    if not isinstance(slot, Slot):
        return False
    return slot.kind == "variables" or getattr(cotangents, slot.kind)[slot.key] is not None


# The functions of statements, recorded and replayed where that can be done.


class Replayed:
    """A pure function: compiled if its first replay gives the bits of the tape, else as it is."""

    def __init__(self, f):
        self.f, self.run = f, None

    def __call__(self, *args):
        if self.run in (None, self.f):
            return self._first(args) if self.run is None else self.f(*args)
        try:
            return self.run(*args)
        except Exception:  # arguments of another kind, with which it cannot be recorded
            self.run = self.f
            return self.f(*args)

    def _first(self, args):
        out, self.run = self.f(*args), self.f
        if any(isinstance(x, Box) for x in optree.tree_leaves(out)):
            self.run = None
            return out
        try:
            replay = compile(self.f)
            if _bytes(replay(*args)) == _bytes(out):
                self.run = replay
        except Exception:  # whatever a function may do that cannot be recorded: the tape takes it
            pass
        return out


def _bytes(tree):
    leaves = map(homes.to_host, optree.tree_leaves(tree))
    return [(x.dtype, x.shape, x.tobytes()) for x in leaves]


@dataclass(frozen=True)
class _Frozen:
    """A Layout as a key: equal where trees, shapes, dtypes and kinds of arrays are."""

    layout: Any = field(compare=False)
    key: Any = None

    def __post_init__(self):
        x = self.layout
        object.__setattr__(self, "key", (x.tree, tuple(x.shapes), tuple(x.dtypes), type(x.like)))


@lru_cache(maxsize=64)
def _value_of(s):
    def value(reads):
        return s.factor(reads) if isinstance(s, Scale) else s.delta(**reads)

    return Replayed(value)


@lru_cache(maxsize=64)
def _pull_of(s, tree, picked, frozen):
    """(picked leaves of the reads, the others, a cotangent of `like`) -> those of the picked."""

    def pull(some, rest, ct):
        def of(some):
            leaves, others = dict(zip(picked, some, strict=True)), iter(rest)
            every = [leaves[i] if i in leaves else next(others) for i in range(tree.num_leaves)]
            reads = optree.tree_unflatten(tree, every)
            out = s.factor(reads) if isinstance(s, Scale) else s.delta(**reads)
            return like(out, frozen.layout, s)

        _, pullback = vjp(of, some)
        return pullback(ct)[0]

    return Replayed(pull)
