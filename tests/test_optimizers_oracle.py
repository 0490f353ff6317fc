"""Step by step, the optimizers are those of PyTorch and optax in float64.

The oracles get the factors as revgrad takes them: as ratios. In floats the paths are equal to
rounding; in integers to what the noise floor of each variable allows, carried through the steps.
"""

import numpy as np
import pytest
from training import program_of

import revgrad as rg

STEPS, SIZE = 40, 6
rng = np.random.default_rng(0)
GRADIENTS = rng.standard_normal((STEPS, SIZE)) * np.array([1, 0.3, 0.1, 0.03, 0.01, 1])
GRADIENTS[:, -1] = 0  # a weight that never has a gradient
SQUARES = ("second_moment", "squared_steps")
START = rng.standard_normal(SIZE)


def linear(params, _hyper, batch):
    """A loss whose gradient is the batch."""
    return np.sum(params * batch)


def path(optimizer, adjoint):
    """The params after every step."""
    return np.array(
        [
            rg.train(linear, START, optimizer, GRADIENTS[:k], adjoint=adjoint)
            for k in range(1, STEPS + 1)
        ]
    )


def shares(optimizer):
    """How far off each entry of the params may be after every step, by rounding alone."""
    program = program_of_any(optimizer)
    state, _ = program.start()
    hyper = lambda name, _k: program.schedule.values[name][0]
    names = state.variables
    values = {name: [x.decode()] for name, x in names.items()}
    step = {
        name: program.schedule.noise_floor(name, x.fraction_bits, 1) for name, x in names.items()
    }
    off, found = {name: np.zeros(SIZE) for name in names}, []
    for t, g in enumerate(GRADIENTS, 1):
        plain = optimizer.float_step(values, [g], hyper, t)
        spread = {name: np.full(SIZE, step[name]) for name in names}
        for name in names:
            ends = []
            for sign in (-1, 1):
                shaken = values[name][0] + sign * (off[name] + step[name])
                shaken = np.maximum(shaken, 0) if name in SQUARES else shaken
                ends.append(optimizer.float_step(values | {name: [shaken]}, [g], hyper, t))
            for other in names:
                moved = [np.abs(end[other][0] - plain[other][0]) for end in ends]
                spread[other] = spread[other] + np.max(moved, axis=0)
        values, off = plain, spread
        found.append(off["params"] + 1e-14)
    return np.array(found)


def program_of_any(optimizer):
    if optimizer.reversible:
        return program_of(linear, START, optimizer, GRADIENTS)
    programs = []

    class Catching(rg.Stored):
        def remember(self, program):
            programs.append(program)
            return super().remember(program)

    rg.vjp(lambda p: rg.train(linear, p, optimizer, GRADIENTS, adjoint=Catching()), START)
    return programs[0]


def torch_path(make):
    torch = pytest.importorskip("torch", reason="needs PyTorch (make oracles)")
    w = torch.tensor(START, requires_grad=True)
    optimizer, seen = make(torch, [w]), []
    for g in GRADIENTS:
        w.grad = torch.tensor(g)
        optimizer.step()
        seen.append(w.detach().numpy().copy())
    return np.array(seen)


def optax_path(make):
    optax = pytest.importorskip("optax", reason="needs optax (make oracles)")
    import jax

    with jax.enable_x64(True):
        w = jax.numpy.asarray(START)
        transform = make(optax)
        state, seen = transform.init(w), []
        for g in GRADIENTS:
            updates, state = transform.update(jax.numpy.asarray(g), state, w)
            w = optax.apply_updates(w, updates)
            seen.append(np.asarray(w))
    return np.array(seen)


class Clipped:
    """A PyTorch optimizer whose gradients are clipped first."""

    def __init__(self, optimizer, clip):
        self.optimizer, self.clip = optimizer, clip

    def step(self):
        self.clip()
        self.optimizer.step()


RATE, DECAY, B2 = 3e-4, 0.01, 0.9999
LEFT = rg.Ratio.of(1 - RATE * DECAY).value  # what decay leaves, as it is taken
SNAPPED = (1 - LEFT) / RATE

TORCH = {
    "momentum": (
        rg.HeavyBall(0.1, 0.9), lambda t, w: t.optim.SGD(w, lr=0.1, momentum=0.9),
    ),
    "momentum, decay": (
        rg.HeavyBall(0.1, 0.9, 0.01),
        lambda t, w: t.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "the paper's momentum": (
        rg.Momentum(0.3, 0.9, 0.01),
        lambda t, w: t.optim.SGD(w, lr=0.03, momentum=0.9, weight_decay=0.01),
    ),
    "sgd, decay": (rg.SGD(0.1, 0.01), lambda t, w: t.optim.SGD(w, lr=0.1, weight_decay=0.01)),
    "nesterov": (
        rg.Nesterov(0.1, 0.9), lambda t, w: t.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "nesterov, decay": (
        rg.Nesterov(0.1, 0.9, 0.01),
        lambda t, w: t.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (
        rg.Adam(0.01, 0.9, 0.99, 1e-6),
        lambda t, w: t.optim.Adam(w, lr=0.01, betas=(0.9, 0.99), eps=1e-6),
    ),
    "adam, defaults": (rg.Adam(1e-3), lambda t, w: t.optim.Adam(w)),
    "adamw": (
        rg.AdamW(RATE, b2=B2, weight_decay=DECAY),
        lambda t, w: t.optim.AdamW(w, lr=RATE, betas=(0.9, B2), weight_decay=SNAPPED),
    ),
    "rmsprop": (
        rg.RMSProp(0.01, 0.99), lambda t, w: t.optim.RMSprop(w, lr=0.01),
    ),
    "rmsprop, momentum": (
        rg.RMSProp(0.01, 0.99, momentum=0.9),
        lambda t, w: t.optim.RMSprop(w, lr=0.01, momentum=0.9),
    ),
    "adagrad": (rg.AdaGrad(0.01), lambda t, w: t.optim.Adagrad(w, lr=0.01)),
    "adagrad, started": (
        rg.AdaGrad(0.01, initial_accumulator_value=0.1),
        lambda t, w: t.optim.Adagrad(w, lr=0.01, initial_accumulator_value=0.1),
    ),
    "adadelta": (rg.AdaDelta(), lambda t, w: t.optim.Adadelta(w)),
    "clipped by value": (
        rg.Clip(rg.HeavyBall(0.1, 0.9), 0.4),
        lambda t, w: Clipped(
            t.optim.SGD(w, lr=0.1, momentum=0.9), lambda: t.nn.utils.clip_grad_value_(w, 0.4)
        ),
    ),
}  # fmt: skip

OPTAX = {
    "sgd": (rg.SGD(0.1), lambda o: o.sgd(0.1)),
    "momentum": (rg.HeavyBall(0.1, 0.9), lambda o: o.sgd(0.1, momentum=0.9)),
    "nesterov": (rg.Nesterov(0.1, 0.9), lambda o: o.sgd(0.1, momentum=0.9, nesterov=True)),
    "adam, eps_root": (
        rg.Adam(0.01, b2=0.99, eps_root=1e-6), lambda o: o.adam(0.01, b2=0.99, eps_root=1e-6),
    ),
    "adamw": (
        rg.AdamW(RATE, b2=B2, weight_decay=DECAY),
        lambda o: o.adamw(RATE, b2=B2, weight_decay=SNAPPED),
    ),
    "adamw, defaults": (
        rg.AdamW(1e-3),
        lambda o: o.adamw(1e-3, weight_decay=(1 - rg.Ratio.of(1 - 1e-7).value) / 1e-3),
    ),
    "rmsprop": (
        rg.RMSProp(0.01), lambda o: o.rmsprop(0.01, eps_in_sqrt=False),
    ),
    "rmsprop, eps inside": (
        rg.RMSProp(0.01, eps=0.0, eps_root=1e-8), lambda o: o.rmsprop(0.01),
    ),
    "rmsprop, momentum": (
        rg.RMSProp(0.01, momentum=0.9, initial_scale=0.5),
        lambda o: o.rmsprop(0.01, momentum=0.9, initial_scale=0.5, eps_in_sqrt=False),
    ),
    "adagrad": (
        rg.AdaGrad(0.01, eps=0.0, eps_root=1e-7, initial_accumulator_value=0.1),
        lambda o: o.adagrad(0.01),
    ),
    "adadelta": (rg.AdaDelta(0.5), lambda o: o.adadelta(0.5)),
    "lion": (
        rg.Lion(1e-2), lambda o: o.lion(1e-2, weight_decay=(1 - rg.Ratio.of(1 - 1e-5).value) / 1e-2)
    ),
    "clipped by value": (
        rg.Clip(rg.Adam(0.01, b2=0.99), 0.4),
        lambda o: o.chain(o.clip(0.4), o.adam(0.01, b2=0.99)),
    ),
    "clipped by norm": (
        rg.ClipByGlobalNorm(rg.HeavyBall(0.1), 0.7),
        lambda o: o.chain(o.clip_by_global_norm(0.7), o.sgd(0.1, momentum=0.9)),
    ),
    "clipped by both": (
        rg.ClipByGlobalNorm(rg.Clip(rg.HeavyBall(0.1), 0.3), 0.7),
        lambda o: o.chain(o.clip_by_global_norm(0.7), o.clip(0.3), o.sgd(0.1, momentum=0.9)),
    ),
}  # fmt: skip


def agrees(optimizer, expected):
    """In floats to rounding, with factors as given; in integers to what the noise allows."""
    allowed = shares(optimizer)
    report = rg.Report()
    exact = rg.Reversible() if optimizer.reversible else rg.Stored()
    found = path(optimizer, exact)
    assert np.all(np.abs(found - expected) <= allowed)
    assert np.max(allowed[:, :4]) < 1e-6  # which says something
    rg.train(linear, START, optimizer, GRADIENTS, adjoint=exact, report=report)
    assert set(report.noise_floor) == {"params", *optimizer.variables}


@pytest.mark.parametrize(("optimizer", "make"), TORCH.values(), ids=TORCH)
def test_steps_are_those_of_pytorch(optimizer, make):
    agrees(optimizer, torch_path(make))


@pytest.mark.parametrize(("optimizer", "make"), OPTAX.values(), ids=OPTAX)
def test_steps_are_those_of_optax(optimizer, make):
    agrees(optimizer, optax_path(make))


@pytest.mark.parametrize(("optimizer", "make"), OPTAX.values(), ids=OPTAX)
def test_float_steps_are_those_of_optax(optimizer, make):
    expected = optax_path(make)
    snaps = "weight_decay" in optimizer.hyper
    in_floats = path(optimizer, rg.Unrolled())
    np.testing.assert_allclose(in_floats, expected, rtol=0, atol=1e-8 if snaps else 1e-13)
