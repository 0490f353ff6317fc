"""Tangents that ride along on a GPU, through a CuPy that is not one: the CPU's bits."""

import fake_cupy
import numpy as np
import pytest
import test_cuda_train as training
from test_cuda_train import (
    PARAMS,
    STEPS,
    X,
    Y,
    agree,
    derivatives,
    hypergradient,
    loss,
    put_nowhere,
)

import revgrad as rg
from revgrad import stepping
from revgrad._ext import homes
from revgrad.errors import FixedOverflow, NotFinite
from revgrad.lanes import Lanes


@pytest.fixture(scope="module")
def cupy():
    with fake_cupy.installed() as module:
        yield module


OPTIONS = {
    "clip_products": {"clip_products": 0.01},
    "skip and average": {"skip": 0.25, "average": True},
    "first_order": {"first_order": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_options_of_forward(cupy, options):
    adjoint = rg.Forward(**options)
    agree(cupy, lambda put: derivatives(put, "layers", adjoint)[:3])
    plain = hypergradient(cupy.asarray, "layers", rg.Forward())[:3]
    assert plain != hypergradient(cupy.asarray, "layers", adjoint)[:3]


def clipped(put, adjoint):
    params, batch = {k: put(v) for k, v in PARAMS.items()}, (put(X), put(Y))
    bound = {"w": 0.02, "b": put_nowhere(np.full(5, 0.01)), "v": 0.05}

    def hyperloss(rate):
        optimizer = rg.Clip(rg.Momentum(rate, 0.5), bound)
        trained = rg.train(loss, params, optimizer, [batch], steps=6, hyper={"l2": 0.0},
                           adjoint=adjoint)  # fmt: skip
        return loss(trained, {"l2": 0.0}, batch)

    return rg.value_and_grad(hyperloss)(0.3)


def test_the_transposed_clip_with_a_bound_per_weight(cupy):
    _, there = agree(cupy, lambda put: clipped(put, rg.Forward(transposed_clip=True)))
    _, plain = agree(cupy, lambda put: clipped(put, rg.Forward()))
    assert abs(there[1] - plain[1]) > 1e-3 * abs(plain[1])


def directed(put, adjoint, f=loss):
    """Tangents of all that train returns, in one direction of all that it starts from."""
    params = {k: put(v) for k, v in PARAMS.items()}
    moved = {k: put(np.cos(np.arange(v.size)).reshape(v.shape).astype(v.dtype))
             for k, v in PARAMS.items()}  # fmt: skip
    batches = rg.minibatches((put(X), put(Y)), 16, seed=1)

    def run(params, hyper):
        optimizer = rg.HeavyBall(rg.per_step(hyper["rate"]), {"w": hyper["m"], "b": 0.3, "v": 0.5})
        return rg.train(
            f, params, optimizer, batches, steps=STEPS, hyper={"l2": hyper["l2"]}, adjoint=adjoint,
            return_state=True, return_watched=True, watch=lambda t, p: np.sum(p["w"] ** 2),
        )  # fmt: skip

    hyper = {"rate": np.full(STEPS, 0.03), "m": 0.9, "l2": np.float32(0.01)}
    along = {"rate": np.linspace(0, 1, STEPS), "m": 0.5, "l2": np.float32(1)}
    (trained, state, watched), (t_trained, t_state, t_watched) = rg.jvp(
        run, (params, hyper), (moved, along)
    )
    state.pop("t"), t_state.pop("t", None)
    for kind, x in (*zip(params.values(), t_trained.values(), strict=True),):
        assert type(x) is type(kind)
    return trained, state, watched, t_trained, t_state, t_watched


def test_forward_mode(cupy):
    for adjoint in (rg.Forward(), rg.Unrolled()):
        agree(cupy, lambda put, adjoint=adjoint: directed(put, adjoint))


def test_a_loss_that_cannot_be_recorded(cupy):
    def branching(params, hyper, batch):
        value = loss(params, hyper, batch)
        return value * 1.5 if value > 1.0 else value

    agree(cupy, lambda put: directed(put, rg.Forward(), branching))
    agree(cupy, lambda put: derivatives(put, "momentum", rg.Forward(), f=branching)[:3])


def test_statements_that_cannot_be_recorded(cupy, monkeypatch):
    def refuse(*_):
        raise TypeError("not now")

    monkeypatch.setattr(stepping, "StatementPush", refuse)
    for optimizer in ("adam", "layers", "weights", "clipped"):
        agree(cupy, lambda put, name=optimizer: derivatives(put, name, rg.Forward())[:3])


def test_hyper_on_the_host_whose_numbers_the_loss_takes_apart(cupy):
    """Lanes of what comes of a vector on the host cannot meet the device's: one goes at a time."""

    def several(params, hyper, batch):
        rates = np.exp(hyper)
        return loss(params, {"l2": rates[0]}, batch) + rates[1] * np.sum(params["v"] ** 2)

    def run(put):
        params, batch = {k: put(v) for k, v in PARAMS.items()}, (put(X), put(Y))
        train = lambda h: rg.train(several, params, rg.Momentum(0.3), [batch], steps=5, hyper=h,
                                   adjoint=rg.Forward())  # fmt: skip
        return rg.grad(lambda h: loss(train(h), {"l2": 0.0}, batch))(np.full(6, -3.0, np.float32))

    agree(cupy, run)


def test_a_forward_run_that_was_killed_goes_on(cupy, tmp_path):
    training.check_killed(cupy, tmp_path, rg.Forward())


@pytest.mark.parametrize("rate", [-0.3, -1e9])
def test_what_is_raised_is_what_the_cpu_raises(cupy, rate):
    def raised(put):
        train = lambda hyper: rg.train(
            training.steep, {"w": put(PARAMS["w"])}, rg.Momentum(rate),
            lambda t: put(X[:6, :5] ** 2), steps=50, hyper=hyper, adjoint=rg.Forward(),
        )  # fmt: skip
        with np.errstate(all="ignore"), pytest.raises((FixedOverflow, NotFinite)) as caught:
            rg.grad(lambda h: np.sum(train(h)["w"]))(1.5)
        return caught.type, str(caught.value)

    assert raised(cupy.asarray) == raised(put_nowhere)


def test_tangents_go_side_by_side_in_recorded_programs(cupy, monkeypatch):
    seen = []
    push = Lanes.push

    def noted(self, width, second):
        found = push(self, width, second)
        seen.append((width, all(map(homes.is_away, found))))
        return found

    monkeypatch.setattr(Lanes, "push", noted)
    hypergradient(cupy.asarray, "momentum", rg.Forward())
    assert {width for width, _ in seen} == {1, 4, 16}
    assert all(away for _, away in seen)
