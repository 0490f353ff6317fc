"""The derivative of an optimum: equal to that of a run that reached it, and refused elsewhere."""

import numpy as np
import pytest
from training import bits

import revgrad as rg

rng = np.random.default_rng(0)
X, Y = rng.standard_normal((60, 8)), rng.standard_normal(60)


def ridge(params, hyper, batch):
    x, y = batch
    return np.mean((x @ params["w"] - y) ** 2) + np.sum(np.exp(hyper["l2"]) * params["w"] ** 2)


def logistic(params, hyper, batch):
    x, y = batch
    margins = np.sign(y) * (x @ params["w"])
    return np.mean(np.log1p(np.exp(-margins))) + np.sum(np.exp(hyper["l2"]) * params["w"] ** 2)


HYPER = {"l2": np.linspace(-3, -1, 8)}
LOSSES = {"ridge": ridge, "logistic": logistic}
SOLVERS = {"CG": rg.CG(), "Neumann": rg.Neumann(0.3)}


def hyperloss(hyper, loss, adjoint, steps=600, **changes):
    what = {"params": {"w": np.zeros(8)}, "optimizer": rg.Momentum(0.3), "hyper": hyper} | changes
    trained = rg.train(
        loss, what.pop("params"), what.pop("optimizer"), [(X, Y)], steps=steps, adjoint=adjoint,
        **what,
    )  # fmt: skip
    return np.sum((trained["w"] - 1) ** 2)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_implicit_agrees_with_reversible_where_the_run_converged(loss, solver):
    implicit = rg.grad(hyperloss)(HYPER, loss, rg.Implicit(loss, (X, Y), solver))
    reversible = rg.grad(hyperloss)(HYPER, loss, rg.Reversible())
    np.testing.assert_allclose(implicit["l2"], reversible["l2"], rtol=1e-4)
    assert np.max(np.abs(implicit["l2"])) > 0.01


def test_ridge_has_a_closed_form():
    decay = np.exp(HYPER["l2"])
    curvature = X.T @ X / 60 + np.diag(decay)
    w = np.linalg.solve(curvature, X.T @ Y / 60)
    expected = -np.linalg.solve(curvature, 2 * (w - 1)) * decay * w
    found = rg.grad(hyperloss)(HYPER, ridge, rg.Implicit(ridge, (X, Y)))["l2"]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_any_optimizer_and_dtype_will_do():
    adjoint = rg.Implicit(ridge, (X.astype("f"), Y.astype("f")))
    start = {"w": np.zeros(8, np.float32)}
    found = [
        rg.grad(hyperloss)(HYPER, ridge, rg.Implicit(ridge, (X, Y))),
        rg.grad(hyperloss)(HYPER, ridge, rg.Implicit(ridge, (X, Y)), optimizer=rg.SGD(0.2)),
        rg.grad(hyperloss)(HYPER, ridge, adjoint, params=start),
    ]
    np.testing.assert_allclose(found[1]["l2"], found[0]["l2"], rtol=1e-6)
    np.testing.assert_allclose(found[2]["l2"], found[0]["l2"], rtol=1e-3)


def test_a_pull_back_may_be_called_twice_and_a_run_is_the_same_traced_or_not():
    def run(hyper):
        return rg.train(
            ridge, {"w": np.zeros(8)}, rg.Momentum(0.3), [(X, Y)], steps=400, hyper=hyper,
            adjoint=rg.Implicit(ridge, (X, Y)),
        )  # fmt: skip

    out, pullback = rg.vjp(run, HYPER)
    assert bits(out) == bits(run(HYPER))
    assert bits(pullback(out)) == bits(pullback(out))


def traced(**kind):
    """Refused: the derivative with respect to something other than hyper."""
    (name, make) = next(iter(kind.items()))
    adjoint = rg.Implicit(ridge, (X, Y))
    return lambda x: hyperloss(**{"hyper": HYPER, "loss": ridge, "adjoint": adjoint, name: make(x)})


WRONG = {
    "initial params": (traced(params=lambda x: {"w": x}), np.zeros(8), "the initial params is tr"),
    "a rate": (
        traced(optimizer=lambda x: rg.Momentum(x)),
        0.3,
        r"and Momentum\(learning_rate=\.\.\.\) is traced: the optimum does not depend on it\. Pass",
    ),
    "state": (
        traced(state=lambda x: {"velocity": {"w": x}}),
        np.zeros(8),
        r"and state\['velocity'\] is traced",
    ),
    "a schedule": (
        traced(hyper=lambda x: {"l2": rg.per_step(x)}),
        np.full(600, -2.0),
        "and per_step in hyper is traced",
    ),
}


@pytest.mark.parametrize(("function", "at", "message"), WRONG.values(), ids=WRONG)
def test_what_the_optimum_does_not_depend_on_is_refused(function, at, message):
    with pytest.raises(TypeError, match=message):
        rg.grad(function)(at)


def test_the_derivative_of_state_and_of_what_was_watched_is_refused():
    def velocity(hyper, watched):
        out = rg.train(
            ridge, {"w": np.zeros(8)}, rg.Momentum(0.3), [(X, Y)], steps=400, hyper=hyper,
            adjoint=rg.Implicit(ridge, (X, Y)), return_state=True, return_watched=True,
            watch=lambda t, params: np.sum(params["w"]),
        )  # fmt: skip
        return np.sum(out[2]) if watched else np.sum(out[1]["velocity"]["w"])

    for watched in (True, False):
        with pytest.raises(rg.MissingRule, match=r"pass adjoint=Reversible\(\) or Stored\(\)"):
            rg.grad(velocity)(HYPER, watched)


def test_a_run_that_did_not_converge_is_refused():
    message = (
        r"^the params ended about \S+ away from the optimum, \S+ of their length, where 0\.001"
    )
    with pytest.raises(rg.NotConverged, match=message):
        rg.grad(hyperloss)(HYPER, ridge, rg.Implicit(ridge, (X, Y)), steps=10)
    with pytest.raises(rg.NotConverged, match=message):  # another loss than that of training
        rg.grad(hyperloss)(HYPER, logistic, rg.Implicit(ridge, (X, Y)))
    rg.grad(hyperloss)(HYPER, ridge, rg.Implicit(ridge, (X, Y), tolerance=10), steps=10)


def test_solvers_that_fail_say_so():
    few = rg.Implicit(ridge, (X, Y), rg.CG(iterations=2))
    with pytest.raises(rg.NotConverged, match=r"after 2 iterations, where 1e-10 was wanted"):
        rg.grad(hyperloss)(HYPER, ridge, few)
    wild = rg.Implicit(ridge, (X, Y), rg.Neumann(2.0))
    with pytest.raises(rg.NotConverged, match="use a rate below 2 over the largest curvature"):
        rg.grad(hyperloss)(HYPER, ridge, wild)

    def saddle(params, hyper, batch):
        w = params["w"]
        return np.sum(w[1:] ** 2 - hyper["l2"][1:] * w[1:]) - w[0] ** 2 + hyper["l2"][0] * w[0]

    with pytest.raises(rg.NotConverged, match=r"curvature -\S+ in a direction that CG met"):
        rg.grad(hyperloss)(HYPER, ridge, rg.Implicit(saddle))


def test_damping_is_added_to_the_curvatures():
    a, b = np.diag([1.0, 4.0]), np.array([1.0, 1.0])
    found = rg.CG(damping=1.0).solve(lambda x: a @ x, b, np.float64)
    np.testing.assert_allclose(found, [1 / 2, 1 / 5])
    assert rg.CG().solve(lambda x: a @ x, np.zeros(2), np.float64).tolist() == [0, 0]
    assert rg.Neumann(0.1).solve(lambda x: a @ x, np.zeros(2), np.float64).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((1.0,), r"^Implicit\(loss\) is a float; pass the loss that the params minimise"),
        ((ridge, None, rg.CG), r"^Implicit\(solver=<class .*\); pass CG\(\) or Neumann\(rate\)"),
        ((ridge, None, "cg"), r"^Implicit\(solver='cg'\); pass CG\(\)"),
    ],
)
def test_what_cannot_be_is_refused_at_construction(args, message):
    with pytest.raises(TypeError, match=message):
        rg.Implicit(*args)
