"""What rounding does to a run: the most it can have done, and whether any weights drown in it.

A scale by n/d leaves a digit of its own in place of what it destroys, which is noise of up to n
ulp. Where a step divides by a variable, as Adam does by the root of its second moment, a weight
whose gradients are far smaller than the largest has a variable of few ulp, and noise for a step.
"""

import warnings
from math import log2, sqrt

import numpy as np

from revgrad._ext import homes
from revgrad.errors import PrecisionWarning
from revgrad.statements import Scale, global_norm
from revgrad.step import wide

DROWNED = 0.01  # of the largest step: a change of it that counts
WORTH_A_WARNING = 0.01  # of the weights
ENOUGH = 10_000  # weights to look at
STILL = 1e3  # ulp of the params: steps below move nothing
SAFE = 1e4  # eps_root in units of late noise: early on, bias correction amplifies noise
DIGIT = 1 / sqrt(6)  # spread of (digit that comes) - (digit that goes) n/d, in n ulp


class NoiseWatch:
    """Looks at a few steps of a program for weights that drown; called before a step's statements.

    Statements act entry by entry, so of many weights every k-th will do.
    share: the largest share of weights found whose step changes by more than 1% of the largest when
    a variable moves by its typical noise; variable: which.
    """

    def __init__(self, program, steps):
        self.program, self.share, self.variable, self.noise = program, 0.0, None, 0.0
        self.looks = {1, steps // 4, steps // 2, steps - 1} - {0}
        of_aux = program.run.optimizer.aux_variables
        self.statements = [s for s in program.statements if s.target not in of_aux]
        self.part = slice(None, None, max(1, program.layout.size // ENOUGH))

    def __call__(self, t, state, g):
        if t not in self.looks:
            return
        g = homes.home(wide(g))
        variables = {s.target: state.variables[s.target] for s in self.statements}
        variables["params"] = state.variables["params"]
        integers = {k: homes.to_host(x.values[self.part]) for k, x in variables.items()}
        values = {k: integers[k] * 2.0**-x.fraction_bits for k, x in variables.items()}
        with np.errstate(all="ignore"):
            plain = self._step(values, t, g)
            largest = np.max(np.abs(plain - values["params"]), initial=0.0)
            if not largest > STILL * 2.0 ** -state.variables["params"].fraction_bits:
                return
            for name, x in variables.items():
                noise = self._typical(name, t) * 2.0**-x.fraction_bits
                if noise and name != "params":
                    shaken = values | {name: values[name] + noise}
                    moved = np.abs(self._step(shaken, t, g) - plain) > DROWNED * largest
                    if np.mean(moved) > self.share:
                        self.share, self.variable, self.noise = float(np.mean(moved)), name, noise

    def _typical(self, name, t):
        """Noise of a variable after t steps, in ulp: a root of a sum of squares."""
        total = 0.0
        for s in self.statements:
            if isinstance(s, Scale) and s.target == name:
                for n, d in self.program.schedule.ratios_met(s, t):
                    lasts = np.minimum(d / np.maximum(2 * (d - n), 1), t)
                    total += float(np.max((n < d) * (DIGIT * n) ** 2 * lasts, initial=0.0))
        return sqrt(total)

    def _step(self, values, t, g):
        """The params after a step in floats, by the statements as they are."""
        program, values = self.program, dict(values)
        known = {"g": g[self.part], "t": program.run.first_t + t + 1}
        if "g_norm" in program.run.optimizer.reads:
            known["g_norm"] = global_norm([g])

        def read(name):
            found = values.get(name, known.get(name))
            if found is None:
                found = program.schedule.value(name, t)
                return found[self.part] if np.ndim(found) else found
            return found

        for s in self.statements:
            values[s.target] = s.of(values[s.target], {name: read(name) for name in s.reads})
        return values["params"]

    def report(self, report):
        """Put the share in the report, and warn of a large one with advice."""
        report.drowned = self.share
        if self.share <= WORTH_A_WARNING:
            return
        name = self.variable
        bits, (largest, reach) = report.fraction_bits[name], report.largest[name]
        room = int(log2(reach / largest)) - 6 if largest else 0
        if room >= 4:
            cure = (
                f"Its largest value, {largest:.2g}, leaves room for "
                f"FixedPoint(fraction_bits={{{name!r}: {bits + room}}})."
            )
        else:
            late = self._typical(name, report.steps) * 2.0**-bits
            cure = (
                "Bring the gradients of all weights nearer to one size (standardise inputs, scale "
                f"layers alike), pass eps_root={SAFE * late:.0e} if the optimizer has it, or "
                "adjoint=Unrolled(), which has no such noise."
            )
        warnings.warn(
            f"{self.share:.1%} of the weights take steps that are rounding noise by more than 1%: "
            f"their {name} is small against the noise of {self.noise:.1e} that it has with {bits} "
            f"fraction bits. {cure}",
            PrecisionWarning,
            stacklevel=2,
        )
