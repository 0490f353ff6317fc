"""SignDescent: the rule of algorithm 1 of Micaelli and Storkey, and what `minimize` does for it."""

import numpy as np
import pytest

import revgrad as rg

quiet = {"progress": False}


def by_hand(start, step, slope, count, decay=0.5):
    """Values of one number after 0, 1, ... outer steps."""
    x, before, trail = start, 0, [start]
    for k in range(count):
        g = slope(x, k)
        sign = 0 if g == 0 or np.isnan(g) else 1 if g > 0 else -1
        if sign * before == -1:
            step *= decay
        x, before = x - step * sign, sign
        trail.append(x)
    return trail


def trail_of(hyperloss, start, optimizer, count):
    seen = []
    found = rg.minimize(
        hyperloss, start, optimizer, until=count,
        callback=lambda step, metrics: seen.append(metrics["hyper"]), **quiet,
    )  # fmt: skip
    return [*seen, found.hyper], found


def test_the_rule():
    start = {"a": np.array([1.0, -2.0]), "b": 0.3}
    hyperloss = lambda h: np.sum((h["a"] - 0.4) ** 2) + 2 * (h["b"] + 1) ** 2
    optimizer = rg.SignDescent({"a": 0.5, "b": 0.25}, decay=0.25)
    trail, _ = trail_of(hyperloss, start, optimizer, 12)
    slope = lambda x, _: x - 0.4
    for k, x in enumerate(start["a"]):
        by = by_hand(x, 0.5, slope, 12, 0.25)
        assert [h["a"][k] for h in trail] == by and len(set(by)) > 4
    assert [h["b"] for h in trail] == by_hand(0.3, 0.25, lambda x, _: x + 1, 12, 0.25)


@pytest.mark.parametrize("middle", [0.0, np.nan])
def test_no_move_on_zero_or_nan_and_the_next_sign_is_no_flip(middle):
    slopes = [1.0, middle, -1.0, 1.0, middle, middle, -1.0, -1.0]
    trail, found = trail_of(lambda h, step: h * slopes[step], 0.0, rg.SignDescent(0.5), 8)
    assert trail == by_hand(0.0, 0.5, lambda _, k: slopes[k], 8)
    assert trail[1] == trail[2] == -0.5 and trail[3] == 0.0  # with the whole step
    assert len(found.values) == 8


@pytest.mark.parametrize("error", [rg.NotFinite, rg.FixedOverflow])
def test_a_run_that_diverges_moves_nothing(error):
    def hyperloss(h, step):
        if step == 1:
            raise error("step 3: the loss is nan", 0)
        return np.sum((h["rate"] - 1) ** 2)

    trail, found = trail_of(hyperloss, {"rate": np.zeros(2)}, rg.SignDescent(0.25), 3)
    assert [h["rate"].tolist() for h in trail] == [[0, 0], [0.25, 0.25], [0.25, 0.25], [0.5, 0.5]]
    assert np.isnan(found.values[1]) and found.best_value == found.values[2]
    with pytest.raises(error):
        rg.minimize(hyperloss, {"rate": np.zeros(2)}, rg.Adam(0.1), until=3, **quiet)


def test_others_refuse_a_gradient_that_is_not_finite():
    nan = lambda h: np.sum(h * np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="at outer step 0"):
        rg.minimize(nan, np.ones(2), rg.SGD(0.1), until=2, **quiet)
    found = rg.minimize(nan, np.ones(2), rg.SignDescent(0.25), until=2, **quiet)
    assert found.hyper.tolist() == [0.5, 1.0]


def test_it_stops_when_every_step_is_small_against_its_value():
    hyperloss = lambda h: np.sum((h["a"] - 1.1) ** 2) + (h["b"] - 2.03) ** 2
    start, steps = {"a": np.zeros(2), "b": 0.0}, {"a": 0.4, "b": 0.5}
    found = rg.minimize(hyperloss, start, rg.SignDescent(steps, close=0.1), until=100, **quiet)
    assert len(found.values) < 100
    size = {k: steps[k] * 0.5 ** found.state["flips"][k] for k in steps}
    assert all(np.all(size[k] < 0.1 * np.abs(found.hyper[k])) for k in steps)
    (before,) = [
        rg.minimize(hyperloss, start, rg.SignDescent(steps), until=len(found.values) - 1, **quiet)
    ]
    size = {k: steps[k] * 0.5 ** before.state["flips"][k] for k in steps}
    assert not all(np.all(size[k] < 0.1 * np.abs(before.hyper[k])) for k in steps)
    zero = rg.minimize(lambda h: 0.0 * h, 0.0, rg.SignDescent(0.1, close=0.5), until=4, **quiet)
    assert len(zero.values) == 4  # nothing is small against 0


def test_values_stay_within_bounds():
    start = {"a": np.zeros(2), "b": 0.0}
    hyperloss = lambda h: np.sum(h["a"] * np.array([1.0, -1.0])) - h["b"]
    move = lambda within: rg.minimize(
        hyperloss, start, rg.SignDescent(0.1), until=5, within=within, **quiet
    )
    found = move(({"a": np.array([-0.25, -9.0]), "b": 0.0}, {"a": 9.0, "b": 0.35})).hyper
    np.testing.assert_allclose(found["a"], [-0.25, 0.5])
    assert found["b"] == 0.35
    np.testing.assert_allclose(move((0, 1)).hyper["a"], [0, 0.5])


@pytest.mark.parametrize(
    ("within", "error", "message"),
    [
        ((0.1, 1.0), ValueError, r"hyper0\['a'\] is \[0. 0.\], not within 0.1 and 1.0"),
        ((1.0, -1.0), ValueError, "not within 1.0 and -1.0"),
        (({"c": 0.0}, 1.0), TypeError, "lowest, is a tree that is no prefix"),
        (0.5, TypeError, r"within=0.5; pass a tuple, \(lowest, highest\)"),
    ],
)
def test_bounds_that_cannot_be_are_refused(within, error, message):
    with pytest.raises(error, match=message):
        rg.minimize(lambda h: h["a"][0], {"a": np.zeros(2)}, rg.SignDescent(0.1), within=within)


def test_a_search_is_taken_up(tmp_path):
    hyperloss = lambda h, step: np.sum((h - np.cos(3 * step + np.arange(3))) ** 2)
    optimizer, path = rg.SignDescent(np.array([0.3, 0.2, 0.1])), tmp_path / "search"
    whole = rg.minimize(hyperloss, np.zeros(3), optimizer, until=9, **quiet)

    def stop(step, metrics):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rg.minimize(hyperloss, np.zeros(3), optimizer, until=9, callback=stop, save=path, **quiet)
    found = rg.minimize(hyperloss, np.zeros(3), optimizer, until=9, save=path, **quiet)
    assert found.hyper.tobytes() == whole.hyper.tobytes() and found.values == whole.values


@pytest.mark.parametrize("options", [{"decay": 1.5}, {"close": -0.1}, {"close": 1}])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=r"SignDescent\(.*a number in \[0, 1\) is wanted"):
        rg.SignDescent(0.1, **options)


def test_a_lost_run_turns_every_number_round():
    """Lost where a number is above 0.9: forward by 0.5, back by 0.25, forward by 0.125, ..."""
    hyperloss = lambda h: np.sum(np.where(h > 0.9, 9.0 - h, -h))  # whose slope says: go on
    trail, found = trail_of(hyperloss, 0.0, rg.SignDescent(0.5, lost=1.0), 8)
    assert trail == [0.0, 0.5, 1.0, 0.75, 0.875, 1.0, 0.9375, 0.875, 0.90625]
    assert found.values[5:7] == [8.0, 8.0625]  # lost twice in a row: on by as much
    plain, _ = trail_of(hyperloss, 0.0, rg.SignDescent(0.5), 8)
    assert plain == [0.5 * k for k in range(9)]


@pytest.mark.parametrize("how", ["value", "nan", "raises"])
def test_signs_of_a_lost_run_say_nothing(how):
    def hyperloss(h, step):
        value = np.sum((h - 3.0) ** 2) * (1e-9 if step == 2 else 1.0)
        if step == 2:
            if how == "raises":
                raise rg.NotFinite("step 3: the loss is nan", 3)
            return (50.0 if how == "value" else np.nan) - value
        return value

    trail, found = trail_of(hyperloss, np.zeros(2), rg.SignDescent(0.5, lost=1.0), 4)
    assert [h.tolist() for h in trail] == [[x, x] for x in (0.0, 0.5, 1.0, 0.75, 0.875)]
    assert found.best_value == found.values[3] == 2 * 2.25**2


def test_a_number_that_has_not_moved_stays_where_it_is_when_a_run_is_lost():
    hyperloss = lambda h, step: 100.0 + h["b"] if step == 1 else h["a"] + 0.0 * h["b"]
    trail, _ = trail_of(hyperloss, {"a": 0.0, "b": 0.0}, rg.SignDescent(0.5, lost=1.0), 2)
    assert trail[2] == {"a": -0.25, "b": 0.0}
    first = lambda h: h + np.where(h < 9.0, np.nan, 0.0)  # there is nothing to turn round from
    assert trail_of(first, 1.0, rg.SignDescent(0.5, lost=1.0), 3)[0] == [1.0] * 4


WRAPPED = {"Clip": lambda s: rg.Clip(s, 0.7), "average": lambda s: rg.WeightAverage(s, 0.5)}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_it_is_seen_through_wrappers(wrap):
    hyperloss = lambda h: np.sum(np.where(h > 0.9, 9.0 - h, -h))
    bare = rg.SignDescent(0.5, close=0.05, lost=1.0)
    trail, found = trail_of(hyperloss, 0.0, bare, 20)
    wrapped, end = trail_of(hyperloss, 0.0, wrap(bare), 20)
    assert wrapped == trail and end.values == found.values and len(trail) < 20  # it stopped

    def diverges(h, step):
        if step == 1:
            raise rg.NotFinite("step 3: the loss is nan", 3)
        return h**2

    assert np.isnan(rg.minimize(diverges, 1.0, wrap(bare), until=3, **quiet).values[1])


def test_the_best_of_a_search_that_was_taken_up_is_no_nan(tmp_path):
    stops = []

    def hyperloss(h, step):
        if step == 3 and not stops:
            stops.append(step)
            raise KeyboardInterrupt
        return h**2 + (np.nan if step == 0 else 0.0)

    given = {"until": 5, "save": tmp_path / "search", **quiet}
    with pytest.raises(KeyboardInterrupt):
        rg.minimize(hyperloss, 2.0, rg.SignDescent(0.5), **given)
    found = rg.minimize(hyperloss, 2.0, rg.SignDescent(0.5), **given)
    assert found.best_value == 0.0 == found.best_hyper


@pytest.mark.parametrize("lost", [-1.0, "much", np.nan, True])
def test_lost_is_a_number(lost):
    assert (
        rg.SignDescent(0.1, lost=np.float32(1)).lost == rg.SignDescent(0.1, lost=np.int64(1)).lost
    )
    with pytest.raises(ValueError, match=r"SignDescent\(lost=.*None or a number >= 0 is wanted"):
        rg.SignDescent(0.1, lost=lost)
