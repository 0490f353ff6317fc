"""A step of a program in passes over memory: one forwards, two back, the second with its pull-back.

The bits of the state are those of one statement after the other. Where blocks cannot do what the
statements say, `advance` and `can_pull` say so, and the program goes statement by statement.
"""

import weakref
from functools import lru_cache, partial
from types import FunctionType

import numpy as np

from revgrad._ext import homes
from revgrad._ext.fused import cotangent_before
from revgrad.fixed import FusedStep, Segments, factor_of, kinds_of
from revgrad.statements import OF_LOSS, Scale, global_norm
from revgrad.step import Point, pull_function, wide


class Passes:
    """The steps of one program on one state, whose integers they change in place."""

    def __init__(self, program, state):
        # weakly: a cycle would keep the integers of a run until Python looks for cycles
        self.program = weakref.proxy(program)
        self.state, self.layout = state, program.layout
        self.latest, self.known = (None, {}, None), {}
        statements = program.statements
        back = tuple(program.order or range(len(statements))[::-1])
        order = [statements[i] for i in back]
        first = 1 + max((k for k, s in enumerate(order) if s.target == "params"), default=-1)
        nothing = np.zeros(self.layout.size, self.layout.dtype)
        self.no_g = homes.beside(nothing, self.layout.like)  # of g's kind, until it is known
        self.before, self.names = order[:first], {x for s in statements for x in _reads(s)}
        spreads, hyper = program.run.spreads, self.names - state.variables.keys() - OF_LOSS
        self.constant = "t" not in hyper and all(spreads[name].constant for name in hyper)
        self.takes_g = any("g" in s.reads for s in order)
        early = not any(OF_LOSS & {*s.reads} for s in self.before)
        self.apart = early and all(map(_stays, order, [order[k + 1 : first] for k in range(first)]))
        bound = {"variables": state.variables, "buffers": state.buffers}
        bound["segments"] = self.layout.ends[1:]
        pulled = {"pulled": order, "pull": _pull}
        kept = iter(_plans_of(statements, back, (*state.variables,)))
        self.ct_of_g = self._expression(order, next(kept))
        self.forward = FusedStep(statements, **bound, kept=next(kept))
        self.first_undo = FusedStep(self.before, undone=True, **bound, kept=next(kept))
        self.last_undo = FusedStep(order[first:], undone=True, **pulled, **bound, kept=next(kept))
        self.again = FusedStep(statements, **pulled, **bound, kept=next(kept))

    def _expression(self, order, kept):
        """The cotangent of g, made of what is known before g; None where it depends on more."""
        if not self.takes_g or OF_LOSS & self.names != {"g"}:
            return None
        if not kept:
            kept["g"] = cotangent_before("g", order, self.state.variables, _pull)
        return kept["g"]

    def advance(self, t, g):
        """Take step t. Returns False, with nothing done, where blocks cannot."""
        reads, ratios = self._at(t, g)
        return ratios is not None and self.forward.run_fused(reads, ratios, t)

    def can_pull(self, t):
        """Whether `retreat` and `visit` can do step t: both or neither, as their sums are one."""
        reads, ratios = self._at(t, self.no_g)
        into = {"g": reads["g"]} if self.takes_g else {}
        if not self.apart or ratios is None:
            return False
        kinds = tuple(kinds_of(ratios))  # of what is read, kinds are the same at every step
        if kinds not in self.known:
            steps = self.last_undo, self.again
            self.known[kinds] = all(step.fused(reads, ratios, into) for step in steps)
        return self.known[kinds]

    def retreat(self, t, cotangents, gradient):
        """Undo step t and pull cotangents back through its statements.

        gradient(leaves, early) -> (flat g, ...); early() is the cotangent of g, or early is None
        because it depends on g. Returns (leaves at the start of the step, what gradient returned,
        what was found: cotangents of what statements read, but the variables).
        """
        reads, ratios = self._at(t, None)
        self.first_undo.run(*_of(self.before, reads, ratios))
        leaves, known = self._linearize(gradient, t, cotangents)
        return leaves, known, self._pull(self.last_undo, t, known[0], cotangents)

    def visit(self, t, cotangents, gradient):
        """Take step t; returns what `retreat` does."""
        leaves, known = self._linearize(gradient, t, cotangents)
        return leaves, known, self._pull(self.again, t, known[0], cotangents)

    def _linearize(self, gradient, t, cotangents):
        leaves = self.program.decode(self.state.variables["params"])
        early = partial(self._ct_of_g, t, cotangents) if self.ct_of_g else None
        return leaves, gradient(leaves, early)

    def _ct_of_g(self, t, cotangents):
        """The cotangent of g at step t, before g is known."""
        reads, ratios = self._at(t, None)
        numbers = reads | {f"factor {name}": factor_of(x) for name, x in ratios.items()}
        known = {name: self._spread(x) for name, x in numbers.items()}
        return self.ct_of_g(known | {f"ct {name}": ct for name, ct in cotangents.items()})[0]

    def _spread(self, x):
        """A number as it is, or one for each weight."""
        return np.repeat(x.values, np.diff(self.layout.ends)) if isinstance(x, Segments) else x

    def _pull(self, step, t, g, cotangents):
        reads, ratios = self._at(t, g)
        into = {"g": np.empty_like(self.no_g)} if self.takes_g else {}
        return step.run(reads, ratios, {}, cotangents, into)

    def _at(self, t, g):
        """(reads, ratios or None) of step t."""
        at = 0 if self.constant else t
        if self.latest[0] != at:
            self.latest = at, *self._of_hyper(t)
        _, reads, ratios = self.latest
        of_g = {}
        if g is not None and "g" in self.names:
            of_g["g"] = g
        if g is not None and "g_norm" in self.names:
            of_g["g_norm"] = homes.home(global_norm([wide(g)]))
        return reads | of_g, ratios

    def _of_hyper(self, t):
        """(reads, ratios or None) of step t, but for what is of the loss."""
        program, now = self.program, self.program.run.first_t + t + 1
        names = self.names - self.state.variables.keys() - OF_LOSS
        reads = {name: now if name == "t" else program.schedule.at(name, t) for name in names}
        ratios = {}
        for s in program.statements:
            if isinstance(s, Scale):
                ratio = program.schedule.ratio_at(s, reads, t)
                if ratio is None or not getattr(ratio, "values", ratio).narrow:
                    return reads, None
                ratios[s.target] = ratio
        return reads, ratios


def _plans_of(statements, order, variables):
    """What runs with such statements have made before: an expression, and plans of four steps."""
    functions = [s.by if isinstance(s, Scale) else s.delta for s in statements]
    if not all(map(_is_ours, functions)):
        return tuple({} for _ in range(5))
    form = [
        (s.target, s.reads, getattr(s, "above_one", None), getattr(f, "__code__", f))
        for s, f in zip(statements, functions, strict=True)
    ]
    return _plans((*form, order, variables))


def _is_ours(function):
    """Whether a name, a number or a function of revgrad's own, which reads nothing that changes."""
    if isinstance(function, (str, int, float)):
        return True
    plain = isinstance(function, FunctionType) and function.__closure__ is None
    return plain and str(function.__module__).startswith("revgrad.") and not function.__kwdefaults__


@lru_cache(64)
def _plans(form):
    return tuple({} for _ in range(5))


def _stays(s, after):
    """Whether what the pull-back through s needs is still there when `after` are undone too."""
    needs = {*s.reads, s.target} if isinstance(s, Scale) else {*s.reads}
    return not any(other.target in needs for other in after)


def _reads(s):
    return () if isinstance(s, Scale) and s.literal else s.reads


def _of(statements, reads, ratios):
    """Those of some statements alone."""
    names = {x for s in statements for x in _reads(s)}
    targets = {s.target for s in statements if isinstance(s, Scale)}
    return {k: x for k, x in reads.items() if k in names}, {
        k: x for k, x in ratios.items() if k in targets
    }


def _pull(function, reads, ct):
    return pull_function(function, Point(None, reads), ct) if callable(function) else []


class NoPasses:
    """Of a program whose statements are about two vectors of their own lengths, params and aux."""

    def __init__(self, _program, state):
        self.state = state

    def advance(self, t, g):
        return False

    def can_pull(self, t):
        return False
