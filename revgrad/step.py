"""The statements of one step: done, undone, and pulled back through."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from revgrad._ext import homes
from revgrad.statements import OF_LOSS, Scale, global_norm
from revgrad.transforms import vjp


@dataclass(slots=True, eq=False)
class Point:
    """Where a statement was executed: what it read and, for Scale, what it scaled and by what."""

    statement: Any
    reads: dict
    before: Any = None
    factor: Any = None


def wide(g):
    """A gradient as statements read it, in float64."""
    return None if g is None else g.astype(np.float64, copy=False)


class Step:
    """The values that the statements of step t read, decoded once each."""

    def __init__(self, program, state, t, g=None, aux=None):
        self.program, self.state, self.t, self.g, self.aux = program, state, t, wide(g), aux
        self.decoded, self.at_start = {}, None

    def linearized_gradient(self):
        """(params leaves, pull-back of g) at the params as they are now; sets g."""
        if self.at_start is None:
            leaves = self.program.layout.leaves(self.state.variables["params"])
            g, *aux, pull = self.program.gradient.with_pullback(leaves, self.t)
            self.g = wide(g)
            self.aux = aux[0] if aux else None
            self.at_start = leaves, pull
        return self.at_start

    def read(self, name):
        if name in OF_LOSS:
            if self.g is None:
                self.linearized_gradient()
            return self._norm() if name == "g_norm" else getattr(self, name)
        if name == "t":
            return self.program.run.first_t + self.t + 1
        if name not in self.state.variables:
            return self._beside(self.program.schedule.value(name, self.t))
        if name not in self.decoded:
            self.decoded[name] = self.state.variables[name].decode()
        return self.decoded[name]

    def _beside(self, x):
        """A vector where the state is; numbers stay."""
        return homes.beside(x, self.program.layout.like) if np.ndim(x) else x

    def _on_host(self, s):
        """What a factor is made of."""
        return self.program.schedule.factor_reads(s, self.t)

    def _norm(self):
        if "g_norm" not in self.decoded:
            self.decoded["g_norm"] = global_norm([self.g])
        return self.decoded["g_norm"]

    def do(self, s):
        reads = {name: self.read(name) for name in s.reads}
        target, point = self.state.variables[s.target], Point(s, reads)
        if isinstance(s, Scale):
            ratio, factor = self.program.schedule.factor(s, self._on_host(s), self.t)
            point.factor = self._beside(factor)
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
            ratio, factor = self.program.schedule.factor(s, self._on_host(s), self.t)
            point.factor = self._beside(factor)
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


def pull_scale(point, cts):
    """Pairs (name, cotangent) of what a factor is made of; scales the target's cotangent."""
    s, ct = point.statement, cts[point.statement.target]
    ct_factor = ct * point.before
    if not np.ndim(point.factor):
        ct_factor = np.sum(ct_factor)
    cts[s.target] = ct * point.factor
    if s.literal:
        return []
    return [(s.by, ct_factor)] if isinstance(s.by, str) else pull_function(s.by, point, ct_factor)


def pull_add(point, cts):
    return pull_function(point.statement.delta, point, cts[point.statement.target])


def pull_function(function, point, ct):
    reads = {k: v for k, v in point.reads.items() if k != "t"}
    rest = {k: v for k, v in point.reads.items() if k == "t"}
    out, pullback = vjp(lambda xs: function(**xs, **rest), reads)
    if not np.ndim(out):
        ct = np.sum(ct)
    return pullback(ct)[0].items()


def pull_norm(g, ct):
    """The cotangent of g that one of its norm gives: 0 at 0."""
    norm = homes.home(global_norm([g]))
    return ct / norm * g if norm else np.zeros_like(g)
