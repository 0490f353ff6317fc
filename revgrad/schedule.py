"""The optimizer's hyperparameters over the steps of a run: numbers, vectors, and exact ratios.

A factor is snapped to integers before any statement reads it, so that all read its ratio's value.
"""

import numpy as np

from revgrad._ext import homes
from revgrad.errors import RatioRefused
from revgrad.fixed import Segments
from revgrad.ratio import Ratio
from revgrad.statements import Scale

LOOKS = 32  # at about how many steps a factor that varies is looked at, for a report
TOGETHER = 128  # steps whose numbers per layer are made at once


class Schedule:
    """What statements read at each step, but for the state and what is of the loss.

    given: hyperparameter -> values as in `Values`. exact: every factor must have a ratio.
    values: hyperparameter -> the same in float64, factors snapped; ratios: of the named factors,
    lists of their n and of their d. Raises: RatioRefused.
    """

    def __init__(self, run, given, *, exact):
        self.run, self.exact, self.statements = run, exact, run.optimizer.statements
        given = {k: [homes.home(v) for v in vs] for k, vs in given.items()}
        self.values = {k: [np.asarray(v, np.float64) for v in vs] for k, vs in given.items()}
        self.ratios, self._constant, self._rows = {}, {}, {}
        for s in self.statements:
            if isinstance(s, Scale) and isinstance(s.by, str) and s.by not in self.ratios:
                self._snap(s.by, given[s.by], s.above_one)

    def _snap(self, name, values, above_one):
        """values: in their own dtype, whose digits are those that the user wrote."""
        try:
            ratios = [self._ratio(v, above_one) for v in values]
        except RatioRefused as error:
            if self.exact:
                raise RatioRefused(f"{self.run.optimizer.name}({name}=...): {error}") from None
            return
        self.ratios[name] = [[r.n for r in ratios], [r.d for r in ratios]]
        self.values[name] = [np.asarray(r.value) for r in ratios]

    def _ratio(self, factor, above_one):
        return ratio_of(factor, self.run.arithmetic.rounding, above_one)

    @property
    def _reads_given(self):
        """Whether statements read a factor as it was given, not its n/d: see `Ratio.of`."""
        return self.run.arithmetic.rounding == "truncated"

    # At a step.

    def value(self, name, t):
        """An optimizer hyperparameter at step t: a number, or a vector over the flat params."""
        spread, values = self.run.spreads[name], self.values[name]
        layout = self.run.layout_of(name)
        return self._once(name, spread.constant, lambda: spread.flat(values, t, layout))

    def at(self, name, t):
        """An optimizer hyperparameter at step t for `Passes`: a number, Segments or a vector."""
        spread, values = self.run.spreads[name], self.values[name]
        if not spread.segmented:
            return self.value(name, t)
        return self._row(name, t, lambda rows: map(Segments, rows(values)))

    def ratio_at(self, statement, reads, t):
        """The ratio of a Scale at step t, or Segments of them; None: there is none."""
        by, constant = statement.by, self._is_constant(statement)
        if by in self.ratios and self.run.spreads[by].segmented:
            n, d = self.ratios[by]
            given = lambda rows: rows(self.values[by]) if self._reads_given else None
            ratio = lambda rows: Ratio(rows(n, np.int64), rows(d, np.int64), given(rows))
            return self._row(by, t, lambda rows: map(Segments, ratio(rows).rows), "ratio")
        own = {} if statement.literal else {name: reads[name] for name in statement.reads}
        if not any(isinstance(x, Segments) for x in own.values()):
            return self.factor(statement, own, t)[0]
        flat = {k: x.values if isinstance(x, Segments) else x for k, x in own.items()}
        if any(np.ndim(flat[k]) and not isinstance(own[k], Segments) for k in own):
            return self.factor(statement, self.factor_reads(statement, t), t)[0]
        make = lambda: self._made_factor(statement, flat, t)
        ratio, _ = self._once(("factors", id(statement)), constant, make)
        return ratio and Segments(ratio)

    def _row(self, name, t, make, kind="value"):
        """What make(rows) gives for step t; made for the steps around it together, then kept.

        rows(values): those of a segmented hyperparameter, a row for each of these steps.
        """
        spread = self.run.spreads[name]
        at = 0 if spread.constant else t
        first, found = self._rows.get((name, kind), (0, ()))
        if not first <= at < first + len(found):
            first = at - at % TOGETHER
            last = first + 1 if spread.constant else min(first + TOGETHER, self.run.steps)
            found = list(make(lambda *what: spread.rows(*what, first=first, last=last)))
            self._rows[name, kind] = first, found
        return found[at - first]

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
        given = self.value(statement.by, t) if self._reads_given else None
        return Ratio(int(n), int(d), given) if spread.scalar else Ratio(n, d, given)

    def _once(self, key, constant, make):
        """What make() gives; made once where that is the same at every step."""
        if not constant:
            return make()
        if key not in self._constant:
            self._constant[key] = make()
        return self._constant[key]

    # For the report.

    def bound(self, steps):
        """Bits per weight and step that scaling destroys: the mean of log2(d/n), over all buffers.

        NaN where a factor is a function of t, or of what varies, so that its ratios are not known
        beforehand.
        """
        total = 0.0
        for s in self.statements:
            if isinstance(s, Scale) and steps:
                share = self.run.layout_of(s.target).size / self.run.layout.size
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
        met = [self.factor(s, self.factor_reads(s, t), t)[0] for t in range(0, steps, every)]
        return [(np.asarray(r.n), np.asarray(r.d)) for r in met if r is not None]

    def factor_reads(self, s, t):
        first = self.run.first_t + 1
        return {k: first + t if k == "t" else self.value(k, t) for k in s.reads}

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


def ratio_of(factor, rounding, above_one):
    """The ratio of a factor; with above_one, that of its inverse the other way up."""
    factor = np.asarray(factor)
    rises = factor > 1
    if not (above_one and rises.any()):
        return Ratio.of(factor, rounding)
    down = Ratio.of(np.divide(1, factor, out=factor.copy(), where=rises), rounding)
    if not factor.ndim:
        return down.inverse
    given = None if down.given is None else factor
    return Ratio(np.where(rises, down.d, down.n), np.where(rises, down.n, down.d), given)
