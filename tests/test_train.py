"""The door: what it refuses and in which words, what it returns, and what it says of a run."""

import gc
from functools import partial
from math import log, log2

import numpy as np
import optree
import pytest
from training import (
    Catching,
    batches_of,
    bits,
    distance,
    hyper_of,
    loss,
    params_of,
    validation_loss,
)

import revgrad as rg
from revgrad import choice
from revgrad.errors import ClosureError, FixedOverflow, RatioRefused

STEPS = 6
EXACT = (rg.Reversible(), rg.Stored(), rg.Checkpointed(2))
ADJOINTS = (*EXACT, rg.Forward(), rg.Unrolled())


def train(**changes):
    """A run that works, but for what is changed."""
    what = {
        "loss": loss, "params": params_of(), "optimizer": rg.Momentum(0.2),
        "batches": batches_of(STEPS), "hyper": hyper_of(),
    }  # fmt: skip
    return rg.train(**what | changes)


# Refusals: what came, what was wanted, what to do.

WHOLE = r"a whole number, 0 or more, is wanted\.$"
LAYERS = {"hidden": 0.1, "out": 0.1}
REFUSED = {
    # batches and steps
    "a generator": (
        {"batches": (b for b in batches_of(2))},
        TypeError,
        "^batches is a generator, which cannot be met again in reverse; pass a list or a function",
    ),
    "an iterator": ({"batches": iter([1, 2])}, TypeError, "^batches is a list_iterator, which can"),
    "a dict": (
        {"batches": {"x": 1}},
        TypeError,
        "^batches is a dict; pass a sequence of batches, or a function of the step",
    ),
    "a set": ({"batches": {1, 2}}, TypeError, "^batches is a set; pass a sequence"),
    "text": ({"batches": "123"}, TypeError, "^batches is a str; pass a sequence"),
    "no batches": ({"batches": None}, TypeError, "^batches is a NoneType; pass a sequence"),
    "empty batches": (
        {"batches": []},
        ValueError,
        r"^batches is empty; pass some, or steps=0 if none are meant\.$",
    ),
    "empty batches, many steps": (
        {"batches": np.zeros((0, 2)), "steps": 3},
        ValueError,
        "^batches is empty and 3 steps were asked for",
    ),
    "a function without steps": (
        {"batches": lambda t: t},
        ValueError,
        r"^batches is a function of the step, so train needs steps=\.$",
    ),
    "negative steps": ({"steps": -1}, ValueError, f"^steps=-1; {WHOLE}"),
    "half a step": ({"steps": 2.5}, ValueError, rf"^steps=2\.5; {WHOLE}"),
    "infinitely many steps": ({"steps": np.inf}, ValueError, f"^steps=inf; {WHOLE}"),
    "NaN steps": ({"steps": np.nan}, ValueError, f"^steps=nan; {WHOLE}"),
    "true steps": ({"steps": True}, ValueError, f"^steps=True; {WHOLE}"),
    "steps in words": ({"steps": "ten"}, ValueError, f"^steps='ten'; {WHOLE}"),
    # params
    "integer params": (
        {"params": {"w": np.arange(3)}},
        TypeError,
        r"^params\['w'\] is an array of int64 and shape \(3,\), which has no derivative; pass real",
    ),
    "an object": ({"params": [0.1, object()]}, TypeError, r"^params\[1\] is a object"),
    "objects": ({"params": np.array([None])}, TypeError, "^params is an array of object"),
    "complex params": ({"params": [1j]}, TypeError, r"^params\[0\] is a complex"),
    "float16 params": (
        {"params": {"w": np.ones(3, np.float16)}},
        TypeError,
        r"^params\['w'\] is float16; training takes float32 and float64, so pass x\.astype",
    ),
    "no params": ({"params": {"w": []}}, ValueError, "^params holds no numbers; pass a tree"),
    "params without entries": ({"params": np.ones((0, 2))}, ValueError, "^params holds no numbers"),
    # optimizer and adjoint
    "an optimizer class": (
        {"optimizer": rg.Momentum},
        TypeError,
        r"^optimizer is a type; pass one of revgrad's, e\.g\. Momentum\(0\.1\)\.$",
    ),
    "a rate for an optimizer": ({"optimizer": 0.1}, TypeError, "^optimizer is a float; pass one"),
    "an adjoint class": (
        {"adjoint": rg.Reversible},
        TypeError,
        r"^adjoint=<class .*Reversible'>; pass \"auto\", Reversible\(\), .* \(an instance\)\.$",
    ),
    "an adjoint's name": ({"adjoint": "stored"}, TypeError, "^adjoint='stored'; pass \"auto\""),
    "no adjoint": ({"adjoint": None}, TypeError, "^adjoint=None; pass \"auto\""),
    "SGD under Reversible": (
        {"optimizer": rg.SGD(0.1), "adjoint": rg.Reversible()},
        TypeError,
        r"^Reversible\(\) cannot undo SGD: some update of 'params' .*Stored\(\) or Unrolled\(\)\.$",
    ),
    # hyperparameters
    "no rate": (
        {"optimizer": rg.Momentum(None)},
        TypeError,
        r"^Momentum\(learning_rate=\.\.\.\) is a tree that is no prefix of the params",
    ),
    "an integer array for a rate": (
        {"optimizer": rg.Momentum(np.array([1, 2, 3, 4]))},
        TypeError,
        r"^Momentum\(learning_rate=\.\.\.\) is an array of int64",
    ),
    "a tree that is no prefix": (
        {"optimizer": rg.Momentum({"hidden": 0.1, "inner": 0.1})},
        TypeError,
        r"^Momentum\(learning_rate=\.\.\.\) is a tree that is no prefix of the params \(.*\); give",
    ),
    "a value that does not broadcast": (
        {"optimizer": rg.Adam(0.1, b1={"hidden": np.full(3, 0.9), "out": 0.9})},
        ValueError,
        r"^Adam\(b1=\.\.\.\) has a value of shape \(3,\) for params of shape \(4,\), to which",
    ),
    "a value with more axes": (
        {"optimizer": rg.Adam(np.ones((4, 4)))},
        ValueError,
        r"^Adam\(learning_rate=\.\.\.\) has a value of shape \(4, 4\) for params of shape \(4,\)",
    ),
    "too few values per step": (
        {"optimizer": rg.Momentum(rg.per_step(np.ones(5)))},
        ValueError,
        "^per_step has 5 values but 6 steps taken 1 at a time need 6; give a leading axis of 6, or",
    ),
    "too many values for a leaf": (
        {"optimizer": rg.Momentum(rg.per_step({"hidden": np.ones(3), "out": np.ones(4)}, every=2))},
        ValueError,
        r"^per_step\['out'\] has 4 values but 6 steps taken 2 at a time need 3",
    ),
    "a number per step": (
        {"optimizer": rg.Momentum(rg.per_step(0.1))},
        ValueError,
        "^per_step has a single number but 6 steps",
    ),
    "integers per step in hyper": (
        {"hyper": hyper_of() | {"shift": rg.per_step(np.arange(STEPS))}},
        TypeError,
        "^per_step in hyper must hold floats; compute integers from the batch",
    ),
    "a wrong length in hyper": (
        {"hyper": hyper_of() | {"shift": rg.per_step(np.ones(2), every=2)}},
        ValueError,
        r"^per_step\['shift'\] has 2 values but 6 steps taken 2 at a time need 3",
    ),
    # state
    "an array for a state": (
        {"state": np.ones(3)},
        TypeError,
        r"^state is a ndarray; pass what train\(\.\.\., return_state=True\) returned",
    ),
    "an unknown state variable": (
        {"state": {"moment": params_of()}},
        ValueError,
        r"^state has \['moment'\]; Momentum keeps \['velocity'\]\.$",
    ),
    "a state of another tree": (
        {"state": {"velocity": {"hidden": np.ones(4)}}},
        TypeError,
        r"^state\['velocity'\] has structure .*, but the tree of the params has ",
    ),
    "a state of another shape": (
        {"state": {"velocity": params_of() | {"out": np.ones(3)}}},
        ValueError,
        r"^state\['velocity'\]\['out'\] has shape \(3,\), but params\['out'\] has \(4,\)\.$",
    ),
    "an integer state": (
        {"state": {"velocity": params_of() | {"out": np.arange(4)}}},
        TypeError,
        r"^state\['velocity'\]\['out'\] is an array of int64",
    ),
    "negative steps before": ({"state": {"t": -1}}, ValueError, rf"^state\['t'\]=-1; {WHOLE}"),
    "half a step before": ({"state": {"t": 0.5}}, ValueError, rf"^state\['t'\]=0\.5; {WHOLE}"),
    # arithmetic
    "bits for nothing": (
        {"arithmetic": rg.FixedPoint(fraction_bits={"velocty": 50})},
        ValueError,
        r"^FixedPoint\(fraction_bits=\.\.\.\) has \['velocty'\]; Momentum keeps \['params', 'velo",
    ),
    # the loss and watch
    "a loss with no scalar": (
        {"loss": lambda p, h, b: p["out"]},
        TypeError,
        r"the loss returned an array of float64 and shape \(4,\); a gradient needs one real float",
    ),
    "a loss with no scalar later": (
        {"loss": lambda p, h, b: p["out"] if b else np.sum(p["out"]), "batches": [0, 1]},
        TypeError,
        r"returned an array of float64 and shape \(4,\); a gradient needs one real float",
    ),
    "a loss that counts": (
        {"loss": lambda p, h, b: 3},
        TypeError,
        "the loss returned a int; a gradient needs one real float",
    ),
    "aux not announced": (
        {"loss": lambda p, h, b: (np.sum(p["out"]), 1)},
        TypeError,
        r"the loss returned a tuple; .*has_aux=True",
    ),
    "aux not returned": (
        {"has_aux": True},
        TypeError,
        r"^has_aux=True needs a loss that returns \(scalar, aux\), not a \w*\.$",
    ),
    "aux not returned later": (
        {
            "loss": lambda p, h, b: np.sum(p["out"]) if b else (np.sum(p["out"]), 1),
            "batches": [0, 1],
            "has_aux": True,
        },
        TypeError,
        r"^has_aux=True needs a loss that returns \(scalar, aux\), not a \w*float64\.$",
    ),
    "a watch with no scalar": (
        {"watch": lambda t, p: p["out"]},
        TypeError,
        r"^watch returned an array of shape \(4,\); one number per step is wanted, so use np\.sum",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_at_the_door(changes, error, message):
    train()
    with pytest.raises(error, match=message):
        train(**changes)
    if "adjoint" not in changes:
        with pytest.raises(error, match=message):
            train(adjoint=rg.Unrolled(), **changes)


@pytest.mark.parametrize("steps", [3, 3.0, np.int64(3)])
def test_whole_steps_of_any_type_are_taken(steps):
    assert bits(train(steps=steps)) == bits(train(batches=batches_of(STEPS)[:3]))


@pytest.mark.parametrize("bad", [0, 0.5, -1, True, "2", np.nan])
def test_per_step_refuses_other_than_whole_numbers_of_steps(bad):
    with pytest.raises(ValueError, match=r"^every=.*; a whole number, 1 or more, is wanted\.$"):
        rg.per_step(np.ones(3), every=bad)


@pytest.mark.parametrize("momentum", [0.0, -0.5, 1.5, np.nan, 1 - 2.0**-30])
def test_factors_that_cannot_be_undone_are_for_other_adjoints(momentum):
    optimizer = rg.Momentum(0.1, momentum)
    with pytest.raises(RatioRefused, match=r"^Momentum\(momentum=\.\.\.\): .*Stored\(\) or Unroll"):
        train(optimizer=optimizer, adjoint=rg.Reversible())
    if np.isnan(momentum):
        with pytest.raises(FixedOverflow, match="step 0: velocity"):
            train(optimizer=optimizer, adjoint=rg.Stored())
        return
    stored, in_floats = (
        train(optimizer=optimizer, adjoint=a) for a in (rg.Stored(), rg.Unrolled())
    )
    assert distance(stored, in_floats) < 1e-12
    report = rg.Report()
    assert bits(train(optimizer=optimizer, report=report)) == bits(stored)
    why = "chosen because Momentum(momentum=...) has a factor that cannot be undone, and"
    assert report.adjoint.startswith(f"Stored(), {why}")


def test_factors_that_cannot_be_undone_have_a_derivative_all_the_same():
    def hyperloss(momentum, adjoint):
        return validation_loss(train(optimizer=rg.Momentum(0.1, momentum), adjoint=adjoint))

    for momentum in (-0.5, 0.0, 1.5, 1.0):
        stored, in_floats = (rg.grad(hyperloss)(momentum, a) for a in (rg.Stored(), rg.Unrolled()))
        assert stored == pytest.approx(in_floats, rel=1e-9)


@pytest.mark.parametrize(
    "momentum",
    [{"hidden": 0.9, "out": np.array([0.9, 0.0, 0.5, 1.0])}, rg.per_step(np.eye(STEPS)[0])],
)
def test_one_bad_factor_among_many_is_refused(momentum):
    with pytest.raises(RatioRefused, match=r"^Momentum\(momentum=\.\.\.\): factor 0\.0"):
        train(optimizer=rg.Momentum(0.1, momentum), adjoint=rg.Reversible())


def test_momentum_1_is_exact_and_free():
    report = rg.Report()
    train(optimizer=rg.HeavyBall(0.01, 1.0), report=report)
    assert (report.bits, report.bound) == (0, 0)


def test_auto_chooses_and_says_why(monkeypatch):
    report = rg.Report()

    def chosen(**changes):
        train(report=report, **changes)
        return report.adjoint

    sgd = rg.SGD(0.1)
    assert chosen() == "Reversible(), chosen because Momentum is reversible"
    why = "SGD is not reversible, and its 6 states take 0.00096 MB"
    assert chosen(optimizer=sgd) == f"Stored(), chosen because {why}"
    assert chosen(adjoint=rg.Unrolled()) == "Unrolled()"
    rate = lambda rate: validation_loss(train(report=report, optimizer=rg.Momentum(rate)))
    rg.jvp(rate, (0.1,), (1.0,))
    why = "it is differentiated in forward mode"
    assert report.adjoint == f"{rg.Forward()!r}, chosen because {why}"
    rg.grad(rg.grad(rate))(0.1)
    assert report.adjoint == "Unrolled(), chosen because it is differentiated more than once"
    monkeypatch.setattr(choice, "ROOM", 100)
    why = "SGD is not reversible, and its 6 states would take 9.6e-07 GB"
    assert chosen(optimizer=sgd) == f"Checkpointed(memory=1600), chosen because {why}"
    rg.grad(lambda rate: validation_loss(chosen_run(rate, report)))(0.1)
    assert (
        report.adjoint
        == f"{rg.Forward()!r}, chosen because {why}, while one number alone is traced"
    )


def chosen_run(rate, report):
    return train(report=report, optimizer=rg.SGD(rate))


# Closing over traced values.

CLOSING = {
    "the loss": lambda c: {"loss": lambda p, h, b: loss(p, h, b) * c},
    "a term without a gradient": lambda c: {"loss": lambda p, h, b: loss(p, h, b) + c},
    "the batches": lambda c: {"batches": [(x * c, y) for x, y in batches_of(STEPS)]},
    "a function of the step": lambda c: {
        "batches": lambda t: (batches_of(STEPS)[t][0] * c, batches_of(STEPS)[t][1]), "steps": STEPS,
    },
    "watch": lambda c: {"watch": lambda t, p: c * validation_loss(p)},
    "watch, differentiated": lambda c: {
        "watch": lambda t, p: c * validation_loss(p), "return_watched": True,
    },
    "hyper of a closed-over kind": lambda c: {
        "hyper": hyper_of() | {"shift": lambda: c},
        "loss": lambda p, h, b: loss(p, h | {"shift": h["shift"]()}, b),
    },
}  # fmt: skip
LATER = {
    "the loss": lambda c: {
        "loss": lambda p, h, b: loss(p, h, b[1]) * (c if b[0] == 3 else 1),
        "batches": [*enumerate(batches_of(STEPS))],
    },
    "the batches": lambda c: {
        "batches": [(x * c if t == 3 else x, y) for t, (x, y) in enumerate(batches_of(STEPS))]
    },
    "watch": lambda c: {"watch": lambda t, p: (c if t == 3 else 1) * validation_loss(p)},
}


def derivative_of(closing, adjoint):
    def hyperloss(c):
        out = train(adjoint=adjoint, **closing(c))
        return validation_loss(out[0] if isinstance(out, tuple) else out)

    return rg.grad(hyperloss)(1.0)


@pytest.mark.parametrize("closing", CLOSING.values(), ids=CLOSING)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_closing_over_a_traced_value_is_refused(adjoint, closing):
    with pytest.raises(ClosureError, match=r"was not passed to train.*pass it through hyper="):
        derivative_of(closing, adjoint)


@pytest.mark.parametrize("closing", LATER.values(), ids=LATER)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_closing_over_a_traced_value_in_a_later_step_is_refused(adjoint, closing):
    with pytest.raises(ClosureError):
        derivative_of(closing, adjoint)


# What comes back.


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("kind", ["float64", "float32", "mixed"])
def test_trained_params_are_like_the_params(adjoint, kind):
    given, batches = params_of(kind), batches_of(STEPS, kind)
    before = bits((given, batches))
    trained, state, watched = train(
        params=given, batches=batches, hyper=hyper_of(kind), adjoint=adjoint, return_state=True,
        watch=lambda t, p: 0.5, return_watched=True,
    )  # fmt: skip
    assert bits((given, batches)) == before
    for tree in (trained, state["velocity"]):
        assert optree.tree_structure(tree) == optree.tree_structure(given)
        for x, y in zip(*map(optree.tree_leaves, (tree, given)), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype) and not np.shares_memory(x, y)
    assert state.keys() == {"velocity", "t"} and state["t"] == STEPS
    assert watched.tolist() == [0.5] * STEPS


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_strong_hyperparameters_do_not_change_the_dtype_of_the_params(adjoint):
    strong = rg.Momentum(np.float64(0.2), {"hidden": np.array(0.9), "out": np.full(4, 0.9)})
    options = {"batches": batches_of(STEPS, "float32"), "hyper": hyper_of("float32")}
    trained, state = train(
        params=params_of("float32"), optimizer=strong, adjoint=adjoint, return_state=True, **options
    )
    assert {x.dtype for x in optree.tree_leaves((trained, state["velocity"]))} == {np.dtype("f")}


def test_a_bare_number_may_be_trained():
    square = lambda x, _hyper, target: (x - target) ** 2
    slope = rg.grad(lambda x: rg.train(square, x, rg.HeavyBall(0.1), [1.0, 1.0]))(0.5)
    # two steps by hand: x1 = 0.6, v2 = 0.9 * -1 + -0.8, and dx2/dx = d(0.8 x1 + 0.09 * 2 x - ...)
    assert slope == pytest.approx(0.8 * 0.8 - 0.1 * 0.9 * 2, rel=1e-12)


def test_a_float32_loss_stays_float32():
    seen = set()

    def loss(params, hyper, batch):
        out = np.sum(params * hyper["strong"] * hyper["weak"] * hyper["per step"])
        seen.add(out.dtype)
        return out

    hyper = {"strong": np.exp(0.5), "weak": 0.5, "per step": rg.per_step(np.ones(3))}
    optimizer, params = rg.Momentum(np.exp(-1)), np.ones(3, np.float32)
    run = lambda h: np.sum(rg.train(loss, params, optimizer, range(3), hyper=hyper | h))
    assert rg.grad(run)({"strong": np.exp(0.5)})["strong"].dtype == np.float64
    assert seen == {np.dtype(np.float32)}


def test_what_is_no_float_in_hyper_reaches_the_loss_as_it_is():
    seen = []

    def loss(params, hyper, batch):
        seen.append(hyper)
        return np.sum(params * hyper[0])

    hyper = [np.ones(2), np.arange(3), "text", None, 7, True]
    rg.train(loss, np.ones(2), rg.Momentum(0.1), [0], hyper=hyper)
    assert all(a is b for a, b in zip(seen[0][1:], hyper[1:], strict=True))


def test_batches_are_gone_through_again_and_may_be_a_function():
    batches = batches_of(3)
    expected = bits(train(batches=batches + batches + batches[:1]))
    assert bits(train(batches=batches, steps=7)) == expected
    assert bits(train(batches=lambda t: batches[t % 3], steps=7)) == expected


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_no_steps_change_nothing(adjoint):
    trained, state = train(batches=[], steps=0, adjoint=adjoint, return_state=True)
    assert distance(trained, params_of()) < 2.0**-50
    assert state["t"] == 0 and not any(map(np.any, optree.tree_leaves(state["velocity"])))
    ct = rg.grad(lambda p: validation_loss(train(params=p, steps=0, adjoint=adjoint)))(trained)
    assert bits(ct) == bits(rg.grad(validation_loss)(trained))


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("optimizer", [rg.Momentum(0.2), rg.HeavyBall(0.02), rg.Adam(0.05)])
def test_a_run_goes_on_from_the_state_of_an_earlier_one(adjoint, optimizer):
    run = partial(train, optimizer=optimizer, adjoint=adjoint, return_state=True)
    whole, last = run(batches=batches_of(30))
    trained, state = run(batches=batches_of(30)[:13])
    trained, state = run(batches=batches_of(30)[13:], params=trained, state=state)
    assert state["t"] == last["t"] == 30
    assert distance((trained, state), (whole, last)) < 1e-8  # heads start anew
    forgetful, _ = run(batches=batches_of(30)[13:], params=trained, state={})
    assert distance(forgetful, whole) > 1e-3


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("make", [float, np.float32, np.float64, np.array])
def test_a_number_comes_back_in_its_kind(adjoint, make):
    square = lambda x, _hyper, target: (x["w"] - target) ** 2 + 0.0 * np.sum(x["b"])
    start = {"w": make(0.5), "b": np.ones(2)}

    def run(start):
        return rg.train(
            square, start, rg.Momentum(0.1), [1.0, 1.0], adjoint=adjoint, return_state=True
        )

    trained, state = run(start)
    traced, pullback = rg.vjp(lambda s: run(s)[0], start)
    ct = pullback(trained)[0]
    for x in (trained["w"], state["velocity"]["w"], traced["w"], ct["w"]):
        assert type(x) is type(start["w"]) and np.result_type(x) == np.result_type(start["w"])
    assert trained["w"] != 0.5


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("steps", [0, STEPS])
def test_nobody_gets_arrays_that_the_run_or_the_caller_works_on(adjoint, steps):
    """What watch and callback are given may be changed, and so may what comes back."""
    given, warm = params_of(), {"velocity": params_of(seed=3)}
    before = bits((given, warm))

    def spoil(tree):
        for x in optree.tree_leaves(tree):
            x[...] = 7.0

    def watch(t, params):
        spoil(params)
        return 1.0

    def with_aux(params, hyper, batch):
        return loss(params, hyper, batch), params["out"]

    run = partial(
        train, params=given, state=warm, steps=steps, adjoint=adjoint, loss=with_aux, has_aux=True,
        return_state=True,
    )  # fmt: skip
    expected = bits(run())
    spoiled = run(watch=watch, callback=lambda t, m: spoil(m["aux"]))
    assert bits(spoiled) == expected and bits((given, warm)) == before
    spoil((spoiled[0], spoiled[1]["velocity"]))
    assert bits((given, warm)) == before and bits(run()) == expected


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_aux_is_plain_whatever_is_traced(adjoint):
    seen = []

    def with_aux(params, hyper, batch):
        return loss(params, hyper, batch), {"shift": hyper["shift"] * 2, "rows": params["out"]}

    def run(hyper):
        keep = lambda t, metrics: seen.append(metrics["aux"])
        trained = train(loss=with_aux, has_aux=True, hyper=hyper, adjoint=adjoint, callback=keep)
        return validation_loss(trained)

    run(hyper_of())
    plain, seen[:] = bits(seen), []
    rg.grad(run)(hyper_of())
    assert bits(seen) == plain


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_loss_and_watch_are_called_no_more_than_needed(adjoint):
    """Neither is looked at once more to see what it is like."""
    calls = {"loss": 0, "watch": 0}

    def counted(name, function):
        def counting(*args):
            calls[name] += 1
            return function(*args)

        return counting

    train(
        batches=[("different at every step", b) for b in batches_of(STEPS)], adjoint=adjoint,
        loss=counted("loss", lambda p, h, b: loss(p, h, b[1])),
        watch=counted("watch", lambda t, p: validation_loss(p)),
    )  # fmt: skip
    assert calls["watch"] == STEPS
    train(steps=1, adjoint=adjoint, loss=counted("loss", loss), watch=None)
    assert calls["loss"] - STEPS <= 2 * STEPS


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_steps_taken_are_counted_by_the_run_not_by_the_report(adjoint):
    report = rg.Report()

    def meddle(step, metrics):
        report.clear()
        report.steps = 100

    _, state = train(report=report, callback=meddle, return_state=True, adjoint=adjoint)
    assert state["t"] == STEPS


# Stopping early.


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_stop_run_ends_the_run_which_is_reversed_from_there(adjoint):
    def stop(step, metrics):
        if step == 3:
            raise rg.StopRun

    rates = np.linspace(0.1, 0.3, STEPS)

    def answer(rates, report, **options):
        return train(
            optimizer=rg.Momentum(rg.per_step(rates)), adjoint=adjoint, report=report,
            watch=lambda t, p: validation_loss(p), return_state=True, return_watched=True,
            **options,
        )  # fmt: skip

    def hyperloss(rates, report, **options):
        trained, _, watched = answer(rates, report, **options)
        return validation_loss(trained) + np.sum(watched)

    report = rg.Report()
    stopped = answer(rates, report, callback=stop)
    four = answer(rates[:4], rg.Report(), steps=4)
    assert bits(stopped) == bits(four)
    assert stopped[1]["t"] == report.steps == 4 and len(report.watched) == 4
    ct = rg.grad(hyperloss)(rates, report, callback=stop)
    assert bits(ct[:4]) == bits(rg.grad(hyperloss)(rates[:4], rg.Report(), steps=4))
    assert ct[4:].tolist() == [0, 0] and np.all(ct[:4] != 0)
    if adjoint == rg.Reversible():
        assert report.returned_exactly is True


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_callback_gets_step_loss_and_aux(adjoint):
    seen = []

    def with_aux(params, hyper, batch):
        value = loss(params, hyper, batch)
        return value, {"twice": 2 * value, "name": "aux"}

    run = partial(train, adjoint=adjoint, callback=lambda step, m: seen.append((step, m)))
    plain = run()
    losses = [m["loss"] for _, m in seen]
    assert [step for step, _ in seen] == [*range(STEPS)]
    assert all(m.keys() == {"loss"} and type(m["loss"]) is float for _, m in seen)
    params = [params_of(), *(train(steps=k, adjoint=adjoint) for k in range(1, STEPS))]
    expected = [loss(p, hyper_of(), b) for p, b in zip(params, batches_of(STEPS), strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    seen.clear()
    traced = rg.vjp(lambda p: run(loss=with_aux, has_aux=True, params=p), params_of())[0]
    assert bits(traced) == bits(plain)
    assert [m["loss"] for _, m in seen] == losses
    assert [m["aux"] for _, m in seen] == [{"twice": 2 * x, "name": "aux"} for x in losses]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_other_exceptions_of_a_callback_pass(adjoint):
    def fail(step, metrics):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(callback=fail, adjoint=adjoint)


# The report.


def test_the_report_is_true():
    steps, report, adjoint = 300, rg.Report(), Catching()
    momentum = {"hidden": 0.9, "out": np.array([0.5, 0.9, 0.99, 1.0])}
    answer = partial(
        train, optimizer=rg.Momentum(0.2, momentum), batches=batches_of(6), steps=steps,
        adjoint=adjoint, report=report, watch=lambda t, p: float(t),
    )  # fmt: skip
    out, pullback = rg.vjp(lambda p: answer(params=p), params_of())
    program = adjoint.programs[0]
    state, _ = program.start()
    trail = []
    for t in range(steps):
        trail.append({k: np.max(np.abs(x.decode())) for k, x in state.variables.items()})
        program.advance(state, t)
    buffer = state.buffers["velocity"]
    assert report.bits == buffer.bits and report.bytes_kept == buffer.nbytes
    assert report.steps == steps and report.weights == 20
    assert report.bits_per_weight_step == report.bits / (20 * steps)
    bound = (17 * log2(10 / 9) + log2(2) + log2(100 / 99)) / 20
    assert report.bound == pytest.approx(bound, rel=1e-12)
    assert report.bits_per_weight_step == pytest.approx(bound, rel=1e-5)
    assert report.bytes_stored == steps * 20 * 2 * 8
    assert report.fraction_bits == {k: x.fraction_bits for k, x in state.variables.items()}
    for name, (seen, limit) in report.largest.items():
        assert limit == 2.0 ** (63 - report.fraction_bits[name])
        assert trail[0][name] <= seen <= max(now[name] for now in trail) < limit
    assert report.largest["params"][0] >= np.max(np.abs(out["out"]))
    assert report.watched == [float(t) for t in range(steps)]
    assert report.seconds > 0 and report.seconds_back == 0 and report.blas_threads
    assert (report.returned_exactly, report.growth, report.chaos) == (None, [], None)
    pullback(out)
    assert report.returned_exactly is True and report.seconds_back > 0
    assert all(f"{name}" in str(report) for name in ("bound", "returned_exactly", "chaos"))


def test_the_report_of_other_adjoints():
    report = rg.Report()
    rg.vjp(lambda p: train(params=p, adjoint=rg.Stored(), report=report), params_of())
    state = 20 * (8 + 8 + 4)  # params, velocity and heads
    assert report.bytes_kept == STEPS * state and report.bytes_stored == STEPS * 20 * 16
    train(report=report)
    assert report.bytes_kept == 0  # nobody will go back
    train(adjoint=rg.Unrolled(), report=report, watch=lambda t, p: 1.0)
    assert (report.steps, report.weights, report.watched) == (STEPS, 20, [1.0] * STEPS)
    assert report.seconds > 0 and report.fraction_bits == {}


def test_a_report_used_again_forgets_the_run_before():
    report = rg.Report()
    rg.grad(lambda p: validation_loss(train(params=p, report=report)))(params_of())
    assert report.returned_exactly is True and "velocity" in report.largest
    train(optimizer=rg.SGD(0.1), report=report)
    assert report.returned_exactly is None and report.growth == []
    assert report.largest.keys() == {"params"}


def test_two_runs_may_share_a_report_and_still_be_reversed():
    report = rg.Report()

    def hyperloss(p):
        first = train(params=p, report=report)
        return validation_loss(train(params=first, report=report, steps=3))

    def apart(p):
        return validation_loss(train(params=train(params=p), steps=3))

    assert bits(rg.grad(hyperloss)(params_of())) == bits(rg.grad(apart)(params_of()))


@pytest.mark.parametrize("slope", [-0.5, 0.5])
def test_chaos_is_the_growth_of_the_derivative_per_step(slope):
    """Gradient descent on slope x^2 / 2 multiplies x, and so dL/dx, by 1 - rate * slope."""
    report = rg.Report()
    loss = lambda x, _hyper, _batch: slope * np.sum(x * x) / 2
    run = lambda x: np.sum(rg.train(loss, x, rg.SGD(0.1), range(100), report=report))
    rg.grad(run)(np.full(3, 0.01))
    assert report.chaos == pytest.approx(log(1 - 0.1 * slope), rel=1e-6)
    steps, norms = zip(*report.growth, strict=True)
    assert steps == tuple(range(100, 0, -4)) and norms[0] == pytest.approx(3**0.5)


def test_the_noise_floor_bounds_what_rounding_did():
    """Against the same run with ten bits more, where rounding does a thousandth of it."""
    batches = batches_of(200)
    for optimizer in (rg.Momentum(0.2, 0.9), rg.HeavyBall(0.02, 0.97)):
        states, reports = [], []
        for few in (0, 10):
            report = rg.Report()
            chosen = rg.FixedPoint(fraction_bits={"params": 52 - few, "velocity": 50 - few})
            linear = lambda p, h, b: np.sum(p["out"] * b[1][:4])
            _, state = train(
                loss=linear, batches=batches, optimizer=optimizer, report=report, arithmetic=chosen,
                return_state=True,
            )  # fmt: skip
            states.append(state["velocity"]["out"])
            reports.append(report)
        off = np.max(np.abs(states[0] - states[1]))
        assert 0 < off < reports[1].noise_floor["velocity"] < 1e-8


@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Stored(), rg.Forward()], ids=repr)
def test_rows_taken_in_the_replay_change_no_bit(adjoint):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 3)), rng.standard_normal(50)
    given = rg.minibatches((x, y), 10, seed=0)

    def hyperloss(rate, batches):
        def squares(params, _, batch):
            return np.mean((batch[0] @ params - batch[1]) ** 2)

        optimizer = rg.Momentum(rate)
        return np.sum(rg.train(squares, np.zeros(3), optimizer, batches, steps=12, adjoint=adjoint))

    taken, made = (rg.grad(hyperloss)(0.1, b) for b in (given, lambda t: given(t)))
    assert taken == made != 0


@pytest.mark.parametrize("steps", [2, 5])
def test_aux_comes_as_the_loss_gave_it(steps):
    """Recorded (from 3 steps on) or not: its kinds, and arrays that stay as they were."""

    def with_aux(params, _, batch):
        aux = {"mean": np.mean(params), "twice": 2 * params, "name": "mine", "count": 3}
        return np.sum((params - batch) ** 2), aux

    seen = []
    rg.train(
        with_aux, np.ones(3), rg.Momentum(0.1), lambda t: 1.0 * t, steps=steps, has_aux=True,
        callback=lambda step, metrics: seen.append(metrics["aux"]),
    )  # fmt: skip
    kinds = {"mean": np.float64, "twice": np.ndarray, "name": str, "count": int}
    assert all({k: type(x) for k, x in aux.items()} == kinds for aux in seen)
    assert all(aux["twice"][0] == pytest.approx(2 * aux["mean"]) for aux in seen)
    assert len({float(aux["twice"][0]) for aux in seen}) == steps


@pytest.mark.parametrize("kind", ["float64", "float32", "mixed"])
@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Stored()])
def test_a_run_of_the_same_loss_within_watch_changes_no_bit(kind, adjoint):
    """Replays lend out their buffers, which such a run overwrites."""
    batches, hyper = batches_of(5, kind), hyper_of(kind)

    def answer(watch):
        def hyperloss(params):
            trained, watched = rg.train(
                loss, params, rg.Momentum(0.1), batches, hyper=hyper, adjoint=adjoint,
                watch=watch, return_watched=True,
            )  # fmt: skip
            return validation_loss(trained) + watched[2]

        return rg.value_and_grad(hyperloss)(params_of(kind))

    def disturbing(t, params):
        rg.train(loss, params_of(kind, seed=t + 7), rg.Momentum(0.3), batches, hyper=hyper)
        return validation_loss(params)

    assert bits(answer(disturbing)) == bits(answer(lambda t, params: validation_loss(params)))


def test_a_run_that_is_over_leaves_no_cycle_behind():
    batches = rg.minibatches(np.arange(12.0), 4, seed=0)
    f = lambda w, b, x: np.sum((w["w"] * np.mean(x) - 1) ** 2)
    hyperloss = lambda rate: np.sum(
        rg.train(f, {"w": np.ones(5)}, rg.Momentum(rate), batches, steps=6)["w"]
    )
    rg.grad(hyperloss)(0.1)
    gc.collect()
    gc.disable()
    try:
        rg.grad(hyperloss)(0.1)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(x).__module__ for x in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not {name for name in left if name.startswith("revgrad")}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_loss_is_recorded_anew_for_params_of_another_kind(kind):
    """The batches are alike: only the params tell the recordings apart."""
    f = lambda w, _, x: np.sum(np.tanh(w * x) ** 2)
    batches = [np.float64(x) for x in (1.0, 0.9, 0.8, 0.7)]
    answer = lambda f, start: rg.fit(f, start, rg.SGD(0.1), batches)[0]
    starts = np.ones(3, kind), np.ones(5, kind), np.ones((2, 2), kind), np.ones(3)
    again = lambda w, h, x: f(w, h, x)
    assert [bits(answer(f, start)) for start in starts] == [
        bits(answer(lambda w, h, x: again(w, h, x), start)) for start in starts
    ]
    assert answer(f, starts[0]).dtype == kind
