"""Tangents that ride along: against recursions written by hand, other adjoints, and the budget."""

import tracemalloc
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
from training import batches_of, bits, distance, hyper_of, loss, params_of, validation_loss

import revgrad as rg
from revgrad import nn, pushes, stepping
from revgrad.lanes import Lanes

# The recursions of Micaelli and Storkey, by hand: a loss with a Hessian that can be formed.

STEPS, SHARED, SIZE = 9, 3, 5  # steps, steps that share a value, params
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((STEPS, 8, SIZE)), rng.standard_normal((STEPS, 8))
START = 0.3 * rng.standard_normal(SIZE)
HYPER = {"rate": np.array([0.2, 0.05, 0.1]), "momentum": np.array([0.5, 0.75, 0.25]),
         "decay": np.array([0.01, 0.3, 0.02])}  # fmt: skip


def curved(w, _, batch):
    x, y = batch
    return np.sum((np.tanh(x @ w) - y) ** 2)


def batch(t):
    return X[t], Y[t]


def outer(w):
    return np.sum(np.cos(np.arange(SIZE)) * w)


def train_curved(hyper, adjoint, bound=None, steps=STEPS, **options):
    shared = [rg.per_step(hyper[k], every=SHARED) for k in ("rate", "momentum", "decay")]
    optimizer = rg.HeavyBall(*shared)
    if bound is not None:
        optimizer = rg.Clip(optimizer, bound)
    return rg.train(curved, START, optimizer, batch, steps=steps, adjoint=adjoint, **options)


def hypergradient(adjoint, bound=None):
    return rg.grad(lambda h: outer(train_curved(h, adjoint, bound)))(HYPER)


def by_hand(
    *, clip=np.inf, skip=(), average=False, first_order=False, bound=np.inf, transposed=False
):
    """dL/d(rates, momenta, decays): Z and C of section 3.1, v and w as the frameworks' SGD."""
    w, v, count = START, np.zeros(SIZE), STEPS // SHARED
    z, c = ({k: np.zeros((SIZE, count)) for k in HYPER} for _ in "zc")
    for t in range(STEPS):
        a, b, m = (HYPER[k][t // SHARED] for k in ("rate", "momentum", "decay"))
        g = rg.grad(curved)(w, None, batch(t))
        inside = (np.abs(g) <= bound)[:, None]
        h = (
            0 * np.eye(SIZE)
            if first_order
            else rg.hessian(partial(curved, _=None, batch=batch(t)))(w)
        )
        new_v = b * v + np.clip(g, -bound, bound) + m * w
        if t not in skip:
            at = np.arange(count) == t // SHARED
            for k in HYPER:
                product = h @ (inside * z[k]) if transposed else inside * (h @ z[k])
                e = {"rate": 0 * v, "momentum": v, "decay": w}[k][:, None] * at
                c[k] = b * c[k] + np.clip(product, -clip, clip) + m * z[k] + e
                z[k] = z[k] - a * c[k] - ((new_v[:, None] * at) if k == "rate" else 0)
        w, v = w - a * new_v, new_v
    used = [sum(t not in skip for t in range(lo, lo + SHARED)) for lo in range(0, STEPS, SHARED)]
    return {k: rg.grad(outer)(w) @ x / (np.array(used) if average else 1) for k, x in z.items()}


OPTIONS = {
    "none": ({}, {}),
    "clip_products": ({"clip_products": 0.3}, {"clip": 0.3}),
    "skip": ({"skip": 0.34}, {"skip": (2, 5, 8)}),
    "skip and average": ({"skip": 0.25, "average": True}, {"skip": (3, 7), "average": True}),
    "average": ({"average": True}, {"average": True}),
    "first_order": ({"first_order": True}, {"first_order": True}),
    "clipped": ({}, {"bound": 1.5}),
    "transposed": ({"transposed_clip": True}, {"bound": 1.5, "transposed": True}),
    "everything": (
        {"clip_products": 0.5, "skip": 0.25, "average": True, "transposed_clip": True},
        {"clip": 0.5, "skip": (3, 7), "average": True, "transposed": True, "bound": 1.5},
    ),
}


@pytest.mark.parametrize(("options", "hand"), OPTIONS.values(), ids=OPTIONS)
def test_the_recursions(options, hand):
    found, expected = hypergradient(rg.Forward(**options), hand.get("bound")), by_hand(**hand)
    assert distance(found, expected) < 1e-9
    if options:
        assert distance(found, hypergradient(rg.Stored(), hand.get("bound"))) > 1e-3
    else:
        assert distance(found, hypergradient(rg.Stored(), hand.get("bound"))) < 1e-9


@pytest.mark.parametrize("fault", ["a product", "a statement", "the transpose", "the count"])
def test_a_planted_fault_is_caught(fault, monkeypatch):
    options = {"average": True} if fault == "the count" else {}
    if fault == "a product":
        push = pushes.GradientPush.push
        wrong = lambda self, rows, h, out: (push(self, rows, h, out), np.multiply(out, 1.001, out))
        monkeypatch.setattr(pushes.GradientPush, "push", wrong)
    elif fault == "a statement":
        pushed = stepping._pushed
        monkeypatch.setattr(stepping, "_pushed", lambda *a: 1.001 * pushed(*a))
    elif fault == "the transpose":
        found = hypergradient(rg.Forward(transposed_clip=True), 1.5)
        assert distance(found, by_hand(bound=1.5)) > 1e-3
        return
    else:
        options = {}
    with pytest.raises(AssertionError):
        expected = by_hand(average=fault == "the count")
        assert distance(hypergradient(rg.Forward(**options)), expected) < 1e-9


def test_averaging_counts_the_steps_that_were_taken():
    def stop(step, metrics):
        if step == 4:
            raise rg.StopRun

    def f(hyper, adjoint):
        return outer(train_curved(hyper, adjoint, callback=stop))

    plain, averaged = (rg.grad(f)(HYPER, rg.Forward(average=a)) for a in (False, True))
    for k in HYPER:
        assert averaged[k] == pytest.approx(plain[k] / np.array([3, 2, 1]), rel=1e-14)
    start = {"params": START, "hyper": HYPER}
    g = lambda s, a: outer(
        rg.train(curved, s["params"], rg.SGD(s["hyper"]["rate"][0]), batch, steps=4, adjoint=a)
    )
    plain, averaged = (rg.grad(g)(start, rg.Forward(average=a)) for a in (False, True))
    assert bits(plain["params"]) == bits(averaged["params"])  # which no step shares
    assert averaged["hyper"]["rate"][0] == pytest.approx(plain["hyper"]["rate"][0] / 4, rel=1e-14)


# One program for columns side by side, on the tape, and one by one.


def lenet(params, _, batch):
    x, labels = batch
    x = nn.max_pool(nn.relu(nn.conv2d(x, params["kernel"], params["bias"])), 2)
    return nn.softmax_cross_entropy(np.reshape(x, (len(x), -1)) @ params["out"], labels)


def lenet_hyperloss(adjoint, count, steps=24, dtype=np.float64, report=None):
    rng = np.random.default_rng(1)
    draw = lambda *shape: (0.3 * rng.standard_normal(shape)).astype(dtype)
    params = {"kernel": draw(3, 3, 1, 4), "bias": draw(4), "out": draw(36, 5)}
    images = draw(30, 8, 8, 1), rng.integers(0, 5, 30)
    rates = 0.1 + 0.01 * np.arange(count)

    def hyperloss(rates):
        optimizer = rg.Momentum(rg.per_step(rates, every=steps // count), 0.5)
        trained = rg.train(
            lenet, params, optimizer, rg.minibatches(images, 10, 0), steps=steps, adjoint=adjoint,
            report=report,
        )  # fmt: skip
        return lenet(trained, None, images)

    return rg.value_and_grad(hyperloss)(rates)


@pytest.mark.parametrize("count", [1, 3, 24])
def test_a_convolutional_net_agrees(count):
    (value, forward), (same, back) = (
        lenet_hyperloss(a, count) for a in (rg.Forward(), rg.Reversible())
    )
    assert value == same
    np.testing.assert_allclose(forward, back, rtol=1e-9)


def test_tangents_are_as_precise_as_the_params():
    reports = {dtype: rg.Report() for dtype in (np.float32, np.float64)}
    forward, _ = (
        lenet_hyperloss(rg.Forward(), 3, dtype=dtype, report=r) for dtype, r in reports.items()
    )
    back = lenet_hyperloss(rg.Stored(), 3, dtype=np.float32)  # whose cotangents are float64
    assert forward[0] == back[0]
    np.testing.assert_allclose(forward[1], back[1], rtol=1e-4)
    weights = 9 * 4 + 4 + 36 * 5
    for dtype, r in reports.items():  # of params, of velocity, of g
        assert r.bytes_kept == 3 * 3 * np.dtype(dtype).itemsize * weights


@pytest.mark.parametrize("without", ["GradientPush", "StatementPush", "both"])
def test_what_cannot_be_recorded_is_pushed_on_the_tape(without, monkeypatch):
    recorded = hypergradient(rg.Forward(), 1.5)

    def refuse(*_, **__):
        raise TypeError("not to be recorded")

    if without != "StatementPush":
        monkeypatch.setattr("revgrad.recording.GradientPush", refuse)
        monkeypatch.setattr("revgrad.recording._kept", OrderedDict())
    if without != "GradientPush":
        monkeypatch.setattr(stepping, "StatementPush", refuse)
    assert distance(hypergradient(rg.Forward(), 1.5), recorded) < 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lanes_give_what_each_of_them_would(dtype):
    x, w, u = (rng.standard_normal(s).astype(dtype) for s in ((6, 4), (4, 3), (3,)))

    def f(x, w):
        y = np.tanh(x @ w)

        def then(v, u):
            moved = (x @ v) * y + u - np.sum(v, axis=0)
            flat = np.concatenate([np.ravel(v[1:]), np.max(y) * u])
            return [moved, np.broadcast_to(u, (2, 3)), flat.reshape(-1, 3).T @ v, y]

        return [y], then

    lanes = Lanes(f, [x, w], [w, u], 70)
    assert lanes.widths == [1, 4, 16, 64]
    vs, us = (rng.standard_normal((93, *a.shape)).astype(dtype) for a in (w, u))
    lanes.start([x, w])
    one = [[p.copy() for p in lanes.push(1, [v, u])] for v, u in zip(vs, us, strict=True)]
    parts = list(lanes.chunks(0, 93))
    assert [p.stop - p.start for p in parts] == [64, 16, 4, 4, 4, 1]
    for p in parts[:-1]:
        found = lanes.push(p.stop - p.start, [vs[p], us[p]])
        for k, y in enumerate(found):
            expected = np.stack([row[k] for row in one[p]])
            assert y.shape == expected.shape and y.dtype == dtype
            np.testing.assert_allclose(y, expected, rtol=1e-4 if dtype == np.float32 else 1e-12)


# What it costs: products, memory.


def test_a_column_costs_nothing_before_its_first_step(monkeypatch):
    widths, push = [], pushes.GradientPush.push
    monkeypatch.setattr(
        pushes.GradientPush,
        "push",
        lambda self, r, h, out: (widths.append(len(out)), push(self, r, h, out)),
    )
    rg.grad(lambda r: outer(train_curved(HYPER | {"rate": r}, rg.Forward())))(HYPER["rate"])
    assert widths == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    widths.clear()
    hypergradient(rg.Forward(skip=0.34))
    assert widths == [3, 3, 6, 6, 9, 9]
    widths.clear()
    hypergradient(rg.Forward(first_order=True))
    assert widths == []


def wide(steps, count, size=40_000):
    """A cheap loss of many weights, with `count` rates."""
    report, target = rg.Report(), np.linspace(-1, 1, size)
    f = lambda w, _, t: 0.5 * np.sum((w - target) ** 2)

    def hyperloss(rates):
        optimizer = rg.HeavyBall(rg.per_step(rates, every=-(-steps // count)), 0.5)
        start = np.zeros(size)
        trained = rg.train(
            f, start, optimizer, np.array, steps=steps, adjoint=rg.Forward(), report=report
        )
        return np.sum(trained)

    tracemalloc.start()
    rg.grad(hyperloss)(np.full(count, 0.01))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, report.bytes_kept


def test_memory_is_that_of_the_columns_and_not_of_the_steps():
    size = 40_000
    (few, kept), (many, _) = wide(48, 8), wide(480, 8)
    assert kept == 8 * size * (2 * 8 + 1)  # tangents of params, of velocity; one of g at a time
    assert many - few < 0.1 * kept
    wider, more = wide(48, 16)
    assert more == 8 * size * (2 * 16 + 1)
    assert wider - few < 1.5 * kept


def test_a_clip_of_products_keeps_tangents_finite():
    bowl = lambda w, _, t: np.sum(np.cos(50 * w))

    def g(rate, adjoint):
        return np.sum(
            rg.train(bowl, np.ones(3), rg.SGD(rate), lambda t: t, steps=400, adjoint=adjoint)
        )

    with pytest.raises(rg.NotFinite, match=r"a tangent of params .*clip_products"):
        rg.grad(g)(0.1, rg.Forward())
    assert np.isfinite(rg.grad(g)(0.1, rg.Forward(clip_products=1.0)))


# At the door.


def test_a_repr_says_what_is_unusual():
    assert repr(rg.Forward()) == "Forward(memory='1GB')"
    assert (
        repr(rg.Forward("2GB", average=True, skip=0.1))
        == "Forward(memory='2GB', skip=0.1, average=True)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": 1.0}, r"Forward\(skip=1.0\); a share of the steps"),
        ({"skip": -0.1}, r"Forward\(skip=-0.1\)"),
        ({"clip_products": 0.0}, r"Forward\(clip_products=0.0\); a positive number"),
        ({"clip_products": np.nan}, "a positive number"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rg.Forward(**options)


def test_a_transposed_clip_needs_a_clip():
    train = lambda o: rg.train(
        loss, params_of(), o, batches_of(3), hyper=hyper_of(),
        adjoint=rg.Forward(transposed_clip=True),
    )  # fmt: skip
    message = r"is about Clip\(optimizer, bound\), not Momentum; leave it out"
    with pytest.raises(TypeError, match=message):
        train(rg.Momentum(0.1))
    train(rg.Clip(rg.Momentum(0.1), 1.0))
    learned = lambda bound: validation_loss(train(rg.Clip(rg.Momentum(0.1), bound)))
    with pytest.raises(TypeError, match="max_delta"):
        rg.grad(learned)(1.0)


def test_a_direction_is_not_averaged():
    f = lambda h: outer(train_curved(h, rg.Forward(average=True)))
    with pytest.raises(ValueError, match=r"take rg\.grad, or leave average out"):
        rg.jvp(f, (HYPER,), (HYPER,))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_ten_thousand_steps(kind):
    batches = batches_of(20, kind)

    def hyperloss(rates, adjoint, steps=10_000):
        optimizer = rg.HeavyBall(rg.per_step(rates, every=2_500), 0.9)
        trained = rg.train(
            loss, params_of(kind), optimizer, batches, steps=steps, hyper=hyper_of(kind),
            adjoint=adjoint,
        )  # fmt: skip
        return validation_loss(trained)

    rates = np.array([0.01, 0.02, 0.005, 0.002])
    tracemalloc.start()
    forward = rg.grad(hyperloss)(rates, rg.Forward())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # 20 weights
    back = rg.grad(hyperloss)(rates, rg.Reversible())
    np.testing.assert_allclose(forward, back, rtol=1e-9 if kind == "float64" else 1e-3)
