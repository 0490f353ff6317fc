"""One step of training as a reversible program: where real numbers and integers meet.

A Program is an optimizer's statement list bound to a loss, batches and hyperparameter values. It
takes a State of integers one step on (`advance`) or back (`retreat`), and pulls cotangents back
through the step (`pull`). Adjoints decide how the earlier states are come by; nothing here knows.

The state's arithmetic is float64 rounded to the ulp of the target; the loss sees the params' dtype.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from revgrad.errors import FixedOverflow, NotFinite, RatioRefused
from revgrad.fixed import FixedArray, fraction_bits_for
from revgrad.gradient import Gradient
from revgrad.optimizers import Scale
from revgrad.ratio import Ratio
from revgrad.state import BUFFERS, State
from revgrad.step import Step, pull_add, pull_scale


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
        self.optimizer_values = {
            name: [np.asarray(v, np.float64) for v in leaves]
            for name, leaves in values.optimizer.items()
        }
        self.ratios = {}
        for s in self.statements:
            if isinstance(s, Scale) and isinstance(s.by, str) and s.by not in self.ratios:
                self._snap(s.by)
        self._constant = {}
        self.gradient = Gradient(run, values)

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
        first = self.gradient.value(self.layout.leaves(params), 0) if self.run.steps else None
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

    # One step.

    def advance(self, state, t, first=None):
        """Take step t in place; returns (loss, aux). `first`: this step's gradient, if known."""
        return self.advance_pointwise(state, t, first)[0]

    def advance_pointwise(self, state, t, first=None):
        """`advance`; returns ((loss, aux), the points of its statements, in order)."""
        value, g = first or self.gradient.value(self.layout.leaves(state.variables["params"]), t)
        if not np.isfinite(value[0]):
            raise NotFinite(
                f"step {t}: the loss is {value[0]}. Use a smaller learning rate or clipping, or "
                "look at this step's batch.",
                step=t,
            )
        step, done = Step(self, state, t, g), []
        for s in self.statements:
            try:
                done.append(step.do(s))
            except (FixedOverflow, RatioRefused) as error:
                step.undo_all(done)
                if isinstance(error, RatioRefused):
                    raise
                raise self._overflow(error, t, s.target, g) from None
        return value, done

    def _overflow(self, error, t, target, g):
        if not np.all(np.isfinite(g)):
            bad = int(np.argmin(np.isfinite(g)))
            return NotFinite(
                f"step {t}: the gradient of the loss with respect to {self.layout.name(bad)} is "
                f"{g[bad]}, at its element {bad} of the flat params. Use a smaller learning rate "
                "or clipping, or look for a function without a slope there.",
                step=t,
            )
        return FixedOverflow(
            f"step {t}: {target} of {self.layout.name(error.index)} left the range of its fixed "
            "point numbers, or was not finite. Use a smaller learning rate, clipping, or "
            f"FixedPoint(fraction_bits={{{target!r}: ...}}) with fewer bits.",
            error.index,
        )

    def retreat(self, state, t):
        """Undo step t in place; returns its linearization, for `pull`."""
        step = Step(self, state, t)
        points = [step.undo(self.statements[i]) for i in self.order]
        return Linearization(points, *step.linearized_gradient())

    def visit(self, state, t):
        """Take step t in place; returns the linearization that `retreat` would."""
        step = Step(self, state, t)
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
            pull = pull_scale if isinstance(point.statement, Scale) else pull_add
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
