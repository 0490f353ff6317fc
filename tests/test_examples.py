"""The examples run, and say what is true. Oracle: JAX, where it is installed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import revgrad as rg

pytest.importorskip("tyro", reason="the examples need `pip install revgrad[examples]`")
EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))  # some examples share a module
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_per_weight_l2_beats_one_shared_penalty(tmp_path):
    example = load("per_weight_l2")
    picture = tmp_path / "penalties.png"
    found = example.main(example.Settings(steps=20, outer=10, picture=str(picture)))
    loss = {name: row["validation loss"][0] for name, row in found["rows"].items()}
    assert loss["one per weight"] < loss["one shared"]
    assert found["returned exactly"] == "yes"
    assert found["hyperparameters"] == 640
    assert picture.stat().st_size > 10_000


def test_per_weight_l2_notices_one_ulp(capsys):
    example = load("per_weight_l2")
    found = example.main(example.Settings(steps=40, fault=True))
    assert found["returned exactly"] == "no"
    assert "steps 18 to 20 did not reverse" in capsys.readouterr().out  # the fault is in step 19


def test_many_steps_agree_with_the_optimum():
    example = load("hundred_thousand_steps")
    found = example.main(example.Settings(quick=True, data="digits"))
    assert found["returned exactly"] is True
    assert found["relative distance to Implicit"] < 1e-5
    assert found["bits per weight and step"] == pytest.approx(np.log2(10 / 9), rel=1e-3)


def test_hypergradient_of_per_weight_l2_agrees_with_a_difference_quotient():
    example = load("per_weight_l2")
    problem = example.Problem(example.Settings(steps=20))
    problem.start = {k: x.astype(np.float64) for k, x in problem.start.items()}
    rng = np.random.default_rng(0)
    h = rng.normal(-4, 1, problem.start["weights"].shape)
    direction = rng.standard_normal(h.shape)
    ahead, behind = (problem.hyperloss(h + e * direction) for e in (1e-5, -1e-5))
    slope = np.sum(rg.grad(problem.hyperloss)(h) * direction)
    assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


@pytest.fixture(scope="module")
def schedules(mnist_dir):
    example = load("learn_schedules")
    problem = example.Problem(example.Settings(rounding="nearest"))
    start = problem.hyper(*example.STARTS["tuned"])
    return problem, start, *rg.value_and_grad(problem.hyperloss)(start, 0)


def test_learn_schedules_starts_where_the_authors_did(schedules):
    _, _, value, _ = schedules
    assert round(float(value), 3) == 0.177  # experiments of 2015, 7_adam_50_whetlab_init


def test_first_hypergradient_of_learn_schedules_agrees_with_jax(schedules):
    jax = pytest.importorskip("jax", reason="an oracle: `make oracles`")
    problem, start, value, gradient = schedules
    with jax.enable_x64(True):
        expected_value, expected = jax_hypergradient(jax, problem, start)
    assert float(value) == pytest.approx(expected_value, rel=1e-12)
    for name in gradient:
        for k in range(8):  # a group: W1, b1, ..., W4, b4
            ours, theirs = gradient[name][..., k], expected[name][..., k]
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            assert error < 1e-6, (name, k, error)


def jax_hypergradient(jax, problem, start):
    """The same quantity by JAX, independently: training unrolled in float64, momenta snapped."""
    jnp, steps = jax.numpy, problem.settings.steps
    noise = problem.initial(np.zeros(8), 0)
    batches = [problem.batch(0, t) for t in range(steps)]
    xs, ys = (jnp.stack([b[i] for b in batches]) for i in range(2))
    snapped = 1 / (1 + np.exp(-start["logit_momentum"]))
    snapped = jnp.asarray(rg.Ratio.of(snapped).value)

    def nll(params, x, y):
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        z = x @ params[-1][0] + params[-1][1]
        return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(z), axis=1))

    def tree(columns):
        return [(columns[2 * k], columns[2 * k + 1]) for k in range(4)]

    def hyperloss(hyper):
        momenta = 1 / (1 + jnp.exp(-hyper["logit_momentum"]))
        momenta = momenta + jax.lax.stop_gradient(snapped - momenta)
        scales = tree(jnp.exp(hyper["log_scale"]))
        params = jax.tree.map(jnp.multiply, scales, noise)

        def step(carry, now):
            params, velocity = carry
            x, y, rates, momenta = now
            g = jax.grad(nll)(params, x, y)
            velocity = jax.tree.map(lambda v, g, m: m * v - (1 - m) * g, velocity, g, tree(momenta))
            params = jax.tree.map(lambda w, a, v: w + a * v, params, tree(rates), velocity)
            return (params, velocity), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        schedule = (xs, ys, jnp.exp(hyper["log_rate"]), momenta)
        (params, _), _ = jax.lax.scan(step, (params, zeros), schedule)
        return nll(params, jnp.asarray(problem.x), jnp.asarray(problem.y))

    value, gradient = jax.jit(jax.value_and_grad(hyperloss))(jax.tree.map(jnp.asarray, start))
    return float(value), jax.tree.map(np.asarray, gradient)
