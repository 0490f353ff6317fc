"""One step of training as a reversible program: where real numbers and integers meet.

A Program is an optimizer's statement list bound to a loss, batches and hyperparameter values. It
takes a State of integers one step on (`advance`) or back (`retreat`), and pulls cotangents back
through the step (`pull`). Adjoints decide how the earlier states are come by; nothing here knows.

The state's arithmetic is float64 rounded to the ulp of the target; the loss sees the params' dtype.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np

from revgrad._ext import homes, settle
from revgrad.errors import FixedOverflow, NotFinite, RatioRefused
from revgrad.fixed import FixedArray, fraction_bits_for
from revgrad.gradient import Gradient, GradientAndAux
from revgrad.passes import NoPasses, Passes
from revgrad.schedule import Schedule
from revgrad.state import BUFFERS, Decoder, State
from revgrad.statements import Scale
from revgrad.step import Step, pull_add, pull_norm, pull_scale, wide

AT_MOST, SQUARES_AT_MOST = 60, 70  # fraction bits chosen for variables as large as g, and as g^2


@dataclass(slots=True, eq=False)
class Linearization:
    """A step as `pull` wants it: its points in undo order, and the gradient's own pull-back."""

    points: list
    leaves: list  # of the params that the step starts from
    pull_gradient: Any
    g: Any


class Program:
    """A step of training. See the module docstring.

    exact: every factor must have a ratio, so that steps can be undone. keep: keep what scaling
    destroys; without it states can be visited again only from copies. inspect(t, state, g):
    called, if there is one, by `advance` before it changes the state.
    Raises: ClosureError where the loss uses a traced value not passed to it; FixedOverflow,
    NotFinite and RatioRefused, from `advance` with the state as it was before the step, if keep.
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
        self.schedule = Schedule(run, values.optimizer, exact=exact)
        self.range_was_guessed, self.inspect, self.decode = False, None, Decoder(run.layout)
        self._passes, self._visited = None, None
        self._losses = []  # (step, loss) on a device, not looked at yet
        kind = Gradient if run.aux_layout is None else GradientAndAux
        self.gradient = kind(run, values)

    # The start of a run.

    def start(self):
        """(State that training begins with, the first step's loss and gradient)."""
        bits = {"params": 52} | self.run.arithmetic.fraction_bits
        params = self.variables({"params": bits["params"]})["params"]
        first = None
        if self.run.steps:
            value, g = self.gradient.value(self.decode(params), 0)
            first = value, g.copy()  # what is asked for meanwhile may overwrite it
        for name in self.run.optimizer.variables:
            if name not in bits:
                bits[name] = self._bits(name, first, bits["params"])
        make = BUFFERS[self.run.arithmetic.buffer]
        scales = [s for s in self.statements if isinstance(s, Scale)]
        risers = {s.target for s in scales if s.above_one}  # whose bits depend on the words
        layouts = {s.target: self.run.layout_of(s.target) for s in scales}
        buffers = {
            name: make(layout.size, keep=self.keep or name in risers, like=layout.like)
            for name, layout in layouts.items()
        }
        return State(self.variables(bits), buffers), first

    def variables(self, bits):
        """The integers that training begins with, for fraction bits by variable."""
        given = {"params": self.values.params} | self.values.warm
        return {name: self._encode(name, given.get(name), b) for name, b in bits.items()}

    def _bits(self, name, first, params_bits):
        """Fraction bits for what a variable is expected to hold, with headroom."""
        optimizer = self.run.optimizer
        if optimizer.initial.get(name) == "params":
            return params_bits  # an average of params has their range
        expected, known = optimizer.magnitudes.get(name, lambda g: g), self._sizes(first)
        names = signature(expected).parameters
        with np.errstate(over="ignore"):
            sizes = [float(expected(**{k: known.get(k, 0.0) for k in names}))]
            double = float(expected(**{k: known.get(k, 0.0) * (1 + (k == "g")) for k in names}))
        # What is as small as a tiny first gradient may grow; its square is kept more finely.
        at_most = SQUARES_AT_MOST if double > 3 * sizes[0] else AT_MOST
        sizes += [_largest(x) for x in self.values.warm.get(name, ())]
        try:
            return fraction_bits_for(max(sizes), at_most=at_most)
        except FixedOverflow:
            return 0  # where it overflows all the same, that will be said with step and leaf

    def _sizes(self, first):
        """The largest magnitudes of what is known before the first step, by name."""
        (_, aux), g = first or ((0, None), 0.0)
        largest_g = _largest(g)
        self.range_was_guessed = largest_g == 0
        known = {"g": largest_g or 1.0, "steps": max(1, self.run.steps)}
        known["params"] = max(_largest(x) for x in self.values.params)
        if self.run.aux_layout is not None:
            known["aux"] = _largest(self.run.flat_aux(aux)) if first else 1.0
        hyper = self.schedule.values.items()
        return known | {name: max(map(_largest, leaves)) for name, leaves in hyper}

    def _encode(self, name, leaves, bits):
        layout = self.run.layout_of(name)
        flat = layout.join(layout.zeros() if leaves is None else leaves)
        try:
            return FixedArray.encode(flat, bits)
        except FixedOverflow as error:
            raise FixedOverflow(
                f"{name} of {layout.name(error.index)} starts at {float(flat[error.index]):.6g}, "
                f"outside the range of +-{2.0 ** (63 - bits):g} that {bits} fraction bits leave; "
                f"scale the model, or pass FixedPoint(fraction_bits={{{name!r}: ...}}) with fewer.",
                error.index,
            ) from None

    # One step.

    def advance(self, state, t, first=None):
        """Take step t in place; returns (loss, aux). `first`: this step's gradient, if known."""
        value, g = self._first(first, state, t)
        try:
            if self._in_passes(state).advance(t, g):
                return value
        except FixedOverflow as error:
            raise self._overflow(error, t, error.target, g) from None
        self.settle(state)
        self._one_by_one(state, t, value, g)
        return value

    def settle(self, state):
        """Wait for the steps taken: raises what an `advance` since the last call should have.

        On a GPU nothing waits for a step, and steps after one that was refused change nothing, so
        the state is as it was before that one; where a loss was not finite, it may be further.
        """
        late = None
        try:
            settle(state.variables["params"].values)
        except FixedOverflow as error:
            late = error
        losses, self._losses = self._losses, []
        found = homes.to_host(np.stack([x for _, x in losses])) if losses else ()
        for (t, _), loss in zip(losses, found, strict=True):
            if late is None or t <= late.step:
                self._check_loss(loss, t)
        if late is not None:
            _, g = self.gradient.value(self.decode(state.variables["params"]), late.step)
            raise self._overflow(late, late.step, late.target, g) from None

    def advance_pointwise(self, state, t, first=None):
        """`advance`; returns ((loss, aux), the points of its statements in order, g)."""
        value, g = self._first(first, state, t)
        self.settle(state)
        return value, self._one_by_one(state, t, value, g), wide(g)

    def _one_by_one(self, state, t, value, g):
        """Execute the statements of step t; returns their points."""
        aux = None if self.run.aux_layout is None else self.run.flat_aux(value[1])
        step, done = Step(self, state, t, g, aux), []
        for s in self.statements:
            try:
                done.append(step.do(s))
            except (FixedOverflow, RatioRefused) as error:
                step.undo_all(done)
                if isinstance(error, RatioRefused):
                    raise
                raise self._overflow(error, t, s.target, g) from None
        return done

    def _first(self, first, state, t):
        """((loss, aux), g) at the start of step t, unless they are known."""
        value, g = first or self.gradient.value(self.decode(state.variables["params"]), t)
        if homes.is_away(value[0]):
            self._losses.append((t, value[0]))
        else:
            self._check_loss(value[0], t)
        if self.inspect is not None:
            self.inspect(t, state, g)
        return value, g

    def _check_loss(self, loss, t):
        if not np.isfinite(loss):
            raise NotFinite(
                f"step {t}: the loss is {loss}. Use a smaller learning rate or clipping, or "
                "look at this step's batch.",
                step=t,
            )

    def _overflow(self, error, t, target, g):
        if not np.all(np.isfinite(g)):
            bad = int(np.argmin(np.isfinite(g)))
            return NotFinite(
                f"step {t}: the gradient of the loss with respect to {self.layout.name(bad)} is "
                f"{g[bad]}, at its element {bad} of the flat params. Use a smaller learning rate "
                "or clipping, or look for a function without a slope there.",
                step=t,
            )
        name, why = self.run.layout_of(target).name(error.index), ""
        if self.range_was_guessed and target != "params":
            why = "The first gradient was 0 everywhere, so the range was chosen for ones around 1. "
        return FixedOverflow(
            f"step {t}: {target} of {name} left the range of its fixed point numbers, or was not "
            f"finite. {why}Use a smaller learning rate, clipping, or "
            f"FixedPoint(fraction_bits={{{target!r}: ...}}) with fewer bits.",
            error.index,
        )

    def retreat_and_pull(self, state, t, cotangents):
        """Undo step t and pull cotangents through it, both in place; returns the params' leaves."""
        passes = self._in_passes(state)
        if passes.can_pull(t):
            return self._pulled(passes.retreat, t, cotangents)
        linearization = self.retreat(state, t)
        self.pull(linearization, t, cotangents)
        return linearization.leaves

    def visit_and_pull(self, state, t, cotangents):
        """Pull cotangents in place through step t from a state, which stays as it is."""
        if self._visited is None:
            self._visited = state.copy()
        else:
            self._visited.load(state)
        passes = self._in_passes(self._visited)
        if passes.can_pull(t):
            return self._pulled(passes.visit, t, cotangents)
        linearization = self.visit(self._visited, t)
        self.pull(linearization, t, cotangents)
        return linearization.leaves

    def _in_passes(self, state):
        if self._passes is None or self._passes.state is not state:
            make = NoPasses if self.run.aux_layout else Passes
            self._passes = make(self, state)
        return self._passes

    def _pulled(self, move, t, cotangents):
        """Move through step t in passes, collecting cotangents; returns the params' leaves."""

        def gradient(leaves, early):
            return self.gradient.with_pullback(leaves, t, early)

        with np.errstate(over="ignore", invalid="ignore"):
            leaves, (g, pull_gradient), found = move(t, cotangents.variables, gradient)
            if "g_norm" in found:
                of_norm = pull_norm(wide(g), found.pop("g_norm"))
                found["g"] = found.get("g", 0.0) + of_norm
            if "g" in found:
                self._collect_gradient(cotangents, t, *pull_gradient(found.pop("g")))
            for name, ct in found.items():
                spread, leaves_found = self.run.spreads[name], cotangents.optimizer[name]
                if spread.segmented:
                    spread.collect_segments(leaves_found, ct, t)
                else:
                    spread.collect(leaves_found, ct, t, self.layout)
        return leaves

    def _collect_gradient(self, cotangents, t, ct_params, ct_hyper):
        params = cotangents.variables["params"]
        np.add(params, ct_params, out=params)
        for total, ct, every in zip(cotangents.hyper, ct_hyper, self.run.hyper_every, strict=True):
            homes.put(total, ... if every is None else t // every, ct)

    def retreat(self, state, t):
        """Undo step t in place; returns its linearization, for `pull`."""
        step = Step(self, state, t)
        points = [step.undo(self.statements[i]) for i in self.order]
        return Linearization(points, *step.linearized_gradient(), step.g)

    def visit(self, state, t):
        """Take step t in place; returns the linearization that `retreat` would."""
        step = Step(self, state, t)
        at_start = step.linearized_gradient()
        points = [step.do(s) for s in self.statements]
        order = self.order or range(len(points))[::-1]
        return Linearization([points[i] for i in order], *at_start, step.g)

    def pull(self, linearization, t, cotangents):
        """Pull cotangents back through step t, in place; one add into each hyperparameter's.

        The derivative is that of the unrounded step at the states visited; a factor's cotangent
        passes straight through its snapping.
        """
        found = {}
        for point in linearization.points:
            pull = pull_scale if isinstance(point.statement, Scale) else pull_add
            for name, ct in pull(point, cotangents.variables):
                found[name] = found[name] + ct if name in found else ct
            for name in cotangents.variables.keys() & found.keys():
                cotangents.variables[name] = cotangents.variables[name] + found.pop(name)
        if "g_norm" in found:
            found["g"] = found.get("g", 0.0) + pull_norm(linearization.g, found.pop("g_norm"))
        if found.keys() & {"g", "aux"}:
            ct_g = np.broadcast_to(found.pop("g", 0.0), self.layout.size)
            of_aux = (found.pop("aux"),) if "aux" in found else ()
            self._collect_gradient(cotangents, t, *linearization.pull_gradient(ct_g, *of_aux))
        for name, ct in found.items():
            layout = self.run.layout_of(name)
            self.run.spreads[name].collect(cotangents.optimizer[name], ct, t, layout)


def _largest(x):
    return float(np.max(np.abs(x))) if np.size(x) else 0.0
