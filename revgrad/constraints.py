"""Hyperparameters within bounds: maps from all real numbers, and back.

hyper = {"raw_rate": rg.positive.inverse(0.1)}          # what an outer loop changes freely
optimizer = rg.Momentum(rg.positive(hyper["raw_rate"]))  # what training sees
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optree


@dataclass(frozen=True, eq=False)
class Constraint:
    """A map from real numbers onto a set, leaf by leaf of a tree; differentiable.

    constraint(raw) -> values in the set; constraint.inverse(values) -> raw, so that the map of it
    gives values back up to rounding. Python numbers become float64.
    Raises: ValueError from `inverse`, with the leaf's path, for values outside the set.
    """

    name: str
    set: str
    forward: Any = field(repr=False)
    backward: Any = field(repr=False)
    contains: Any = field(repr=False)

    def __call__(self, raw):
        return optree.tree_map(self.forward, raw)

    def inverse(self, values):
        return optree.tree_map_with_accessor(self._checked, values)

    def _checked(self, accessor, x):
        if not np.all(self.contains(np.asarray(x))):
            where = accessor.codify("values") if len(accessor) else "values"
            raise ValueError(f"{self.name}.inverse: {where} = {x}; {self.set} is wanted.")
        return self.backward(x)


def _softmax(raw):
    e = np.exp(raw - np.max(raw, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def _sigmoid(raw):
    return 0.5 * (1 + np.tanh(0.5 * raw))  # without overflow at either end


positive = Constraint(
    "positive", "a number above 0", np.exp, np.log, lambda x: (x > 0) & np.isfinite(x)
)
unit_interval = Constraint(
    "unit_interval",
    "a number between 0 and 1, neither included",
    _sigmoid,
    lambda p: np.log(p) - np.log1p(-p),
    lambda p: (p > 0) & (p < 1),
)
half_tanh = Constraint(
    "half_tanh",
    "a number between 0 and 1, neither included",
    lambda raw: 0.5 * (np.tanh(raw) + 1),
    lambda p: np.arctanh(2 * p - 1),
    lambda p: (p > 0) & (p < 1),
)
squared = Constraint(
    "squared", "a number above 0", np.square, np.sqrt, lambda x: (x > 0) & np.isfinite(x)
)
simplex = Constraint(
    "simplex",
    "positive numbers whose sum along the last axis is 1",
    _softmax,
    np.log,
    lambda p: (p > 0) & (np.abs(np.sum(p, axis=-1, keepdims=True) - 1) < 1e-6),
)
