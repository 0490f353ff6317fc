"""Statement lists: what can be undone and in which order, what is refused, and what Adam is."""

from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import example, given
from training import FACTORS, VARIABLES, adding, legal_lists, optimizer_of, scaling, statement_lists

import revgrad as rg
from revgrad.extend import Add, Optimizer, Scale

HYPER = {"a": 0.5, "b": 0.75, "c": 0.3}
BUILT_IN = [rg.Momentum(0.1), rg.HeavyBall(0.1), rg.Adam(0.1), rg.SGD(0.1)]

NESTEROV = [scaling("v", "a"), adding("v", "g"), adding("params", "v", "g")]
LOOK_AHEAD = [adding("params", "v"), scaling("v", "a"), adding("v", "g")]
G_TWICE = [adding("v", "g"), adding("params", "v"), adding("v", "g")]
G_HELD_UP = [adding("params", "c"), scaling("v", "a"), adding("v", "g")]
G_LAST = [scaling("v", "a"), adding("params", "v"), adding("w", "g")]


# An independent account of undoing: statements act on terms, and undo computes its terms again.


class Unequal(Exception):
    """Undo met another value than the statement left."""


def execute(statement, i, values, g):
    """values: variable -> a term, nested ("start" | "sum" | "scaled", ...)."""
    old = values[statement.target]
    if isinstance(statement, Scale):
        return values | {statement.target: ("scaled", i, old)}
    kind, *rest = old
    inner, addends = rest if kind == "sum" else (old, frozenset())
    now = addends | {addend(statement, i, values, g)}
    return values | {statement.target: ("sum", inner, now)}


def take_back(statement, i, values, g):
    kind, *rest = values[statement.target]
    if isinstance(statement, Scale):
        if kind != "scaled" or rest[0] != i:
            raise Unequal
        return values | {statement.target: rest[1]}
    if kind != "sum" or (term := addend(statement, i, values, g)) not in rest[1]:
        raise Unequal
    left = rest[1] - {term}
    return values | {statement.target: ("sum", rest[0], left) if left else rest[0]}


def addend(statement, i, values, g):
    return i, *(g if name == "g" else values.get(name, name) for name in statement.reads)


def undoes(statements, order):
    """Whether undoing in this order gives the start; g is taken at the params as they are then."""
    start = {name: ("start", name) for name in VARIABLES}
    values = start
    for i, s in enumerate(statements):
        values = execute(s, i, values, ("gradient at", start["params"]))
    try:
        for i in order:
            values = take_back(statements[i], i, values, ("gradient at", values["params"]))
    except Unequal:
        return False
    return values == start


@example(NESTEROV)
@example(LOOK_AHEAD)
@example(G_TWICE)
@example(G_LAST)
@example(G_HELD_UP)
@example([scaling("v", "a"), scaling("v", "a")])
@example([scaling("params", FACTORS[2]), adding("v", "g")])
@given(statement_lists())
def test_undo_order_is_found_wherever_some_order_undoes(texts):
    drawn = optimizer_of(texts, **HYPER)
    some = any(undoes(drawn.statements, order) for order in permutations(range(len(texts))))
    assert drawn.reversible == some
    if some:
        assert sorted(drawn.undo_order) == [*range(len(texts))]
        assert undoes(drawn.statements, drawn.undo_order)


@given(legal_lists())
def test_legal_lists_are_found_legal(texts):
    drawn = optimizer_of(texts, **HYPER)
    assert undoes(drawn.statements, drawn.undo_order)


@pytest.mark.parametrize(
    ("texts", "order"),
    [
        (NESTEROV, None),
        (LOOK_AHEAD, None),
        (G_TWICE, None),
        ([adding("params", "g")], None),  # plain SGD
        ([adding("v", "g"), adding("params", "v"), scaling("v", "a")], (2, 1, 0)),
        (G_LAST, (1, 2, 0)),
        (G_HELD_UP, (0, 2, 1)),  # the scale waits with what was added to it
        ([adding("v", "g"), adding("params", "v"), adding("w", "g", "v")], (1, 2, 0)),
        ([adding("params", "a"), adding("w", "g", "params")], None),
        ([scaling("params", "a"), adding("v", "g")], (0, 1)),  # decay commutes with g's reader
        ([], ()),
    ],
)
def test_what_can_be_undone_and_how(texts, order):
    assert optimizer_of(texts, **HYPER).undo_order == order


def test_built_in_optimizers_say_whether_they_can_be_undone():
    assert [o.reversible for o in BUILT_IN] == [True, True, True, False]
    assert rg.Momentum(0.1).undo_order == (2, 1, 0)
    assert rg.Adam(0.1).variables == ("first_moment", "second_moment")
    assert rg.SGD(0.1).variables == ()


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        (Add("v", lambda g, rate: rate * g), r"changes 'v' reads \['rate'\], which is none of"),
        (Add("v", lambda g, *rest: g), r"reads \['rest'\]"),
        (Add("v", lambda v, g: v * g), "reads its own target 'v'"),
        (Scale("v", by=lambda g: g), r"'v' is scaled by a function of \['g'\]"),
        (Scale("v", by="params"), r"'v' is scaled by a function of \['params'\]"),
        (Scale("v", by="t"), r"'v' is scaled by a function of \['t'\]"),
    ],
)
def test_statements_that_cannot_work_are_refused_at_construction(statement, complaint):
    @dataclass(frozen=True, eq=False)
    class Mine(Optimizer):
        factor: Any = 0.9
        statements: ClassVar = (statement,)

    with pytest.raises(TypeError, match=f"Mine.*{complaint}"):
        Mine()


@pytest.mark.parametrize("name", ["g", "t", "params", "v"])
def test_a_hyperparameter_may_not_be_called_as_something_else(name):
    with pytest.raises(TypeError, match=rf"Drawn: \['{name}'\] name both hyperparameters and"):
        optimizer_of([adding("v", "g")], **{name: 0.1})


# What the built-in ones compute: by hand, and by PyTorch.

GRADIENTS = np.random.default_rng(0).standard_normal((20, 5))
START = np.random.default_rng(1).standard_normal(5)


def linear(params, _hyper, batch):
    """A loss whose gradient is the batch."""
    return np.sum(params * batch)


def path(optimizer, adjoint="auto"):
    """The params after every step."""
    return [
        rg.train(linear, START, optimizer, GRADIENTS[:k], steps=k, adjoint=adjoint)
        for k in range(1, len(GRADIENTS) + 1)
    ]


def momentum_by_hand(learning_rate, momentum):
    w, v, seen = START, np.zeros(5), []
    for g in GRADIENTS:
        v = momentum * v - (1 - momentum) * g
        w = w + learning_rate * v
        seen.append(w)
    return seen


def adam_by_hand(learning_rate, b1, b2, eps, noise):
    """The params after every step, and how far off they may be.

    noise: how far off the moments may be, as a report tells.
    """
    w, first, second, seen, off = START, np.zeros(5), np.zeros(5), [], [np.zeros(5)]
    for t, g in enumerate(GRADIENTS, 1):
        first = b1 * first + (1 - b1) * g
        second = b2 * second + (1 - b2) * g**2
        step = first / (1 - b1**t) / (np.sqrt(second / (1 - b2**t)) + eps)
        w = w - learning_rate * step
        of_first, of_second = noise["first_moment"] / abs(first), noise["second_moment"] / second
        seen.append(w)
        off.append(off[-1] + learning_rate * abs(step) * (of_first + of_second / 2))
    return np.array(seen), 1e-15 + np.array(off[1:])


@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Unrolled()])
def test_momentum_by_hand(adjoint):
    by_hand = momentum_by_hand(0.3, 0.9)
    np.testing.assert_allclose(path(rg.Momentum(0.3), adjoint), by_hand, rtol=0, atol=1e-14)


def test_sgd_by_hand():
    by_hand = START - 0.1 * np.cumsum(GRADIENTS, axis=0)
    np.testing.assert_allclose(path(rg.SGD(0.1)), by_hand, rtol=0, atol=1e-14)


def test_adam_by_hand():
    settings = 0.1, 0.9, 0.99, 1e-6
    report = rg.Report()
    rg.train(linear, START, rg.Adam(*settings), GRADIENTS, report=report)
    by_hand, off = adam_by_hand(*settings, report.noise_floor)
    assert np.all(np.abs(path(rg.Adam(*settings)) - by_hand) <= off)
    assert np.max(off) < 1e-9
    in_floats = path(rg.Adam(*settings), rg.Unrolled())
    np.testing.assert_allclose(in_floats, by_hand, rtol=0, atol=1e-14)


def pytorch_path(make):
    torch = pytest.importorskip("torch", reason="needs PyTorch (make oracles)")
    w = torch.tensor(START, requires_grad=True)
    optimizer, seen = make(torch.optim, [w]), []
    for g in GRADIENTS:
        w.grad = torch.tensor(g)
        optimizer.step()
        seen.append(w.detach().numpy().copy())
    return seen


def test_heavy_ball_is_that_of_pytorch():
    expected = pytorch_path(lambda optim, w: optim.SGD(w, lr=0.1, momentum=0.9))
    np.testing.assert_allclose(path(rg.HeavyBall(0.1)), expected, rtol=0, atol=1e-14)


def test_adam_is_that_of_pytorch():
    expected = pytorch_path(lambda optim, w: optim.Adam(w, lr=0.1, betas=(0.9, 0.99), eps=1e-6))
    in_floats = path(rg.Adam(0.1, 0.9, 0.99, 1e-6), rg.Unrolled())
    np.testing.assert_allclose(in_floats, expected, rtol=0, atol=1e-14)
