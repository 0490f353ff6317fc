"""What the tests of training share: a small problem, drawn optimizers, ways to look at bits."""

from dataclasses import dataclass, field, make_dataclass
from typing import Any

import numpy as np
import optree
from hypothesis import strategies as st

import revgrad as rg
from revgrad.adjoints import Reversible
from revgrad.buffer import BignumBuffer
from revgrad.extend import Add, Optimizer, Scale


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


def contents(state):
    """All that a state holds: the integers of each variable, and heads and words, or bignums."""
    values = {name: x.values.tolist() for name, x in state.variables.items()}
    return values, {name: buffer_contents(b) for name, b in state.buffers.items()}


def buffer_contents(buffer):
    if isinstance(buffer, BignumBuffer):
        return [int(digits) for digits in buffer.snapshot()]
    heads, dropped, tail = buffer.snapshot()
    return heads.tolist(), dropped, tail.sealed, tail.open[: tail.count].tolist()


# Drawn optimizers. Statements are text, so that a failure shows them.

VARIABLES = ("v", "w", "params")
HYPER = ("a", "b", "c")
READABLE = ("g", "t", *VARIABLES, *HYPER)
FACTORS = ("a", "b", "lambda a, b: a * b", "lambda c, t: 1 / (1 + c * c + 1 / t)")


def adding(target, *reads):
    """Text of an Add that reads these, takes bounded values and is linear in nothing."""
    terms = [f"{0.3 + 0.1 * k:.1f} * {name}" for k, name in enumerate(reads)]
    return (
        f"Add({target!r}, lambda {', '.join(reads)}: 0.1 * np.tanh({' + '.join(terms) or '1.0'}))"
    )


def scaling(target, by):
    return f"Scale({target!r}, {by if by.startswith('lambda') else repr(by)})"


def optimizer_of(texts, **hyper):
    """An instance of an Optimizer class with these statements; hyper: its hyperparameters."""
    names = {"np": np, "Add": Add, "Scale": Scale}
    statements = tuple(eval(text, dict(names)) for text in texts)
    fields = [(name, Any, field(default=value)) for name, value in hyper.items()]
    return make_dataclass(
        "Drawn", fields, bases=(Optimizer,), frozen=True, eq=False,
        namespace={"statements": statements},
    )()  # fmt: skip


@st.composite
def statements(draw, targets=VARIABLES, readable=READABLE):
    """(target, what an Add reads) or (target, the factor of a Scale)."""
    target = draw(st.sampled_from(targets))
    if draw(st.booleans()):
        return target, draw(st.sampled_from(FACTORS))
    sources = [name for name in readable if name != target]
    return target, draw(st.lists(st.sampled_from(sources), unique=True, max_size=3))


def written(drawn):
    """Drawn statements as text; variables that none of them changes are not read."""
    known = {target for target, _ in drawn} | {"g", "t", "params", *HYPER}
    return [
        scaling(target, what)
        if isinstance(what, str)
        else adding(target, *(name for name in what if name in known))
        for target, what in drawn
    ]


def statement_lists(max_size=5):
    """Any statements in any order: most of these cannot be undone."""
    return st.lists(statements(), min_size=1, max_size=max_size).map(written)


@st.composite
def legal_lists(draw, max_size=4):
    """Statements that can be undone, in an order in which that need not be seen.

    Those that may read g come first and those that may change params last; then neighbours that
    do not touch each other change places.
    """
    no_g = [name for name in READABLE if name != "g"]
    before = draw(st.lists(statements(targets=("v", "w")), min_size=1, max_size=max_size))
    after = draw(st.lists(statements(readable=no_g), min_size=1, max_size=max_size))
    texts = written([*before, *after])
    made = [*zip(texts, optimizer_of(texts, **dict.fromkeys(HYPER, 0.5)).statements, strict=True)]
    for i in draw(st.lists(st.integers(0, len(made) - 2), max_size=2 * max_size)):
        if _apart(made[i][1], made[i + 1][1]):
            made[i : i + 2] = made[i + 1], made[i]
    return [text for text, _ in made]


def _apart(a, b):
    """Whether neither changes what the other changes or reads."""
    return a.target not in (b.target, *b.reads) and b.target not in a.reads
