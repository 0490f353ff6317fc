"""From params on a GPU to hypergradients, through a CuPy that is not one: the CPU's bits."""

import fake_cupy
import numpy as np
import optree
import pytest

import revgrad as rg
from revgrad._ext import homes
from revgrad.errors import FixedOverflow, NotFinite, NotReversed

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 6)).astype(np.float32)
Y = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 64)]
PARAMS = {
    "w": (RNG.standard_normal((6, 5)) / 3).astype(np.float32),
    "b": np.zeros(5, np.float32),
    "v": (RNG.standard_normal((5, 3)) / 3).astype(np.float32),
}
MANY = np.linspace(0.6, 0.8, 30).reshape(6, 5)
STEPS = 8


@pytest.fixture(scope="module")
def cupy():
    with fake_cupy.installed() as module:
        yield module


def loss(params, hyper, batch):
    x, y = batch
    z = np.tanh(x @ params["w"] + params["b"]) @ params["v"]
    z = z - np.max(z, axis=1, keepdims=True)
    log_p = z - np.log(np.sum(np.exp(z), axis=1, keepdims=True))
    return -np.mean(np.sum(log_p * y, axis=1)) + hyper["l2"] * np.sum(params["w"] ** 2)


def heats(rate):
    """0.85, 1.05, 1.05 and so on, less 0.3."""
    return np.where(np.arange(len(rate)) % 3, 0.75, 0.55)


OPTIMIZERS = {
    "momentum": lambda h: rg.Momentum(rg.per_step(h["rate"]), h["m"]),
    "heavy ball": lambda h: rg.HeavyBall(rg.per_step(h["rate"] / 9), h["m"]),
    "adam": lambda h: rg.Adam(rg.per_step(h["rate"] / 30)),
    "layers": lambda h: rg.Momentum(
        {"w": rg.per_step(h["rate"]), "b": 0.1, "v": rg.per_step(h["rate"] * 2)},
        {"w": h["m"], "b": 0.5, "v": 0.8},
    ),
    "weights": lambda h: rg.Momentum(0.1, {"w": h["many"], "b": 0.5, "v": h["m"]}),
    "clipped": lambda h: rg.ClipByGlobalNorm(rg.Momentum(rg.per_step(h["rate"]), h["m"]), 0.4),
    "leapfrog": lambda h: rg.Leapfrog(0.1, tempering=rg.per_step(h["rate"] + heats(h["rate"]))),
}
ADJOINTS = {
    "reversible": rg.Reversible(),
    "stored": rg.Stored(),
    "checkpointed": rg.Checkpointed(3),
    "unrolled": rg.Unrolled(),
    "forward": rg.Forward(),
}


def hypergradient(*args, **options):
    """Bytes of what `derivatives` finds, and the report."""
    *found, report = derivatives(*args, **options)
    return (*([homes.to_host(x).tobytes() for x in optree.tree_leaves(y)] for y in found), report)


def agree(cupy, run, bits=True):
    """Assert that run(put) gives the CPU's values: its bits where NumPy computes them all.

    On a device gradients are its own: float32 products, in another order, over a few steps.
    bits: False where the CPU adds in an order of its own.
    """
    here, there = (optree.tree_leaves(run(put)) for put in (put_nowhere, cupy.asarray))
    assert len(here) == len(there)
    for x, y in zip(map(homes.to_host, here), map(homes.to_host, there), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if bits and cupy.__version__ == "fake":
            assert x.tobytes() == y.tobytes()
        else:
            scale = np.max(np.abs(x[np.isfinite(x)]), initial=1e-2)
            assert np.allclose(x, y, rtol=1e-3, atol=1e-5 * scale, equal_nan=True)
    return here, there


def derivatives(put, optimizer, adjoint, steps=STEPS, f=loss, **options):
    """(loss, hypergradients, those of the params, report); put: where arrays are."""
    x, y = put(X), put(Y)
    params = {k: put(v) for k, v in PARAMS.items()}
    batches, report = rg.minibatches((x, y), 16, seed=1), rg.Report()

    def hyperloss(hyper, params):
        trained = rg.train(
            f, params, OPTIMIZERS[optimizer](hyper), batches, steps=steps,
            hyper={"l2": hyper["l2"]}, adjoint=adjoint, report=report, **options,
        )  # fmt: skip
        assert homes.is_away(rg.stop_gradient(trained["w"])) == homes.is_away(x)
        return loss(trained, {"l2": 0.0}, (x, y))

    hyper = {"rate": np.full(steps, 0.3), "m": 0.9, "l2": 0.01, "many": put(MANY)}
    value, (found, of_params) = rg.value_and_grad(hyperloss, (0, 1))(hyper, params)
    assert type(value) is type(x) or not homes.is_away(x)
    assert all(type(g) is type(p) for g, p in zip(of_params.values(), params.values(), strict=True))
    return value, found, of_params, report


def put_nowhere(x):
    return x


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_hypergradient_has_the_cpus_bits(cupy, optimizer, adjoint):
    here = hypergradient(put_nowhere, optimizer, ADJOINTS[adjoint])
    there = hypergradient(cupy.asarray, optimizer, ADJOINTS[adjoint])
    if (optimizer, adjoint) == (
        "clipped",
        "forward",
    ):  # the norm's tangent is a sum, by blocks here
        assert here[0] == there[0]
        agree(cupy, lambda put: derivatives(put, optimizer, ADJOINTS[adjoint])[:3], bits=False)
    else:
        assert here[:3] == there[:3]
    assert there[3].returned_exactly == here[3].returned_exactly
    assert there[3].bits == here[3].bits and there[3].largest == here[3].largest


def test_hyper_on_the_device_has_its_derivative_there(cupy):
    x, y = cupy.asarray(X), cupy.asarray(Y)
    params = {k: cupy.asarray(v) for k, v in PARAMS.items()}

    def hyperloss(l2):
        with_l2 = lambda p, h, batch: loss(p, {"l2": 0.0}, batch) + np.sum(h * p["w"] ** 2)
        trained = rg.train(with_l2, params, rg.Momentum(0.3), [(x, y)], steps=5, hyper=l2)
        return loss(trained, {"l2": 0.0}, (x, y))

    found = rg.grad(hyperloss)(cupy.asarray(np.full((6, 5), 0.01, np.float32)))
    assert type(found) is cupy.ndarray and found.shape == (6, 5)
    assert np.all(homes.to_host(found) != 0)


def test_a_run_that_was_killed_goes_on(cupy, tmp_path):
    check_killed(cupy, tmp_path, rg.Reversible())


def check_killed(cupy, tmp_path, adjoint):
    class Killed(Exception):
        pass

    def kill(t, metrics):
        if t == 5:
            raise Killed

    path = tmp_path / "run.safetensors"
    whole = hypergradient(cupy.asarray, "momentum", adjoint)
    with pytest.raises(Killed):
        hypergradient(cupy.asarray, "momentum", adjoint, save=path, save_every=2, callback=kill)
    assert path.exists()
    again = hypergradient(cupy.asarray, "momentum", adjoint, save=path, save_every=2)
    assert again[:3] == whole[:3] and not path.exists()


def test_watch_and_warm_starts(cupy):
    seen = []
    for put in (put_nowhere, cupy.asarray):
        params, report = {k: put(v) for k, v in PARAMS.items()}, rg.Report()
        batch = (put(X), put(Y))
        first, state = rg.train(
            loss, params, rg.Momentum(0.3), [batch], steps=4, hyper={"l2": 0.0}, return_state=True
        )
        trained, watched = rg.train(
            loss, first, rg.Momentum(0.3), [batch], steps=4, hyper={"l2": 0.0}, state=state,
            watch=lambda t, p: np.sum(p["w"] ** 2), return_watched=True, report=report,
        )  # fmt: skip
        seen.append((homes.to_host(trained["w"]).tobytes(), watched.tobytes(), report.watched))
    assert seen[0] == seen[1]


def test_overflow_names_step_and_leaf(cupy):
    params = {k: cupy.asarray(v) for k, v in PARAMS.items()}
    train = lambda rate: rg.train(
        loss, params, rg.Momentum(rate), [(cupy.asarray(X), cupy.asarray(Y))], steps=60,
        hyper={"l2": 1.0},
    )  # fmt: skip
    with pytest.raises((FixedOverflow, NotFinite), match=r"step \d+: .*params\['[wbv]'\]"):
        train(1e6)
    train(0.01)  # and the device is well


def steep(params, hyper, batch):
    """Leaves the range at step 20 or so; the loss is then no number."""
    return np.sum(np.exp(params["w"] * hyper) * batch)


@pytest.mark.parametrize("rate", [-0.3, -3.0, -1e9])
@pytest.mark.parametrize("adjoint", [rg.Reversible(), rg.Stored()])
def test_what_is_raised_later_is_what_the_cpu_raises_at_once(cupy, rate, adjoint):
    def raised(put):
        train = lambda hyper: rg.train(
            steep, {"w": put(PARAMS["w"])}, rg.Momentum(rate), lambda t: put(X[:6, :5] ** 2),
            steps=50, hyper=hyper, adjoint=adjoint,
        )  # fmt: skip
        with np.errstate(all="ignore"), pytest.raises((FixedOverflow, NotFinite)) as caught:
            rg.grad(lambda h: np.sum(train(h)["w"]))(1.5)
        return caught.type, str(caught.value), getattr(caught.value, "index", None)

    assert raised(cupy.asarray) == raised(put_nowhere)


def test_training_does_not_wait_for_each_step(cupy):
    x, y = cupy.asarray(X), cupy.asarray(Y)
    params, waits = {k: cupy.asarray(v) for k, v in PARAMS.items()}, []
    for steps in (1000, 2000):
        before = cupy.ndarray.waits
        rg.train(loss, params, rg.Momentum(0.1), [(x, y)], steps=steps, hyper={"l2": 0.0})
        waits.append(cupy.ndarray.waits - before)
    assert waits[0] < 200 and waits[1] - waits[0] < 20  # words are counted every hundred steps


def test_a_gradient_that_differs_is_noticed(cupy):
    calls = []

    def moody(params, hyper, batch):
        calls.append(1)
        return loss(params, hyper, batch) * (1.0 + (len(calls) % 3) / 8)

    params = {k: cupy.asarray(v) for k, v in PARAMS.items()}
    batch = cupy.asarray(X), cupy.asarray(Y)

    def hyperloss(rate):
        trained = rg.train(moody, params, rg.Momentum(rate), lambda t: batch, steps=2,
                           hyper={"l2": 0.0}, adjoint=rg.Reversible())  # fmt: skip
        return loss(trained, {"l2": 0.0}, batch)

    with pytest.raises(NotReversed, match="GPU"):
        rg.grad(hyperloss)(0.3)
