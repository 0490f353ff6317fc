"""Towers: hypergradients at every level, what may be tuned, and as what."""

from itertools import pairwise

import numpy as np
import optree
import pytest
from training import batches_of, distance, hyper_of, loss, params_of

import revgrad as rg
from revgrad.arguments import take_apart
from revgrad.constraints import Constraint
from revgrad.online.fit import Fitting

STEPS = 6
TOWERS = {
    "sgd": rg.SGD(0.1, tuned_by=rg.SGD(0.02, tuned_by=rg.SGD(0.01))),
    "decay": rg.SGD(0.1, weight_decay=0.01, tuned_by=rg.SGD(0.01)),
    "momentum": rg.Momentum(0.2, 0.8, tuned_by=rg.HeavyBall(0.01, 0.5, tuned_by=rg.SGD(0.01))),
    "nesterov": rg.Nesterov(0.05, 0.8, tuned_by=rg.Adam(0.01, eps=1e-3)),
    # The first step of Adam does not depend on b1 and b2: a tiny eps above makes noise of that 0.
    "adam": rg.Adam(
        0.05, b2=0.9, eps=1e-3, tuned_by=rg.Adam(0.01, b2=0.9, eps=1e-3, tuned_by=rg.SGD(1e-3))
    ),
    "adamw": rg.AdamW(0.05, b2=0.9, eps=1e-3, tuned_by=rg.SGD(1e-3)),
    "eps too": rg.Adam(0.05, eps=1e-2, tuned=("eps", "learning_rate"), tuned_by=rg.SGD(1e-4)),
    "rmsprop": rg.RMSProp(
        0.02, eps=1e-2, tuned_by=rg.RMSProp(1e-3),
        transforms={"learning_rate": "square", "decay": "half_tanh"},
    ),
    "adagrad": rg.AdaGrad(0.1, eps=1e-2, momentum=0.5, tuned_by=rg.AdaGrad(0.01)),
    "adadelta": rg.AdaDelta(0.7, 0.9, 1e-2, tuned_by=rg.AdaDelta(0.1, eps=1e-4)),
    "exp": rg.SGD(
        0.1, tuned_by=rg.SGD(0.1, tuned_by=rg.SGD(0.1), transforms={"learning_rate": "exp"}),
        transforms={"learning_rate": "exp"},
    ),
    "clipped": rg.Clip(rg.HeavyBall(0.05, 0.8), 0.3, tuned_by=rg.SGD(0.01)),
    "clipped by norm": rg.ClipByGlobalNorm(rg.Adam(0.05, eps=1e-2), 0.5, tuned_by=rg.SGD(0.01)),
    "per layer": rg.HeavyBall(
        {"hidden": 0.05, "out": 0.1}, 0.8,
        tuned_by=rg.SGD({"learning_rate": 0.01, "momentum": 0.1}),
    ),
    "per weight": rg.SGD(
        {"hidden": {"bias": np.full(4, 0.1), "weights": np.full((3, 4), 0.1)}, "out": 0.1},
        tuned_by=rg.Adam(0.01, eps=1e-2, tuned_by=rg.SGD(1e-3)),
        transforms={"learning_rate": "exp"},
    ),
    "a bias alone": rg.SGD(
        {"hidden": {"bias": np.full(4, 0.1), "weights": 0.1}, "out": np.full(4, 0.1)},
        tuned_by=rg.SGD({"learning_rate": {"hidden": 0.02, "out": 0.0}}),
    ),
}  # fmt: skip


def built(optimizer, kind="float64"):
    """(Fitting, its Tower) as `fit` builds them."""
    run, values = take_apart(
        loss, params_of(kind), optimizer, batches_of(STEPS, kind), steps=None,
        hyper=hyper_of(kind), state=None, has_aux=False, watch=None, watch_moves=False,
        callback=None, report=rg.Report(), arithmetic=None, saving=None,
    )  # fmt: skip
    fitting = Fitting.of(run, values, optimizer)
    return fitting, fitting.tuner()


def run_to(fitting, tower, t):
    """Take t steps, and find the slopes at the gradient after them."""
    for now in range(t + 1):
        _, g = fitting.look(now)
        tower.look(now, g)
        if now < t:
            tower.move(now)
            fitting.bottom.step(now, g)


def loss_after(name, level, nudge, t=STEPS - 1):
    """The loss at step t, had the raw knobs of a level been moved as they made step t - 1."""
    fitting, tower = built(TOWERS[name])
    run_to(fitting, tower, t - 1)
    _, g = fitting.look(t - 1)
    for k in reversed(range(len(tower.levels))):
        at = tower.levels[k]
        if k == level:
            at.knobs.raw = at.knobs.raw + nudge
        at.step(t - 1, tower.slopes[k - 1] if k else g)
        if k:
            tower.levels[k - 1].knobs.raw = at.state["params"]
    return float(fitting.look(t)[0][0])


@pytest.mark.parametrize("name", TOWERS)
def test_hypergradients_of_every_level_are_difference_quotients(name):
    fitting, tower = built(TOWERS[name])
    run_to(fitting, tower, STEPS - 1)
    rng = np.random.default_rng(0)
    for level, slope in enumerate(tower.slopes):
        direction = rng.standard_normal(len(slope))
        ahead, behind = (loss_after(name, level, e * direction) for e in (1e-6, -1e-6))
        expected = slope @ direction
        assert abs(expected) > 1e-7, level
        assert (ahead - behind) / 2e-6 == pytest.approx(expected, rel=2e-3, abs=1e-8), level
    assert all(level.pulled.run for level in tower.levels[:-1])  # none runs as it is


@pytest.mark.parametrize("name", TOWERS)
def test_float32_follows_float64(name):
    both = [
        rg.fit(loss, params_of(k), TOWERS[name], batches_of(STEPS, k), hyper=hyper_of(k))
        for k in ("float64", "float32", "mixed")
    ]
    (exact, paths), *others = both
    for trained, found in others:
        assert distance(trained, exact) < 1e-4
        for key in paths:
            np.testing.assert_allclose(found[key], paths[key], rtol=1e-4)
    dtypes = [[x.dtype for x in optree.tree_leaves(t)] for t, _ in others]
    assert dtypes == [
        [x.dtype for x in optree.tree_leaves(params_of(k))] for k in ("float32", "mixed")
    ]


def test_a_tower_of_rate_zero_is_the_optimizer_below():
    plain, _ = rg.fit(loss, params_of(), rg.Adam(0.05), batches_of(STEPS), hyper=hyper_of())
    still = rg.Adam(0.05, tuned_by=rg.SGD(0.0, tuned_by=rg.SGD(0.0)))
    tuned, paths = rg.fit(loss, params_of(), still, batches_of(STEPS), hyper=hyper_of())
    assert distance(tuned, plain) < 1e-14
    assert set(paths["learning_rate"]) == {0.05} and set(paths["b1"]) == {0.9}


def test_the_paper_s_rule_for_sgd():
    """Equation 2 of Baydin et al. 2018: the rate moves by the product of successive gradients."""
    gradients = []

    def seen(params, _, batch):
        return loss(params, hyper_of(), batch)

    def keep(t, params):
        gradients.append(rg.grad(seen)(params, None, batches_of(STEPS)[t]))
        return 0.0

    _, paths = rg.fit(
        seen, params_of(), rg.SGD(0.1, tuned_by=rg.SGD(0.01)), batches_of(STEPS), watch=keep
    )
    inner = [
        sum(np.sum(a * b) for a, b in zip(*map(optree.tree_leaves, pair), strict=True))
        for pair in pairwise(gradients)
    ]
    np.testing.assert_allclose(np.diff(paths["learning_rate"]), 0.01 * np.array(inner), rtol=1e-9)


# What may be said.


def test_names_of_towers():
    assert repr(rg.Adam(1e-3, tuned_by=rg.SGD(1e-5))) == "adam / sgd"
    three = rg.SGD(0.1, tuned_by=rg.Adam(1e-3, tuned_by=rg.Clip(rg.SGD(0.1), 1.0)))
    assert repr(three) == "sgd / adam / clip(sgd)"
    assert repr(rg.SGD(0.1)) == "SGD(learning_rate=0.1, weight_decay=None)"
    assert repr(three.untuned) == "SGD(learning_rate=0.1, weight_decay=None)"


def test_what_is_tuned_by_default():
    _, paths = rg.fit(
        loss, params_of(), rg.Adam(0.05, initial_scale=1e-8, tuned_by=rg.SGD(1e-4)),
        batches_of(2), hyper=hyper_of(),
    )  # fmt: skip
    assert {*paths} == {"learning_rate", "b1", "b2"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: rg.SGD(0.1, tuned_by=1e-5), "tuned_by=...) is a float"),
        (lambda: rg.SGD(0.1, tuned=("learning_rate",)), "without tuned_by"),
        (lambda: rg.SGD(0.1, transforms={}), "without tuned_by"),
        (lambda: rg.SGD(0.1, tuned="learning_rate", tuned_by=rg.SGD(1)), "pass a tuple"),
        (lambda: rg.SGD(0.1, tuned=("momentum",), tuned_by=rg.SGD(1)), "['momentum']"),
        (lambda: rg.SGD(0.1, tuned=("weight_decay",), tuned_by=rg.SGD(1)), "None take no part"),
        (lambda: rg.SGD(0.1, tuned=(), tuned_by=rg.SGD(1)), "nothing is tuned"),
        (lambda: rg.SGD(0.1, tuned_by=rg.SGD(1), transforms={"b1": "exp"}), "tuned are"),
        (
            lambda: rg.SGD(0.1, tuned_by=rg.SGD(1), transforms={"learning_rate": "log"}),
            "choose one of",
        ),
        (lambda: rg.Clip(rg.SGD(0.1, tuned_by=rg.SGD(1)), 1.0), "tune the whole"),
    ],
)
def test_what_cannot_be_tuned_is_refused_at_construction(make, says):
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert says in str(caught.value)


def fit(optimizer, steps=STEPS, **options):
    return rg.fit(
        loss, params_of(), optimizer, batches_of(STEPS), hyper=hyper_of(), steps=steps, **options
    )


def test_what_varies_in_time_is_not_tuned_as_well():
    schedule = rg.per_step(np.linspace(0.1, 0.01, STEPS))
    with pytest.raises(TypeError, match="per_step and is tuned"):
        fit(rg.HeavyBall(schedule, 0.8, tuned_by=rg.SGD(0.01)))
    _, paths = fit(rg.HeavyBall(schedule, 0.8, tuned=("momentum",), tuned_by=rg.SGD(0.01)))
    assert [*paths] == ["momentum"]
    _, paths = fit(rg.SGD(0.1, tuned_by=rg.SGD(rg.per_step(np.array([0.1, 0, 0]), every=2))))
    assert len({*paths["learning_rate"]}) == 2  # the rate moves at steps 0 and 1 alone; at 0 by 0


def test_aux_is_read_at_the_bottom_alone():
    def with_aux(params, hyper, batch):
        return loss(params, hyper, batch), {"mean": np.mean(params["out"])}

    below = rg.AuxAverage(rg.SGD(0.1), 0.5, tuned=("learning_rate",), tuned_by=rg.SGD(0.01))
    args = params_of(), below, batches_of(STEPS)
    _, paths, state = rg.fit(with_aux, *args, hyper=hyper_of(), has_aux=True, return_state=True)
    assert len(paths["learning_rate"]) == STEPS and state["aux_average"]["mean"].shape == ()
    with pytest.raises(TypeError, match="only be at the bottom"):
        fit(rg.SGD(0.1, tuned_by=rg.AuxAverage(rg.SGD(0.1), 0.5)))


# Domains.


def test_leaving_a_domain_raises():
    with pytest.raises(
        rg.LeftDomain, match=r"SGD\(learning_rate=...\) is -.* at step \d"
    ) as caught:
        fit(rg.SGD(0.1, tuned_by=rg.SGD(100.0)))
    assert caught.value.name == "learning_rate" and caught.value.step > 0
    assert "Since step 0 of sgd / sgd: learning_rate 0.1 to 0.1" in str(caught.value)


def test_a_start_outside_a_domain_raises():
    with pytest.raises(rg.LeftDomain, match="at the start"):
        fit(rg.HeavyBall(0.1, 1.0, tuned_by=rg.SGD(0.1)))
    with pytest.raises(ValueError, match="a number above 0 is wanted"):
        fit(rg.SGD(0.0, tuned_by=rg.SGD(0.1), transforms={"learning_rate": "exp"}))


def test_free_goes_where_it_will():
    _, paths = fit(
        rg.SGD(0.01, tuned_by=rg.SGD(0.2), transforms={"learning_rate": "free"}), steps=60
    )
    assert paths["learning_rate"].min() < 0


@pytest.mark.parametrize("transform", ["exp", "square", "sigmoid", "half_tanh"])
def test_a_transform_keeps_inside(transform):
    _, paths = fit(
        rg.SGD(0.1, tuned_by=rg.Adam(0.5), transforms={"learning_rate": transform}), steps=40
    )
    assert paths["learning_rate"].min() > 0
    assert np.ptp(paths["learning_rate"]) > 0.05


def test_a_transform_of_one_s_own():
    doubled = Constraint(
        "doubled", "any number", lambda x: 2 * x, lambda x: x / 2, lambda x: x == x
    )
    own = fit(rg.SGD(0.1, tuned_by=rg.SGD(0.01), transforms={"learning_rate": doubled}))[1]
    same = fit(rg.SGD(0.1, tuned_by=rg.SGD(0.04)))[1]  # half the number, twice the slope
    np.testing.assert_allclose(own["learning_rate"], same["learning_rate"], rtol=1e-12)
