"""Statement lists: what can be undone and in which order, what is refused, and what Adam is."""

from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import example, given
from training import bits

import revgrad as rg
from revgrad.errors import ClosureError, FixedOverflow, PrecisionWarning
from revgrad.extend import Add, Optimizer, Scale
from revgrad.testing import (
    FACTORS,
    OF_AUX,
    VARIABLES,
    adding,
    legal_lists,
    optimizer_of,
    scaling,
    statement_lists,
)

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
    of_loss = ("g", "g_norm", "aux")
    return i, *(g if name in of_loss else values.get(name, name) for name in statement.reads)


def undoes(statements, order):
    """Whether undoing in this order gives the start; g is taken at the params as they are then."""
    start = {name: ("start", name) for name in (*VARIABLES, OF_AUX)}
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
@example([adding("v", "g_norm"), adding("params", "v", "g_norm")])
@example([adding("params", "v"), adding("s", "aux"), adding("v", "g")])
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
        ([adding("params", "g_norm")], None),
        ([adding("params", "a"), adding("s", "aux")], (0, 1)),
        ([adding("params", "v"), scaling("s", "a"), adding("s", "aux"), adding("v", "g")], None),
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


def test_an_average_starts_at_the_params_by_hand():
    optimizer = rg.WeightAverage(rg.SGD(0.1), 0.9)
    averages, w, by_hand = [], START, START
    for k, g in enumerate(GRADIENTS, 1):
        _, state = rg.train(linear, START, optimizer, GRADIENTS[:k], return_state=True)
        averages.append(state["average"])
        w = w - 0.1 * g
        by_hand = 0.9 * by_hand + 0.1 * w
        np.testing.assert_allclose(state["average"], by_hand, rtol=0, atol=1e-13)
    # with rate 0 nothing moves
    frozen = rg.WeightAverage(rg.Momentum(0.0), 0.999)
    _, state = rg.train(linear, START, frozen, GRADIENTS, return_state=True)
    np.testing.assert_allclose(state["average"], START, rtol=0, atol=1e-11)


def test_an_average_of_aux_by_hand_and_its_derivative():
    """d/d hyper of an average of what the loss returned beside its value."""

    def with_aux(params, hyper, batch):
        return np.sum(params * batch), [hyper * batch[:2], np.sum(params**2)]

    def average(hyper, params):
        optimizer = rg.AuxAverage(rg.Momentum(0.1), 0.9)
        _, state = rg.train(
            with_aux, params, optimizer, GRADIENTS, hyper=hyper, has_aux=True, return_state=True
        )
        return state["aux_average"]

    found = average(2.0, START)
    by_hand = np.zeros(2)
    for g in GRADIENTS:
        by_hand = 0.9 * by_hand + 0.1 * 2.0 * g[:2]
    np.testing.assert_allclose(found[0], by_hand, rtol=0, atol=1e-13)
    slope = rg.grad(lambda h: np.sum(average(h, START)[0]))(2.0)
    assert slope == pytest.approx(np.sum(by_hand) / 2, rel=1e-12)
    # the params move as they do without: 2 w times the weights of the average
    moved = path(rg.Momentum(0.1))
    visited = np.array([START, *moved[:-1]])
    weights = 0.1 * 0.9 ** np.arange(len(GRADIENTS))[::-1]
    slopes = rg.grad(lambda p: average(2.0, p)[1])(START)
    np.testing.assert_allclose(slopes, 2 * weights @ visited, rtol=1e-12)


def spring(x, _hyper, _batch):
    """The potential of two springs."""
    return np.sum(np.array([1.0, 4.0]) * x**2) / 2


def leap(x, p, steps, **options):
    leapfrog = rg.Leapfrog(0.1, **options)
    x, state = rg.train(
        spring, x, leapfrog, lambda t: t, steps=steps, state={"momentum": p}, return_state=True
    )
    return x, leapfrog.close(state["momentum"], rg.grad(spring)(x, None, None))


def test_leapfrog_by_hand():
    x, p, mass = np.array([1.0, -0.5]), np.array([0.3, 0.2]), np.array([1.0, 2.0])
    found = leap(x, p, 50, mass=mass)
    for _ in range(50):
        p = p - 0.05 * np.array([1.0, 4.0]) * x
        x = x + 0.1 * p / mass
        p = p - 0.05 * np.array([1.0, 4.0]) * x
    np.testing.assert_allclose(found, (x, p), rtol=0, atol=1e-13)


def test_leapfrog_keeps_the_energy_and_runs_back_when_the_momentum_is_turned():
    x, p = np.array([1.0, -0.5]), np.array([0.3, 0.2])
    energy = lambda x, p: spring(x, None, None) + np.sum(p**2) / 2
    there = leap(x, p, 200)
    assert energy(*there) == pytest.approx(energy(x, p), rel=0.02)
    back = leap(there[0], -there[1], 200)
    np.testing.assert_allclose(back, (x, -p), rtol=0, atol=1e-12)


def test_tempering_heats_and_cools():
    x, p = np.array([1.0, -0.5]), np.array([0.3, 0.2])
    size = [
        np.sum(leap(x, p, 20, tempering=rg.per_step(np.full(20, f)))[1] ** 2) for f in (0.9, 1.1)
    ]
    assert size[0] < np.sum(leap(x, p, 20)[1] ** 2) < size[1]


def test_leapfrog_closes_a_tree_with_a_step_size_per_layer():
    leapfrog = rg.Leapfrog({"a": 0.2, "b": 0.4})
    momentum, g = {"a": np.ones(2), "b": [np.ones(1)]}, {"a": np.ones(2), "b": [np.ones(1)]}
    closed = leapfrog.close(momentum, g)
    assert closed["a"].tolist() == [0.9, 0.9] and closed["b"][0].tolist() == [0.8]


# Optional hyperparameters, wrappers, and what else an instance's list follows from.


@pytest.mark.parametrize(
    ("optimizer", "plain"),
    [
        (rg.AdamW(0.1, weight_decay=None), rg.Adam(0.1)),
        (rg.Momentum(0.1, weight_decay=None), rg.Momentum(0.1)),
        (rg.Clip(rg.Adam(0.1), 1e9), rg.Adam(0.1)),
        (rg.ClipByGlobalNorm(rg.Adam(0.1), 1e9), rg.Adam(0.1)),
    ],
)
def test_what_is_absent_or_out_of_reach_changes_no_bit(optimizer, plain):
    found, expected = (
        rg.train(linear, START, o, GRADIENTS, return_state=True) for o in (optimizer, plain)
    )
    assert bits(found) == bits(expected)


def test_an_absent_hyperparameter_takes_its_statements_along():
    assert len(rg.Momentum(0.1).statements) == 3 and len(rg.Momentum.statements) == 4
    assert rg.AdamW(0.1, weight_decay=None).undo_order == rg.Adam(0.1).undo_order
    assert "eps_root" not in rg.Adam(0.1).reads and "eps_root" in rg.Adam(0.1, eps_root=0.1).reads
    assert set(rg.RMSProp(0.1).variables) == {"second_moment"}
    assert rg.RMSProp(0.1).hyper.keys() == {"learning_rate", "decay", "eps"}


def test_an_optimizer_writes_itself_down():
    assert str(rg.Momentum(0.1, weight_decay=0.1)) == (
        "Momentum\n"
        "    velocity *= momentum\n"
        "    velocity += -(1 - momentum) * g\n"
        "    velocity += -(1 - momentum) * weight_decay * params\n"
        "    params += learning_rate * velocity"
    )
    assert "sqrt(second_moment / (1 - b2**t)) + eps" in str(rg.Adam(0.1))


def test_names_that_are_taken_get_an_underscore():
    twice = rg.WeightAverage(rg.WeightAverage(rg.RMSProp(0.1), 0.8), 0.7)
    assert twice.hyper["decay"] == 0.9 and (twice.hyper["decay_"], twice.hyper["decay__"]) == (
        0.8,
        0.7,
    )
    assert twice.variables == ("second_moment", "average", "average_")
    changed = twice.with_hyper({"decay": 0.1, "decay__": 0.2})
    assert changed.hyper == twice.hyper | {"decay": 0.1, "decay__": 0.2}
    assert twice.name == "WeightAverage(WeightAverage(RMSProp))"


def test_wrappers_refuse_what_they_cannot_mean():
    with pytest.raises(TypeError, match=r"^Clip wraps a float; pass an optimizer first"):
        rg.Clip(0.1, rg.Momentum(0.1))
    with pytest.raises(TypeError, match=r"put ClipByGlobalNorm outside: ClipByGlobalNorm\(Clip"):
        rg.Clip(rg.ClipByGlobalNorm(rg.Momentum(0.1), 1.0), 1.0)
    averaging = rg.AuxAverage(rg.Momentum(0.1))
    with pytest.raises(TypeError, match=r"reads the aux of the loss; pass has_aux=True"):
        rg.train(linear, START, averaging, GRADIENTS)
    with pytest.raises(TypeError, match="reads aux, which only `train` hands to statements"):
        rg.minimize(lambda h: np.sum(h**2), START, averaging)
    with pytest.raises(TypeError, match=r"^has_aux=True needs a loss that returns"):
        rg.train(linear, START, averaging, GRADIENTS, has_aux=True)
    of_integers = lambda p, h, b: (np.sum(p * b), np.arange(3))
    with pytest.raises(TypeError, match=r"^the loss's aux is an array of int64"):
        rg.train(of_integers, START, averaging, GRADIENTS, has_aux=True)
    of_floats = lambda p, h, b: (np.sum(p * b), {"mean": p[:2]})
    with pytest.raises(ValueError, match=r"has shape \(3,\), but aux\['mean'\] has \(2,\)"):
        rg.train(
            of_floats, START, averaging, GRADIENTS, has_aux=True,
            state={"aux_average": {"mean": np.ones(3)}},
        )  # fmt: skip


def test_trees_of_params_and_aux_are_not_mixed():
    def made(*texts):
        return optimizer_of(texts, a=0.5, b=0.5)

    with pytest.raises(TypeError, match=r"^Drawn: 'v' has the tree of aux, but .* reads \['g'\]"):
        made("Add('v', lambda aux: aux)", "Add('v', lambda g: g)")
    with pytest.raises(TypeError, match=r"^Drawn: 'params' are changed by what reads aux"):
        made("Add('v', lambda aux: aux)", "Add('params', lambda v: v)")
    shared = made("Add('v', lambda aux, a: a * aux)", "Add('params', lambda a: a)")
    assert shared.shared == {"a"} and shared.aux_names == {"v"}
    of_floats = lambda p, h, b: (np.sum(p * b), p[:2])
    rg.train(of_floats, START, shared, GRADIENTS, has_aux=True)
    with pytest.raises(TypeError, match="trees of their own; give one number, or two"):
        rg.train(of_floats, START, shared.with_hyper({"a": START}), GRADIENTS, has_aux=True)


@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Stored(), rg.Unrolled()])
@pytest.mark.parametrize("where", ["Add", "Scale"])
def test_a_statement_that_closes_over_a_traced_value_is_refused(adjoint, where):
    def f(c):
        texts = {
            "Add": [Add("v", lambda g: c * g), Add("params", lambda v: v)],
            "Scale": [Scale("v", lambda: c), Add("v", lambda g: g), Add("params", lambda v: v)],
        }

        @dataclass(frozen=True, eq=False)
        class Closing(Optimizer):
            statements: ClassVar = tuple(texts[where])

        return np.sum(rg.train(linear, START, Closing(), GRADIENTS, adjoint=adjoint))

    assert np.isfinite(f(0.5))
    with pytest.raises(ClosureError, match=r"^Closing: the statement that changes 'v' uses a trac"):
        rg.grad(f)(0.5)


def test_literal_factors():
    undone = optimizer_of(
        ["Scale('v', 0.5)", "Add('v', lambda g: g)", "Add('params', lambda v: v)"]
    )
    assert undone.undo_order == (2, 1, 0)
    for literal in (0, -0.5, 1.5):
        texts = [f"Scale('v', {literal})", "Add('v', lambda g: g)", "Add('params', lambda v: v)"]
        drawn = optimizer_of(texts)
        assert not drawn.reversible
        stored, in_floats = (
            rg.train(linear, START, drawn, GRADIENTS[:5], adjoint=a)
            for a in (rg.Stored(), rg.Unrolled())
        )
        np.testing.assert_allclose(stored, in_floats, rtol=1e-12)
    assert optimizer_of(["Scale('v', 1.5, above_one=True)", "Add('v', lambda g: g)"]).reversible


# The range of a variable.


def test_a_first_gradient_of_zero_leaves_room():
    """As in a network whose last layer starts at zero; it used to overflow at 60 bits."""
    late = [np.zeros(5), *(100 * GRADIENTS)]
    for optimizer in (rg.Momentum(0.01), rg.HeavyBall(1e-4), rg.Adam(0.01), rg.AdaGrad(0.1)):
        gradients = [g / 100 for g in late] if optimizer.name != "Momentum" else late
        rg.train(linear, START, optimizer, gradients)
    with pytest.raises(FixedOverflow, match="The first gradient was 0 everywhere, so the"):
        rg.train(linear, START, rg.Momentum(0.01), [1e4 * g for g in late])


def test_velocities_that_grow_without_changing_their_mind_have_room():
    for optimizer in (
        rg.HeavyBall(1e-6, 0.999),
        rg.AdaGrad(1e-3),
        rg.RMSProp(1e-5, momentum=0.999),
    ):
        rg.train(linear, START, optimizer, lambda t: np.ones(5), steps=1500)


# Rounding noise where the sizes of gradients differ much.

SIZES = np.array([1.0, 1e-2, 1e-4, 1e-5, 1e-6])
NOISE = np.random.default_rng(4).standard_normal((200, 5))


def uneven(params, _hyper, batch):
    """A loss whose gradients differ in size by six orders of magnitude, but not Adam's steps."""
    return np.sum(SIZES * (0.5 * (params - 1) ** 2 + 0.3 * np.sin(params) * batch))


def rate_gradients(adjoint, size=1.0, **options):
    """How each weight depends on its own rate, and the report."""
    report = rg.Report()
    loss = lambda p, h, b: size * uneven(p, h, b)

    def f(rates):
        optimizer = rg.Adam(rates, **{k: v for k, v in options.items() if k != "arithmetic"})
        trained = rg.train(
            loss, np.zeros(5), optimizer, NOISE, adjoint=adjoint, report=report,
            arithmetic=options.get("arithmetic"),
        )  # fmt: skip
        return np.sum(trained)

    return rg.grad(f)(np.full(5, 0.003)), report


def test_weights_that_drown_in_rounding_noise_are_counted_and_warned_of():
    expected, _ = rate_gradients(rg.Unrolled())
    with pytest.warns(PrecisionWarning, match=r"^40\.0% of the weights .* their second_moment"):
        found, report = rate_gradients(rg.Reversible())
    off = np.abs(found / expected - 1)
    assert report.drowned == 0.4
    assert np.all((off > 1e-3) == [False, False, False, True, True]), off


@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Stored(), rg.Forward()])
def test_eps_inside_the_root_keeps_them_above_the_noise(adjoint):
    with pytest.warns(PrecisionWarning, match="room for FixedPoint"):
        rate_gradients(adjoint)
    wider = rg.FixedPoint(fraction_bits={"second_moment": 60})
    with pytest.warns(PrecisionWarning, match=r"pass eps_root=5e-11 if the optimizer has it"):
        rate_gradients(adjoint, arithmetic=wider)
    found, report = rate_gradients(adjoint, arithmetic=wider, eps_root=5e-11)
    expected, _ = rate_gradients(rg.Unrolled(), eps_root=5e-11)
    assert report.drowned == 0
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_more_fraction_bits_help_where_all_gradients_are_small():
    small = {"size": 1e-4, "eps": 1e-16}
    expected, _ = rate_gradients(rg.Unrolled(), **small)
    with pytest.warns(PrecisionWarning, match=r"FixedPoint\(fraction_bits=\{'second_moment': 8"):
        found, _ = rate_gradients(rg.Reversible(), **small)
    arithmetic = rg.FixedPoint(fraction_bits={"second_moment": 86})
    with pytest.warns(PrecisionWarning, match=r"^20\.0%"):
        better, _ = rate_gradients(rg.Reversible(), arithmetic=arithmetic, **small)
    off = [np.abs(x / expected - 1)[:4] for x in (found, better)]
    assert np.max(off[1]) < 1e-2 * np.max(off[0])


@pytest.mark.parametrize("make", [rg.Momentum, rg.HeavyBall, rg.Adam])
def test_gradients_of_like_sizes_and_none_at_all_warn_of_nothing(make):
    report, dark = rg.Report(), GRADIENTS * [1, 0.01, 0.1, 1, 0]
    rg.train(linear, START, make(0.01), dark, report=report)
    assert report.drowned == 0


def test_of_many_weights_a_part_is_looked_at():
    many = np.tile(SIZES, 9001)
    loss = lambda p, _h, b: np.sum(many * (p - b) ** 2)
    report = rg.Report()
    with pytest.warns(PrecisionWarning):
        rg.train(loss, np.zeros(many.size), rg.Adam(0.01), np.linspace(1, 2, 6), report=report)
    assert report.drowned == pytest.approx(0.4, abs=0.01)
