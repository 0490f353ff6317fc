"""Hyperparameters over time (`per_step`) and over the params (tree prefixes)."""

from dataclasses import dataclass
from math import ceil, inf
from numbers import Real
from typing import Any

import numpy as np
import optree

from revgrad._ext import homes
from revgrad.rules.row import shape_of


@dataclass(frozen=True, eq=False)
class PerStep:
    """Values with a leading axis of steps; made by `per_step`."""

    values: Any
    every: int = 1


def per_step(values, every=1):
    """Let a hyperparameter vary in time.

    values: an array (or a tree of arrays) whose leading axis is step // every; or a function of the
    step, asked at steps 0, every, 2 every, ... (a warm-up, a cosine). Traced values are fine.
    Raises: ValueError for every < 1; `train` raises it where the axis does not fit its steps.
    """
    return PerStep(values, whole_number(every, "every", 1))


class HyperTree:
    """The loss's hyper but for its float leaves; a call with these puts it together.

    form: what two equal ones have in common.
    """

    def __init__(self, tree, leaves, floats):
        self.tree, self.floats, self.leaves = tree, floats, list(leaves)
        for i in floats:
            self.leaves[i] = None
        self.form = tree, tuple(floats), tuple((type(x), x) for x in self.leaves)

    def __call__(self, now):
        leaves = list(self.leaves)
        for i, x in zip(self.floats, now, strict=True):
            leaves[i] = x
        return optree.tree_unflatten(self.tree, leaves)


def whole_number(x, name, least):
    """x as an int. Raises: ValueError with the name unless x is whole and at least `least`."""
    real = isinstance(x, Real) and not isinstance(x, bool)
    if not real or not least <= x < inf or x != int(x):
        raise ValueError(f"{name}={x!r}; a whole number, {least} or more, is wanted.")
    return int(x)


def is_per_step(x):
    return isinstance(x, PerStep)


def resolve(tree, steps):
    """The tree with every PerStep at a leaf and holding one array of ceil(steps / every) rows."""
    tree = optree.tree_map(lambda x: _expand(x, steps), tree, is_leaf=is_per_step)
    for path, leaf in zip(*_paths_and_leaves(tree), strict=True):
        if is_per_step(leaf):
            _check_length(path, leaf, steps)
    return tree


def _expand(x, steps):
    if not is_per_step(x):
        return x
    values = x.values
    if callable(values):
        rows = [values(t) for t in range(0, max(steps, 1), x.every)]
        values = optree.tree_map(lambda *r: np.stack([*map(_as_array, r)]), rows[0], *rows[1:])
    return optree.tree_map(lambda v: PerStep(_as_array(v), x.every), values)


def _as_array(x):
    return x if hasattr(x, "dtype") else np.asarray(x)


def _check_length(path, leaf, steps):
    shape, wanted = shape_of(leaf.values), ceil(steps / leaf.every)
    if not shape or (steps and shape[0] != wanted):
        came = f"{shape[0]} values" if shape else "a single number"
        raise ValueError(
            f"per_step{path or ''} has {came} but {steps} steps taken {leaf.every} at a time "
            f"need {wanted}; give a leading axis of {wanted}, or a function of the step."
        )


def _paths_and_leaves(tree):
    leaves, treedef = optree.tree_flatten(tree, is_leaf=is_per_step)
    return ["".join(f"[{p!r}]" for p in path) for path in optree.treespec_paths(treedef)], leaves


@dataclass(frozen=True)
class Spread:
    """How one optimizer hyperparameter spreads over the flat params: structure without values.

    every: per prefix leaf, None or the PerStep's `every`; owner: per param leaf, its prefix leaf.
    scalar: one number for all; segmented: one for each param leaf.
    """

    name: str
    every: tuple
    owner: tuple
    scalar: bool
    segmented: bool

    @classmethod
    def of(cls, name, tree, layout):
        """(Spread, its values), from a resolved tree prefix of the params.

        Raises: TypeError where the tree is no prefix of the params; ValueError where a value does
        not broadcast to its params.
        """
        leaves, treedef = optree.tree_flatten(tree, is_leaf=is_per_step)
        every = tuple(x.every if is_per_step(x) else None for x in leaves)
        values = [x.values if is_per_step(x) else x for x in leaves]
        marks = optree.tree_unflatten(treedef, range(len(leaves)))
        try:
            owner = tuple(optree.broadcast_prefix(marks, layout.marks))
        except ValueError as error:
            raise TypeError(
                f"{name} is a tree that is no prefix of the params ({error}); give a number, or a "
                "tree whose leaves stand for whole branches of the params."
            ) from None
        for k, shape in zip(owner, layout.shapes, strict=True):
            _check_broadcast(name, shape_of(values[k])[every[k] is not None :], shape)
        shapes = [shape_of(v)[e is not None :] for v, e in zip(values, every, strict=True)]
        scalar = len(leaves) == 1 and not shapes[0]
        return cls(name, every, owner, scalar, not scalar and not any(shapes)), values

    @property
    def constant(self):
        """Whether it is the same at every step."""
        return not any(self.every)

    def slot(self, leaf, t):
        """Index of a leaf's value at step t."""
        return ... if self.every[leaf] is None else t // self.every[leaf]

    def at_leaf(self, values, k, t):
        """The value for param leaf k at step t; values may be traced."""
        leaf = self.owner[k]
        return values[leaf] if self.every[leaf] is None else values[leaf][t // self.every[leaf]]

    def flat(self, values, t, layout, dtype=np.float64):
        """The value at step t: a number of dtype, or a vector of it over the flat params."""
        if self.scalar:
            return np.dtype(dtype).type(self.at_leaf(values, 0, t))
        out = np.empty(layout.size, dtype)
        for k, part in enumerate(layout.split(out)):
            part[...] = self.at_leaf(values, k, t)
        return out

    def rows(self, values, dtype=np.float64, *, first, last):
        """The values at steps first to last, where it is segmented: (steps, param leaves)."""
        steps = np.arange(first, last)
        now = [v if e is None else v[steps // e] for v, e in zip(values, self.every, strict=True)]
        out = np.empty((len(steps), len(self.owner)), dtype)
        for k, leaf in enumerate(self.owner):
            out[:, k] = now[leaf]
        out.setflags(write=False)
        return out

    def collect_segments(self, found, cts, t):
        """Transpose of a row of `rows`."""
        totals = [0.0] * len(found)
        for leaf, ct in zip(self.owner, cts.tolist(), strict=True):
            totals[leaf] += ct
        for every, total, ct in zip(self.every, found, totals, strict=True):
            total[... if every is None else t // every] += ct

    def collect(self, found, ct, t, layout):
        """Transpose of `flat`: add a cotangent of it to those of the values, one add per leaf."""
        ct = homes.home(ct)
        if self.scalar:
            found[0][self.slot(0, t)] += ct
            return
        sums = [np.zeros(f.shape[e is not None :]) for f, e in zip(found, self.every, strict=True)]
        for leaf, part in zip(self.owner, layout.split(ct), strict=True):
            sums[leaf] += _sum_to(part, sums[leaf].shape)
        for leaf, total in enumerate(sums):
            found[leaf][self.slot(leaf, t)] += total


def _check_broadcast(name, shape, wanted):
    try:
        fits = np.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has a value of shape {shape} for params of shape {wanted}, to which it does "
            "not broadcast; give one number per layer, or an array like the params."
        )


def _sum_to(x, shape):
    extra = x.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, n in enumerate(shape) if n == 1 and x.shape[i + extra] != 1
    )
    return x.sum(axis=axes).reshape(shape)
