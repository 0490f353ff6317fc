"""The checkers check: each planted fault is caught, and what is right is let through."""

from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar

import numpy as np
import optree
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from strategies import factors, float_arrays, optimizers, trees

import revgrad.testing
from revgrad import Adam, FixedPoint, HeavyBall, Momentum, NotReversed, Ratio, jvp, train, vjp
from revgrad.adjoints import Stored
from revgrad.extend import Add, Optimizer, Primitive, Scale, define
from revgrad.optimizers import SGD
from revgrad.testing import (
    ForeignArray,
    check_duality,
    check_grads,
    check_reversible,
    planted_fault,
)

X = np.array([0.3, -1.2, 0.7])


def cube(push=None, pull=None):
    """x^3 as a primitive, right unless a rule is given."""
    right = lambda t, out, x: t * (3 * x * x)
    run = lambda x: x * x * x
    return define("cube", run, [push or right], [pull or right], register=False)


WRONG_FIRST_ORDER = {
    "sign": lambda t, out, x: t * (-3 * x * x),
    "factor": lambda t, out, x: t * (3.0001 * x * x),
    "power": lambda t, out, x: t * (3 * x),
    "one entry": lambda t, out, x: t * (3 * x * x) * np.array([1.0, 1.0, 1.001]),
    "zero": lambda t, out, x: t * 0.0,
    "cross term": lambda t, out, x: t * (3 * x * x) + 0.001 * t[::-1],
    "dtype": lambda t, out, x: (t * (3 * x * x)).astype(np.float32),
    "shape": lambda t, out, x: np.sum(t * (3 * x * x)),
    "another axis": lambda t, out, x: (t * (3 * x * x))[None],
}
WRONG_NUMBERS = {k: f for k, f in WRONG_FIRST_ORDER.items() if k != "dtype"}
WRONG_SECOND_ORDER = {
    "residual is stopped": lambda t, out, x: t * (3 * _frozen(x) ** 2),
    "derivative of the derivative": lambda t, out, x: t * _square_times_3(x),
}
_frozen = Primitive("frozen", lambda x: x, constant=True)
_twice = lambda t, out, x: t * (5.9 * x)
_square_times_3 = define("square", lambda x: 3 * x * x, [_twice], [_twice], register=False)
LEGAL = {
    "cube": (cube(), (X,)),
    "product": (lambda x, y: x * y, (X, 2.0)),
    "tree": (lambda t: {"a": t["x"] @ t["m"], "b": [np.sum(t["x"])]}, ({"x": X, "m": np.eye(3)},)),
    "small": (lambda x: 1e-9 * np.sin(x), (X,)),
    "large": (lambda x: 1e9 * np.sin(x), (X,)),
    "far": (lambda x: np.log(x), (1e6 + X,)),
    "constant": (lambda x: 0.0 * x + 3, (X,)),
    "empty": (np.sin, (X[:0],)),
    "number": (lambda x: x * x, (2.0,)),
    "foreign": (lambda x: np.sin(x) * x, (ForeignArray(X),)),
}


@pytest.mark.parametrize(("f", "args"), LEGAL.values(), ids=LEGAL)
def test_what_is_right_passes(f, args):
    check_grads(f, args)
    check_duality(f, args)
    for modes in (["push"], ["pull"]):
        check_grads(f, args, modes=modes)


@pytest.mark.parametrize(("f", "args"), list(LEGAL.values())[:3])
def test_what_is_right_passes_in_float32(f, args):
    as_float32 = lambda x: x.astype(np.float32) if isinstance(x, np.ndarray) else x
    check_grads(f, optree.tree_map(as_float32, args))


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("fault", WRONG_FIRST_ORDER.values(), ids=WRONG_FIRST_ORDER)
def test_a_fault_in_one_mode_is_caught(fault, scale):
    for wrong in (cube(push=fault), cube(pull=fault)):
        for check in (check_grads, check_duality):
            with pytest.raises((AssertionError, ValueError)):
                check(lambda x, f=wrong: scale * f(x), (X,))


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("fault", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_a_fault_in_both_modes_is_caught_by_the_quotient(fault, scale):
    wrong = cube(push=fault, pull=fault)
    for modes in (["push", "pull"], ["push"], ["pull"]):
        with pytest.raises((AssertionError, ValueError)):
            check_grads(lambda x: scale * wrong(x), (X,), order=1, modes=modes)


def test_a_fault_far_out_is_caught():
    """Where a step of 1e-6 would be lost in the rounding of x and of its logarithm."""
    wrong = lambda t, out, x: t * (1.0001 / x)
    log = define("log", np.log, [wrong], [wrong], register=False)
    check_grads(np.log, (1e6 + X,))
    with pytest.raises(AssertionError):
        check_grads(log, (1e6 + X,), order=1)


@pytest.mark.parametrize("fault", WRONG_SECOND_ORDER.values(), ids=WRONG_SECOND_ORDER)
def test_a_fault_at_second_order_only_is_caught(fault):
    for wrong, modes in (
        (cube(push=fault), ["push"]),
        (cube(pull=fault), ["pull"]),
        (cube(push=fault), ["push", "pull"]),
        (cube(pull=fault), ["push", "pull"]),
        (cube(push=fault, pull=fault), ["push", "pull"]),
    ):
        check_grads(wrong, (X,), order=1, modes=modes)
        with pytest.raises(AssertionError):
            check_grads(wrong, (X,), modes=modes)


@pytest.mark.parametrize("order", [1, 2])
def test_a_wrong_dtype_is_caught_in_float32(order):
    widened = lambda t, out, x: (t * (3 * x * x)).astype(np.float64)
    x = X.astype(np.float32)
    for wrong in (cube(push=widened), cube(pull=widened)):
        for check in (
            lambda f: check_grads(f, (x,), order=order),
            lambda f: check_duality(f, (x,)),
        ):
            with pytest.raises(AssertionError, match="of a float32 has dtype float64"):
                check(wrong)


def test_a_gradient_that_is_not_the_same_twice_is_caught():
    """By one ulp: too little for any tolerance."""
    calls = iter(range(10**6))

    def pull(ct, out, x):
        g = ct * (3 * x * x)
        return np.nextafter(g, np.inf) if next(calls) % 2 else g

    for check in (check_grads, check_duality):
        with pytest.raises(AssertionError, match=r"the pull-back gave .*, then"):
            check(cube(pull=pull), (X,), **({"order": 1} if check is check_grads else {}))
    with pytest.raises(AssertionError, match="the pull-back gave"):
        check_grads(cube(pull=pull), (X,), order=1, modes=["pull"])


def test_a_primal_that_depends_on_the_mode_is_caught():
    def run(x):
        runs.append(1)
        return x * (1 + 1e-16 * len(runs)) if len(runs) % 2 else np.nextafter(x, 9)

    runs = []
    f = define("f", run, ["linear"], [lambda ct, out, x: ct], register=False)
    with pytest.raises(AssertionError, match="the primals of the two modes differ"):
        check_duality(lambda x: f(x), (X,))


def test_a_primal_of_another_shape_is_caught():
    shapes = cycle([(3,), (1, 3)])
    push = lambda t, out, x: np.reshape(t, out.shape)
    f = define("f", lambda x: np.reshape(x, next(shapes)), [push], [None], register=False)
    with pytest.raises(AssertionError, match="the primals of the two modes differ"):
        check_duality(f, (X,))


def test_a_rule_for_one_mode_can_be_checked_alone():
    pull_only = Primitive(
        "pull_only", np.sin, pull=lambda ct, *, wanted, out, args, static: [ct * np.cos(args[0])]
    )
    push_only = Primitive(
        "push_only", np.sin, lambda ts, *, out, args, static: ts[0] * np.cos(*args)
    )
    check_grads(pull_only, (X,), modes=["pull"])
    check_grads(push_only, (X,), modes=["push"])
    for f in (pull_only, push_only):
        with pytest.raises(NotImplementedError):
            check_grads(f, (X,))


def test_a_tolerance_can_be_given():
    rough = cube(push=WRONG_FIRST_ORDER["factor"], pull=WRONG_FIRST_ORDER["factor"])
    check_grads(rough, (X,), order=1, tolerance=1e-3)
    with pytest.raises(AssertionError):
        check_grads(rough, (X,), order=1, tolerance=1e-6)


# check_reversible and planted_fault.


@pytest.mark.parametrize("buffer", ["words", "bignum"])
@pytest.mark.parametrize("optimizer", [Momentum(0.3), HeavyBall(0.1, 0.95), Adam(0.05)], ids=repr)
def test_reversible_optimizers_pass(optimizer, buffer):
    check_reversible(optimizer, buffer=buffer)
    check_reversible(optimizer, size=2, steps=7, seed=1)


@pytest.mark.parametrize("kind", [Momentum, HeavyBall, Adam])
def test_optimizers_drawn_by_the_strategy_are_reversible(kind):
    @settings(max_examples=20)
    @given(optimizers(kind), st.integers(0, 10))
    def holds(optimizer, steps):
        check_reversible(optimizer, size=3, steps=steps)

    holds()


def test_an_optimizer_that_is_not_reversible_is_refused():
    with pytest.raises((TypeError, ValueError), match="SGD"):
        check_reversible(SGD(0.1))


@dataclass(frozen=True, eq=False)
class Own(Optimizer):
    """An optimizer as users write one."""

    learning_rate: Any
    decay: Any = 0.9
    statements: ClassVar = (
        Scale("velocity", by="decay"),
        Add("velocity", lambda g: -g),
        Add("params", lambda velocity, learning_rate: learning_rate * velocity),
    )


def test_a_users_own_optimizer_is_checked():
    check_reversible(Own(0.1))
    check_reversible(Own(0.1), loss=lambda params, hyper, batch: np.sum((params - hyper) ** 2))


@pytest.mark.parametrize("step", [0, 3, 19])
def test_a_gradient_that_is_not_the_same_twice_does_not_return(step):
    """One ulp, at one step of the way back: the integers differ, or else the hypergradients."""
    with pytest.raises((NotReversed, AssertionError)), planted_fault(step):
        check_reversible(Own(0.1), steps=20)


def test_adjoints_that_differ_are_caught(monkeypatch):
    def spoiled(*args, adjoint, **kwargs):
        trained, state = train(*args, adjoint=adjoint, **kwargs)
        return trained * (1 + 1e-15) if isinstance(adjoint, Stored) else trained, state

    monkeypatch.setattr(revgrad.testing, "train", spoiled)
    with pytest.raises(AssertionError, match="Reversible and Stored differ"):
        check_reversible(Own(0.1))


def test_a_planted_fault_is_one_ulp_at_one_visit():
    def loss(params, hyper, batch):
        return np.sum(params["a"] ** 2) + np.sum(params["b"] ** 3)

    def gradient():
        kept = FixedPoint(fraction_bits={"velocity": 55})
        params = {"a": X, "b": X.astype(np.float32)}
        return train(
            loss, params, HeavyBall(1.0, 0.5), [None], steps=1, return_state=True, arithmetic=kept
        )[1]["velocity"]

    right = gradient()
    for leaf, name in enumerate("ab"):
        with planted_fault(0, visit=1, leaf=leaf):
            before, wrong, after = gradient(), gradient(), gradient()
        for key in "ab":
            assert np.array_equal(after[key], right[key])
            assert np.array_equal(before[key], right[key])
            different = np.flatnonzero(wrong[key] != right[key])
            assert different.tolist() == ([np.argmax(np.abs(right[key]))] if key == name else [])
        largest = right[name][np.argmax(np.abs(right[name]))]
        assert wrong[name][np.argmax(np.abs(right[name]))] == largest + np.spacing(largest)


# ForeignArray.


def test_a_foreign_array_refuses_conversion():
    a = ForeignArray(X)
    for convert in (np.array, np.asarray, lambda a: a + X, lambda a: X * a, float, list.__iter__):
        with pytest.raises(TypeError):
            convert(a)
    with pytest.raises(TypeError):
        np.where(X > 0, a, a)
    with pytest.raises(TypeError):
        np.concatenate([a, X])


def test_a_foreign_array_computes_as_its_home_does():
    a, x = ForeignArray(X), X.copy()
    for f in (
        lambda a: a * 2 + np.sin(a) / np.float64(3),
        lambda a: np.stack([a, a])[:, 1:],
        lambda a: a.astype(np.float32),
        lambda a: np.add.reduce(a),
        lambda a: np.sum(a, axis=0, keepdims=True),
        lambda a: a[a > 0],
        lambda a: a.copy(),
        lambda a: np.split(a, 3)[1],
        lambda a: np.unique(a, return_index=True)[1],
    ):
        assert isinstance(f(a), ForeignArray)
        assert np.array_equal(f(a).home, f(x)) and f(a).dtype == f(x).dtype
    a = ForeignArray(x)
    home = a.home
    a += 1
    a[0] = 7
    assert a.home is home and home.tolist() == [7, *(X[1:] + 1)]
    assert (a.shape, a.ndim, a.size, len(a)) == ((3,), 1, 3, 3)
    assert repr(a).startswith("ForeignArray(array(") and bool(a[0] > 6) and hash(a)


def test_a_converting_rule_is_caught_by_a_foreign_array():
    leaving = lambda t, out, x: np.asarray(t) * 3
    for wrong, use in (
        (cube(push=leaving), lambda f, a: jvp(f, (a,), (a,))),
        (cube(pull=leaving), lambda f, a: vjp(f, a)[1](a)),
    ):
        with pytest.raises(TypeError, match="converted to NumPy"):
            use(wrong, ForeignArray(X))


# Strategies.


@given(factors())
def test_factors_are_ratios(factor):
    assert 0 < factor < 1 and Ratio.of(factor).narrow


@given(trees(st.just(1.0)), float_arrays(dtype=np.float32, bound=1.0), float_arrays((2, 0)))
def test_strategies_draw_what_they_say(tree, x, empty):
    assert all(leaf == 1.0 for leaf in optree.tree_leaves(tree))
    assert x.dtype == np.float32 and np.all(np.abs(x) <= 1)
    assert empty.shape == (2, 0)


def test_trees_reach_every_container():
    for kind in (dict, list, tuple):
        find(trees(st.just(1.0)), lambda t, kind=kind: type(t) is kind and optree.tree_leaves(t))
    find(trees(st.just(1.0)), lambda t: t is None)
    nested = lambda t: isinstance(t, dict) and any(isinstance(v, list) and v for v in t.values())
    find(trees(st.just(1.0)), nested)
