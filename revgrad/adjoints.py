"""How the derivative of training gets hold of the earlier states.

Each adjoint runs one program forwards, remembering something, and then supplies the steps'
linearizations last first. It never owns the arithmetic, so those that should agree do, to the bit.
"""

from dataclasses import dataclass
from functools import partial
from math import ceil
from time import perf_counter

import numpy as np
import optree

from revgrad.arrays import plain
from revgrad.errors import BufferEmpty, ClosureError, FixedOverflow, NotReversed, StopRun
from revgrad.gradient import CLOSURE
from revgrad.program import Program
from revgrad.state import Cotangents
from revgrad.tape import Box
from revgrad.transforms import value_and_grad, zeros_like

DIGESTS = 32  # about how often a run notes where it is, to say later where it was lost


@dataclass(frozen=True)
class Reversible:
    """Undo each step, bit for bit. Memory beyond one state: T N log2(d/n) bits. First order only.

    Every factor must be in (0, 1], and the optimizer reversible; others are refused with advice.
    The pull-back raises NotReversed, with the step range, unless it arrives at the integers, heads
    and words that it started from. Source: Maclaurin et al. 2015, algorithms 2 and 3.
    """

    exact, keep = True, True

    def check(self, optimizer):
        if not optimizer.reversible:
            raise TypeError(
                f"Reversible() cannot undo {optimizer.name}: some update of 'params' comes between "
                "two readings of the gradient that undoing needs, or reads g at the params it "
                "overwrites. Use Momentum, HeavyBall or Adam, or adjoint=Stored() or Unrolled()."
            )

    def remember(self, program):
        return _Digests(program)


@dataclass(frozen=True)
class Stored:
    """Keep a copy of every state. Memory: T states. Any optimizer, any real factor; first order.

    Where `Reversible()` works too, the hypergradients of the two are equal to the bit.
    """

    exact, keep = False, False

    def check(self, optimizer):
        """Takes every optimizer."""

    def remember(self, program):
        return _Copies(program)


@dataclass(frozen=True)
class Unrolled:
    """Plain float training on the tape. Memory: T states and activations. Any order of derivative.

    Factors are used as given, not snapped to ratios. The oracle for the other adjoints.
    """

    def check(self, optimizer):
        """Takes every optimizer."""


class _Digests:
    """The memory of `Reversible`: a digest now and then; the state itself holds the rest."""

    def __init__(self, program):
        self.program, self.every = program, max(1, ceil(program.run.steps / DIGESTS))
        self.digests = {}

    nbytes = 0

    def before(self, t, state):
        if t % self.every == 0:
            self.digests[t] = state.digest()

    def back(self, state, steps):
        """Linearizations of steps - 1, ..., 0, undoing each; checks the way at every digest."""
        good = steps
        for t in reversed(range(steps)):
            try:
                yield t, self.program.retreat(state, t)
            except (BufferEmpty, FixedOverflow):
                raise self._lost(t, good) from None
            if t in self.digests:
                if state.digest() != self.digests[t]:
                    raise self._lost(t, good, state)
                good = t
        self.program.run.report.returned_exactly = True

    def _lost(self, first, last, state=None):
        run, report = self.program.run, self.program.run.report
        report.returned_exactly = False
        found = "the integers differ"
        if state is not None and first == 0:
            start = self.program.variables({k: x.fraction_bits for k, x in state.variables.items()})
            wrong = {
                k: np.count_nonzero(x.values != start[k].values) for k, x in state.variables.items()
            }
            found = ", ".join(
                f"{n} of {run.layout.size} {name} differ" for name, n in wrong.items()
            )
        return NotReversed(
            f"steps {first} to {last} did not reverse: {found}, so the gradient was not the same "
            "twice. Look for randomness outside batches, a loss that keeps state, data changed in "
            "place, or indexing on the GPU.",
            first,
            last,
        )


class _Copies:
    """The memory of `Stored`: a copy of every state, without the words that undoing would need."""

    def __init__(self, program):
        self.program, self.copies = program, []

    @property
    def nbytes(self):
        return sum(_state_bytes(copy) for copy in self.copies)

    def before(self, t, state):
        self.copies.append(state.copy())

    def back(self, _state, steps):
        for t in reversed(range(steps)):
            yield t, self.program.visit(self.copies[t].copy(), t)


class _Nothing:
    """The memory of a run that nobody will differentiate."""

    nbytes = 0

    def before(self, t, state):
        pass


def forwards(adjoint, run, values, *, remember):
    """Train; returns (program, memory, final state, steps taken, watched values).

    remember: whether a pull-back may follow.
    """
    began, report = perf_counter(), run.report
    keep = adjoint.keep and remember
    program = Program(run, values, exact=adjoint.exact, keep=keep)
    state, first = program.start()
    memory = adjoint.remember(program) if remember else _Nothing()
    watched, survey, steps = [], _Survey(run), run.steps
    for t in range(run.steps):
        memory.before(t, state)
        survey.look(t, state)
        if run.watch is not None:
            watched.append(_watch(run, t, run.layout.leaves(state.variables["params"])))
        loss, aux = program.advance(state, t, first)
        first = None
        if run.callback is not None and _stops(run, t, loss, aux):
            steps = t + 1
            break
    survey.report(program, state, steps)
    report.bytes_kept = memory.nbytes + keep * sum(b.nbytes for b in state.buffers.values())
    report.watched, report.seconds = watched, perf_counter() - began
    return program, memory, state, steps, watched


def _stops(run, t, loss, aux):
    metrics = {"loss": float(loss)} | ({"aux": aux} if run.has_aux else {})
    try:
        run.callback(t, metrics)
    except StopRun:
        return True
    return False


def _watch(run, t, leaves):
    """What `watch` makes of plain params: a float."""
    x = run.watch(t, run.layout.unflatten(leaves))
    if isinstance(x, Box):
        raise ClosureError(CLOSURE)
    if np.shape(x):
        raise TypeError(
            f"watch returned an array of shape {np.shape(x)}; one number per step is wanted, so "
            "use np.sum or np.mean."
        )
    return float(x)


def backwards(program, memory, state, steps, ct_variables, ct_watched=None):
    """Pull cotangents of the final variables back to the start; returns Cotangents.

    Works on a copy of the state, so it may be called again.
    """
    began, run = perf_counter(), program.run
    cts = Cotangents(
        ct_variables,
        {k: [np.zeros(v.shape) for v in vs] for k, vs in program.optimizer_values.items()},
        [np.zeros(np.shape(x)) for x in program.values.hyper],
    )
    run.report.growth, every = [], max(1, ceil(run.steps / DIGESTS))
    state = state.copy()
    for t, linearization in memory.back(state, steps):
        if (t + 1) % every == 0:
            run.report.growth.append((t + 1, float(np.linalg.norm(cts.variables["params"]))))
        program.pull(linearization, t, cts)
        if ct_watched is not None:
            _pull_watch(program, linearization, t, cts, ct_watched[t])
    run.report.seconds_back = perf_counter() - began
    return cts


def _pull_watch(program, linearization, t, cts, ct):
    def watch(leaves):
        return program.run.watch(t, program.layout.unflatten(leaves))

    _, g = value_and_grad(watch)(linearization.leaves)
    cts.variables["params"] = cts.variables["params"] + ct * program.layout.join(g)


class _Survey:
    """Looks at the state now and then, for the report."""

    def __init__(self, run):
        self.run, self.largest = run, {}
        self.every = max(1, ceil(run.steps / DIGESTS))

    def look(self, t, state):
        if t % self.every == 0:
            for name, x in state.variables.items():
                seen = float(np.max(np.abs(x.decode()), initial=0.0))
                self.largest[name] = max(seen, self.largest.get(name, 0.0))

    def report(self, program, state, steps):
        self.look(0, state)
        run, report = self.run, self.run.report
        report.steps, report.weights = steps, run.layout.size
        element_steps = max(1, steps * run.layout.size)
        report.bits = sum(b.bits for b in state.buffers.values())
        report.bits_per_weight_step = report.bits / element_steps
        report.bound = program.bound(steps)
        report.bytes_stored = steps * sum(
            np.dtype(dtype).itemsize * int(np.prod(shape)) * len(state.variables)
            for dtype, shape in zip(run.layout.dtypes, run.layout.shapes, strict=True)
        )
        for name, x in state.variables.items():
            report.fraction_bits[name] = x.fraction_bits
            report.largest[name] = (self.largest[name], 2.0 ** (63 - x.fraction_bits))
            report.noise_floor[name] = program.noise_floor(name, x.fraction_bits, steps)


def _state_bytes(state):
    return sum(x.values.nbytes for x in state.variables.values()) + sum(
        b.nbytes for b in state.buffers.values()
    )


def unroll(run, values):
    """Train in float arithmetic on the tape: (params leaves, state leaves, watched values)."""
    began, layout, watched = perf_counter(), run.layout, []
    variables = {"params": list(values.params)}
    for name in run.optimizer.variables:
        variables[name] = values.warm.get(name) or [zeros_like(x) for x in values.params]
    if run.watch is not None and run.steps:
        _watch(run, 0, [plain(x) for x in values.params])
    steps = run.steps
    for t in range(run.steps):
        params = layout.unflatten(variables["params"])
        if run.watch is not None:
            watched.append(run.watch(t, params))
        loss, aux, g = _float_gradient(run, variables["params"], run.hyper_leaves(values, t), t)
        variables = run.optimizer.float_step(
            variables, g, partial(run.hyper_at_leaf, values, t), run.first_t + t + 1
        )
        if run.callback is not None and _stops(run, t, loss, aux):
            steps = t + 1
            break
    run.report.steps, run.report.weights = steps, layout.size
    run.report.watched = [float(plain(x)) for x in watched]
    run.report.seconds = perf_counter() - began
    trained = variables.pop("params")
    return trained, variables, np.stack(watched) if watched else np.array([])


def _float_gradient(run, leaves, hyper, t):
    """(plain loss, plain aux, traced gradient)."""
    batch = run.batch(t)

    def loss(leaves):
        params = run.layout.unflatten(leaves)
        out = run.loss(params, run.hyper_tree(hyper), batch)
        return out if run.has_aux else (out, None)

    (value, aux), g = value_and_grad(loss, has_aux=True)(leaves)
    return plain(value), optree.tree_map(plain, aux), g
