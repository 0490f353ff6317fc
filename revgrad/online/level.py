"""An optimizer bound to a flat vector: its step in floats, and the derivative of that one step.

Both follow from the statement list, by `Optimizer.float_step` under `jvp`; they are
recorded once and replayed.
"""

import numpy as np

from revgrad._ext import homes
from revgrad.online.knobs import Knobs
from revgrad.online.lifting import Lifted
from revgrad.online.recorded import Recorded, RecordedPair
from revgrad.transforms import jvp, vjp


class Level:
    """One optimizer of a tower, or the one below whatever tunes it.

    optimizer, spreads, values: with hyperparameters as `arguments.spread_hyper` takes them apart.
    state: variable -> flat vector, "params" included, all of one dtype; layout_of(name): the layout
    of a variable or hyperparameter. first_t: steps taken before.
    knobs: the Knobs that learn, or None. mode: whether "pull" or "push" may follow a step; to be
    set before the first one.
    """

    def __init__(self, optimizer, spreads, values, state, layout_of, *, first_t=0):
        self.optimizer, self.spreads = optimizer, spreads
        self.values = {k: [homes.home(v) for v in vs] for k, vs in values.items()}
        self.state, self.layout_of, self.first_t = state, layout_of, first_t
        self.mode, self.dtype, knobs = "pull", state["params"].dtype, None
        if optimizer.tuned_by is not None:
            knobs = Knobs(optimizer, spreads, {name: layout_of(name) for name in spreads})
        self.knobs = knobs
        self.names = ["params", *optimizer.variables]
        self.of_loss = [x for x in ("g", "aux") if {x, f"{x}_norm"} & optimizer.reads]
        self.tuned = [*knobs.slots] if knobs else []
        self.hyper = [*self.tuned, *(name for name in values if name not in self.tuned)]
        self.now = knobs.values() if knobs else {}  # the values that learn, as last used
        self.fixed = {n: self._given(n, 0) for n in self.hyper if n not in self.tuned}
        self.moving = [n for n in self.fixed if not spreads[n].constant]
        self.recorded, self.then, self.pulled, self.latest = None, None, None, None

    def _given(self, name, t):
        spread, values = self.spreads[name], self.values[name]
        if spread.scalar:
            return float(spread.at_leaf(values, 0, t))
        layout = self.layout_of(name)
        return homes.beside(spread.flat(values, t, layout, self.dtype), layout.like)

    # One step.

    def step(self, t, g, aux=None):
        """Take step t: new variables in `state`; g, aux: flat."""
        for name in self.moving:
            self.fixed[name] = self._given(name, t)
        first = [self.state[name] for name in self.names]
        first += [g if name == "g" else aux for name in self.of_loss]
        first.append(float(self.first_t + t + 1))
        if self.knobs:
            self.now = self.knobs.values()
            first += [self.knobs.flat(name, x, self.dtype) for name, x in self.now.items()]
        first += self.fixed.values()
        if self.recorded is None:
            self.recorded = self._record(first)
        out = self.recorded(*first)
        if self.mode == "push":
            out, self.then = out
        self.state, self.latest = dict(zip(self.names, out, strict=True)), (first, out)

    def pull(self, ct):
        """Cotangent of the raw knobs from one of the params after the latest step, both flat.

        What the step found (older params, variables and the gradient, which must still be there)
        counts as given: that is the one-step derivative.
        """
        inputs, after = [*self.latest[0], ct], self.latest[1]
        if self.pulled is None:
            self.pulled = Lifted(self._pulled, inputs, after)
        return self.knobs.pull(dict(zip(self.tuned, self.pulled(inputs, after), strict=True)))

    def push(self, tangents, g=None, knobs=None):
        """Turn tangents of the variables before the latest step, by name, into those after it.

        tangents: flat and contiguous, changed in place. g: the tangent of the gradient; knobs: name
        -> that of a hyperparameter as `Knobs.flat` gives it; None is zero.
        """
        second = [tangents[name] for name in self.names]
        second += [self._zero() if g is None else g] if "g" in self.of_loss else []
        for name in self.tuned:
            t = (knobs or {}).get(name)
            if t is None:
                t = 0.0 if self.spreads[name].scalar else self._zero()
            second.append(t)
        self.then(*second)

    def _zero(self):
        return np.zeros_like(self.state["params"])

    # What is recorded.

    def _apart(self, args):
        """(variables, g and aux, t, those that learn, the other hyperparameters) of flat args."""
        n, m = len(self.names), len(self.of_loss)
        tuned = n + m + 1 + len(self.tuned)
        rest = dict(zip(self.hyper[len(self.tuned) :], args[tuned:], strict=True))
        return args[:n], args[n : n + m], args[n + m], args[n + m + 1 : tuned], rest

    def _after(self, variables, of_loss, t, tuned, rest):
        """The variables after a step, as a list."""
        hyper = dict(zip(self.tuned, tuned, strict=True)) | rest
        loss = dict(zip(self.of_loss, of_loss, strict=True))
        now = {name: [x] for name, x in zip(self.names, variables, strict=True)}
        g = [loss["g"]] if "g" in loss else []
        aux = [loss["aux"]] if "aux" in loss else None
        after = self.optimizer.float_step(now, g, lambda name, _: hyper[name], t, aux)
        return [after[name][0] for name in self.names]

    def _record(self, first):
        if self.mode == "pull":
            return Recorded(lambda *args: self._after(*self._apart(args)), first, turns=True)
        return RecordedPair(self._pushed, first, self._make_second)

    def _pulled(self, *args):
        """The variables after a step, and the cotangents of those that learn from the params'."""
        *args, ct = args
        variables, of_loss, t, tuned, rest = self._apart(args)
        after = self._after(variables, of_loss, t, tuned, rest)
        params = lambda *x: self._after(variables, of_loss, t, x, rest)[0]
        return [*after, *vjp(params, *tuned)[1](ct)]

    def _pushed(self, *args):
        variables, of_loss, t, tuned, rest = self._apart(args)
        moving = [*variables, *(of_loss[:1] if "g" in self.of_loss else []), *tuned]
        n, m = len(variables), len(moving) - len(tuned)

        def f(*x):
            return self._after(x[:n], [*x[n:m], *of_loss[m - n :]], t, x[m:], rest)

        def then(*tangents):
            return jvp(f, tuple(moving), tuple(tangents))[1]

        return f(*moving), then

    def _make_second(self, _):
        """Values like what the pushed function takes, for the recording."""
        ones = np.ones_like(self.state["params"])
        found = [np.ones_like(self.state[name]) for name in self.names]
        found += [ones] if "g" in self.of_loss else []
        return found + [1.0 if self.spreads[name].scalar else ones for name in self.tuned]
