"""Towers against the authors' package, step by step: weights and hyperparameters of every level.

Oracle: gradient-descent-the-ultimate-optimizer, Chandra et al., on PyTorch in float64.
"""

from itertools import pairwise

import numpy as np
import pytest

import revgrad as rg
from revgrad import nn

torch = pytest.importorskip("torch", reason="an oracle: `make oracles`")
gdtuo = pytest.importorskip(
    "gradient_descent_the_ultimate_optimizer.gdtuo", reason="an oracle: `make oracles`"
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using backward:UserWarning"
)  # their way, and it leaks
STEPS, SIZES = 50, (12, 8, 5)


def problem(seed=0):
    """(params, batches) of an MLP with tanh, also on its outputs, as the paper's example has it."""
    rng = np.random.default_rng(seed)
    params = {}
    for k, (n, m) in enumerate(pairwise(SIZES), 1):
        params[f"w{k}"] = rng.uniform(-1, 1, (n, m)) / np.sqrt(n)
        params[f"b{k}"] = rng.uniform(-1, 1, m) / np.sqrt(n)
    x, y = rng.random((STEPS, 20, SIZES[0])), rng.integers(0, SIZES[-1], (STEPS, 20))
    return params, [*zip(x, y, strict=True)]


def loss(params, _, batch):
    x, y = batch
    for k in (1, 2):
        x = np.tanh(x @ params[f"w{k}"] + params[f"b{k}"])
    return nn.softmax_cross_entropy(x, y)


# One level as the package has it, and as here: the first-step rules, the roots and the transforms
# of the paper are options.


def ours(kind, *numbers, above=None):
    tuned = {"tuned_by": above} if above is not None else {}
    learn = lambda *names: {"tuned": names} if tuned else {}
    as_what = lambda **how: {"transforms": how} if tuned else {}
    if kind == "sgd":
        return rg.SGD(*numbers, **tuned)
    if kind == "momentum":
        return rg.HeavyBall(*numbers, **tuned)
    if kind == "adagrad":
        start = {"eps": 0.0, "eps_root": 1e-10, "initial_accumulator_value": 0.1}
        return rg.AdaGrad(*numbers, **start, **tuned)
    if kind.startswith("rmsprop"):
        only = learn("learning_rate") if kind.endswith("alpha") else {}
        how = {"learning_rate": "square"} | ({} if only else {"decay": "half_tanh"})
        roots = {"decay": 0.99, "eps": 0.0, "eps_root": 1e-8}
        return rg.RMSProp(*numbers, **roots, **tuned, **only, **as_what(**how))
    only = learn("learning_rate") if kind.endswith("alpha") else {}
    how = {} if only else {"b1": "half_tanh", "b2": "half_tanh"}
    return rg.Adam(*numbers, initial_scale=1e-8, **tuned, **only, **as_what(**how))


KINDS = {
    "sgd": gdtuo.SGD,
    "momentum": gdtuo.SGD,
    "adagrad": gdtuo.AdaGrad,
    "rmsprop": gdtuo.RMSProp,
    "rmsprop alpha": gdtuo.RMSPropAlpha,
    "adam": gdtuo.Adam,
    "adam alpha": gdtuo.AdamBaydin,
}


def towers(*levels):
    """(ours, theirs), from levels written bottom first: (kind, numbers...)."""
    mine, theirs = None, gdtuo.NoOpOptimizer()
    for kind, *numbers in reversed(levels):
        mine = ours(kind, *numbers, above=mine)
        theirs = KINDS[kind](*numbers, optimizer=theirs)
    return mine, theirs


NAMES = {"learning_rate": "alpha", "momentum": "mu", "b1": "beta1", "b2": "beta2", "decay": "gamma"}


def their_value(optimizer, name):
    raw = optimizer.parameters[NAMES[name]].detach()
    if name in ("b1", "b2", "decay"):
        return float(type(optimizer).clamp(raw))
    return float(raw**2 if isinstance(optimizer, (gdtuo.RMSProp, gdtuo.RMSPropAlpha)) else raw)


class Net(torch.nn.Module):
    def __init__(self, params):
        super().__init__()
        for name, x in params.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(x)))

    def forward(self, x):
        for k in (1, 2):
            x = torch.tanh(x @ getattr(self, f"w{k}") + getattr(self, f"b{k}"))
        return x


def their_run(params, batches, optimizer):
    """Per step: (loss, hyperparameter values by name at every level, weights)."""
    wrapper = gdtuo.ModuleWrapper(Net(params), optimizer=optimizer)
    wrapper.initialize()
    for x, y in batches:
        wrapper.begin()
        out = torch.nn.functional.cross_entropy(wrapper.forward(torch.tensor(x)), torch.tensor(y))
        wrapper.zero_grad()
        out.backward(create_graph=True)
        wrapper.step()
        yield float(out.detach()), {k: p.detach().numpy() for k, p in wrapper.parameters.items()}


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


STACKS = {
    "sgd / sgd": [("sgd", 0.1), ("sgd", 0.01)],
    "sgd / sgd / sgd": [("sgd", 0.1), ("sgd", 0.01), ("sgd", 0.001)],
    "sgd / sgd / sgd / sgd": [("sgd", 0.1), ("sgd", 0.01), ("sgd", 0.01), ("sgd", 0.01)],
    "momentum / sgd": [("momentum", 0.05, 0.8), ("sgd", 1e-3)],
    "momentum / momentum / momentum": [
        ("momentum", 0.05, 0.8), ("momentum", 1e-3, 0.5), ("momentum", 1e-4, 0.5)
    ],
    "adagrad / adagrad": [("adagrad", 0.01), ("adagrad", 0.01)],
    "adagrad / adagrad / adagrad / sgd": [
        ("adagrad", 0.01), ("adagrad", 0.01), ("adagrad", 0.01), ("sgd", 0.01)
    ],
    "rmsprop / rmsprop": [("rmsprop", 0.01), ("rmsprop", 1e-4)],
    "rmsprop / rmsprop / rmsprop": [("rmsprop", 0.01), ("rmsprop", 1e-4), ("rmsprop", 1e-4)],
    "rmsprop alpha / sgd": [("rmsprop alpha", 0.01), ("sgd", 1e-4)],
    "adam / sgd": [("adam", 0.001), ("sgd", 1e-5)],
    "adam / adam": [("adam", 0.001), ("adam", 0.001)],
    "adam alpha / adam alpha / sgd": [
        ("adam alpha", 0.001), ("adam alpha", 0.001), ("sgd", 1e-5)
    ],
    "adam / adam / adam / adam": [("adam", 0.001)] * 4,
    "adam / rmsprop / adagrad / sgd": [
        ("adam", 0.001), ("rmsprop", 1e-4), ("adagrad", 0.01), ("sgd", 1e-4)
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_every_step_is_the_authors(name):
    params, batches = problem()
    mine, theirs = towers(*STACKS[name])
    seen = []
    trained, paths = rg.fit(
        loss, params, mine, batches, callback=lambda t, m: seen.append(m["loss"])
    )
    levels = [theirs]
    while not isinstance(levels[-1].optimizer, gdtuo.NoOpOptimizer):
        levels.append(levels[-1].optimizer)
    moved = dict.fromkeys(paths, 0.0)
    weights = {}
    for t, (value, now) in enumerate(their_run(params, batches, theirs)):
        weights = now
        assert seen[t] == pytest.approx(value, rel=1e-10), t
        for key in paths:
            level, _, hyper = key.rpartition("tuned_by.")
            expected = their_value(levels[(level + _).count("tuned_by.")], hyper)
            assert paths[key][t] == pytest.approx(expected, rel=1e-10), (t, key)
            moved[key] = max(moved[key], abs(paths[key][t] / paths[key][0] - 1))
    for key, x in weights.items():
        np.testing.assert_allclose(trained[key], x, rtol=1e-10, atol=1e-13)
    assert moved["learning_rate"] > 1e-3  # it was not for nothing


def test_a_step_of_its_own_for_every_hyperparameter_is_the_authors():
    params, batches = problem()
    steps = {"learning_rate": 1e-4, "momentum": 1e-2}
    theirs = gdtuo.SGD(
        0.05, 0.8, optimizer=gdtuo.SGDPerParam([(NAMES[k], v) for k, v in steps.items()])
    )
    trained, paths = rg.fit(loss, params, rg.HeavyBall(0.05, 0.8, tuned_by=rg.SGD(steps)), batches)
    *_, (_, weights) = their_run(params, batches, theirs)
    for name in steps:
        assert paths[name][-1] == pytest.approx(their_value(theirs, name), rel=1e-10)
    for key, x in weights.items():
        np.testing.assert_allclose(trained[key], x, rtol=1e-10, atol=1e-13)
