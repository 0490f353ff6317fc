"""The outer loop."""

import pickle

import numpy as np
import pytest
from training import batches_of, bits, hyper_of, loss, params_of, validation_loss

import revgrad as rg

START = {"a": np.array([1.0, -2.0]), "b": 0.5}
quiet = {"progress": False}


def bowl(hyper):
    return np.sum(hyper["a"] ** 2) + 3 * (hyper["b"] - 1) ** 2


def bowl_slope(hyper):
    return {"a": 2 * hyper["a"], "b": 6 * (hyper["b"] - 1)}


def adam_by_hand(steps, rate=0.04, b1=0.9, b2=0.999, eps=1e-8):
    """Trees of START after 0, 1, ... steps."""
    hyper, first, second = START, dict.fromkeys(START, 0.0), dict.fromkeys(START, 0.0)
    trail = [hyper]
    for t in range(1, steps + 1):
        g = bowl_slope(hyper)
        first = {k: b1 * first[k] + (1 - b1) * g[k] for k in g}
        second = {k: b2 * second[k] + (1 - b2) * g[k] ** 2 for k in g}
        hyper = {
            k: hyper[k] - rate * (first[k] / (1 - b1**t)) / (np.sqrt(second[k] / (1 - b2**t)) + eps)
            for k in g
        }
        trail.append(hyper)
    return trail


def test_the_default_is_adam():
    trail = adam_by_hand(30)
    found = rg.minimize(bowl, START, until=30, **quiet)
    for k in START:
        np.testing.assert_allclose(found.hyper[k], trail[-1][k], rtol=1e-13)
    np.testing.assert_allclose(found.values, [bowl(h) for h in trail[:-1]], rtol=1e-13)
    assert found.aux is None


def test_any_optimizer_will_do():
    found = rg.minimize(
        bowl, START, rg.SGD({"a": 0.5, "b": rg.per_step(np.zeros(2))}), until=2, **quiet
    )
    assert found.hyper["a"].tolist() == [0, 0] and found.hyper["b"] == 0.5
    schedule = rg.per_step(lambda t: 0.5 if t == 1 else 0.0)
    found = rg.minimize(bowl, START, rg.SGD(schedule), until=2, **quiet)
    assert found.values[0] == found.values[1] and found.hyper["a"].tolist() == [0, 0]


def test_the_best_is_kept_though_the_last_is_worse():
    found = rg.minimize(bowl, START, rg.SGD(0.7), until=5, **quiet)  # too fast along b
    assert found.best_value == min(found.values) < found.values[-1]
    assert bowl(found.best_hyper) == found.best_value
    k = found.values.index(found.best_value)
    assert bits(found.best_hyper) == bits(
        rg.minimize(bowl, START, rg.SGD(0.7), until=k, **quiet).hyper
    )


def test_no_steps_give_the_start():
    found = rg.minimize(bowl, START, until=0, **quiet)
    assert found.hyper is START and found.values == []


@pytest.mark.parametrize(
    "hyperloss",
    [
        lambda hyper, step: bowl(hyper) + step,
        lambda hyper, step=0: bowl(hyper) + step,
        lambda hyper, outer_step: bowl(hyper) + outer_step,
    ],
)
def test_the_hyperloss_may_take_the_step(hyperloss):
    found = rg.minimize(hyperloss, START, rg.SGD(0.0), until=3, **quiet)
    assert np.diff(found.values).tolist() == [1, 1]


@pytest.mark.parametrize(
    "hyperloss",
    [
        bowl,
        lambda hyper, scale=1.0: bowl(hyper) * scale,
        lambda hyper, *, step=5: bowl(hyper) * step,
    ],
)
def test_other_arguments_with_defaults_keep_them(hyperloss):
    found = rg.minimize(hyperloss, START, rg.SGD(0.0), until=2, **quiet)
    assert found.values == [hyperloss(START)] * 2


def test_callback_sees_what_was_evaluated():
    seen = []
    found = rg.minimize(
        lambda hyper: (bowl(hyper), hyper["b"] * 2), START, until=3, has_aux=True,
        callback=lambda step, metrics: seen.append((step, metrics)), **quiet,
    )  # fmt: skip
    assert [step for step, _ in seen] == [0, 1, 2]
    for (_, metrics), value in zip(seen, found.values, strict=True):
        assert metrics.keys() == {"value", "hyper", "gradient", "aux"}
        assert metrics["value"] == value == bowl(metrics["hyper"])
        assert metrics["aux"] == 2 * metrics["hyper"]["b"]
        slope = bowl_slope(metrics["hyper"])
        np.testing.assert_allclose(metrics["gradient"]["a"], slope["a"], rtol=1e-15)
        np.testing.assert_allclose(metrics["gradient"]["b"], slope["b"], rtol=1e-15)
    assert found.aux == seen[-1][1]["aux"]


def test_stop_run_and_stop_end_the_loop_after_a_step():
    def callback(step, metrics):
        if step == 2:
            raise rg.StopRun

    expected = rg.minimize(bowl, START, until=3, **quiet)
    for found in (
        rg.minimize(bowl, START, callback=callback, **quiet),
        rg.minimize(bowl, START, stop=lambda values: len(values) == 3, **quiet),
    ):
        assert bits(found.hyper) == bits(expected.hyper) and found.values == expected.values


@pytest.mark.parametrize("optimizer", [rg.Adam(0.1), rg.Momentum(0.1, 0.9), rg.SGD(0.1)])
def test_a_minimum_goes_on_where_it_ended(optimizer):
    whole = rg.minimize(bowl, START, optimizer, until=9, **quiet)
    part = rg.minimize(bowl, START, optimizer, until=4, **quiet)
    kept = bits(part.hyper), list(part.values)
    part = pickle.loads(pickle.dumps(part))
    again = rg.minimize(bowl, part, optimizer, until=9, **quiet)
    assert bits(again.hyper) == bits(whole.hyper) and again.values == whole.values
    assert bits(again.best_hyper) == bits(whole.best_hyper)
    assert (bits(part.hyper), part.values) == kept
    assert rg.minimize(bowl, whole, optimizer, until=3, **quiet) is whole


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_what_was_found_survives_an_interruption(error):
    whole = rg.minimize(bowl, START, until=9, **quiet)

    def interrupted(hyper, step):
        if step == 4:
            raise error
        return bowl(hyper)

    def interrupting(step, metrics):
        if step == 3:
            raise error

    for call in (
        lambda: rg.minimize(interrupted, START, until=9, **quiet),
        lambda: rg.minimize(bowl, START, until=9, callback=interrupting, **quiet),
    ):
        with pytest.raises(error) as caught:
            call()
        found = caught.value.minimum
        assert found.values == whole.values[:4]
        again = rg.minimize(bowl, found, until=9, **quiet)
        assert bits(again.hyper) == bits(whole.hyper) and again.values == whole.values


def test_a_value_that_is_not_finite_leaves_the_best():
    with pytest.raises(ValueError, match="at outer step 3; lower the rate") as caught:
        rg.minimize(lambda h, step: bowl(h) + (np.nan if step == 3 else 0), START, **quiet)
    assert caught.value.minimum.best_value == min(caught.value.minimum.values)
    with pytest.raises(
        ValueError, match=r"at outer step 0; nothing was changed yet.*look at hyper0"
    ):
        rg.minimize(lambda h: bowl(h) * np.nan, START, **quiet)


def test_a_callback_cannot_change_what_was_found():
    def spoil(step, metrics):
        metrics["hyper"]["a"] *= np.nan
        metrics["gradient"]["a"] *= np.nan

    start = {"a": START["a"].copy(), "b": 0.5}
    found = rg.minimize(bowl, start, until=5, callback=spoil, stop=lambda v: v.clear(), **quiet)
    expected = rg.minimize(bowl, START, until=5, **quiet)
    assert bits((found.hyper, found.best_hyper)) == bits((expected.hyper, expected.best_hyper))
    assert found.values == expected.values


def test_other_exceptions_pass():
    def callback(step, metrics):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        rg.minimize(bowl, START, callback=callback, **quiet)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_hyperloss_that_is_not_finite_is_refused_with_its_step(bad):
    with pytest.raises(
        ValueError, match=f"^the hyperloss is {bad} at outer step 2; lower the rate"
    ):
        rg.minimize(lambda h, step: bowl(h) + (bad if step == 2 else 0), START, **quiet)


def test_a_hypergradient_that_is_not_finite_is_refused_with_its_leaf():
    def edge(hyper):
        return bowl(hyper) + np.sum(np.sqrt(hyper["a"] - hyper["a"]))

    with (
        np.errstate(divide="ignore", invalid="ignore"),
        pytest.raises(ValueError, match=r"^the hypergradient\['a'\] is not finite at outer step 0"),
    ):
        rg.minimize(edge, START, **quiet)


REFUSED = {
    "an optimizer class": (
        {"optimizer": rg.Adam},
        TypeError,
        "^optimizer is a type; pass one of rev",
    ),
    "a rate": ({"optimizer": 0.04}, TypeError, "^optimizer is a float; pass one"),
    "half a step": (
        {"until": 0.5},
        ValueError,
        r"^until=0\.5; a whole number, 0 or more, is wanted",
    ),
    "minus one step": ({"until": -1}, ValueError, "^until=-1; a whole number"),
    "integers": (
        {"hyper0": {"a": np.arange(2)}},
        TypeError,
        r"^hyper0\['a'\] is an array of int64",
    ),
    "a short schedule": (
        {"optimizer": rg.SGD(rg.per_step(np.ones(3))), "until": 4},
        ValueError,
        "^per_step has 3 values but 4 steps taken 1 at a time need 4",
    ),
    "a tree that is no prefix": (
        {"optimizer": rg.SGD({"c": 0.1})},
        TypeError,
        r"^SGD\(learning_rate=\.\.\.\) is a tree that is no prefix",
    ),
    "no numbers": ({"hyper0": {"a": None}}, TypeError, "^hyper0 is .* holds no number; there is"),
    "a value for a hyperloss": ({"hyperloss": 1.0}, TypeError, "^hyperloss is a float; pass a fun"),
    "no hyperloss": ({"hyperloss": None}, TypeError, "^hyperloss is a NoneType; pass a function"),
    "a number for stop": ({"stop": 3}, TypeError, "^stop is a int; pass a function"),
    "a list of callbacks": ({"callback": []}, TypeError, "^callback is a list; pass a function"),
    "another optimizer": (
        {"hyper0": rg.minimize(bowl, START, until=1, **quiet), "optimizer": rg.SGD(0.1)},
        TypeError,
        r"^hyper0 was found by an optimizer with variables .*; pass hyper0\.hyper to start anew",
    ),
    "no scalar": ({"hyperloss": lambda h: h["a"]}, TypeError, "a gradient needs one real float"),
}


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        rg.minimize(**{"hyperloss": bowl, "hyper0": START, **quiet} | changes)


def test_progress_shows_the_value(capsys):
    rg.minimize(bowl, START, until=2)
    shown = capsys.readouterr().err
    assert "hyperloss: 100%" in shown and f"{bowl(START):.4f}" in shown
    rg.minimize(bowl, START, until=2, **quiet)
    assert capsys.readouterr().err == ""


def test_training_is_tuned():
    def hyperloss(hyper):
        optimizer = rg.Momentum(
            np.exp(hyper["log_rate"]), 1 / (1 + np.exp(-hyper["logit_momentum"]))
        )
        start = hyper_of() | {"shift": hyper["shift"]}
        return validation_loss(rg.train(loss, params_of(), optimizer, batches_of(10), hyper=start))

    start = {"log_rate": -2.0, "logit_momentum": 1.0, "shift": 0.0}
    found = rg.minimize(hyperloss, start, rg.Adam(0.1), until=15, **quiet)
    assert found.best_value < found.values[0] - 0.05
    assert hyperloss(found.best_hyper) == found.best_value
