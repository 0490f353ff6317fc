"""Columns: directions in what a run starts from, along which tangents are carried."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from revgrad._ext import homes
from revgrad.rules.row import shape_of


@dataclass(slots=True)
class Columns:
    """Tangents of a run's values: per leaf None (zero) or an array with a leading axis of columns.

    first: the step at which each column begins to matter, ascending. shared: per column, how many
    steps from there on share the value that it is about; 0 for what is no hyperparameter.
    """

    params: list
    warm: dict
    optimizer: dict
    hyper: list
    first: Any
    shared: Any = None
    found: tuple = field(default=(None, None))  # what `groups` found last, and for what

    @classmethod
    def of(cls, tree, values, first, shared=None):
        """From a tree of tangents like [params, warm, optimizer, hyper].

        Those of the optimizer's hyperparameters are put on the host, others beside their leaves.
        """
        params, warm, optimizer, hyper = tree
        filled = {}
        for name, found in optimizer.items():
            if any(x is not None for x in found):
                zeros = [np.zeros((len(first), *shape_of(v))) for v in values.optimizer[name]]
                pairs = zip(found, zeros, strict=True)
                filled[name] = [z if x is None else homes.home(x) for x, z in pairs]
        pairs = zip(hyper, values.hyper, strict=True)
        hyper = [x if x is None else homes.beside(x, leaf) for x, leaf in pairs]
        return cls(params, warm, filled, hyper, first, shared)

    def arrays(self):
        """All of them that are there, in some fixed order."""
        leaves = [*self.params, *(x for k in sorted(self.warm) for x in self.warm[k])]
        leaves += [x for k in sorted(self.optimizer) for x in self.optimizer[k]]
        return [x for x in (*leaves, *self.hyper, self.first) if x is not None]

    def count(self, t):
        """How many columns matter at step t: the first ones."""
        return int(np.searchsorted(self.first, t, side="right"))

    def hyper_at(self, t, every, part):
        """Tangents of the loss's hyper leaves at step t, of a slice of the columns, or None."""
        pairs = zip(self.hyper, every, strict=True)
        return [x if x is None else x[part] if e is None else x[part, t // e] for x, e in pairs]

    def optimizer_at(self, name, spread, t, layout, lo, hi):
        """Tangents of an optimizer hyperparameter at step t: (columns,) or (columns, weights).

        Where the weights are.
        """
        values = self.optimizer[name]
        if spread.scalar:
            x, every = values[0][lo:hi], spread.every[0]
            now = np.reshape(x if every is None else x[:, t // every], hi - lo)
            return homes.beside(now, layout.like)
        rows = np.empty((hi - lo, layout.size))
        for j, row in enumerate(rows, lo):
            row[:] = spread.flat([x[j] for x in values], t, layout)
        return homes.beside(rows, layout.like)

    def groups(self, t, spreads, now):
        """(lo, hi, names of the optimizer hyperparameters that columns lo to hi move at step t)."""
        slots = {k: [e and t // e for e in spreads[k].every] for k in self.optimizer}
        asked = now, slots
        if self.found[0] != asked:
            moving = [self._moving(k, slots[k], now) for k in slots]
            ends = {0, now}
            for m in moving:
                ends.update((1 + np.flatnonzero(m[1:] != m[:-1])).tolist())
            ends = sorted(ends)
            names = [
                frozenset(k for k, m in zip(slots, moving, strict=True) if m[lo])
                for lo in ends[:-1]
            ]
            self.found = asked, [*zip(ends, ends[1:], names, strict=False)]
        return self.found[1]

    def _moving(self, name, slots, now):
        """Which of the first `now` columns move an optimizer hyperparameter."""
        found = np.zeros(now, bool)
        for x, slot in zip(self.optimizer[name], slots, strict=True):
            here = x[:now] if slot is None else x[:now, slot]
            found |= np.any(np.reshape(here, (now, -1)), axis=1)
        return found


def units(leaves, wanted, every, initial, steps):
    """(tangents, first steps, steps that share, order): a column for each entry of some leaves.

    wanted: which flat leaves; every: per leaf, the PerStep's `every` or None; initial: how many of
    the leaves, the first ones, are no hyperparameters. Columns are in the order in which they
    begin to matter; `scatter` puts what belongs to them in the order of the leaves.
    """
    sizes = [prod(shape_of(leaves[i])) for i in wanted]
    first, shared = [np.zeros(0, int)], [np.zeros(0, int)]
    for i, size in zip(wanted, sizes, strict=True):
        slot = np.zeros(size, int)
        if every[i] is not None:
            slot = np.arange(size) // max(1, prod(shape_of(leaves[i])[1:])) * every[i]
        first.append(slot)
        shared.append(np.full(size, 0 if i < initial else steps if every[i] is None else every[i]))
    first, shared = np.concatenate(first), np.concatenate(shared)
    order = np.argsort(first, kind="stable")
    tangents, lo = [None] * len(leaves), 0
    for i, size in zip(wanted, sizes, strict=True):
        rows = (order[:, None] == lo + np.arange(size)).astype(float)
        tangents[i] = rows.reshape(len(order), *shape_of(leaves[i]))
        lo += size
    return tangents, first[order], shared[order], order


def scatter(found, order, leaves, wanted):
    """Numbers per column, as arrays like the wanted leaves."""
    flat, lo, out = np.empty(len(order)), 0, []
    flat[order] = found
    for i in wanted:
        size = prod(shape_of(leaves[i]))
        out.append(flat[lo : lo + size].reshape(shape_of(leaves[i])))
        lo += size
    return out
