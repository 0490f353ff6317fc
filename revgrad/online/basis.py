"""The directions in which what learns may move, and the bounds within which it does."""

import numpy as np

from revgrad._ext import homes
from revgrad.online.knobs import Knobs


class Basis:
    """The directions of what learns: the numbers of the knobs, the loss's hyper among them."""

    def __init__(self, level, values, moving):
        self.level, self.values, self.moving = level, values, moving
        self.spans, self.size = level.knobs.spans, level.knobs.layout.size
        self.kept = {}  # directions that never change, and are only numbers

    def unit(self, k):
        """Tangents of one number: (those of hyperparameters, those of the loss's hyper)."""
        if k in self.kept:
            return self.kept[k]
        one = np.zeros(self.size)
        one[k] = 1
        by_name, of_hyper = found = self.along(one)
        still = of_hyper is None and self.level.knobs.maps.keys().isdisjoint(by_name)
        if still and all(type(x) is float for x in by_name.values()):
            self.kept[k] = found
        return found

    def along(self, direction):
        knobs, found = self.level.knobs, {}
        for name, slot in knobs.slots.items():
            t = direction[slot]
            if t.any():
                found[name] = self._spread(name, t * knobs.slopes.get(name, 1.0))
        span = self.spans.get("hyper")
        if span is None or not direction[span].any():
            return found, None
        return found, like(direction[span], [self.values.hyper[k] for k in self.moving])

    def _spread(self, name, t):
        knobs = self.level.knobs
        if knobs.spreads[name].scalar:
            return float(t[0])
        return knobs.flat(name, knobs.leaves(name, t), self.level.dtype)

    def shared(self):
        """[(name, where all its values lie)], name None for what is a single number."""
        spreads, found = self.level.knobs.spreads, []
        for name, span in self.spans.items():
            if name in spreads and not spreads[name].scalar:
                found.append((name, span))
            else:
                found += [(None, slice(k, k + 1)) for k in range(span.start, span.stop)]
        return found

    def together(self, span):
        """Tangents of all numbers of a span, moved alike."""
        ones = np.zeros(self.size)
        ones[span] = 1
        return self.along(ones)

    def split(self, name, ct):
        """Sums of entries like the params' over what each value of a hyperparameter is for."""
        return self.level.knobs.collected(name, ct)


class BoundedKnobs(Knobs):
    """Numbers that stay within bounds: what would leave them is put on the edge."""

    def narrow(self, bounds):
        if unknown := {*(bounds or {})} - {*self.spans}:
            raise ValueError(f"RTRL(bounds=...) has {sorted(unknown)}; {[*self.spans]} learn.")
        for name, (low, high) in (bounds or {}).items():
            self.low[self.spans[name]], self.high[self.spans[name]] = low, high
        self.check(None)

    def check(self, step):
        if step is not None:
            np.maximum(self.raw, self.low, out=self.raw)
            np.minimum(self.raw, self.high, out=self.raw)
        super().check(step)


def like(flat, leaves):
    """A flat vector as leaves in the shapes and kinds of these, where they are."""
    found, lo = [], 0
    for x in leaves:
        hi = lo + np.size(x)
        part = flat[lo:hi].reshape(np.shape(x)).astype(np.result_type(x))
        lo = hi
        if not isinstance(x, np.ndarray):  # a number, NumPy's or Python's, or an array elsewhere
            part = float(part) if type(x) is float else part[()]
        found.append(homes.beside(part, x))
    return found
