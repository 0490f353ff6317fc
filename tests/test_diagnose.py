"""What diagnose says of hypergradients whose statistics are known."""

import warnings

import numpy as np
import pytest
from training import batches_of, hyper_of, loss, params_of, validation_loss

import revgrad as rg
from revgrad.diagnose import FragileHypergradient


def test_measures_are_those_of_their_definitions():
    slopes = {"a": np.array([1.0, 2.0, 3.0, -1.0]), "b": np.array([2.0, 2.0, 2.0, 2.0])}

    def hyperloss(hyper, seed):
        return sum(slopes[k][seed] * np.sum(hyper[k]) for k in slopes)

    found = rg.diagnose(hyperloss, {"a": 1.0, "b": np.ones(2)}, 4)
    assert found.mean["a"] == pytest.approx(1.25) and found.mean["b"].tolist() == [2, 2]
    assert found.std["a"] == pytest.approx(np.std(slopes["a"]))
    assert found.hypervariance["a"] == pytest.approx(np.std(slopes["a"]) / 1.25)
    assert found.hypervariance["b"].tolist() == [0, 0]
    assert found.sign_fluctuation["a"] == 0.25 and found.sign_fluctuation["b"].tolist() == [0, 0]
    assert found.values == [5.0, 6.0, 7.0, 3.0]
    assert (found.overflowed, found.warnings, found.chaos) == ({}, [], [])


def test_a_mean_of_zero_and_zeros_themselves():
    pairs = rg.diagnose(lambda h, seed: (1.0 if seed else -1.0) * h, 1.0, [0, 1])
    assert pairs.hypervariance == np.inf and pairs.sign_fluctuation == 0.5
    nothing = rg.diagnose(lambda h, seed: 0.0 * h, 1.0, 3)
    assert nothing.hypervariance == 0 and nothing.sign_fluctuation == 0


def test_a_fickle_sign_is_warned_of():
    with pytest.warns(FragileHypergradient, match="^1 of 2 hypergradients differ in sign"):
        found = rg.diagnose(lambda h, seed: h[0] + (1.0 - 2.0 * (seed % 2)) * h[1], np.ones(2), 4)
    assert len(found.warnings) == 1


def trained(rate, seed, report, steps=40):
    batches = batches_of(steps, seed=seed)
    return rg.train(
        loss, params_of(seed=seed), rg.Momentum(rate), batches, hyper=hyper_of(), report=report
    )


def test_a_calm_run_is_not_warned_of():
    report = rg.Report()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rg.diagnose(
            lambda h, seed: validation_loss(trained(h, seed, report)), 0.1, 2, report=report
        )
    assert len(found.chaos) == len(found.effective_steps) == 2
    assert all(0.1 < x <= 1 for x in found.effective_steps) and found.warnings == []


def test_a_chaotic_run_is_dominated_by_few_steps():
    """Gradient ascent on a parabola multiplies the derivative by 3 at each step."""
    report = rg.Report()
    bowl = lambda x, _hyper, _batch: -np.sum(x * x)

    def hyperloss(rate, seed):
        start = np.full(2, 1e-18 * (1 + seed))
        return np.sum(rg.train(bowl, start, rg.SGD(rate), range(32), report=report))

    with pytest.warns(FragileHypergradient, match=r"^\d\.\d% of the way back carries the deriv"):
        found = rg.diagnose(hyperloss, 1.0, 2, report=report)
    np.testing.assert_allclose(found.chaos, np.log(3))
    assert max(found.effective_steps) < 0.1


def test_overflow_is_warned_of_and_leaves_the_other_seeds():
    def hyperloss(rate, seed):
        return validation_loss(trained(rate * (1e30 if seed == 1 else 1), seed, rg.Report()))

    with pytest.warns(FragileHypergradient, match=r"^1 of 3 seeds overflowed, e\.g\. 1: step 0: "):
        found = rg.diagnose(hyperloss, 0.1, 3)
    assert [*found.overflowed] == [1] and len(found.values) == 2
    with pytest.warns(FragileHypergradient, match="^2 of 2 seeds overflowed, e.g. 0: the hyperl"):
        found = rg.diagnose(lambda h, seed: h * np.inf, 1.0, 2)
    assert found.mean is None


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match="seeds=0; a whole number, 1 or more"):
        rg.diagnose(lambda h, seed: h, 1.0, 0)


# The way back stops where it leaves the floats.

ADJOINTS = (rg.Reversible(), rg.Stored(), rg.Checkpointed(3), rg.Truncated(90))


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_cotangent_that_overflows_stops_with_step_and_leaf(adjoint):
    """The derivative is multiplied by about 1e4 at each step; the params stay at 0."""
    steep = lambda p, _hyper, _batch: -np.sum(p["a"]) * 0.0 - 5e3 * np.sum(p["b"] * p["b"])
    start = {"a": np.zeros(2), "b": np.zeros(3)}

    def run(p):
        optimizer = rg.HeavyBall(1.0, 0.5)
        return np.sum(rg.train(steep, p, optimizer, range(90), adjoint=adjoint)["b"])

    with pytest.raises(rg.NotFinite, match=r"^step \d+, on the way back: .* of params\['b'\]") as e:
        rg.grad(run)(start)
    assert 5 < e.value.step < 20


def test_a_tangent_that_overflows_stops_with_step_and_leaf():
    steep = lambda p, _hyper, _batch: -5e3 * np.sum(p["b"] * p["b"])
    run = lambda p: rg.train(
        steep, p, rg.HeavyBall(1.0, 0.5), range(90), adjoint=rg.Forward()
    )["b"]  # fmt: skip
    with pytest.raises(rg.NotFinite, match=r"^step \d+: a tangent of \w+ of params\['b'\] is not"):
        rg.jvp(run, ({"b": np.zeros(3)},), ({"b": np.ones(3)},))


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_cotangent_that_comes_in_not_finite_is_refused(adjoint):
    run = lambda p: trained_with(p, adjoint)
    out, pullback = rg.vjp(run, params_of())
    out["out"][1] = np.nan
    with pytest.raises(rg.NotFinite, match=r"^step 5, .* params of params\['out'\] is not finite"):
        pullback(out)


def trained_with(params, adjoint, hyper=None):
    optimizer = rg.Momentum(0.1)
    hyper = hyper_of() if hyper is None else hyper
    return rg.train(loss, params, optimizer, batches_of(5), hyper=hyper, adjoint=adjoint)


def test_a_hyperparameter_without_a_slope_is_named():
    def rooted(params, hyper, batch):
        return loss(params, hyper_of(), batch) + np.sqrt(hyper) * np.sum(params["out"])

    def run(hyper):
        return validation_loss(
            rg.train(rooted, params_of(), rg.Momentum(0.1), batches_of(5), hyper=hyper)
        )

    with np.errstate(divide="ignore"), pytest.raises(rg.NotFinite, match="leaf 0 of hyper is not"):
        rg.grad(run)(0.0)
