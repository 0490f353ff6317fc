"""Hypergradients: equal bits where the arithmetic is the same, equal numbers where it is not."""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import optree
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_every_optimizer import ALL, settings_of
from training import (
    Catching,
    batches_of,
    bits,
    distance,
    flat,
    hyper_of,
    legal_lists,
    loss,
    optimizer_of,
    params_of,
    validation_loss,
)

import revgrad as rg
from revgrad import program as module
from revgrad.passes import NoPasses
from revgrad.snapshots import replays
from revgrad.testing import check_reversible, planted_fault

STEPS = 7
OPTIMIZERS = (rg.Momentum, rg.HeavyBall, rg.Adam)
BACK = (rg.Reversible(), rg.Stored(), rg.Checkpointed(3))


def as_it_is(x):
    return x


@dataclass(frozen=True)
class Form:
    """A way to give a hyperparameter: random values around `base`, and what train takes them as."""

    values: Any
    taken: Any = as_it_is


def around(base, rng, *shapes):
    return [base * rng.uniform(0.8, 1, shape) for shape in shapes]


def form(name, base, rng, steps=STEPS):
    layers = ("hidden", "out")
    if name == "scalar":
        return Form(base)
    if name == "per layer in decimals":  # ratios of small integers, so scaling makes little noise
        return Form(dict(zip(layers, (base, round(0.9 * base, 4)), strict=True)))
    if name == "per layer":
        return Form(dict(zip(layers, around(base, rng, (), ()), strict=True)))
    if name == "per weight":
        return Form(optree.tree_map(lambda x: around(base, rng, x.shape)[0], params_of()))
    if name == "per step":
        return Form(around(base, rng, steps)[0], rg.per_step)
    every = 3
    shape = ceil(steps / every)
    if name == "per step and layer":
        values = dict(zip(layers, around(base, rng, shape, shape), strict=True))
    else:
        values = optree.tree_map(lambda x: around(base, rng, (shape, *x.shape))[0], params_of())
    return Form(values, partial(rg.per_step, every=every))


FORMS = (
    "scalar", "per layer", "per weight", "per step", "per step and layer", "per step and weight"
)  # fmt: skip
BASES = {"learning_rate": 0.2, "momentum": 0.9, "b1": 0.9, "b2": 0.99, "eps": 1e-3}


def problem(make, form_name="scalar", kind="float64", steps=STEPS, warm=True):
    """(all that is differentiable, f(adjoint, that) -> trained, state, watched)."""
    rng = np.random.default_rng(5)
    names = make(0.1).hyper
    forms = {name: form(form_name, BASES[name], rng, steps) for name in names}
    start = {
        "params": params_of(kind),
        "optimizer": {name: f.values for name, f in forms.items()},
        "hyper": hyper_of(kind),
        "state": {name: params_of(kind, seed=8) for name in make(0.1).variables} if warm else {},
    }
    if "second_moment" in start["state"]:
        start["state"]["second_moment"] = optree.tree_map(np.square, params_of(kind, seed=9))
    batches = batches_of(steps, kind)

    def run(adjoint, now, **options):
        hyper = {name: f.taken(now["optimizer"][name]) for name, f in forms.items()}
        return rg.train(
            loss, now["params"], make(**hyper), batches, hyper=now["hyper"], state=now["state"],
            adjoint=adjoint, return_state=True, return_watched=True,
            watch=lambda t, params: validation_loss(params) * (t + 1), **options,
        )  # fmt: skip

    def answer(adjoint, now, **options):
        trained, state, watched = run(adjoint, now, **options)
        return trained, {k: x for k, x in state.items() if k != "t"}, watched

    return start, answer


def cotangents_like(out):
    return optree.tree_map(
        lambda x: np.cos(np.arange(x.size)).reshape(x.shape).astype(x.dtype), out
    )


def pulled(answer, adjoint, start, **options):
    out, pullback = rg.vjp(lambda now: answer(adjoint, now, **options), start)
    return out, pullback(cotangents_like(out))[0]


def snapped(start):
    """The start with factors as the exact run has them, for runs in floats."""
    factors = {
        k: optree.tree_map(lambda f: rg.Ratio.of(f).value, x)
        for k, x in start["optimizer"].items()
        if k in ("momentum", "b1", "b2")
    }
    return start | {"optimizer": start["optimizer"] | factors}


# Law 5: bits.


@pytest.mark.parametrize("kind", ["float64", "float32", "mixed"])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_reversible_stored_and_checkpointed_agree_bit_for_bit(make, name, kind):
    start, answer = problem(make, name, kind)
    found = [pulled(answer, adjoint, start) for adjoint in BACK]
    assert bits(found[0]) == bits(found[1]) == bits(found[2])
    assert all(np.any(ct) for ct in optree.tree_leaves(found[0][1]["optimizer"]))
    for x, ct in zip(optree.tree_leaves(start), optree.tree_leaves(found[0][1]), strict=True):
        assert np.shape(x) == np.shape(ct) and np.result_type(x) == np.result_type(ct)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_with_one_bignum_per_weight_too(make):
    start, answer = problem(make)
    one, other = (
        [pulled(answer, a, start, arithmetic=rg.FixedPoint(buffer=b)) for a in BACK]
        for b in ("words", "bignum")
    )
    assert bits(one[0]) == bits(one[1]) == bits(one[2])
    assert bits(other[0]) == bits(other[1]) == bits(other[2])
    assert bits(one[0]) != bits(other[0])  # other digits, so other low bits
    assert distance(one[0], other[0]) < 1e-9


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("adjoint", [*BACK, rg.Forward(), rg.Truncated(3), rg.Unrolled()], ids=repr)
def test_tracing_changes_no_bit(make, adjoint):
    start, answer = problem(make, "per layer", "float32")
    out, pullback = rg.vjp(lambda now: answer(adjoint, now), start)
    assert bits(out) == bits(answer(adjoint, start))
    once, again = pullback(cotangents_like(out)), pullback(cotangents_like(out))
    assert bits(once) == bits(again)
    twice = pullback(optree.tree_map(lambda x: 2 * x, cotangents_like(out)))
    assert bits(optree.tree_map(lambda x: x / 2, twice)) == bits(once)


def test_only_what_is_traced_gets_a_derivative_and_the_rest_does_not_change_it():
    start, answer = problem(rg.Momentum, "per step")
    _, every = pulled(answer, rg.Reversible(), start)
    for name in start:
        only = lambda part, name=name: answer(rg.Reversible(), start | {name: part})
        out, pullback = rg.vjp(only, start[name])
        assert bits(pullback(cotangents_like(out))[0]) == bits(every[name])


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("buffer", ["words", "bignum"])
def test_check_reversible_is_content_with_the_built_in_ones(make, buffer):
    check_reversible(make(0.1), buffer=buffer)


LISTS = {
    "a factor that is a function": [
        "Scale('v', lambda a, t: (a + 0.1) * t / (1 + t))",  # t/(1 + t), rounded once
        "Add('v', lambda g, b: b * np.tanh(g))",
        "Add('params', lambda v, c, t: -c * v / t)",
    ],
    "g read last": [
        "Scale('w', 'a')",
        "Add('params', lambda v, c: -c * v)",
        "Add('w', lambda g: g * g)",
        "Add('v', lambda w, b: b * w)",
    ],
    "decay": [
        "Scale('v', 'a')",
        "Add('v', lambda g: g)",
        "Scale('params', lambda b, c: 1 - b * c)",
        "Add('params', lambda v, c: -c * v)",
    ],
    "penalty in the optimizer": [
        "Scale('v', 'a')",
        "Add('v', lambda g, params, c: -g - c * params)",
        "Add('params', lambda v, b: b * v)",
    ],
}


@pytest.mark.parametrize("texts", LISTS.values(), ids=LISTS)
def test_other_statement_lists(texts):
    make = partial(optimizer_of, texts)
    check_reversible(make(a=0.9, b=0.1, c=0.2))
    start = {"params": params_of(), "optimizer": {"a": 0.9, "b": 0.1, "c": 0.2}}

    def answer(adjoint, now):
        optimizer = make(**now["optimizer"])
        batches = batches_of(STEPS)
        return rg.train(loss, now["params"], optimizer, batches, hyper=hyper_of(), adjoint=adjoint)

    found = [pulled(answer, adjoint, start) for adjoint in (*BACK, rg.Unrolled())]
    assert bits(found[0]) == bits(found[1]) == bits(found[2])
    assert distance(found[0], found[3]) < 1e-9
    forward = pulled(answer, rg.Forward(), start)
    assert bits(forward[0]) == bits(found[0][0]) and distance(forward, found[0]) < 1e-9


@settings(max_examples=max(10, settings.default.max_examples // 4))
@given(legal_lists(), st.sampled_from([0.9, 0.37, 1.0]), st.sampled_from(["words", "bignum"]))
def test_drawn_statement_lists(texts, factor, buffer):
    check_reversible(optimizer_of(texts, a=factor, b=0.5, c=0.7), steps=6, buffer=buffer)


ONE_WAY = {
    "plain": ["Add('params', lambda g, c: -c * g)"],
    "Nesterov": [
        "Scale('v', 'a')",
        "Add('v', lambda g: g)",
        "Add('params', lambda g, v, a, c: -c * (g + a * v))",
    ],
    "params first": [
        "Add('params', lambda v, c: -c * v)",
        "Scale('v', 'a')",
        "Add('v', lambda g, b: b * g)",
    ],
    "g twice": [
        "Add('v', lambda g, a: a * g)",
        "Add('params', lambda v, c: -c * v)",
        "Add('v', lambda g, b: b * g * g)",
    ],
}


@pytest.mark.parametrize("texts", ONE_WAY.values(), ids=ONE_WAY)
def test_what_cannot_be_undone_is_refused_by_reversible_and_right_with_stored(texts):
    make = partial(optimizer_of, texts)
    start = {"params": params_of(), "optimizer": {"a": 0.9, "b": 0.1, "c": 0.2}}

    def answer(adjoint, now):
        optimizer = make(**now["optimizer"])
        batches = batches_of(STEPS)
        return rg.train(loss, now["params"], optimizer, batches, hyper=hyper_of(), adjoint=adjoint)

    with pytest.raises(
        TypeError, match=r"^Reversible\(\) cannot undo Drawn: .*adjoint=Checkpointed\(20\)"
    ):
        answer(rg.Reversible(), start)
    stored, in_floats = (pulled(answer, adjoint, start) for adjoint in (rg.Stored(), rg.Unrolled()))
    assert bits(pulled(answer, "auto", start)) == bits(stored)
    assert bits(pulled(answer, rg.Checkpointed(2), start)) == bits(stored)
    assert (
        distance(
            pulled(answer, rg.Forward(), start)[1]["optimizer"]["c"], stored[1]["optimizer"]["c"]
        )
        < 1e-9
    )
    assert np.all(in_floats[1]["optimizer"]["c"] != 0)
    assert np.max(np.abs(flat(stored) - flat(in_floats))) < 1e-9


# Law 5: numbers.


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("make", [rg.Momentum, rg.HeavyBall])
def test_unrolled_agrees_for_momentum(make, name):
    start, answer = problem(make, name)
    exact, in_floats = pulled(answer, BACK[0], start), pulled(answer, rg.Unrolled(), snapped(start))
    assert distance(exact, in_floats) < 1e-9


@pytest.mark.parametrize("name", FORMS)
def test_unrolled_agrees_for_adam_to_the_noise_floor(name):
    report = rg.Report()
    start, answer = problem(rg.Adam, name)
    exact = pulled(answer, BACK[0], start, report=report)
    in_floats = pulled(answer, rg.Unrolled(), snapped(start))
    # relative to the smallest root of a second moment, squared once more by differentiating
    _, state, _ = in_floats[0]
    weakest = np.min(flat(state["second_moment"]))
    assert distance(exact, in_floats) < 10 * report.noise_floor["second_moment"] / weakest < 1e-6


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_difference_quotients_of_unrolled(make):
    start, answer = problem(make, "per step and layer")
    direction = optree.tree_map(
        lambda x: np.sin(np.arange(np.size(x)) + 1.0).reshape(np.shape(x)) * np.abs(x), start
    )
    out, ct = pulled(answer, rg.Unrolled(), start)
    for part in start:

        def moved(step, part=part):
            there = optree.tree_map(lambda x, d: x + step * d, start[part], direction[part])
            return flat(answer(rg.Unrolled(), start | {part: there}))

        quotient = (moved(1e-5) - moved(-1e-5)) / 2e-5 @ flat(cotangents_like(out))
        slope = flat(ct[part]) @ flat(direction[part])
        assert slope == pytest.approx(quotient, rel=1e-5)


@pytest.mark.parametrize("adjoint", [*BACK, rg.Forward(), rg.Unrolled()], ids=repr)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_with_learning_rate_0_the_derivative_passes_through(make, adjoint):
    params = params_of()

    def hyperloss(params):
        batches = batches_of(STEPS)
        trained = rg.train(loss, params, make(0.0), batches, hyper=hyper_of(), adjoint=adjoint)
        return validation_loss(trained)

    start = rg.train(loss, params, make(0.0), [], steps=0, hyper=hyper_of())  # rounded to an ulp
    assert bits(rg.grad(hyperloss)(start)) == bits(rg.grad(validation_loss)(start))


# Against JAX in float64.


@pytest.fixture(scope="module")
def jax():
    jax = pytest.importorskip("jax", reason="needs JAX (make oracles)")
    jax.config.update("jax_enable_x64", True)
    return jax


JAX_STEPS = 200


def in_jax(jax, make):
    """One step of training in JAX: (params, state), optimizer and loss hypers, batch, t -> next."""
    jnp = jax.numpy

    def tanh_loss(params, hyper, batch):
        x, y = batch
        weights, out = params["hidden"]["weights"], params["out"]
        error = jnp.tanh(x @ weights + params["hidden"]["bias"]) @ out + hyper["shift"] - y
        l2 = hyper["l2"]
        return jnp.mean(error**2) + l2["hidden"] * jnp.sum(weights**2) + jnp.sum(l2["out"] * out**2)

    def momentum(w, g, state, o, t):
        v = o["momentum"] * state["velocity"] - (1 - o["momentum"]) * g
        return w + o["learning_rate"] * v, {"velocity": v}

    def heavy_ball(w, g, state, o, t):
        v = o["momentum"] * state["velocity"] + g
        return w - o["learning_rate"] * v, {"velocity": v}

    def adam(w, g, state, o, t):
        first = o["b1"] * state["first_moment"] + (1 - o["b1"]) * g
        second = o["b2"] * state["second_moment"] + (1 - o["b2"]) * g**2
        root = jnp.sqrt(second / (1 - o["b2"] ** t)) + o["eps"]
        step = first / (1 - o["b1"] ** t) / root
        return w - o["learning_rate"] * step, {"first_moment": first, "second_moment": second}

    update = {rg.Momentum: momentum, rg.HeavyBall: heavy_ball, rg.Adam: adam}[make]

    def step(params, state, optimizer, hyper, batch, t):
        g = jax.tree.leaves(jax.grad(tanh_loss)(params, hyper, batch))
        leaves, tree = jax.tree.flatten(params)
        parts = []
        for i, layer in enumerate(["hidden", "hidden", "out"]):
            mine = {k: jax.tree.leaves(s)[i] for k, s in state.items()}
            settings = {k: x[layer] for k, x in optimizer.items()}
            parts.append(update(leaves[i], g[i], mine, settings, t))
        now = {k: jax.tree.unflatten(tree, [s[k] for _, s in parts]) for k in state}
        return jax.tree.unflatten(tree, [w for w, _ in parts]), now

    return step


def jax_problem(make):
    """(start, batches, f(start, adjoint) -> trained, state)."""
    # ratios out of 2**16 would put Adam off by 1e-8, inside of its steps too
    start, _ = problem(make, "per layer in decimals", steps=JAX_STEPS)
    if make is rg.HeavyBall:  # whose velocity is 1 / (1 - 0.9) times the gradient
        rates = start["optimizer"]["learning_rate"]
        start["optimizer"]["learning_rate"] = {layer: x / 10 for layer, x in rates.items()}
    batches = batches_of(JAX_STEPS)

    def answer(now, adjoint=BACK[0]):
        trained, state = rg.train(
            loss, now["params"], make(**now["optimizer"]), batches, hyper=now["hyper"],
            state=now["state"], return_state=True, adjoint=adjoint,
        )  # fmt: skip
        return trained, {k: x for k, x in state.items() if k != "t"}

    return start, batches, answer


def visited_states(start, answer):
    """Decoded params and state before each step."""
    adjoint = Catching()
    rg.vjp(partial(answer, adjoint=adjoint), start)
    program, seen = adjoint.programs[0], []
    state, _ = program.start()
    for t in range(JAX_STEPS):
        now = {k: program.layout.leaves(x) for k, x in state.variables.items()}
        now = {k: program.layout.unflatten(leaves) for k, leaves in now.items()}
        seen.append({"params": now.pop("params"), "state": now})
        program.advance(state, t)
    return seen


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_jax_pulls_back_alike_step_by_step_at_the_visited_states(make, jax):
    start, batches, answer = jax_problem(make)
    out, pullback = rg.vjp(answer, start)
    found = pullback(cotangents_like(out))[0]
    advance = in_jax(jax, make)

    @jax.jit
    def pull(now, batch, t, cts):
        parts = ("params", "state", "optimizer", "hyper")
        step = lambda *now: advance(*now, batch, t)
        return dict(zip(parts, jax.vjp(step, *(now[k] for k in parts))[1](cts), strict=True))

    ct = {"params": cotangents_like(out)[0], "state": cotangents_like(out)[1]}
    total = {k: optree.tree_map(np.zeros_like, start[k]) for k in ("optimizer", "hyper")}
    for t, visited in reversed([*enumerate(visited_states(start, answer))]):
        ct = pull(snapped(start) | visited, batches[t], t + 1.0, (ct["params"], ct["state"]))
        total = {k: optree.tree_map(np.add, total[k], ct[k]) for k in total}
    expected = optree.tree_map(np.asarray, {**ct, **total})
    assert distance(found, expected) < 1e-11


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_jax_running_free_agrees(make, jax):
    start, batches, answer = jax_problem(make)
    out, pullback = rg.vjp(answer, start)
    found = pullback(cotangents_like(out))[0]
    advance = in_jax(jax, make)

    def free(now):
        def body(carry, batch):
            x, y, t = batch
            return advance(*carry, now["optimizer"], now["hyper"], (x, y), t), None

        xs, ys = (np.stack(b) for b in zip(*batches, strict=True))
        every = xs, ys, np.arange(1.0, JAX_STEPS + 1)
        return jax.lax.scan(body, (now["params"], now["state"]), every)[0]

    @jax.jit
    def out_and_pulled(now, cts):
        out, pull = jax.vjp(free, now)
        return out, pull(cts)[0]

    expected = optree.tree_map(np.asarray, out_and_pulled(snapped(start), cotangents_like(out)))
    assert distance((out, found), expected) < 1e-9


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_difference_quotients_of_jax_agree(make, jax):
    """Of what was watched nobody tells JAX: outputs alone, along one direction per part."""
    start, batches, answer = jax_problem(make)
    out, pullback = rg.vjp(answer, start)
    found = pullback(cotangents_like(out))[0]
    step = jax.jit(in_jax(jax, make))

    def weighed(now):
        params, state = now["params"], now["state"]
        for t, batch in enumerate(batches):
            params, state = step(params, state, now["optimizer"], now["hyper"], batch, t + 1.0)
        return flat((params, state)) @ flat(cotangents_like(out))

    at = snapped(start)
    for part in start:
        direction = optree.tree_map(
            lambda x: np.cos(np.ones(np.shape(x)) + x) * np.abs(x), at[part]
        )

        def moved(size, part=part, direction=direction):
            there = optree.tree_map(lambda x, d: x + size * d, at[part], direction)
            return weighed(at | {part: there})

        quotient = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert flat(found[part]) @ flat(direction) == pytest.approx(quotient, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1_000, 10_000])
def test_long_runs_agree_to_the_bit(make, steps):
    batches, report = batches_of(50), rg.Report()

    def hyperloss(now, adjoint):
        optimizer = make(0.01 * now["rate"])
        trained = rg.train(
            loss, now["params"], optimizer, batches, steps=steps, hyper=now["hyper"],
            adjoint=adjoint, report=report,
        )  # fmt: skip
        return validation_loss(trained)

    start = {"params": params_of(), "rate": 1.0, "hyper": hyper_of()}
    found = [rg.value_and_grad(hyperloss)(start, a) for a in (*BACK[:2], rg.Checkpointed(30))]
    assert bits(found[0]) == bits(found[1]) == bits(found[2])
    assert report.replays == replays(steps, 30)


# Higher orders, and other modes.


def small(adjoint, make=rg.Momentum):
    """A hyperloss of three numbers."""

    def hyperloss(h):
        optimizer = make(h[0])
        hyper = {"l2": {"hidden": h[1], "out": h[1] * np.ones(4)}, "shift": h[2]}
        batches = batches_of(STEPS)
        trained = rg.train(loss, params_of(), optimizer, batches, hyper=hyper, adjoint=adjoint)
        return validation_loss(trained)

    return hyperloss, np.array([0.3, 0.02, 0.1])


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_unrolled_has_second_derivatives_and_forward_mode(make):
    hyperloss, h = small(rg.Unrolled(), make)
    first, second = rg.grad(hyperloss)(h), rg.hessian(hyperloss)(h)
    np.testing.assert_allclose(rg.jacfwd(hyperloss)(h), first, rtol=1e-12)
    np.testing.assert_allclose(rg.jacrev(rg.grad(hyperloss))(h), second, rtol=1e-9)
    steps = 1e-6 * np.eye(3)
    quotient = [(rg.grad(hyperloss)(h + e) - rg.grad(hyperloss)(h - e)) / 2e-6 for e in steps]
    np.testing.assert_allclose(second, quotient, rtol=1e-5, atol=1e-6 * np.max(np.abs(second)))
    _, product = rg.hvp(hyperloss, (h,), (np.ones(3),))
    np.testing.assert_allclose(product, second @ np.ones(3), rtol=1e-10)


HIGHER = {
    "hessian": rg.hessian,
    "grad of grad": lambda f: rg.grad(lambda h: np.sum(rg.grad(f)(h))),
    "jacrev of grad": lambda f: rg.jacrev(rg.grad(f)),
    "jvp": lambda f: lambda h: rg.jvp(f, (h,), (np.ones(3),)),
    "jacfwd": rg.jacfwd,
    "grad of jvp": lambda f: rg.grad(lambda h: rg.jvp(f, (h,), (np.ones(3),))[1]),
    "hvp": lambda f: lambda h: rg.hvp(f, (h,), (np.ones(3),)),
}


@pytest.mark.parametrize("derivative", HIGHER.values(), ids=HIGHER)
@pytest.mark.parametrize("adjoint", BACK, ids=repr)
def test_the_others_refuse_them_and_name_unrolled(adjoint, derivative):
    hyperloss, h = small(adjoint)
    with pytest.raises(rg.MissingRule, match=r"pass adjoint=Unrolled\(\)"):
        derivative(hyperloss)(h)


def test_the_pull_back_refuses_traced_cotangents():
    hyperloss, h = small(rg.Reversible())
    _, pullback = rg.vjp(hyperloss, h)
    with pytest.raises(rg.MissingRule, match=r"traced cotangent.*pass adjoint=Unrolled\(\)"):
        rg.grad(lambda ct: np.sum(pullback(ct)[0]))(1.0)


def test_jacobian_of_several_validation_losses():
    def losses(h, adjoint):
        shift = {"l2": {"hidden": h[1], "out": h[1] * np.ones(4)}, "shift": h[2]}
        trained = rg.train(
            loss, params_of(), rg.Adam(h[0]), batches_of(STEPS), hyper=shift, adjoint=adjoint
        )
        return np.stack([loss(trained, shift, batch) for batch in batches_of(3, seed=3)])

    h = np.array([0.05, 0.02, 0.1])
    jacobian = rg.jacrev(partial(losses, adjoint=rg.Reversible()))(h)
    rows = [rg.grad(lambda h, k=k: losses(h, rg.Reversible())[k])(h) for k in range(3)]
    assert bits(jacobian) == bits(np.stack(rows))
    np.testing.assert_allclose(jacobian, rg.jacfwd(partial(losses, adjoint=rg.Unrolled()))(h))


# Watching.


def watching(h, adjoint, watch=None):
    hyper = {"l2": {"hidden": h[1], "out": h[1] * np.ones(4)}, "shift": h[2]}
    _, watched = rg.train(
        loss, params_of(), rg.Momentum(h[0]), batches_of(STEPS), hyper=hyper, adjoint=adjoint,
        watch=watch or (lambda t, params: validation_loss(params)), return_watched=True,
    )  # fmt: skip
    return np.mean(watched)


@pytest.mark.parametrize("adjoint", [*BACK, rg.Forward(), rg.Unrolled()], ids=repr)
def test_mean_loss_over_training_has_a_derivative(adjoint):
    h, f = np.array([0.3, 0.02, 0.1]), partial(watching, adjoint=adjoint)
    quotient = [(f(h + e) - f(h - e)) / 2e-5 for e in 1e-5 * np.eye(3)]
    np.testing.assert_allclose(rg.grad(f)(h), quotient, rtol=1e-6)


@pytest.mark.parametrize("adjoint", [*BACK, rg.Forward(), rg.Truncated(2), rg.Unrolled()], ids=repr)
def test_watch_sees_the_params_before_each_step(adjoint):
    report, h = rg.Report(), np.array([0.3, 0.02, 0.1])
    hyper = {"l2": {"hidden": h[1], "out": h[1] * np.ones(4)}, "shift": h[2]}
    run = partial(rg.train, loss, params_of(), rg.Momentum(0.3), hyper=hyper, adjoint=adjoint)
    seen = []

    def watch(t, params):
        seen.append((t, params))
        return 2.0 * t

    trained, watched = run(batches_of(STEPS), watch=watch, return_watched=True, report=report)
    assert watched.tolist() == report.watched == [2.0 * t for t in range(STEPS)]
    assert [t for t, _ in seen] == [*range(STEPS)]
    for t, params in seen:
        assert bits(params) == bits(run(batches_of(STEPS), steps=t))
    assert bits(trained) == bits(run(batches_of(STEPS)))


@pytest.mark.parametrize("adjoint", [*BACK, rg.Forward(), rg.Truncated(2), rg.Unrolled()], ids=repr)
def test_a_watch_nobody_differentiates_needs_no_derivative(adjoint):
    def hyperloss(h, watch):
        return validation_loss(rg.train(
            loss, params_of(), rg.Momentum(h), batches_of(STEPS), hyper=hyper_of(),
            adjoint=adjoint, watch=watch,
        ))  # fmt: skip

    error_rate = lambda t, params: int(float(validation_loss(params)) > 1)
    without = rg.grad(partial(hyperloss, watch=None))(0.3)
    assert rg.grad(partial(hyperloss, watch=error_rate))(0.3) == without


# The way back fails, and says where.

FLOAT32 = {"hyper": hyper_of("float32"), "adjoint": rg.Reversible()}


def reversal(loss, steps, report=None, batches=None, optimizer=None):
    """Train on batches or as many as `steps`, and return the pull-back to call."""
    batches = batches or batches_of(steps, "float32")
    optimizer = optimizer or rg.Momentum(0.2)
    _, pullback = rg.vjp(
        lambda p: rg.train(loss, p, optimizer, batches, report=report, **FLOAT32),
        params_of("float32"),
    )
    return lambda: pullback(params_of("float32"))


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("step", [0, 1, 38, 61, 99])
def test_one_ulp_in_one_gradient_of_the_way_back_is_noticed(make, step):
    steps, report = 100, rg.Report()
    params, batches = params_of("float32"), batches_of(steps, "float32")
    before = bits((params, batches))
    _, pullback = rg.vjp(
        lambda p: rg.train(loss, p, make(0.05), batches, report=report, **FLOAT32), params
    )
    assert report.returned_exactly is None
    with pytest.raises(rg.NotReversed) as caught, planted_fault(step, visit=0, leaf=1):
        pullback(params)
    assert caught.value.first <= step < caught.value.last <= caught.value.first + 4
    assert f"steps {caught.value.first} to {caught.value.last} did not" in str(caught.value)
    assert report.returned_exactly is False
    assert bits((params, batches)) == before
    pullback(params)  # from its own copy of the end, with no fault this time
    assert report.returned_exactly is True


def test_the_message_counts_what_differs_at_the_start():
    found = r"[1-9]\d* of 20 params differ, [1-9]\d* of 20 veloc"
    with pytest.raises(rg.NotReversed, match=found), planted_fault(3, leaf=1):
        reversal(loss, 100)()


def test_randomness_in_the_loss_is_noticed():
    rng = np.random.default_rng(0)

    def random_loss(params, hyper, batch):
        mask = rng.uniform(size=4) < 0.5
        return loss(params | {"out": params["out"] * mask.astype(np.float32)}, hyper, batch)

    with pytest.raises(rg.NotReversed, match="Look for randomness outside batches"):
        reversal(random_loss, 20)()


def test_a_loss_with_a_memory_is_noticed():
    calls = []

    def counting_loss(params, hyper, batch):
        calls.append(1)
        return loss(params, hyper, batch) * np.float32(1 + len(calls))

    with pytest.raises(rg.NotReversed):
        reversal(counting_loss, 20)()


def test_data_changed_in_place_are_noticed_and_where():
    batches = batches_of(100, "float32")
    back = reversal(loss, 100, batches=batches)
    batches[50][0][:] += 1
    with pytest.raises(rg.NotReversed) as caught:
        back()
    assert caught.value.first <= 50 < caught.value.last


def test_a_gradient_that_is_not_finite_on_the_way_back_is_noticed_at_once():
    batches = batches_of(100, "float32")
    back = reversal(loss, 100, batches=batches)
    batches[50][0][:] = np.nan
    with pytest.raises(rg.NotReversed) as caught:
        back()
    assert caught.value.first == 50 < caught.value.last <= 52


@pytest.mark.parametrize("adjoint", BACK, ids=repr)
def test_only_reversible_says_that_it_returned_exactly(adjoint):
    report = rg.Report()
    start, answer = problem(rg.Momentum)
    pulled(answer, adjoint, start, report=report)
    assert report.returned_exactly is (True if adjoint == rg.Reversible() else None)
    assert report.seconds_back > 0 and report.growth


# Weights that no gradient reaches: 0/0 lurks in Adam.


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("adjoint", [*BACK, rg.Forward(), rg.Unrolled()], ids=repr)
def test_weights_without_a_gradient_do_no_harm(make, adjoint):
    def half(params, hyper, batch):
        return np.sum(hyper * params * np.array([1.0, 0.0, 1.0, 0.0]) * batch)

    def answer(now):
        return rg.train(
            half, now["params"], make(now["rate"]), np.arange(1.0, 6), hyper=now["hyper"],
            adjoint=adjoint,
        )  # fmt: skip

    start = {"params": np.ones(4), "hyper": np.ones(4), "rate": 0.1}
    out, pullback = rg.vjp(answer, start)
    ct = pullback(np.ones(4))[0]
    assert all(np.all(np.isfinite(x)) for x in optree.tree_leaves(ct))
    np.testing.assert_allclose(out[1::2], 1, rtol=0, atol=1e-8)
    assert np.all(out[::2] != 1) and np.all(ct["params"] == 1)


# Forward: tangents ride along.


@pytest.mark.parametrize("kind", ["float64", "float32", "mixed"])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_forward_agrees(make, name, kind):
    start, answer = problem(make, name, kind)
    (out, back), (ahead, forward) = (pulled(answer, a, start) for a in (BACK[0], rg.Forward()))
    assert bits(out) == bits(ahead)
    assert distance(forward, back) < (1e-9 if kind == "float64" else 1e-4)
    for x, ct in zip(optree.tree_leaves(start), optree.tree_leaves(forward), strict=True):
        assert np.shape(x) == np.shape(ct) and np.result_type(x) == np.result_type(ct)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_forward_mode_agrees(make, name):
    start, answer = problem(make, name)
    tangent = optree.tree_map(
        lambda x: np.sin(np.ones(np.shape(x)).cumsum()).reshape(np.shape(x)) * x, start
    )
    out, t_out = rg.jvp(partial(answer, rg.Forward()), (start,), (tangent,))
    back_out, ct = pulled(answer, BACK[0], start)
    assert bits(out) == bits(back_out)
    pushed = flat(t_out) @ flat(cotangents_like(out))
    assert pushed == pytest.approx(flat(ct) @ flat(tangent), rel=1e-9)


def test_forward_carries_only_what_is_traced_and_frees_no_row_too_early():
    start, answer = problem(rg.Momentum, "per step and layer")
    _, every = pulled(answer, BACK[0], start)
    for name in start:
        only = lambda part, name=name: answer(rg.Forward(), start | {name: part})
        out, pullback = rg.vjp(only, start[name])
        assert distance(pullback(cotangents_like(out))[0], every[name]) < 1e-9


def test_jacfwd_and_jacrev_agree_on_several_outputs():
    def losses(h, adjoint):
        hyper = {"l2": {"hidden": h[1], "out": h[1] * np.ones(4)}, "shift": h[2]}
        trained = rg.train(
            loss, params_of(), rg.Momentum(h[0]), batches_of(STEPS), hyper=hyper, adjoint=adjoint
        )
        return np.stack([loss(trained, hyper, batch) for batch in batches_of(3, seed=3)])

    h = np.array([0.05, 0.02, 0.1])
    jacobian = rg.jacfwd(partial(losses, adjoint="auto"))(h)
    np.testing.assert_allclose(jacobian, rg.jacrev(partial(losses, adjoint="auto"))(h), rtol=1e-9)
    for adjoint in (rg.Forward(), rg.Stored(), rg.Checkpointed(2)):
        np.testing.assert_allclose(
            jacobian, rg.jacrev(partial(losses, adjoint=adjoint))(h), rtol=1e-9
        )


@pytest.mark.parametrize("derivative", HIGHER.values(), ids=HIGHER)
def test_forward_refuses_second_derivatives(derivative):
    hyperloss, h = small(rg.Forward())
    if derivative in (HIGHER["jvp"], rg.jacfwd):
        derivative(hyperloss)(h)
        return
    with pytest.raises(rg.MissingRule, match=r"pass adjoint=Unrolled\(\)"):
        derivative(hyperloss)(h)


@pytest.mark.parametrize("derivative", HIGHER.values(), ids=HIGHER)
def test_auto_takes_every_derivative(derivative):
    auto, h = small("auto")
    unrolled, _ = small(rg.Unrolled())
    found, expected = derivative(auto)(h), derivative(unrolled)(h)
    np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-9)


def test_too_many_tangents_are_refused_with_advice():
    hyperloss, h = small(rg.Forward(memory=500))
    message = (
        r"^Forward\(memory=500\) would carry 7 tangents, one per traced number, of .*Reversible"
    )
    with pytest.raises(ValueError, match=message):
        rg.grad(hyperloss)(h)
    hyperloss(h)


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_under_the_adjoints(name):
    """All that agree to the bit do, and tangents that ride along give the same numbers."""
    optimizer = ALL[name]
    loss, params, optimizer, batches, options = settings_of(optimizer)

    def answer(adjoint, now):
        trained, state = rg.train(
            loss, now["params"], optimizer.with_hyper(now["optimizer"]), batches,
            **options | {"hyper": now["hyper"]}, adjoint=adjoint, return_state=True,
        )  # fmt: skip
        return trained, {k: x for k, x in state.items() if k != "t"}

    traced = {k: x for k, x in optimizer.hyper.items() if isinstance(x, float)}
    start = {"params": params, "optimizer": traced, "hyper": options["hyper"]}
    full = lambda adjoint, now: answer(
        adjoint, now | {"optimizer": optimizer.hyper | now["optimizer"]}
    )
    stored = pulled(full, rg.Stored(), start)
    assert bits(pulled(full, rg.Checkpointed(2), start)) == bits(stored)
    if optimizer.reversible:
        assert bits(pulled(full, rg.Reversible(), start)) == bits(stored)
    forward = pulled(full, rg.Forward(), start)
    assert bits(forward[0]) == bits(stored[0])
    for k in start:
        a, b = flat(forward[1][k]), flat(stored[1][k])
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * np.max(np.abs(b), initial=0.0))


# Truncated: the last steps alone.


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_truncation_longer_than_the_run_is_none(make):
    start, answer = problem(make, "per step and layer")
    whole = pulled(answer, BACK[0], start)
    assert bits(pulled(answer, rg.Truncated(STEPS), start)) == bits(whole)
    assert bits(pulled(answer, rg.Truncated(10**9), start)) == bits(whole)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_truncated_is_the_derivative_of_the_last_steps_from_where_they_began(make):
    k = 3
    start, answer = problem(make, "per step")
    out, found = pulled(answer, rg.Truncated(k), start)
    assert bits(out) == bits(pulled(answer, BACK[0], start)[0])
    assert not any(np.any(x) for x in optree.tree_leaves((found["params"], found["state"])))
    for x in found["optimizer"].values():
        assert not np.any(x[: STEPS - k]) and np.all(x[STEPS - k :])
    # the same steps with each derivative of an earlier one taken away
    rows = rg.per_step(np.arange(STEPS) >= STEPS - k)
    cut = start | {"optimizer": {k: rg.stop_gradient(x) for k, x in start["optimizer"].items()}}
    assert cut and rows
    whole = pulled(answer, BACK[0], start)[1]
    last = found["optimizer"]["learning_rate"][-1], whole["optimizer"]["learning_rate"][-1]
    assert last[0] == last[1]


def test_truncated_after_an_early_stop():
    def stop(step, metrics):
        if step == 4:
            raise rg.StopRun

    def answer(rates, adjoint):
        return rg.train(
            loss, params_of(), rg.Momentum(rg.per_step(rates)), batches_of(STEPS),
            hyper=hyper_of(), adjoint=adjoint, callback=stop,
        )  # fmt: skip

    rates = np.linspace(0.1, 0.2, STEPS)
    ct = [
        rg.grad(lambda r, a=a: validation_loss(answer(r, a)))(rates)
        for a in (rg.Truncated(2), BACK[0])
    ]
    assert ct[0].tolist() == [0, 0, 0, *ct[1][3:5], 0, 0]


def test_data_have_a_derivative_through_hyper():
    x, y = (np.stack(part) for part in zip(*batches_of(4), strict=True))

    def hyperloss(data, adjoint):
        def data_loss(params, data, t):
            return loss(params, hyper_of(), (data["x"][t], data["y"][t]))

        trained = rg.train(
            data_loss, params_of(), rg.Momentum(0.1), lambda t: t % 4, steps=STEPS, hyper=data,
            adjoint=adjoint,
        )  # fmt: skip
        return validation_loss(trained)

    data = {"x": x, "y": y}
    found = [rg.grad(hyperloss)(data, a) for a in BACK]
    assert bits(found[0]) == bits(found[1]) == bits(found[2])
    for adjoint in (rg.Forward(), rg.Unrolled()):
        assert distance(rg.grad(hyperloss)(data, adjoint), found[0]) < 1e-9


# Planted faults in the pull-back: the bits agree, so numbers must tell.


def agree_with_unrolled():
    start, answer = problem(rg.Momentum, "per layer")
    exact, in_floats = pulled(answer, BACK[0], start), pulled(answer, rg.Unrolled(), snapped(start))
    assert distance(exact, in_floats) < 1e-9


def keep_the_cotangent(point, cts):
    ct = cts[point.statement.target]
    found = module_pull_scale(point, cts)
    cts[point.statement.target] = ct
    return found


def take_the_value_after(point, cts):
    return module_pull_scale(replace(point, before=point.before * point.factor), cts)


module_pull_scale, module_pull_add = module.pull_scale, module.pull_add
FAULTS = {
    "a scale does not scale the cotangent": ("pull_scale", keep_the_cotangent),
    "a factor sees the target after it": ("pull_scale", take_the_value_after),
    "a factor has no cotangent": ("pull_scale", lambda p, cts: module_pull_scale(p, cts) and []),
    "an add forgets what it read": (
        "pull_add",
        lambda p, cts: [(k, ct) for k, ct in module_pull_add(p, cts) if k != "velocity"],
    ),
    "an add pulls back twice": (
        "pull_add",
        lambda p, cts: 2 * [*module_pull_add(p, cts)],
    ),
}


@pytest.mark.parametrize(("name", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_pull_rule_is_caught(name, fault, monkeypatch):
    monkeypatch.setattr(module, "Passes", NoPasses)  # whose faults test_fused.py plants
    agree_with_unrolled()
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(AssertionError):
        agree_with_unrolled()
