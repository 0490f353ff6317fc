"""RTRL: the influence matrix against forward mode, differences, the paper's recursion; options."""

import gc
import tracemalloc

import numpy as np
import optree
import pytest
from training import batches_of, bits, distance, hyper_of, loss, params_of

import revgrad as rg
from revgrad import recording
from revgrad.arguments import take_apart
from revgrad.online.fit import Fitting, take_step
from revgrad.online.influence import RankOne
from revgrad.online.paths import Paths

STEPS = 8
VALID = batches_of(STEPS, seed=5)
FIXED = {  # momenta are multiples of 2**-16, as `train` snaps others
    "sgd": (rg.SGD, {"learning_rate": 0.1, "weight_decay": 0.01}, 1e-10),
    "momentum": (rg.Momentum, {"learning_rate": 0.2, "momentum": 0.75, "weight_decay": 0.01}, 1e-7),
    "nesterov": (rg.Nesterov, {"learning_rate": 0.05, "momentum": 0.75}, 1e-7),
    "adam": (rg.Adam, {"learning_rate": 0.05, "b1": 0.75, "b2": 0.875}, 1e-7),
    "lion": (rg.Lion, {"learning_rate": 0.01, "b1": 0.75, "b2": 0.875, "weight_decay": 0.1}, 1e-7),
    "rmsprop": (rg.RMSProp, {"learning_rate": 0.02, "decay": 0.75, "momentum": 0.5}, 1e-7),
    "per layer": (
        rg.HeavyBall,
        {"learning_rate": {"hidden": 0.05, "out": 0.1}, "momentum": 0.75},
        1e-7,
    ),
}


def valid_loss(params, batch):
    return loss(params, optree.tree_map(np.zeros_like, hyper_of()), batch)


def rtrl(rate=0.0, **options):
    return rg.RTRL(valid_loss, VALID, rate, **options)


def bound(optimizer, steps=STEPS, kind="float64", f=loss):
    """(Fitting, tuner), as `fit` makes them."""
    run, values = take_apart(
        f, params_of(kind), optimizer, batches_of(steps, kind), steps=None, hyper=hyper_of(kind),
        state=None, has_aux=False, watch=None, watch_moves=False, callback=None,
        report=rg.Report(), arithmetic=None, saving=None,
    )  # fmt: skip
    fitting = Fitting.of(run, values, optimizer)
    return fitting, fitting.tuner()


def influence_of(optimizer, steps=STEPS, **options):
    """(tuner, paths) after some steps."""
    (fitting, tuner), paths = bound(optimizer, steps, **options), Paths()
    for t in range(steps):
        take_step(fitting, tuner, paths, t, [])
    return tuner, paths


def matrix(optimizer, **options):
    return influence_of(optimizer, **options)[0].influence.rows.params.copy()


def fit(tuner, steps=STEPS, kind="float64", base=None, **options):
    optimizer = base or rg.SGD(0.1, weight_decay=0.01)
    optimizer = optimizer.with_hyper({"tuned_by": tuner})
    given = {"hyper": hyper_of(kind), "steps": steps} | options
    return rg.fit(loss, params_of(kind), optimizer, batches_of(STEPS, kind), **given)


@pytest.mark.parametrize("name", FIXED)
def test_what_is_carried_is_forward_mode_s_jacobian(name):
    kind, given, tolerance = FIXED[name]
    eps = {"eps": 1e-2} if name in ("adam", "rmsprop") else {}
    found = matrix(kind(**given, **eps, tuned=tuple(given), tuned_by=rtrl(hyper=True)))

    def trained(at):
        optimizer = kind(**at["of optimizer"], **eps)
        options = {"hyper": at["hyper"], "adjoint": rg.Forward()}
        params = rg.train(loss, params_of(), optimizer, batches_of(STEPS), **options)
        return np.concatenate([np.ravel(x) for x in optree.tree_leaves(params)])

    columns = rg.jacfwd(trained)({"of optimizer": given, "hyper": hyper_of()})
    rows = {**columns.pop("of optimizer"), **columns}  # as the tuner has them: all by name
    expected = np.hstack([x.reshape(len(x), -1) for x in optree.tree_leaves(rows)]).T
    assert np.max(np.abs(found - expected)) < tolerance * np.max(np.abs(expected))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda r, tuner: rg.SGD(np.exp(r), tuned_by=tuner, transforms={"learning_rate": "exp"}),
        lambda r, tuner: rg.Adam(
            {"hidden": {"bias": np.full(4, np.exp(r)), "weights": 0.05}, "out": 0.05}, eps=1e-2,
            tuned_by=tuner, tuned=("learning_rate",), transforms={"learning_rate": "exp"},
        ),
        lambda r, tuner: rg.ClipByGlobalNorm(
            rg.Momentum(np.exp(r)), 0.5, tuned_by=tuner, tuned=("learning_rate",),
            transforms={"learning_rate": "exp"},
        ),
    ],
)  # fmt: skip
def test_slopes_are_difference_quotients(optimizer):
    """Of the validation loss, by raw numbers that all steps so far have used."""
    at = np.log(0.05)

    def validation(r):
        plain = optimizer(r, rtrl()).untuned
        trained, _ = rg.fit(loss, params_of(), plain, batches_of(STEPS)[:-1], hyper=hyper_of())
        return valid_loss(trained, VALID[STEPS - 1])

    tuner, paths = influence_of(optimizer(at, rtrl()))
    slope = tuner.slopes[0]
    moved = slope.sum() if len(slope) == 1 else slope[:4].sum()  # of these alone
    expected = (validation(at + 1e-5) - validation(at - 1e-5)) / 2e-5
    assert abs(expected) > 1e-4
    assert moved == pytest.approx(expected, rel=1e-6)
    assert paths["valid loss"][-1] == pytest.approx(validation(at), rel=1e-9)


def test_the_paper_s_recursion_with_what_it_learns():
    """Section 4.1 with the omitted sources, c = 1; clamps as in the authors' code."""
    rates, decay_at_most = (0.05, 0.02), 0.02

    by_name = {"learning_rate": rates[0], "weight_decay": rates[1]}
    tuned_by = rg.RTRL(valid_loss, VALID, by_name, bounds={"weight_decay": (0.0, decay_at_most)})
    tuner, paths = influence_of(rg.SGD(0.1, weight_decay=0.015, tuned_by=tuned_by))
    leaves, tree = optree.tree_flatten(params_of())
    ends = np.cumsum([x.size for x in leaves])[:-1]
    apart = lambda x: [p.reshape(q.shape) for p, q in zip(np.split(x, ends), leaves, strict=True)]
    unflat = lambda x: optree.tree_unflatten(tree, apart(x))
    flat = lambda p: np.concatenate([np.ravel(x) for x in optree.tree_leaves(p)])
    w, a, l = flat(params_of()), 0.1, 0.015
    by_a, by_l, clipped = np.zeros_like(w), np.zeros_like(w), 0
    for t, batch in enumerate(batches_of(STEPS)):
        f = lambda p, b=batch: loss(p, hyper_of(), b)
        if t:
            g_valid = flat(rg.grad(valid_loss)(unflat(w), VALID[t]))
            a, l = max(0.0, a - rates[0] * g_valid @ by_a), l - rates[1] * g_valid @ by_l
            clipped += not 0 <= l <= decay_at_most
            l = min(max(l, 0.0), decay_at_most)
        assert paths["learning_rate"][t] == pytest.approx(a, rel=1e-12)
        assert paths["weight_decay"][t] == pytest.approx(l, rel=1e-12)
        g = flat(rg.grad(f)(unflat(w)))
        product = lambda v, f=f, w=w: flat(rg.hvp(f, (unflat(w),), (unflat(v),))[1])
        by_a, by_l = (
            by_a - a * (product(by_a) + l * by_a) - (g + l * w),
            by_l - a * (product(by_l) + l * by_l) - a * w,
        )
        w = w - a * (g + l * w)
    np.testing.assert_allclose(tuner.influence.rows.params, [by_a, by_l], rtol=1e-10)
    assert a != pytest.approx(0.1, rel=0.01)
    assert clipped


def test_with_a_reset_at_each_step_and_the_training_loss_it_is_a_tower():
    options = {"base": rg.Adam(0.05, eps=1e-2, tuned_by=None), "steps": STEPS}
    greedy, paths = fit(rg.RTRL(learning_rate=0.01, reset=1), **options)
    tower, expected = fit(rg.SGD(0.01), **options)
    assert distance(greedy, tower) < 1e-12
    np.testing.assert_allclose(paths["b1"], expected["b1"], rtol=1e-12)
    assert "valid loss" not in paths


def test_a_tower_may_stand_above_it():
    above = rg.SGD(0.01, tuned_by=rg.SGD(1e-3))
    _, paths = fit(rg.RTRL(valid_loss, VALID, optimizer=above))
    assert len(set(paths["tuned_by.learning_rate"])) > 4


def test_shared_influences_sum_to_the_exact_total():
    rates = {"hidden": 0.1, "out": 0.2}
    given = {"weight_decay": 0.01, "tuned": ("learning_rate",)}
    exact, _ = influence_of(rg.SGD(rates, tuned_by=rtrl(), **given))
    shared, paths = influence_of(rg.SGD(rates, tuned_by=rtrl(shared=True), **given))
    assert shared.influence.rows.count == 1 < exact.influence.rows.count
    a, b = exact.slopes[0], shared.slopes[0]
    assert b.sum() == pytest.approx(a.sum(), rel=1e-12)
    assert np.max(np.abs(a - b)) > 1e-3 * np.max(np.abs(a))
    assert paths["influence of learning_rate"][-1] > 0
    one, _ = influence_of(rg.SGD(0.1, weight_decay=0.01, tuned_by=rtrl(shared=True)))
    np.testing.assert_array_equal(
        one.influence.rows.params, matrix(rg.SGD(0.1, weight_decay=0.01, tuned_by=rtrl()))
    )


# Random products.


@pytest.mark.parametrize("rank", [1, 3])
def test_random_products_have_the_matrix_as_their_mean(rank):
    assert _deviation(rank) < 4.5


def test_and_the_test_would_see_a_bias(monkeypatch):
    right = RankOne.follow

    def wrong(self, push, t):
        right(self, push, t)
        self.weights *= 1.2

    monkeypatch.setattr(RankOne, "follow", wrong)
    assert _deviation(1) > 4.5


def _deviation(rank, runs=800, steps=3):
    """How far the mean over signs is off, at most, in standard errors of an entry."""
    given = {"learning_rate": {"hidden": 0.1, "out": 0.2}, "weight_decay": 0.1}
    exact = matrix(rg.SGD(**given, tuned_by=rtrl(hyper=True)), steps=steps)
    optimizer = rg.SGD(**given, tuned_by=rtrl(hyper=True, rank=rank))
    fitting, tuner = bound(optimizer, steps)
    influence, start = tuner.influence, fitting.bottom.state
    total, squares = np.zeros_like(exact), np.zeros_like(exact)
    for influence.seed in range(runs):
        fitting.bottom.state = {name: x.copy() for name, x in start.items()}
        influence.clear()
        for t in range(steps):
            take_step(fitting, tuner, Paths(), t, [])
        x = influence.matrix()
        total, squares = total + x, squares + x * x
    mean = total / runs
    error = np.sqrt((squares / runs - mean**2) / (runs - 1))
    return np.max(np.abs(mean - exact) / error)


def test_the_norm_told_is_that_of_the_estimate():
    optimizer = rg.HeavyBall(0.05, 0.5, tuned=("learning_rate",), tuned_by=rtrl(rank=2))
    tuner, paths = influence_of(optimizer)
    expected = np.linalg.norm(tuner.influence.matrix())
    assert paths["influence of learning_rate"][-1] == pytest.approx(expected, rel=1e-9)


# Products by differences.


def test_exact_products_are_closer_than_differences():
    optimizer = lambda **how: rg.SGD(0.1, weight_decay=0.01, tuned_by=rtrl(hyper=True, **how))
    truth = matrix(optimizer())
    exact, differences = (
        matrix(optimizer(products=p), kind="float32") for p in ("exact", "differences")
    )
    off = [np.max(np.abs(x - truth)) / np.max(np.abs(truth)) for x in (exact, differences)]
    assert off[0] < 3e-6 < 1e-5 < off[1] < 0.05


def test_a_loss_that_cannot_be_recorded_has_the_same_influence():
    def branching(params, hyper, batch):
        value = loss(params, hyper, batch)
        return value if value > 0 else -value

    optimizer = rg.Adam(0.05, eps=1e-2, tuned_by=rtrl(hyper=True))
    np.testing.assert_allclose(
        matrix(optimizer, f=branching), matrix(optimizer), rtol=1e-9, atol=1e-12
    )


# What learns, what is told, how it goes on.


def test_leaves_of_hyper_learn_if_they_are_named():
    some = {"l2": {"hidden": True, "out": False}, "shift": True}
    _, paths = fit(rtrl(1e-3, hyper=some))
    assert len(set(paths["hyper['l2']['hidden']"])) > 4 and len(set(paths["hyper['shift']"])) > 4
    assert not any("out" in name for name in paths)
    alone = rg.SGD(0.1, tuned=(), tuned_by=rtrl({"hyper": {"l2": 1e-3, "shift": 0.0}}, hyper=True))
    _, paths = rg.fit(loss, params_of(), alone, batches_of(STEPS), hyper=hyper_of())
    assert "learning_rate" not in paths and len(set(paths["hyper['l2']['out'] mean"])) > 4
    assert len(set(paths["hyper['shift']"])) == 1


@pytest.mark.parametrize("one", [0.1, np.float32(0.1), np.array(0.1, np.float32)])
def test_numbers_of_hyper_keep_their_kind(one):
    seen = []

    def f(params, h, batch):
        seen.append(getattr(h, "value", h))
        return loss(params, hyper_of("float32") | {"shift": h}, batch)

    given = params_of("float32"), rg.SGD(0.1, tuned=(), tuned_by=rtrl(0.1, hyper=True))
    _, paths = rg.fit(f, *given, batches_of(2, "float32"), hyper=one)  # too short to be recorded
    assert len(set(paths["hyper"])) == 1 and {type(x) for x in seen} == {type(one)}
    _, paths = rg.fit(f, *given, batches_of(6, "float32"), hyper=one)
    assert len(set(paths["hyper"])) == 5  # in the first step nothing is known yet, nor moved


def test_what_is_told():
    _, paths = fit(rtrl(1e-3, diagnose=2, every=3), steps=7)
    assert np.isfinite(paths["valid loss"]).tolist() == [False] * 3 + [True, False, False, True]
    norms = paths["norm of the step's Jacobian"]
    assert np.isfinite(norms).tolist() == [True, False] * 3 + [True]
    assert len(set(paths["learning_rate"])) == 3  # at steps 0, 3 and 6
    cosines = paths["cosine of gradients"][2::2]
    assert np.all(np.abs(cosines) < 1) and np.all(cosines != 0)


def test_the_norm_of_the_jacobian_is_that_of_i_minus_rate_times_hessian():
    h = np.diag([5.0, 1.0, 0.1])
    f = lambda p, _, b: 0.5 * p @ h @ p + 0.0 * np.sum(b)
    tuner = rg.RTRL(learning_rate=0.0, diagnose=1)
    _, paths = rg.fit(f, np.ones(3), rg.SGD(0.3, tuned_by=tuner), [np.zeros(1)] * 60)
    norms = paths["norm of the step's Jacobian"]
    assert norms[0] < norms[-1] == pytest.approx(0.97, rel=1e-3)
    assert paths["cosine of gradients"][1] < 1


def test_an_influence_that_blows_up_stops_with_advice():
    with pytest.raises(rg.NotFinite, match=r"influence of .*reset=1000"):
        fit(rtrl(limit=2.0))
    f = lambda p, _, b: 0.5 * np.sum(p * p) + 0.0 * np.sum(b)
    unstable = rg.SGD(2.5, tuned_by=rg.RTRL(learning_rate=0.0))
    with pytest.raises(rg.NotFinite, match="unstable"):
        rg.fit(f, np.ones(3), unstable, [np.zeros(1)] * 200)


RUNS = {
    "exact": rtrl(1e-3, hyper=True, diagnose=2, every=2),
    "adam above": rg.RTRL(valid_loss, VALID, optimizer=rg.Adam(1e-3, eps=1e-2), reset=4),
    "rank": rtrl(1e-3, rank=2, hyper=True),
    "shared": rtrl(1e-3, shared=True),
}


@pytest.mark.parametrize("kind", ["float64", "float32"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(name, kind, tmp_path):
    options = {"kind": kind, "base": rg.Adam(0.05, b2=0.9, eps=1e-2), "save_every": 1}
    whole = fit(RUNS[name], **(options | {"save_every": None}))

    def stop(t, _):
        if t == 5:
            raise KeyboardInterrupt

    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(RUNS[name], save=path, callback=stop, **options)
    assert path.exists()
    trained, paths = fit(RUNS[name], save=path, **options)
    assert bits(trained) == bits(whole[0])
    assert bits(dict(paths)) == bits(dict(whole[1]))
    with pytest.raises(KeyboardInterrupt):
        fit(RUNS[name], save=path, callback=stop, **options)
    with pytest.raises(rg.RevgradError, match="another optimizer"):
        fit(rtrl(2e-3), save=path, **options)


def test_a_stream_takes_no_more_memory_as_it_goes_on():
    stream, size = lambda t: np.sin(t + np.arange(4.0)), 5_000
    f = lambda p, _, b: np.mean(np.tanh(p[:4] * b) ** 2) + np.mean(p * p)
    tuner = rg.RTRL(lambda p, b: f(p, None, b), stream, 1e-4)

    def peak(steps):
        tracemalloc.start()
        rg.fit(f, np.ones(size), rg.SGD(0.1, tuned_by=tuner), stream, steps=steps)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    few, many = peak(100), peak(1000)
    assert many - few < 8 * 8 * 900 * 1.5 + 20_000  # the rows of `Paths` alone


@pytest.mark.parametrize(
    ("rates", "spread"), [(0.1, 0), ({"one": 0.1, "two": 0.2}, 3)], ids=["one", "by layer"]
)
def test_it_holds_a_vector_for_each_number_that_learns_and_two(rates, spread):
    """Like the params, and beside what plain training holds; activations are small here.

    Rates by layer are spread over the params: they, one of their directions, and a product.
    """
    batches = [np.full((3, 400), 0.1 * (t + 1)) for t in range(6)]
    f = lambda p, _, x: np.mean(np.tanh(x @ p["one"]) ** 2) + np.mean(np.tanh(x @ p["two"]) ** 2)
    params = {"one": np.full((400, 20), 0.01), "two": np.full((400, 30), 0.02)}
    size = 400 * 50

    def held(optimizer):
        found = []

        def look(t, _):
            blocks = tracemalloc.take_snapshot().traces if t == 5 else ()
            found.extend(x.size / 8 / size for x in blocks if x.size > 8 * 400 * 10)

        recording._kept.clear()
        gc.collect()
        tracemalloc.start()
        rg.fit(f, params, optimizer, batches, callback=look)
        tracemalloc.stop()
        return sum(found)

    tuned_by = rg.RTRL(lambda p, x: f(p, None, x), batches[::-1], 1e-3)
    learns = rg.SGD(rates, weight_decay=0.01, tuned_by=tuned_by)
    numbers = 1 + len(optree.tree_leaves(rates))
    beyond = held(learns) - held(rg.SGD(rates, weight_decay=0.01))
    assert beyond == pytest.approx(numbers + 2 + spread, abs=0.05)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: rg.RTRL(valid_loss, learning_rate=0.1), TypeError, "both, or neither"),
        (lambda: rg.RTRL(0.1, VALID, 0.1), TypeError, "a function"),
        (lambda: rg.RTRL(valid_loss, VALID), TypeError, "either learning_rate="),
        (lambda: rg.RTRL(valid_loss, VALID, optimizer="adam"), TypeError, "is a str"),
        (lambda: rtrl(every=0), ValueError, "RTRL(every)"),
        (lambda: rtrl(reset=0.5), ValueError, "RTRL(reset)"),
        (lambda: rtrl(products="fd"), ValueError, "differences"),
        (lambda: rtrl(shared=True, rank=2), ValueError, "choose one"),
        (lambda: rg.RTRL(learning_rate=0.1, hyper=True), ValueError, "whenever its penalties do"),
        (lambda: fit(rtrl(bounds={"b1": (0, 1)})), ValueError, "learn"),
        (lambda: fit(rtrl(hyper={"l3": True})), TypeError, "no prefix"),
        (lambda: fit(rtrl(hyper=True), hyper=None), ValueError, "no floats"),
        (
            lambda: fit(rtrl(hyper=True), hyper=hyper_of() | {"shift": rg.per_step(np.zeros(8))}),
            TypeError,
            "per_step",
        ),
        (lambda: rg.SGD(0.1, tuned_by=rg.SGD(0.1, tuned_by=rtrl())), None, "at the bottom alone"),
        (lambda: fit(rtrl(bounds={"weight_decay": (0.1, 1)})), rg.LeftDomain, "at the start"),
    ],
)
def test_refusals(make, error, says):
    if error is None:  # refused where it is bound
        optimizer, error = make(), TypeError
        make = lambda: rg.fit(loss, params_of(), optimizer, batches_of(2), hyper=hyper_of())
    with pytest.raises(error) as found:
        make()
    assert says in str(found.value)


def test_it_shows_what_it_is():
    assert repr(rg.SGD(0.1, tuned_by=rtrl(1e-5))).startswith("sgd / RTRL(learning_rate=1e-05")
