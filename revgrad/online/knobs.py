"""The hyperparameters of an optimizer that learn, as one flat vector of raw numbers."""

import numpy as np
import optree

from revgrad._ext import homes
from revgrad.errors import LeftDomain
from revgrad.hyper import is_per_step
from revgrad.online.recorded import Recorded
from revgrad.state import Layout
from revgrad.transforms import jvp
from revgrad.tuning import domain_of, transform_of, tuned_names

FEW = 8  # numbers up to which Python is faster than NumPy


class Knobs:
    """What learns at one level: raw numbers in float64, in the layout of a tree by name.

    optimizer: whose they are; spreads: name -> Spread; below: name -> the layout it spreads over.
    raw: as they are now. slots: name -> where its numbers lie. more: name -> tree of numbers that
    learn beside them, which `spans` has too.
    Raises: TypeError for one that varies in time; ValueError for a start outside its domain.
    """

    def __init__(self, optimizer, spreads, below, more=None):
        self.optimizer, self.spreads, self.below = optimizer, spreads, below
        names = tuned_names(optimizer)
        tree = {name: self._raw(name) for name in names} | (more or {})
        leaves, treedef = optree.tree_flatten(tree)
        self.layout = Layout(leaves, treedef)
        self.raw, self.spans, lo = self.layout.join(leaves), {}, 0
        for name in sorted(tree):  # as the layout is
            hi = lo + sum(np.size(x) for x in optree.tree_leaves(tree[name]))
            self.spans[name], lo = slice(lo, hi), hi
        self.slots = {name: self.spans[name] for name in names}
        self.maps = {name: self._map(name) for name in names if transform_of(optimizer, name)}
        self.low, self.high = (self._bounds(k) for k in (0, 1))
        self.slopes = {}
        self.check(None)

    def _raw(self, name):
        given, constraint = self.optimizer.hyper[name], transform_of(self.optimizer, name)
        leaves = optree.tree_leaves(given, is_leaf=is_per_step)
        if any(map(is_per_step, leaves)):
            raise TypeError(
                f"{self.optimizer.name}({name}=...) is a per_step and is tuned; let it be one or "
                "the other: tuned=(...) names those that learn."
            )
        given = optree.tree_map(lambda x: np.asarray(homes.home(x), np.float64), given)
        return given if constraint is None else constraint.inverse(given)

    def _map(self, name):
        """Raw numbers -> [the hyperparameter, its slope], entry by entry."""
        constraint = transform_of(self.optimizer, name)
        f = lambda raw: list(jvp(constraint.forward, (raw,), (np.ones_like(raw),)))
        return Recorded(f, [self.raw[self.slots[name]]])

    def _bounds(self, k):
        bounds = np.full(self.layout.size, (-np.inf, np.inf)[k])
        for name, slot in self.slots.items():
            bounds[slot] = domain_of(self.optimizer, name)[k]
        return bounds

    def check(self, step):
        """Raises: LeftDomain where a number is outside its domain, or not finite."""
        if len(self.raw) <= FEW:
            rows = zip(self.raw.tolist(), self.low.tolist(), self.high.tolist(), strict=True)
            if all(low <= x <= high and x - x == 0 for x, low, high in rows):
                return
        inside = (self.raw >= self.low) & (self.raw <= self.high) & np.isfinite(self.raw)
        if inside.all():
            return
        k = int(np.argmin(inside))
        name = next(name for name, slot in self.spans.items() if slot.start <= k < slot.stop)
        when = "at the start" if step is None else f"at step {step}"
        raise LeftDomain(
            f"{self.optimizer.name}({name}=...) is {self.raw[k]:.6g} {when}, outside "
            f"[{self.low[k]:g}, {self.high[k]:g}] or not finite. Use a smaller step for what tunes "
            f"it, or a transform that keeps it inside: transforms={{{name!r}: "
            f'"{"sigmoid" if self.high[k] <= 1 else "exp"}"}}; "free" lets it go where it will.',
            name=name,
            step=step,
        )

    def values(self):
        """Name -> the hyperparameter: a Python float, or its leaves as arrays."""
        found = {}
        for name, slot in self.slots.items():
            if self.spreads[name].scalar and name not in self.maps:
                found[name] = self.raw.item(slot.start)
                continue
            x, slope = self.raw[slot], 1.0
            if name in self.maps:
                x, slope = self.maps[name](x)
            scalar = self.spreads[name].scalar
            found[name] = x.item() if scalar else self.leaves(name, x)
            self.slopes[name] = slope.item() if scalar else slope
        return found

    def leaves(self, name, x):
        """A flat vector as the leaves of a hyperparameter."""
        lo, leaves = 0, []
        for like in optree.tree_leaves(self.optimizer.hyper[name]):
            leaves.append(x[lo : lo + np.size(like)].reshape(np.shape(like)))
            lo += np.size(like)
        return leaves

    def flat(self, name, value, dtype):
        """A hyperparameter as statements on a flat vector read it, where that is."""
        spread, layout = self.spreads[name], self.below[name]
        if spread.scalar:
            return value
        return homes.beside(spread.flat(value, 0, layout, dtype), layout.like)

    def pull(self, cotangents):
        """Cotangent of the raw numbers. cotangents: name -> one as `flat` has it."""
        out = np.empty(self.layout.size)
        for name, slot in self.slots.items():
            ct, slope = cotangents[name], self.slopes.get(name, 1.0)
            if self.spreads[name].scalar:
                out[slot.start] = float(ct) * slope
            else:
                out[slot] = self.collected(name, ct) * slope
        return out

    def collected(self, name, ct):
        """The transpose of `flat`."""
        leaves = optree.tree_leaves(self.optimizer.hyper[name])
        parts = [np.zeros(np.shape(x)) for x in leaves]
        self.spreads[name].collect(parts, ct.astype(np.float64), 0, self.below[name])
        return np.concatenate([np.ravel(x) for x in parts])
