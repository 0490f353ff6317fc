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

from revgrad.errors import FixedOverflow, NotFinite, RatioRefused
from revgrad.fixed import FixedArray, Segments, fraction_bits_for
from revgrad.gradient import Gradient, GradientAndAux
from revgrad.passes import NoPasses, Passes
from revgrad.ratio import Ratio
from revgrad.state import BUFFERS, State
from revgrad.statements import Scale
from revgrad.step import Step, pull_add, pull_norm, pull_scale, wide

AT_MOST, SQUARES_AT_MOST = 60, 70  # fraction bits chosen for variables as large as g, and as g^2
LOOKS = 32  # at about how many steps a factor that varies is looked at, for a report


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
        self.optimizer_values = {
            name: [np.asarray(v, np.float64) for v in leaves]
            for name, leaves in values.optimizer.items()
        }
        self.ratios = {}
        for s in self.statements:
            if isinstance(s, Scale) and isinstance(s.by, str) and s.by not in self.ratios:
                self._snap(s.by, s.above_one)
        self._constant, self.range_was_guessed, self.inspect = {}, False, None
        self._passes, self._visited = None, None
        kind = Gradient if run.aux_layout is None else GradientAndAux
        self.gradient = kind(run, values)

    def _snap(self, name, above_one):
        """A hyperparameter that scales is snapped before any statement reads it."""
        try:
            values = self.values.optimizer[name]  # in their own dtype
            ratios = [self._ratio(v, above_one) for v in values]
        except RatioRefused as error:
            if self.exact:
                raise RatioRefused(f"{self.run.optimizer.name}({name}=...): {error}") from None
            return
        self.ratios[name] = [[r.n for r in ratios], [r.d for r in ratios]]
        self.optimizer_values[name] = [np.asarray(r.value) for r in ratios]

    def _ratio(self, factor, above_one):
        return ratio_of(factor, self.run.arithmetic.rounding, above_one)

    # The start of a run.

    def start(self):
        """(State that training begins with, the first step's loss and gradient)."""
        bits = {"params": 52} | self.run.arithmetic.fraction_bits
        params = self.variables({"params": bits["params"]})["params"]
        first = self.gradient.value(self.layout.leaves(params), 0) if self.run.steps else None
        for name in self.run.optimizer.variables:
            if name not in bits:
                bits[name] = self._bits(name, first, bits["params"])
        make = BUFFERS[self.run.arithmetic.buffer]
        scales = [s for s in self.statements if isinstance(s, Scale)]
        risers = {s.target for s in scales if s.above_one}  # whose bits depend on the words
        buffers = {
            name: make(self.run.layout_of(name).size, keep=self.keep or name in risers)
            for name in dict.fromkeys(s.target for s in scales)
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
        hyper = self.optimizer_values.items()
        return known | {name: max(map(_largest, leaves)) for name, leaves in hyper}

    def _encode(self, name, leaves, bits):
        layout = self.run.layout_of(name)
        flat = np.zeros(layout.size) if leaves is None else layout.join(leaves)
        try:
            return FixedArray.encode(flat, bits)
        except FixedOverflow as error:
            raise FixedOverflow(
                f"{name} of {layout.name(error.index)} starts at {flat[error.index]:.6g}, "
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
        self._one_by_one(state, t, value, g)
        return value

    def advance_pointwise(self, state, t, first=None):
        """`advance`; returns ((loss, aux), the points of its statements in order, g)."""
        value, g = self._first(first, state, t)
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
        value, g = first or self.gradient.value(self.layout.leaves(state.variables["params"]), t)
        if not np.isfinite(value[0]):
            raise NotFinite(
                f"step {t}: the loss is {value[0]}. Use a smaller learning rate or clipping, or "
                "look at this step's batch.",
                step=t,
            )
        if self.inspect is not None:
            self.inspect(t, state, wide(g))
        return value, g

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

        def gradient(leaves):
            return self.gradient.with_pullback(leaves, t)

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
            total[... if every is None else t // every] += ct

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

    def bound(self, steps):
        """Bits per weight and step that scaling destroys: the mean of log2(d/n), over all buffers.

        NaN where a factor is a function of t, or of what varies, so that its ratios are not known
        beforehand.
        """
        total = 0.0
        for s in self.statements:
            if isinstance(s, Scale) and steps:
                share = self.run.layout_of(s.target).size / self.layout.size
                total += share * self._mean_bits(s, steps)
        return total

    def noise_floor(self, name, fraction_bits, steps):
        """The most that rounding can have added to a variable, in its own units.

        Half an ulp per addition and step; a scale by n/d moves a value by up to n ulp, and of these
        a share n/d is left at the next step.
        """
        ulp = 2.0**-fraction_bits
        noise = 0.5 * ulp * steps * sum(s.target == name for s in self.statements)
        for s in self.statements:
            if isinstance(s, Scale) and s.target == name:
                for n, d in self.ratios_met(s, steps):
                    left = np.minimum(d / np.maximum(d - n, 1), steps)
                    noise += float(np.max(n * left, initial=0.0)) * ulp
        return noise

    def ratios_met(self, s, steps):
        """Arrays (n, d) of a Scale: of a hyperparameter all, of a function those at some steps."""
        if s.by in self.ratios:
            return [(np.asarray(n), np.asarray(d)) for n, d in zip(*self.ratios[s.by], strict=True)]
        every = max(1, steps if self._is_constant(s) else -(-steps // LOOKS))
        met = [self.factor(s, self._factor_reads(s, t), t)[0] for t in range(0, steps, every)]
        return [(np.asarray(r.n), np.asarray(r.d)) for r in met if r is not None]

    def _factor_reads(self, s, t):
        first = self.run.first_t + 1
        return {k: first + t if k == "t" else self.hyper_value(k, t) for k in s.reads}

    def _is_constant(self, s):
        """Whether the factor of a Scale is the same at every step."""
        return "t" not in s.reads and all(self.run.spreads[name].constant for name in s.reads)

    def _mean_bits(self, s, steps):
        name = s.by
        if name not in self.ratios:
            met = self.ratios_met(s, steps) if self._is_constant(s) else ()
            return float(np.mean(np.log2(met[0][1] / met[0][0]))) if met else np.nan
        spread, means, layout = self.run.spreads[name], [], self.run.layout_of(name)
        for n, d, every in zip(*self.ratios[name], spread.every, strict=True):
            bits = np.log2(np.asarray(d) / n)
            means.append(bits if every is None else np.repeat(bits, every, 0)[:steps].mean(0))
        if spread.scalar:
            return float(np.mean(means[0]))
        parts = layout.split(np.zeros(layout.size))
        for part, leaf in zip(parts, spread.owner, strict=True):
            part[...] = means[leaf]
        return float(np.mean(np.concatenate([part.ravel() for part in parts])))

    # Hyperparameters.

    def hyper_value(self, name, t):
        """An optimizer hyperparameter at step t: a number, or a vector over the flat params."""
        spread, values = self.run.spreads[name], self.optimizer_values[name]
        layout = self.run.layout_of(name)
        return self._once(name, spread.constant, lambda: spread.flat(values, t, layout))

    def hyper_at(self, name, t):
        """An optimizer hyperparameter at step t for `Passes`: a number, Segments or a vector."""
        spread, values = self.run.spreads[name], self.optimizer_values[name]
        if not spread.segmented:
            return self.hyper_value(name, t)
        make = lambda: Segments(spread.segments(values, t))
        return self._once(("segments", name), spread.constant, make)

    def ratio_at(self, statement, reads, t):
        """The ratio of a Scale at step t, or Segments of them; None: there is none."""
        by, constant = statement.by, self._is_constant(statement)
        if by in self.ratios and self.run.spreads[by].segmented:
            make = lambda: self._segmented_ratio(by, t)
            return self._once(("segmented", by), constant, make)
        own = {} if statement.literal else {name: reads[name] for name in statement.reads}
        if not any(isinstance(x, Segments) for x in own.values()):
            return self.factor(statement, own, t)[0]
        flat = {k: x.values if isinstance(x, Segments) else x for k, x in own.items()}
        if any(np.ndim(flat[k]) and not isinstance(own[k], Segments) for k in own):
            return self.factor(statement, self._factor_reads(statement, t), t)[0]
        make = lambda: self._made_factor(statement, flat, t)
        ratio, _ = self._once(("factors", id(statement)), constant, make)
        return ratio and Segments(ratio)

    def _segmented_ratio(self, name, t):
        parts = self.ratios[name]
        n, d = (self.run.spreads[name].segments(part, t, np.int64) for part in parts)
        return Segments(Ratio(n, d))

    def factor(self, statement, reads, t):
        """(Ratio or None, float) of a Scale; None: no ratio, a rounding scale must do."""
        by, constant = statement.by, self._is_constant(statement)
        if by in self.ratios:
            make = lambda: self._named_ratio(statement, t)
            return self._once(("ratio", by), constant, make), reads[by]
        make = lambda: self._made_factor(statement, reads, t)
        return self._once(("factor", id(statement)), constant, make)

    def _made_factor(self, statement, reads, t):
        value = statement.factor(reads)
        try:
            ratio = self._ratio(value, statement.above_one)
        except RatioRefused as error:
            if self.exact:
                name = self.run.optimizer.name
                where = f"{name}, step {t}, factor of {statement.target!r}"
                raise RatioRefused(f"{where}: {error}") from None
            return None, value
        return ratio, ratio.value

    def _named_ratio(self, statement, t):
        spread, parts = self.run.spreads[statement.by], self.ratios[statement.by]
        layout = self.run.layout_of(statement.by)
        n, d = (spread.flat(part, t, layout, np.int64) for part in parts)
        return Ratio(int(n), int(d)) if spread.scalar else Ratio(n, d)

    def _once(self, key, constant, make):
        """What make() gives; made once where that is the same at every step."""
        if not constant:
            return make()
        if key not in self._constant:
            self._constant[key] = make()
        return self._constant[key]


def ratio_of(factor, rounding, above_one):
    """The ratio of a factor; with above_one, that of its inverse the other way up."""
    factor = np.asarray(factor)
    rises = factor > 1
    if not (above_one and rises.any()):
        return Ratio.of(factor, rounding)
    down = Ratio.of(np.divide(1, factor, out=factor.copy(), where=rises), rounding)
    if not factor.ndim:
        return down.inverse
    return Ratio(np.where(rises, down.d, down.n), np.where(rises, down.n, down.d))


def _largest(x):
    return float(np.max(np.abs(x), initial=0.0))
