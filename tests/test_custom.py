"""checkpoint and custom_rule: functions as primitives."""

import operator

import numpy as np
import pytest

import revgrad as rg
from revgrad.compiled import gradient_with_products
from revgrad.testing import check_grads


def layer(w, x):
    return np.tanh(w @ np.tanh(w @ x))


def test_checkpoint_changes_no_bit_and_runs_again():
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((4, 4)), rng.standard_normal(4)
    runs = []

    @rg.checkpoint
    def counted(w, x):
        runs.append(1)
        return {"out": layer(w, x)}

    expected = rg.value_and_grad(lambda w, x: np.sum(layer(w, x)), (0, 1))(w, x)
    value, grads = rg.value_and_grad(lambda w, x: np.sum(counted(w, x)["out"]), (0, 1))(w, x)
    assert len(runs) == 2
    assert value.tobytes() == expected[0].tobytes()
    assert [g.tobytes() for g in grads] == [g.tobytes() for g in expected[1]]
    assert counted(w, x)["out"].tobytes() == layer(w, x).tobytes()


def test_checkpoint_has_derivatives_of_every_order():
    rng = np.random.default_rng(0)
    checkpointed = rg.checkpoint(layer)
    args = rng.standard_normal((3, 3)), rng.standard_normal(3)
    check_grads(lambda w, x: np.sum(checkpointed(w, x) ** 2), args, order=2)


def test_checkpoint_refuses_a_closed_over_traced_value():
    def f(x):
        return np.sum(rg.checkpoint(lambda y: x * y)(x))  # autograd gives 24 for 36 here

    with pytest.raises(rg.ClosureError, match="pass it as an argument"):
        rg.grad(f)(np.ones(2))


@pytest.mark.parametrize(
    "inner",
    [
        lambda f, x: rg.grad(lambda y: f(lambda z: np.sin(z) * y)(x))(2.0),
        lambda f, x: rg.jvp(lambda y: f(lambda z: np.sin(z) * y)(x), (2.0,), (1.0,))[1],
        lambda f, x: rg.grad(lambda y: f(lambda z: z * y * x)(x))(2.0),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        rg.checkpoint,
        rg.custom_rule(pull=[lambda ct, out, z: ct], push=[lambda t, out, z: t]),
    ],
)
def test_a_closure_over_a_younger_trace_is_refused(inner, function):
    """The arguments belong to an older trace, which would wrap the younger one's answer."""
    outers = [rg.grad(lambda x: inner(function, x))]
    if function is not rg.checkpoint:  # which is the function itself in forward mode
        outers.append(lambda x: rg.jvp(lambda x: inner(function, x), (x,), (1.0,)))
    for outer in outers:
        with pytest.raises(rg.ClosureError, match=r"was not passed to it.*as an argument"):
            outer(3.0)


def test_a_rule_refuses_a_closed_over_traced_value():
    triple = rg.custom_rule(pull=[lambda ct, out, z: 3 * ct], push=[lambda t, out, z: 3 * t])
    with pytest.raises(rg.ClosureError, match="pass it as an argument"):
        rg.grad(lambda y: triple(lambda z: z * y)(y))(2.0)
    with pytest.raises(rg.ClosureError, match="pass it as an argument"):
        rg.jvp(lambda y: triple(lambda z: z * y)(y), (2.0,), (1.0,))


def test_checkpoint_may_close_over_an_outer_trace():
    def outer(x):
        inner = rg.grad(lambda y: np.sum(rg.checkpoint(lambda y: x * y * y)(y)))
        return np.sum(inner(np.ones(2)))

    assert rg.grad(outer)(3.0) == 4.0


@rg.custom_rule(push=[lambda t, out, x: 3 * t * x * x], pull=[lambda ct, out, x: 3 * ct * x * x])
def cube(x):
    return x**3


def test_a_users_rule_serves_both_modes_and_compiles():
    check_grads(lambda x: np.sum(cube(x)), (np.array([1.0, -2.0]),), order=2)
    x = np.arange(3.0)
    compiled = rg.compile(rg.grad(lambda x: np.sum(cube(x))))
    assert compiled(x).tolist() == (3 * x * x).tolist()


def test_a_missing_mode_and_wrong_calls_are_refused():
    @rg.custom_rule(pull=[lambda ct, out, x: ct])
    def f(x):
        return x

    with pytest.raises(rg.MissingRule, match="forward mode"):
        rg.jvp(f, (1.0,), (1.0,))
    with pytest.raises(TypeError, match="rules for 1 arguments and got 2"):
        f(1.0, 2.0)
    with pytest.raises(TypeError, match="push= or pull="):
        rg.custom_rule()


def clipped(true_derivative, push=True):
    """Identity whose cotangent is clipped: no derivative of anything."""
    rules = {"push": [lambda t, out, x: t]} if push else {}
    return rg.custom_rule(
        **rules, pull=[lambda ct, out, x: np.clip(ct, -1, 1)], true_derivative=true_derivative
    )(operator.pos)


@pytest.mark.parametrize("push", [True, False])
def test_products_with_an_untrue_derivative_go_by_reverse_over_reverse(push):
    """The planted test: forward over reverse would give another, wrong product."""

    def products(clip, by):
        def loss(w, h, x):
            return np.sum(np.exp(h) * clip(w * x) ** 2)

        w, h, x = np.array([0.2, 3.0]), np.array([0.1, 0.3]), np.array([1.0, 2.0])
        if by == "phases":
            phases = gradient_with_products(loss, w, h, x)
            g, then = phases.start([w, h, x])
            return g[0], then([np.array([1.0, 0.5])])
        g, pullback = rg.vjp(lambda w, h: rg.grad(loss)(w, h, x), w, h)
        return g, pullback(np.array([1.0, 0.5]))

    declared, expected = products(clipped(False, push), "phases"), products(clipped(False), "vjp")
    assert declared[0].tolist() == expected[0].tolist()
    assert [a.tolist() for a in declared[1]] == [a.tolist() for a in expected[1]]
    if push:
        undeclared = products(clipped(True), "phases")
        assert undeclared[1][1].tolist() != expected[1][1].tolist()


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"pull": lambda ct, out, x: ct}, r"pull=<function.*pull=\[rule\]"),
        ({"push": [1]}, r"push=\[1\].*per argument"),
        ({"pull": [None], "push": [None, None]}, "2 rules in push= and 1 in pull="),
    ],
)
def test_rules_are_one_per_argument(rules, words):
    with pytest.raises(TypeError, match=words):
        rg.custom_rule(**rules)


def test_a_rule_that_gives_another_shape_is_refused():
    shorter = lambda t, out, x, y: t[:1]
    f = rg.custom_rule(pull=[None, shorter], push=[shorter, None])(lambda x, y: x * y)
    with pytest.raises(TypeError, match=r"rule 1 of pull=.*\(1,\).*\(3,\).*argument 1"):
        rg.grad(lambda y: np.sum(f(np.ones(3), y)))(np.ones(3))
    with pytest.raises(TypeError, match=r"rule 0 of push=.*\(1,\).*\(3,\).*the answer"):
        rg.jvp(lambda x: f(x, 2.0), (np.ones(3),), (np.ones(3),))


def test_a_users_function_may_have_the_name_of_numpys():
    @rg.custom_rule(pull=[lambda ct, out, x: 2 * ct])
    def sum(x):
        return x * 2

    x = np.arange(3.0)
    assert rg.compile(sum)(x).tolist() == [0, 2, 4]
    assert rg.compile(rg.grad(lambda x: np.sum(sum(x))))(x).tolist() == [2, 2, 2]
