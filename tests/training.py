"""What the tests of training share: a small problem, drawn optimizers, ways to look at bits."""

from dataclasses import dataclass, field

import numpy as np
import optree

import revgrad as rg
from revgrad.adjoints import Reversible
from revgrad.buffer import BignumBuffer
from revgrad.state import Cotangents
from revgrad.testing import legal_lists, optimizer_of

__all__ = ["legal_lists", "optimizer_of"]


def bits(tree):
    """A tree's structure and, leaf by leaf, dtype, shape and bytes: equal only for equal bits."""
    leaves, treedef = optree.tree_flatten(tree)
    arrays = map(np.asarray, leaves)
    return treedef, [(x.dtype, x.shape, x.tobytes()) for x in arrays]


def flat(tree):
    """All numbers of a tree in one float64 vector."""
    leaves = [np.ravel(x).astype(np.float64) for x in optree.tree_leaves(tree)]
    return np.concatenate([*leaves, np.zeros(0)])


def distance(a, b):
    """The largest difference between two trees, relative to the largest entry of each leaf of b."""
    assert optree.tree_structure(a) == optree.tree_structure(b)
    off = optree.tree_map(lambda x, y: np.max(np.abs(x - y)) / np.max(np.abs(y)), a, b)
    return float(np.max(optree.tree_leaves(off)))


# A regression by a tanh network of one layer: params of three shapes, with penalties to learn.

KINDS = {"float64": "ddd", "float32": "fff", "mixed": "fdf"}


def params_of(kind="float64", seed=0):
    rng = np.random.default_rng(seed)
    bias, weights, out = (rng.standard_normal(n) / 2 for n in (4, (3, 4), 4))
    a, b, c = KINDS[kind]
    return {"hidden": {"bias": bias.astype(a), "weights": weights.astype(b)}, "out": out.astype(c)}


def hyper_of(kind="float64"):
    dtype = KINDS[kind][0]
    out = np.array([0.01, 0.02, 0.03, 0.04], dtype)
    return {"l2": {"hidden": np.dtype(dtype).type(0.02), "out": out}, "shift": 0.1}


def batches_of(steps, kind="float64", seed=1):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((steps, 6, 3)), rng.standard_normal((steps, 6))
    dtype = KINDS[kind][1]
    return [*zip(x.astype(dtype), y.astype(dtype), strict=True)]


def loss(params, hyper, batch):
    x, y = batch
    weights, out = params["hidden"]["weights"], params["out"]
    error = np.tanh(x @ weights + params["hidden"]["bias"]) @ out + hyper["shift"] - y
    l2 = hyper["l2"]
    return np.mean(error**2) + l2["hidden"] * np.sum(weights**2) + np.sum(l2["out"] * out**2)


def validation_loss(params):
    return loss(params, optree.tree_map(np.zeros_like, hyper_of()), batches_of(1, seed=2)[0])


# Programs and their states, below `train`.


@dataclass(frozen=True)
class Catching(Reversible):
    """Reversible, and keeps the programs that it meets."""

    programs: list = field(default_factory=list)

    def remember(self, program):
        self.programs.append(program)
        return super().remember(program)


def program_of(loss, params, optimizer, batches, **options):
    """The Program of a run, as `train` makes it."""
    adjoint = Catching()
    rg.vjp(lambda p: rg.train(loss, p, optimizer, batches, adjoint=adjoint, **options), params)
    return adjoint.programs[0]


def there_and_back(program, steps):
    """Advance, and go back in both ways; each state met then must be the one met before."""
    state, first = program.start()
    trail = [contents(state)]
    for t in range(steps):
        program.advance(state, t, first if t == 0 else None)
        trail.append(contents(state))
    cts = Cotangents(
        {name: np.ones(len(x.values)) for name, x in state.variables.items()},
        {name: [np.zeros(v.shape) for v in vs] for name, vs in program.schedule.values.items()},
        [np.zeros(np.shape(x)) for x in program.values.hyper],
    )
    one_by_one, in_passes = state.copy(), state
    for t in reversed(range(steps)):
        program.retreat(one_by_one, t)
        program.retreat_and_pull(in_passes, t, cts)
        assert contents(one_by_one) == trail[t], f"step {t}"
        assert contents(in_passes) == trail[t], f"step {t}, in passes"
    return trail


def contents(state):
    """All that a state holds: the integers of each variable, and heads and words, or bignums."""
    values = {name: x.values.tolist() for name, x in state.variables.items()}
    return values, {name: buffer_contents(b) for name, b in state.buffers.items()}


def buffer_contents(buffer):
    if isinstance(buffer, BignumBuffer):
        return [int(digits) for digits in buffer.snapshot()]
    heads, dropped, tail = buffer.snapshot()
    return heads.tolist(), dropped, tail.sealed, tail.open[: tail.count].tolist()
