"""One step of training as a reversible program: where real numbers and integers meet.

A Program is an optimizer's statement list bound to a loss, batches and hyperparameter values. It
takes a State of integers one step on (`advance`) or back (`retreat`), and pulls cotangents back
through the step (`pull`). Adjoints decide how the earlier states are come by; nothing here knows.

The state's arithmetic is float64 rounded to the ulp of the target; the loss sees the params' dtype.
"""

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import optree

from revgrad.buffer import BignumBuffer, InformationBuffer
from revgrad.errors import ClosureError, FixedOverflow, RatioRefused
from revgrad.fixed import FixedArray, fraction_bits_for
from revgrad.optimizers import Scale
from revgrad.ratio import Ratio
from revgrad.tape import Box
from revgrad.transforms import grad, value_and_grad, vjp

CLOSURE = (
    "the loss (or its batch, or watch) uses a traced value that was not passed to train, so its "
    "derivative would be lost; pass it through hyper=..., the loss's second argument."
)
BUFFERS = {"words": InformationBuffer, "bignum": BignumBuffer}


@dataclass(frozen=True)
class FixedPoint:
    """How training keeps its numbers.

    fraction_bits: variable -> bits after the point, e.g. {"params": 52}; a variable left out gets
        52 (params) or what its first gradient suggests, at most 60 (second moments 62).
    buffer: "words" (compiled, machine-word heads and a bignum tail) or "bignum" (one bignum per
        element, Maclaurin et al. 2015, algorithm 3; slower, takes ratios of any size).
    rounding: "nearest", or "truncated" for the 2015 authors' n = trunc(f 2^16) + 1.
    """

    fraction_bits: dict = field(default_factory=dict)
    buffer: str = "words"
    rounding: str = "nearest"

    def __post_init__(self):
        if self.buffer not in BUFFERS:
            raise ValueError(f"buffer={self.buffer!r}; choose one of {sorted(BUFFERS)}.")
        for name, bits in self.fraction_bits.items():
            if not 0 <= bits <= 62:
                raise ValueError(f"fraction_bits[{name!r}] = {bits}; from 0 to 62 is possible.")


class Layout:
    """Where the leaves of the params lie in a flat vector."""

    def __init__(self, leaves, tree):
        self.tree = tree
        self.marks = optree.tree_unflatten(tree, range(len(leaves)))  # leaf numbers, as a tree
        self.shapes = [np.shape(x) for x in leaves]
        self.dtypes = [np.result_type(x) for x in leaves]
        self.ends = np.cumsum([0, *(np.size(x) for x in leaves)]).tolist()
        self.size = self.ends[-1]
        paths = optree.treespec_paths(tree)
        self.paths = ["".join(f"[{p!r}]" for p in path) for path in paths]

    def split(self, flat):
        """Views of a flat vector, one per leaf, in the leaves' shapes."""
        spans = zip(self.ends, self.ends[1:], self.shapes, strict=False)
        return [flat[lo:hi].reshape(shape) for lo, hi, shape in spans]

    def join(self, leaves):
        """One float64 vector from leaves."""
        flat = np.empty(self.size)
        for part, leaf in zip(self.split(flat), leaves, strict=True):
            part[...] = leaf
        return flat

    def leaves(self, fixed):
        """Decode a variable into leaves of the params' shapes and dtypes."""
        kinds = {dtype: self.split(fixed.decode(dtype)) for dtype in set(self.dtypes)}
        return [kinds[dtype][k] for k, dtype in enumerate(self.dtypes)]

    def cast(self, flat):
        """Split a float64 vector into leaves of the params' dtypes."""
        parts = zip(self.split(flat), self.dtypes, strict=True)
        return [part.astype(dtype, copy=False) for part, dtype in parts]

    def name(self, index):
        """The path of the leaf that holds a flat index."""
        k = int(np.searchsorted(self.ends, index, side="right")) - 1
        return f"params{self.paths[k]}"


@dataclass(slots=True)
class State:
    """The integers of a run: a FixedArray per variable, a buffer per scaled variable."""

    variables: dict
    buffers: dict

    def copy(self):
        return State(
            {k: x.copy() for k, x in self.variables.items()},
            {k: b.copy() for k, b in self.buffers.items()},
        )

    def digest(self):
        """Bytes that differ whenever an integer, a head or a word does."""
        parts = [blake2b(x.values, digest_size=16).digest() for x in self.variables.values()]
        return b"".join(parts + [b.digest() for b in self.buffers.values()])


@dataclass(slots=True)
class Cotangents:
    """Cotangents of everything a run starts from: float64, summed one add per step."""

    variables: dict  # variable -> flat vector
    optimizer: dict  # hyperparameter -> list of arrays like its values
    hyper: list  # one array per leaf of the loss's hyper


@dataclass(frozen=True, eq=False)
class Run:
    """What `train` has checked and taken apart: everything about a run but its numbers."""

    loss: Any
    has_aux: bool
    optimizer: Any
    batch: Any  # step -> batch
    steps: int
    first_t: int  # steps taken before this run, for bias corrections
    layout: Layout
    spreads: dict  # optimizer hyperparameter -> Spread
    hyper_tree: Any  # leaves -> the loss's hyper
    hyper_every: tuple  # per leaf of hyper: None, or PerStep's `every`
    watch: Any
    callback: Any
    arithmetic: FixedPoint
    report: Any

    def hyper_leaves(self, values, t):
        """The leaves of the loss's hyper at step t; values may be traced."""
        pairs = zip(values.hyper, self.hyper_every, strict=True)
        return [x if every is None else x[t // every] for x, every in pairs]

    def hyper_at_leaf(self, values, t, name, k):
        """An optimizer hyperparameter for param leaf k at step t; values may be traced."""
        return self.spreads[name].at_leaf(values.optimizer[name], k, t)


@dataclass(frozen=True, eq=False)
class Values:
    """The numbers a run starts from, in the order in which the primitive `train` takes them."""

    params: list  # leaves
    warm: dict  # state variable -> leaves
    optimizer: dict  # hyperparameter -> values
    hyper: list  # leaves


@dataclass(slots=True, eq=False)
class Point:
    """Where a statement was executed: what it read and, for Scale, what it scaled and by what."""

    statement: Any
    reads: dict
    before: Any = None
    factor: Any = None


@dataclass(slots=True, eq=False)
class Linearization:
    """A step as `pull` wants it: its points in undo order, and the gradient's own pull-back."""

    points: list
    leaves: list  # of the params that the step starts from
    pull_gradient: Any


class Program:
    """A step of training. See the module docstring.

    exact: every factor must have a ratio, so that steps can be undone. keep: keep what scaling
    destroys; without it states can be visited again only from copies.
    Raises: ClosureError where the loss uses a traced value not passed to it; FixedOverflow and
    RatioRefused, from `advance` with the state as it was before the step, if keep.
    """

    def __init__(self, run, values, *, exact, keep):
        self.run, self.layout, self.values, self.exact, self.keep = (
            run,
            run.layout,
            values,
            exact,
            keep,
        )
        self.statements, self.order = run.optimizer.statements, run.optimizer.undo_order
        self.optimizer_values = {
            name: [np.asarray(v, np.float64) for v in leaves]
            for name, leaves in values.optimizer.items()
        }
        self.ratios = {}
        for s in self.statements:
            if isinstance(s, Scale) and isinstance(s.by, str) and s.by not in self.ratios:
                self._snap(s.by)
        self._constant = {}

    def _snap(self, name):
        """A hyperparameter that scales is snapped before any statement reads it."""
        try:
            ratios = [self._ratio(v) for v in self.values.optimizer[name]]  # in their own dtype
        except RatioRefused as error:
            if self.exact:
                raise RatioRefused(f"{self.run.optimizer.name}({name}=...): {error}") from None
            return
        self.ratios[name] = [[r.n for r in ratios], [r.d for r in ratios]]
        self.optimizer_values[name] = [np.asarray(r.value) for r in ratios]

    def _ratio(self, factor):
        return Ratio.of(factor, rounding=self.run.arithmetic.rounding)

    # The start of a run.

    def start(self):
        """(State that training begins with, the first step's loss and gradient)."""
        bits = {"params": 52} | self.run.arithmetic.fraction_bits
        params = self.variables({"params": bits["params"]})["params"]
        first = self.gradient(self.layout.leaves(params), 0) if self.run.steps else None
        largest = float(np.max(np.abs(first[1]), initial=0.0)) if first else 0.0
        for name in self.run.optimizer.variables:
            bits.setdefault(name, self._bits(name, largest))
        make = BUFFERS[self.run.arithmetic.buffer]
        scaled = dict.fromkeys(s.target for s in self.statements if isinstance(s, Scale))
        buffers = {name: make(self.layout.size, keep=self.keep) for name in scaled}
        return State(self.variables(bits), buffers), first

    def variables(self, bits):
        """The integers that training begins with, for fraction bits by variable."""
        given = {"params": self.values.params} | self.values.warm
        return {name: self._encode(name, given.get(name), b) for name, b in bits.items()}

    def _bits(self, name, largest_g):
        magnitudes = self.run.optimizer.magnitudes
        with np.errstate(over="ignore"):
            sizes = [float(magnitudes.get(name, float)(largest_g))]
        sizes += [float(np.max(np.abs(x), initial=0.0)) for x in self.values.warm.get(name, ())]
        try:
            return fraction_bits_for(max(sizes), at_most=62 if name in magnitudes else 60)
        except FixedOverflow:
            return 0  # where it overflows all the same, that will be said with step and leaf

    def _encode(self, name, leaves, bits):
        flat = np.zeros(self.layout.size) if leaves is None else self.layout.join(leaves)
        try:
            return FixedArray.encode(flat, bits)
        except FixedOverflow as error:
            raise FixedOverflow(
                f"{name} of {self.layout.name(error.index)} starts at {flat[error.index]:.6g}, "
                f"outside the range of +-{2.0 ** (63 - bits):g} that {bits} fraction bits leave; "
                f"scale the model, or pass FixedPoint(fraction_bits={{{name!r}: ...}}) with fewer.",
                error.index,
            ) from None

    # The loss.

    def gradient(self, leaves, t):
        """((loss, aux), flat float64 gradient) at step t."""
        (value, aux), g = value_and_grad(self._loss(t), has_aux=True)(
            leaves, self.run.hyper_leaves(self.values, t)
        )
        return (value, aux), self._flat(g, value)

    def gradient_and_pullback(self, leaves, t):
        """(g, pullback of g): a flat cotangent -> (flat one of params, [those of hyper leaves]).

        The first phase has the operations of `gradient`, so it has its bits.
        """
        first_phase = grad(lambda *args: self._loss(t)(*args)[0])
        g, pullback = vjp(first_phase, leaves, self.run.hyper_leaves(self.values, t))

        def pull(ct):
            ct_params, ct_hyper = pullback(self.layout.cast(ct))
            return self.layout.join(ct_params), ct_hyper

        return self._flat(g), pull

    def params_tree(self, leaves):
        return optree.tree_unflatten(self.layout.tree, leaves)

    def _loss(self, t):
        run, batch = self.run, self.run.batch(t)

        def loss(leaves, hyper):
            out = run.loss(self.params_tree(leaves), run.hyper_tree(hyper), batch)
            return out if run.has_aux else (out, None)

        return loss

    def _flat(self, g, *values):
        if any(isinstance(x, Box) for x in (*g, *values)):
            raise ClosureError(CLOSURE)
        return self.layout.join(g)

    # One step.

    def advance(self, state, t, first=None):
        """Take step t in place; returns (loss, aux). `first`: this step's gradient, if known."""
        value, g = first or self.gradient(self.layout.leaves(state.variables["params"]), t)
        step, done = _Step(self, state, t, g), []
        for s in self.statements:
            try:
                done.append(step.do(s))
            except (FixedOverflow, RatioRefused) as error:
                step.undo_all(done)
                if isinstance(error, RatioRefused):
                    raise
                raise self._overflow(error, t, s.target) from None
        return value

    def _overflow(self, error, t, target):
        return FixedOverflow(
            f"step {t}: {target} of {self.layout.name(error.index)} left the range of its fixed "
            "point numbers, or was not finite. Use a smaller learning rate, clipping, or "
            f"FixedPoint(fraction_bits={{{target!r}: ...}}) with fewer bits.",
            error.index,
        )

    def retreat(self, state, t):
        """Undo step t in place; returns its linearization, for `pull`."""
        step = _Step(self, state, t)
        points = [step.undo(self.statements[i]) for i in self.order]
        return Linearization(points, *step.linearized_gradient())

    def visit(self, state, t):
        """Take step t in place; returns the linearization that `retreat` would."""
        step = _Step(self, state, t)
        at_start = step.linearized_gradient()
        points = [step.do(s) for s in self.statements]
        order = self.order or range(len(points))[::-1]
        return Linearization([points[i] for i in order], *at_start)

    def pull(self, linearization, t, cotangents):
        """Pull cotangents back through step t, in place; one add into each hyperparameter's.

        The derivative is that of the unrounded step at the states visited; a factor's cotangent
        passes straight through its snapping.
        """
        found = {}
        for point in linearization.points:
            pull = _pull_scale if isinstance(point.statement, Scale) else _pull_add
            for name, ct in pull(point, cotangents.variables):
                found[name] = found[name] + ct if name in found else ct
            for name in cotangents.variables.keys() & found.keys():
                cotangents.variables[name] = cotangents.variables[name] + found.pop(name)
        if "g" in found:
            ct_g = np.broadcast_to(found.pop("g"), self.layout.size)
            ct_params, ct_hyper = linearization.pull_gradient(ct_g)
            cotangents.variables["params"] = cotangents.variables["params"] + ct_params
            for total, ct, every in zip(
                cotangents.hyper, ct_hyper, self.run.hyper_every, strict=True
            ):
                total[... if every is None else t // every] += ct
        for name, ct in found.items():
            self.run.spreads[name].collect(cotangents.optimizer[name], ct, t, self.layout)

    def bound(self, steps):
        """Bits per weight and step that scaling destroys: the mean of log2(d/n), over all buffers.

        NaN where a factor is a function of hyperparameters, whose ratios are not known beforehand.
        """
        total = 0.0
        for s in self.statements:
            if isinstance(s, Scale) and steps:
                total += self._mean_bits(s.by, steps) if s.by in self.ratios else np.nan
        return total

    def noise_floor(self, name, fraction_bits, steps):
        """The most that rounding can have added to a variable, in its own units.

        Half an ulp per addition and step; a scale by n/d moves a value by up to n ulp, and of these
        a share n/d is left at the next step.
        """
        ulp = 2.0**-fraction_bits
        noise = 0.5 * ulp * steps * sum(s.target == name for s in self.statements)
        for s in self.statements:
            if isinstance(s, Scale) and s.target == name and s.by in self.ratios:
                for n, d in zip(*self.ratios[s.by], strict=True):
                    left = np.minimum(np.asarray(d) / np.maximum(np.asarray(d) - n, 1), steps)
                    noise += float(np.max(n * left, initial=0.0)) * ulp
        return noise

    def _mean_bits(self, name, steps):
        spread, means = self.run.spreads[name], []
        for n, d, every in zip(*self.ratios[name], spread.every, strict=True):
            bits = np.log2(np.asarray(d) / n)
            means.append(bits if every is None else np.repeat(bits, every, 0)[:steps].mean(0))
        parts = self.layout.split(np.zeros(self.layout.size))
        for part, leaf in zip(parts, spread.owner, strict=True):
            part[...] = means[leaf]
        return float(np.mean(np.concatenate([part.ravel() for part in parts])))

    # Hyperparameters.

    def hyper_value(self, name, t):
        """An optimizer hyperparameter at step t: a number, or a vector over the flat params."""
        spread, values = self.run.spreads[name], self.optimizer_values[name]
        return self._once(name, "value", lambda: spread.flat(values, t, self.layout))

    def factor(self, statement, reads, t):
        """(Ratio or None, float) of a Scale; None: no ratio, a rounding scale must do."""
        by = statement.by
        if by in self.ratios:
            return self._once(by, "ratio", lambda: self._named_ratio(by, t)), reads[by]
        value = reads[by] if isinstance(by, str) else by(**reads)
        try:
            ratio = self._ratio(value)
        except RatioRefused as error:
            if self.exact:
                name = self.run.optimizer.name
                where = f"{name}, step {t}, factor of {statement.target!r}"
                raise RatioRefused(f"{where}: {error}") from None
            return None, value
        return ratio, ratio.value

    def _named_ratio(self, name, t):
        spread, parts = self.run.spreads[name], self.ratios[name]
        n, d = (spread.flat(part, t, self.layout, np.int64) for part in parts)
        return Ratio(int(n), int(d)) if spread.scalar else Ratio(n, d)

    def _once(self, name, what, make):
        """What make() gives; made once where the hyperparameter is the same at every step."""
        if not self.run.spreads[name].constant:
            return make()
        if (name, what) not in self._constant:
            self._constant[name, what] = make()
        return self._constant[name, what]


class _Step:
    """The values that the statements of step t read, decoded once each."""

    def __init__(self, program, state, t, g=None):
        self.program, self.state, self.t, self.g = program, state, t, g
        self.decoded, self.at_start = {}, None

    def linearized_gradient(self):
        """(params leaves, pull-back of g) at the params as they are now; sets g."""
        if self.at_start is None:
            leaves = self.program.layout.leaves(self.state.variables["params"])
            self.g, pull = self.program.gradient_and_pullback(leaves, self.t)
            self.at_start = leaves, pull
        return self.at_start

    def read(self, name):
        if name == "g":
            if self.g is None:
                self.linearized_gradient()
            return self.g
        if name == "t":
            return self.program.run.first_t + self.t + 1
        if name not in self.state.variables:
            return self.program.hyper_value(name, self.t)
        if name not in self.decoded:
            self.decoded[name] = self.state.variables[name].decode()
        return self.decoded[name]

    def do(self, s):
        reads = {name: self.read(name) for name in s.reads}
        target, point = self.state.variables[s.target], Point(s, reads)
        if isinstance(s, Scale):
            ratio, point.factor = self.program.factor(s, reads, self.t)
            point.before = self.read(s.target)
            if ratio is None:
                target.round_scale(point.factor)
            else:
                target.scale(ratio, self.state.buffers[s.target])
        else:
            target.add(s.delta(**reads))
        self.decoded.pop(s.target, None)
        return point

    def undo(self, s):
        reads = {name: self.read(name) for name in s.reads}
        target, point = self.state.variables[s.target], Point(s, reads)
        self.decoded.pop(s.target, None)
        if isinstance(s, Scale):
            ratio, point.factor = self.program.factor(s, reads, self.t)
            target.unscale(ratio, self.state.buffers[s.target])
            point.before = self.read(s.target)
        else:
            target.subtract(s.delta(**reads))
        return point

    def undo_all(self, points):
        """Take back the statements done so far, where that was provided for."""
        if self.program.keep:
            for point in reversed(points):
                self.undo(point.statement)


def _pull_scale(point, cts):
    """Pairs (name, cotangent) of what a factor is made of; scales the target's cotangent."""
    s, ct = point.statement, cts[point.statement.target]
    ct_factor = ct * point.before
    if not np.ndim(point.factor):
        ct_factor = np.sum(ct_factor)
    cts[s.target] = ct * point.factor
    return [(s.by, ct_factor)] if isinstance(s.by, str) else _pull_function(s.by, point, ct_factor)


def _pull_add(point, cts):
    return _pull_function(point.statement.delta, point, cts[point.statement.target])


def _pull_function(function, point, ct):
    reads = {k: v for k, v in point.reads.items() if k != "t"}
    rest = {k: v for k, v in point.reads.items() if k == "t"}
    out, pullback = vjp(lambda xs: function(**xs, **rest), reads)
    if not np.ndim(out):
        ct = np.sum(ct)
    return pullback(ct)[0].items()
