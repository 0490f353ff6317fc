"""Hyperparameters that learn as training goes on, on a GPU: the CPU's bits through a fake CuPy."""

import fake_cupy
import numpy as np
import optree
import pytest
from test_cuda_train import PARAMS, X, Y, agree, loss, put_nowhere

import revgrad as rg
from revgrad._ext import homes
from revgrad.errors import NotFinite
from revgrad.online import recorded

STEPS = 12
EXP = {"learning_rate": "exp"}
LAYERS = {"w": 0.05, "b": 0.02, "v": 0.03}


@pytest.fixture(scope="module")
def cupy():
    with fake_cupy.installed() as module:
        yield module


def validation(params, batch):
    return loss(params, {"l2": 0.0}, batch)


def weights(put):
    return {"w": put(np.linspace(0.01, 0.05, 30).reshape(6, 5)), "b": 0.02, "v": 0.03}


def rtrl(put, rate=1e-3, **options):
    return rg.RTRL(validation, lambda t: (put(X[t : t + 8]), put(Y[t : t + 8])), rate, **options)


TOWERS = {
    "nothing": lambda put: rg.Adam(0.05),
    "a schedule": lambda put: rg.Momentum(rg.per_step(np.linspace(0.5, 0.1, STEPS)), 0.8),
    "numbers": lambda put: rg.Adam(
        0.05, tuned_by=rg.SGD(1e-3, tuned_by=rg.SGD(1e-4), transforms=EXP),
        transforms=EXP | {"b1": "sigmoid", "b2": "sigmoid"},
    ),
    "layers": lambda put: rg.HeavyBall(LAYERS, 0.5, tuned_by=rg.Adam(1e-3)),
    "weights": lambda put: rg.SGD(weights(put), tuned_by=rg.SGD(1e-3)),
    "global norm": lambda put: rg.ClipByGlobalNorm(rg.SGD(0.1, tuned_by=None), 0.4),
    "adagrad": lambda put: rg.AdaGrad(0.1, tuned_by=rg.SGD(1e-3), tuned=("learning_rate",)),
    "rtrl": lambda put: rg.Momentum(0.3, 0.5, tuned_by=rtrl(put)),
    "rtrl of weights": lambda put: rg.SGD(weights(put), tuned_by=rtrl(put, shared=True)),
    "rtrl of layers": lambda put: rg.SGD(LAYERS, tuned_by=rtrl(put, every=2, reset=5)),
    "rtrl of rank two": lambda put: rg.Momentum(
        0.3, 0.5, tuned_by=rtrl(put, rank=2, seed=3), transforms={"momentum": "sigmoid"}
    ),
    "rtrl of hyper": lambda put: rg.SGD(0.2, tuned_by=rtrl(put, hyper=True, diagnose=3)),
    "rtrl by differences": lambda put: rg.SGD(
        0.2, tuned_by=rtrl(put, products="differences", hyper=True)
    ),
    "rtrl below a tower": lambda put: rg.SGD(
        0.2, tuned_by=rg.RTRL(optimizer=rg.SGD(1e-3, tuned_by=rg.SGD(1e-4)))
    ),
}  # fmt: skip


def fitted(put, name, f=loss, **options):
    """All that `fit` returns and reports, as a tree."""
    params, batches = (
        {k: put(v) for k, v in PARAMS.items()},
        rg.minibatches((put(X), put(Y)), 16, 1),
    )
    report = rg.Report()
    trained, paths, state = rg.fit(
        f, params, TOWERS[name](put), batches, steps=STEPS, hyper={"l2": 0.01}, report=report,
        watch=lambda t, p: np.sum(p["w"] ** 2), return_state=True, **options,
    )  # fmt: skip
    assert all(type(x) is type(params[k]) for k, x in trained.items())
    state.pop("t")
    return trained, state, dict(paths), paths.loss, np.array(report.watched)


SUMS = {"numbers", "layers", "adagrad"}  # their slopes are, which the CPU adds up block by block


@pytest.mark.parametrize("name", TOWERS)
def test_fit_has_the_cpus_bits(cupy, name):
    agree(cupy, lambda put: fitted(put, name), bits=name not in SUMS)


def test_hyper_on_the_device_learns_there(cupy):
    def with_map(params, hyper, batch):
        return validation(params, batch) + np.sum(hyper * params["w"] ** 2)

    def run(put):
        params, batches = (
            {k: put(v) for k, v in PARAMS.items()},
            rg.minibatches((put(X), put(Y)), 16, 1),
        )
        optimizer = rg.SGD(0.2, tuned_by=rtrl(put, hyper=True, shared=True))
        hyper = put(np.full((6, 5), 0.01, np.float32))
        trained, paths = rg.fit(with_map, params, optimizer, batches, steps=STEPS, hyper=hyper)
        return trained, dict(paths)

    agree(cupy, run)


def branching(params, hyper, batch):
    value = loss(params, hyper, batch)
    return value * 1.5 if value > 1.0 else value


@pytest.mark.parametrize("name", ["numbers", "rtrl"])
def test_what_cannot_be_recorded_is_fitted_all_the_same(cupy, name):
    agree(cupy, lambda put: fitted(put, name, branching), bits=name not in SUMS)


@pytest.mark.parametrize("name", ["numbers", "rtrl of rank two", "rtrl of hyper"])
def test_a_fit_that_was_killed_goes_on(cupy, name, tmp_path):
    class Killed(Exception):
        pass

    def kill(t, metrics):
        if t == 7:
            raise Killed

    path, run = tmp_path / "fit.safetensors", lambda **more: fitted(cupy.asarray, name, **more)
    with pytest.raises(Killed):
        run(save=path, save_every=3, callback=kill)
    assert path.exists()
    again, whole = run(save=path, save_every=3), run()
    assert not path.exists()
    for x, y in zip(*map(optree.tree_leaves, (again, whole)), strict=True):
        assert homes.to_host(x).tobytes() == homes.to_host(y).tobytes()


def test_a_fit_that_diverges_says_what_the_cpu_says(cupy):
    def told(put):
        params, batch = {k: put(v) for k, v in PARAMS.items()}, (put(X), put(Y))
        with np.errstate(all="ignore"), pytest.raises(NotFinite) as caught:
            rg.fit(loss, params, rg.SGD(1e20, tuned_by=rg.SGD(1e20)), [batch], steps=30,
                   hyper={"l2": 1.0})  # fmt: skip
        return str(caught.value)

    assert told(cupy.asarray) == told(put_nowhere)


@pytest.mark.parametrize("name", ["numbers", "layers", "rtrl of rank two", "rtrl of hyper"])
def test_steps_are_recorded_on_the_device_too(cupy, name, monkeypatch):
    made = []
    for kind in (recorded.Recorded, recorded.RecordedPair):
        plain = kind.__init__
        monkeypatch.setattr(
            kind,
            "__init__",
            lambda self, *a, plain=plain, **k: (made.append(self), plain(self, *a, **k))[1],
        )
    fitted(cupy.asarray, name)
    assert made and all(one.replays is not None for one in made)
